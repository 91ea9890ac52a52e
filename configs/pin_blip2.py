"""PIN on BLIP-2. Variants: `tiny`, the small one that ships; `opt-2.7b`, `opt-6.7b` and `flan-t5-xl`, the published
models at full size. Behind the model may stand options, as in `pin_flamingo.py`; `eval=SET` evaluates on a published
set (docs/data.md).

  python main.py --config=configs/pin_blip2.py --workdir=runs/tiny_blip2
  python main.py --config=configs/pin_blip2.py:opt-2.7b --workdir=runs/blip2 --config.scenes.cutouts=xpaste:pool.json \
      --config.scenes.backgrounds=folder:bg20k
  python main.py --config=configs/pin_blip2.py:opt-2.7b,eval=pvoc --config.data_dir=VOCdevkit --workdir=runs/blip2
  python main.py --config=configs/pin_blip2.py:opt-2.7b --workdir=runs/plan --config.run=compile \
      --config.topology=v5e:4x4 --config.mesh.fsdp=16
"""

from ml_collections import ConfigDict

from configs.lib import ablations, pin, variants
from pin_jax.weights.published import BLIP2

CHOICES = ablations.CHOICES | {"eval": variants.evaluate_boxes}
VARIANTS = {"tiny": "the small one that ships, minutes on two cores"} | {
    name: f"{vlm.id}, the published recipe" for name, vlm in BLIP2.items()
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that `variant` names; every entry can be overridden on the command line."""
    model, chosen = variants.parse(variant, "configs/pin_blip2.py", VARIANTS, CHOICES)
    if model == "tiny":
        config = pin.tiny("assets/tiny_blip2")
        # A Q-Former's softmax saturates where psi outgrows the tokens: a small rate, and slowly up to it.
        config.lr, config.warmup, config.batch_size, config.steps = 2e-4, 100, 16, 3000
        config.cache_images = 12_000
        return variants.apply(config, chosen, CHOICES)
    config = pin.published()
    config.vlm = BLIP2[model].id  # its parts may run in other dtypes: `published`, as their makers ran them
    return variants.apply(config, chosen, CHOICES)
