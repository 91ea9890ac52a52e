"""Packs cut-outs and backgrounds once, resized, for fast training (docs/data.md).

python main.py --config=configs/prepare.py --config.cutouts=xpaste:pool.json --config.backgrounds=folder:bg20k \
    --workdir=packed
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What is packed; every entry can be overridden on the command line."""
    config = ConfigDict()
    config.program = "prepare"
    config.cutouts = ""  # twemoji, fluent:DIR, tuxpaint:DIR, folder:DIR, xpaste:POOL; empty packs none
    config.backgrounds = ""  # photos, folder:DIR; empty packs none
    config.exclude = ()  # names and groups (@coco, @voc) that are not packed; X-Paste's split needs none
    config.side = 224  # pixels: of the pictures that are trained on, and of the longer side of a cut-out
    config.background_side = 0  # other than `side`: larger, where scenes crop their backgrounds
    config.tfds = False  # also as a set of tensorflow-datasets, workdir/tfds_backgrounds/1.0.0, for others to read
    config.threads = 2
    config.on_bad_record = "skip"  # skip (and count), refuse
    return config
