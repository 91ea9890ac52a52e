"""How the small VLMs were made: captions only, never positions. Variants: the one that ships; `perceiver`, a second one
with OpenFlamingo's resampler; `blip2`, the small BLIP-2; each with `_smoke`, minutes, for the heavy tests.

  python main.py --config=configs/tiny_vlm.py --workdir=runs/tiny_vlm                  # hours on two cores
  python main.py --config=configs/tiny_vlm.py:perceiver --workdir=runs/tiny_vlm        # after it: stage 1 is reused
  python main.py --config=configs/tiny_vlm.py --workdir=out --config.run=ask --config.image=photo.jpg \
      --config.prompts='A photo of|The colour of the cat is'
"""

from ml_collections import ConfigDict

VARIANTS = {
    "": "the small Flamingo that ships, hours on two cores",
    "smoke": "the same in minutes",
    "perceiver": "a second one, with OpenFlamingo's resampler",
    "perceiver_smoke": "the same in minutes",
    "blip2": "the small BLIP-2 that ships",
    "blip2_smoke": "the same in minutes",
}


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; `smoke` cuts every stage short."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/tiny_vlm.py has no variant {variant!r}; expected none, {', '.join([*VARIANTS][1:])}")
    config = ConfigDict()
    config.program = "tiny_vlm"
    config.run = "train"  # train, evaluate, ask
    config.seed = 0
    config.vlm = ""  # evaluate and ask: folder of the VLM; the workdir's own by default, then the shipped one
    config.threads = 2
    config.log_every = 100
    config.save_every = 1000

    config.vision = ConfigDict(
        {"image_size": 160, "patch": 16, "width": 128, "depth": 6, "heads": 2, "mlp": 512, "act": "gelu_tanh",
         "class_token": False, "pre_norm": True, "post_norm": True, "stem_width": 64, "unroll": True}
    )  # fmt: skip
    config.lm = ConfigDict({"width": 128, "depth": 4, "heads": 4})
    config.perceiver = ConfigDict()  # empty: the language model reads the vision tokens themselves
    config.qformer = ConfigDict()  # set: a BLIP-2, whose language model reads these queries
    config.decoder = ""  # set: a SmolVLM around a published language model (configs/tiny_smolvlm.py)
    config.projection = ConfigDict()  # that one's
    config.vision_of = ""  # a VLM's folder: its vision encoder is taken where the workdir has no stage 1 of its own
    config.blip2_of = ""  # a small BLIP-2's folder: only its last stage is done, from those weights
    config.name, config.suffix = "tiny_flamingo", ""  # of its folder, and of what stage 2 leaves in the workdir
    config.cross_every, config.cross_heads, config.cross_head_dim = 1, 2, 64
    config.grid = 16

    # Scenes of both stages: all names, the training backgrounds.
    config.scenes = ConfigDict(
        {
            "cutouts": "twemoji",
            "backgrounds": "photos",
            "split": "all",
            "background_split": "train",
            "crop": 0.4,
            "vary": 0.8,
        }
    )
    # Stage 1, vision. Part 1: small pictures of one object, then crowds of which half the patches are seen.
    # Part 2: whole scenes, by turns with three tenths of the patches, so that every part of an object keeps its name.
    config.vision_fits = [
        {"lr": 1.4e-3, "schedule_steps": 6000, "look_weight": 0.25, "phases": [
            {"images": 60_000, "batch": 96, "keep": [1.0], "seed": 0,
             "scenes": {"image_size": 80, "grid": 8, "crop": 0.2, "objects": [1, 1], "smallest": [4], "largest": 7,
                        "look_share": 0.4, "look_scenes": 0.3}},
            {"images": 130_000, "batch": 32, "keep": [0.5], "seed": 625,
             "scenes": {"objects": [2, 5], "smallest": [5, 4, 4, 4, 3], "largest": 9,
                        "look_share": 0.5, "look_scenes": 0.6}},
        ]},
        {"lr": 8e-4, "schedule_steps": 0, "look_weight": 1.0, "phases": [
            {"images": 64_000, "batch": 32, "keep": [0.3, 1.0], "seed": 10_000,
             "scenes": {"objects": [1, 3], "smallest": [5, 4, 4], "look_share": 0.6, "look_scenes": 0.7}},
        ]},
    ]  # fmt: skip

    # Names and looks alone, read from what another model's encoder or a Q-Former sees (see `vision_of`).
    config.names_fit = ConfigDict({"lr": 1e-2, "steps": 500, "batch": 64, "look_weight": 1.0})
    config.measured_images = 4000  # whose queries say what a prefix is made of

    # Stage 2, language and cross-attention on cached features.
    config.language_fits = [
        {"lr": 1.5e-3, "schedule_steps": 3000, "steps": 1500, "texts": {}},
        # Box syntax in front of pictures too (of absent names), or `located at` is taken for `looking like`.
        {"lr": 1.2e-3, "schedule_steps": 0, "steps": 1600,
         "texts": {"box_rows": 0.8, "box_with_image": 0.7, "syntax": 1.0}},
    ]  # fmt: skip
    config.language_images = 16_000  # features computed once
    config.language_batch = 16
    config.text_length = 40
    config.language_scenes = ConfigDict(
        {"objects": (1, 3), "smallest": (5, 4, 4), "look_share": 0.6, "look_scenes": 0.7}
    )
    config.gate = 0.9  # share of colour questions that must be answered right before an insert is worth training

    config.eval = ConfigDict(
        {
            "images": 512,
            "seed": 999,
            "decoder": "greedy",
            "beams": 3,
            "length_penalty": 1.0,
            "new_tokens": 24,
            "batch_size": 64,
        }
    )
    config.image = ""
    config.prompts = "A photo of"  # separated by |
    if variant.startswith("perceiver"):
        config.perceiver = ConfigDict(
            {"latents": 64, "depth": 2, "heads": 2, "head_dim": 64, "mlp_ratio": 4, "unroll": True}
        )
        config.name, config.suffix = "tiny_perceiver", "_perceiver"
    if variant.startswith("blip2"):
        config.name, config.suffix = "tiny_blip2", "_blip2"
        config.qformer = ConfigDict(
            {"queries": 32, "width": 128, "depth": 4, "heads": 2, "mlp": 512, "cross_every": 1, "unroll": True}
        )
        config.lm = ConfigDict({"width": 128, "depth": 4, "heads": 2, "mlp": 512, "positions": 768, "unroll": True})
        config.vision_of = "assets/tiny_flamingo"
        # Between the stages the queries learn, over cached features, what the vision encoder learned: names and looks.
        config.query_fit = ConfigDict({"lr": 1e-3, "steps": 800, "batch": 64, "look_weight": 1.0})
        # Then the decoder learns language, and to look names up, from words: prefixes of what such queries say. Beside
        # every sample stands one that says numbers; at first one thing in each place, mostly of one object, and loud.
        easy = {"single": 0.6, "either": 0.9, "boxes": 0.1, "blur": 0.0, "gain": 1.4}
        middle = {"single": 0.3, "either": 0.5, "boxes": 0.3, "blur": 0.3, "gain": 1.2}
        config.words_fit = ConfigDict(
            {"lr": 3e-3, "batch": 16, "number_rows": 1, "behind_words": True,
             "texts": {"keywords": 0.4, "alone": 0.5, "box_rows": 0.2},
             "phases": [{"steps": 400, "numbers": easy}, {"steps": 300, "numbers": middle},
                        {"steps": 900, "numbers": {}}]}
        )  # fmt: skip
        # All but the vision encoder goes on with the real ones, gently, or it falls back to guessing looks by their
        # frequency.
        texts = {"keywords": 0.3, "alone": 0.4, "box_rows": 0.5, "box_with_image": 0.7, "syntax": 1.0}
        config.language_fits = [
            {"lr": 5e-4, "schedule_steps": 0, "steps": 2000, "texts": texts},
            {"lr": 5e-4, "schedule_steps": 0, "steps": 1600, "texts": {**texts, "keywords": 0.1, "alone": 0.2}},
            {"lr": 5e-4, "schedule_steps": 0, "steps": 1600, "texts": {**texts, "keywords": 0.1, "alone": 0.2}},
        ]
        # And the decoder learns again to read numbers behind the queries that it has now.
        config.numbers_fit = ConfigDict(
            {"lr": 1.5e-3, "batch": 8, "number_rows": 2, "behind_words": False,
             "texts": {**texts, "keywords": 0.1, "alone": 0.2, "box_rows": 0.3},
             "phases": [{"steps": 300, "numbers": easy}, {"steps": 300, "numbers": middle},
                        {"steps": 500, "numbers": {}}]}
        )  # fmt: skip
    if variant.endswith("smoke"):
        for part in config.vision_fits:
            part["schedule_steps"] //= 100
            for phase in part["phases"]:
                phase["images"] //= 100
        config.language_images, config.names_fit.steps, config.measured_images = 320, 30, 200
        for part in config.language_fits:
            part["steps"], part["schedule_steps"] = 30, 30
        if config.qformer:
            config.query_fit.steps = 30
            for part in (config.words_fit, config.numbers_fit):
                for phase in part.phases:
                    phase["steps"] = 15
        config.eval.images = 64
    return config
