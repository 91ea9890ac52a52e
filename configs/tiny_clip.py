"""How the small CLIP that ships was made: pictures and captions, never positions. Variant `smoke`: minutes.

python main.py --config=configs/tiny_clip.py --workdir=runs/tiny_clip                # half an hour on two free cores
"""

from ml_collections import ConfigDict

VARIANTS = {"": "the one that ships, half an hour on two free cores", "smoke": "minutes"}


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; `smoke` cuts it short."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/tiny_clip.py has no variant {variant!r}; expected none, or smoke")
    config = ConfigDict()
    config.program = "tiny_clip"
    config.run = "train"  # train (then evaluate), evaluate
    config.seed = 0
    config.clip = ""  # evaluate: folder of the model; the workdir's own by default, then the shipped one
    config.threads = 2
    config.log_every = 100
    config.save_every = 500

    # GEM's adaptive temperature is about sqrt(heads) where LayerNorm's gain is near 1: 12 heads, as in ViT-B/16; and 8
    # blocks, so that its published depth of 7 is a part of them.
    config.vision = ConfigDict(
        {"image_size": 160, "patch": 16, "width": 192, "depth": 8, "heads": 12, "mlp": 768, "act": "gelu_tanh",
         "class_token": True, "pre_norm": True, "post_norm": True, "stem_width": 64, "unroll": True}
    )  # fmt: skip
    config.text = ConfigDict(
        {"context": 32, "width": 128, "depth": 2, "heads": 2, "mlp": 512, "act": "gelu_tanh", "pool": "eos",
         "unroll": True}
    )  # fmt: skip
    config.embed = 128
    config.loss = "softmax"  # softmax or sigmoid
    config.grid = 16

    # Scenes: all names, but of the pairs of name and tint only three in four; the training backgrounds, varied.
    config.scenes = ConfigDict(
        {
            "cutouts": "twemoji",
            "backgrounds": "photos",
            "split": "all",
            "background_split": "train",
            "pairs": "train",
            "look_slots": ("colour", "pattern"),
            "look_share": 0.5,
            "crop": 0.4,
            "vary": 0.8,
        }
    )
    # Small pictures of one object, then whole scenes of several, of which two patches in five are seen.
    # text: tokens of a caption, as few as hold it.
    config.fit = ConfigDict({"lr": 1.4e-3})
    config.phases = [
        {"images": 128_000, "batch": 128, "keep": [1.0], "seed": 0, "text": 12,
         "scenes": {"image_size": 80, "grid": 8, "crop": 0.2, "objects": [1, 1], "smallest": [4], "largest": 7,
                    "look_scenes": 0.4}},
        {"images": 48_000, "batch": 96, "keep": [0.4], "seed": 625, "text": 28,
         "scenes": {"objects": [1, 3], "smallest": [6, 5, 4], "look_scenes": 0.6}},
    ]  # fmt: skip
    config.eval = ConfigDict({"images": 512, "seed": 999})
    if variant == "smoke":
        for phase in config.phases:
            phase["images"] = 4 * phase["batch"]
        config.eval.images = 32
    return config
