"""PIN on a Flamingo. Variants: `tiny`, the small Flamingo that ships with the project.

python main.py --config=configs/pin_flamingo.py:tiny --workdir=runs/tiny
"""

from ml_collections import ConfigDict

VARIANTS = ("tiny",)


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that `variant` names; every entry can be overridden on the command line."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/pin_flamingo.py has no variant {variant!r}; expected {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.program = "pin"
    config.run = "train"  # train (then evaluate and draw), evaluate, predict
    config.seed = 0

    # The frozen VLM, and what is trained on it.
    config.vlm = "assets/tiny_flamingo"
    config.method = "pin"
    config.method_options = ConfigDict({"learned": False, "hidden": (512, 768)})
    config.dtype = "float32"  # of the frozen VLM's computation; the insert is float32

    # Data: the published paste recipe, but for the sizes (no object under 5 or 6 cells) and cropped backgrounds.
    config.scenes = ConfigDict(
        {
            "cutouts": "twemoji",
            "backgrounds": "photos",
            "objects": (1, 3),
            "smallest": (5, 4, 4),
            "crop": 0.4,
            "exclude": (),
            "twins": 0.0,
            "absolute_share": 0.0,
        }
    )
    config.vary_backgrounds = 0.8  # in training only: 11 photographs stand for many; 0 pastes on them as they are
    config.curriculum = 0.0  # share of training that predicts the name too, on scenes of 3 objects (published: 0.25)
    config.questions_per_image = 2  # asked together of one image; drawn uniformly where it has more objects
    config.text_length = 20  # tokens of a text; a name is one
    config.cache_images = 16_000  # scenes whose vision features are computed once; 0 draws scenes anew
    config.workers = 0  # processes that prepare data; 0 uses threads
    config.threads = 2

    # Optimisation: Adam without weight decay.
    config.batch_size = 32
    config.steps = 2400
    config.lr = 1.5e-3  # published: 1e-3, constant, for 150,000 steps
    config.schedule = "cosine"
    config.log_every = 20
    config.save_every = 500

    # Evaluation, on names and backgrounds that the insert never saw.
    config.eval = ConfigDict(
        {
            "split": "held_out",
            "background_split": "",  # backgrounds of another split: train are those that insert and VLM have seen
            "seed": 1_000_000,
            "images": 256,
            "context": (),  # rows `N_context`: the raw VLM after N worked examples; published: 2, 5, 10
            "context_images": 64,  # training scenes that the examples are drawn from
            "decoder": "greedy",  # greedy or beam
            "beams": 3,
            "length_penalty": 1.0,
            "new_tokens": 12,
            "batch_size": 64,
        }
    )

    # Prediction on one's own image.
    config.image = ""
    config.prompts = ""  # names, separated by commas
    config.insert = ""  # a safetensors file; the workdir's own by default, then the shipped one
    return config
