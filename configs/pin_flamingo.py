"""PIN on a Flamingo. Variants: `tiny`, the small one that ships with the project; the published OpenFlamingo models.
`eval=SET` evaluates on a published set (docs/data.md).

Behind the model a variant may have options: `method=` (see `pin_jax.methods`) and those of `configs/lib/ablations.py`.

  python main.py --config=configs/pin_flamingo.py:tiny --workdir=runs/tiny
  python main.py --config=configs/pin_flamingo.py:tiny,method=lora_v --workdir=runs/lora --config.method_options.rank=4
  python main.py --config=configs/pin_flamingo.py:3b --workdir=runs/3b --config.scenes.cutouts=xpaste:pool.json \
      --config.scenes.backgrounds=folder:bg20k
  python main.py --config=configs/pin_flamingo.py:tiny,eval=pvoc --config.data_dir=VOCdevkit --workdir=runs/pvoc
"""

from ml_collections import ConfigDict

from configs.lib import ablations, pin, variants
from pin_jax.weights.published import OPENFLAMINGO

CHOICES = ablations.CHOICES | {"eval": variants.evaluate_boxes}
VARIANTS = {"tiny": "the small one that ships, minutes on two cores"} | {
    name: f"{vlm.id.split('/')[-1]}, the published recipe" for name, vlm in OPENFLAMINGO.items()
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that `variant` names; every entry can be overridden on the command line."""
    model, chosen = variants.parse(variant, "configs/pin_flamingo.py", VARIANTS, CHOICES)
    if model == "tiny":
        return variants.apply(pin.tiny("assets/tiny_flamingo"), chosen, CHOICES)
    config = pin.published()
    # ids on the hub; folders and files on disk serve as well
    vlm = OPENFLAMINGO[model]
    config.vlm, config.language_model, config.vision = vlm.id, vlm.language_model, vlm.vision
    return variants.apply(config, chosen, CHOICES)
