"""PIN on BLIP-2. Variants: `opt-2.7b`, `opt-6.7b` and `flan-t5-xl`, the published models at full size; `tiny`, the
small one that ships. Behind the model may stand options, as in `pin_flamingo.py`; `eval=SET` evaluates on a published
set (docs/data.md).

  python main.py --config=configs/pin_blip2.py:tiny --workdir=runs/tiny_blip2
  python main.py --config=configs/pin_blip2.py:opt-2.7b --workdir=runs/blip2 --config.scenes.cutouts=xpaste:pool.json \
      --config.scenes.backgrounds=folder:bg20k
  python main.py --config=configs/pin_blip2.py:eval=pvoc --config.data_dir=VOCdevkit --workdir=runs/blip2
  python main.py --config=configs/pin_blip2.py:opt-2.7b --workdir=runs/plan --config.run=compile \
      --config.topology=v5e:4x4 --config.mesh.fsdp=16
"""

from ml_collections import ConfigDict

from configs import pin_flamingo
from configs.lib import variants

CHOICES = pin_flamingo.CHOICES
VARIANTS = ("opt-2.7b", "opt-6.7b", "flan-t5-xl", "tiny")


def get_config(variant: str = "opt-2.7b") -> ConfigDict:
    """The run that `variant` names: the published recipe; every entry can be overridden on the command line."""
    model, chosen = variants.parse(variant, "configs/pin_blip2.py", VARIANTS, CHOICES)
    config = pin_flamingo.get_config("tiny")
    if model == "tiny":
        config.vlm = "assets/tiny_blip2"
        return variants.apply(config, chosen, CHOICES)
    config.vlm = f"Salesforce/blip2-{model}"
    pin_flamingo.as_published(config)
    config.text_length = 40
    config.dtype = "bfloat16"  # `published`: each part as its makers ran it
    return variants.apply(config, chosen, CHOICES)
