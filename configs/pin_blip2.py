"""PIN on BLIP-2. Variants: `opt-2.7b`, `opt-6.7b` and `flan-t5-xl`, the published models at full size; `tiny`, a small
one that ships with the project.

  python main.py --config=configs/pin_blip2.py:tiny --workdir=runs/tiny_blip2
  python main.py --config=configs/pin_blip2.py:opt-2.7b --workdir=runs/blip2 --config.scenes.cutouts=folder:xpaste \
      --config.scenes.backgrounds=folder:bg20k/train
  python main.py --config=configs/pin_blip2.py:opt-2.7b --workdir=runs/plan --config.run=compile \
      --config.topology=v5e:4x4 --config.mesh.fsdp=16
"""

from ml_collections import ConfigDict

from configs import pin_flamingo

VARIANTS = ("opt-2.7b", "opt-6.7b", "flan-t5-xl", "tiny")


def get_config(variant: str = "opt-2.7b") -> ConfigDict:
    """The run that `variant` names: the published recipe; every entry can be overridden on the command line."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/pin_blip2.py has no variant {variant!r}; expected {', '.join(VARIANTS)}")
    config = pin_flamingo.get_config("tiny")
    if variant == "tiny":
        config.vlm = "assets/tiny_blip2"
        return config
    config.vlm = f"Salesforce/blip2-{variant}"
    pin_flamingo.as_published(config)
    config.text_length = 40
    config.dtype = "bfloat16"  # `published`: each part as its makers ran it
    return config
