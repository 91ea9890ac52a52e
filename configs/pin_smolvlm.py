"""PIN on SmolVLM, the VLM of a laptop. Variants: `256m`, `500m` and `2.2b`, the published models; `tiny`, a small
one around SmolLM2-135M (`configs/tiny_smolvlm.py`). Emoji on photographs
are the data unless others are given; behind the model may stand options, as in `pin_flamingo.py`.

  python main.py --config=configs/pin_smolvlm.py
  python main.py --config=configs/pin_smolvlm.py:500m --config.run=evaluate --config.eval.source=coco:mine.json \
      --config.data_dir=photos --config.insert=runs/pin_smolvlm-500m/insert.safetensors
  python main.py --config=configs/pin_smolvlm.py:256m --config.run=predict --config.image=photo.jpg \
      --config.prompts='cat,remote control'
"""

from ml_collections import ConfigDict

from configs.lib import ablations, pin, variants
from pin_jax.weights.published import SMOLVLM

CHOICES = ablations.CHOICES | {"eval": variants.evaluate_boxes}
VARIANTS = {name: f"{SMOLVLM[name].id}, not run here yet" for name in ("256m", "500m", "2.2b")}
VARIANTS["tiny"] = "a small one around SmolLM2-135M; configs/tiny_smolvlm.py made it"


def get_config(variant: str = "256m") -> ConfigDict:
    """The run that `variant` names; every entry can be overridden on the command line."""
    model, chosen = variants.parse(variant, "configs/pin_smolvlm.py", VARIANTS, CHOICES)
    if model == "tiny":
        config = pin.tiny("assets/tiny_smolvlm")
        # Its decoder was never shown a box: without an example psi grows to say what one looks like. A small start and
        # rate leave what the vision tokens say (docs/smolvlm.md).
        config.example = (" hat [20,50,70,110]", "In the image is a hat located at", " [20,50,70,110]")
        config.method_options.start = 0.1
        config.lr, config.warmup, config.batch_size, config.steps = 4e-4, 100, 2, 2400
        config.text_length = 0
        config.train_scenes = ConfigDict({"objects": (2, 3)})  # two questions to ask of every image
        config.cache_images, config.log_every, config.save_every = 6000, 10, 100
        config.eval.update({"images": 128, "decoder": "grid_greedy", "new_tokens": 24, "batch_size": 16})
        return variants.apply(config, chosen, CHOICES)
    config = pin.published()
    config.vlm = SMOLVLM[model].id
    config.scenes.update({"cutouts": "twemoji", "backgrounds": "photos", "crop": 0.4, "exclude": ()})
    config.vary_backgrounds = 0.8  # 11 photographs stand for many
    config.remat, config.workers = "none", 0
    config.batch_size, config.steps, config.schedule, config.warmup = 16, 3000, "cosine", 100
    config.questions_per_image = 2
    # Each digit is a token of its own: a box takes up to 20.
    config.eval.update({"images": 256, "decoder": "grid_greedy", "new_tokens": 24, "batch_size": 16})
    return variants.apply(config, chosen, CHOICES)
