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

from configs.lib import ablations, variants

# variant -> checkpoint and language model on the hub; folders and files on disk serve as well
PUBLISHED = {
    "3b": ("openflamingo/OpenFlamingo-3B-vitl-mpt1b", "anas-awadalla/mpt-1b-redpajama-200b"),
    "3b_instruct": (
        "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
        "anas-awadalla/mpt-1b-redpajama-200b-dolly",
    ),
    "4b": ("openflamingo/OpenFlamingo-4B-vitl-rpj3b", "togethercomputer/RedPajama-INCITE-Base-3B-v1"),
    "4b_instruct": (
        "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct",
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
    ),
    "9b": ("openflamingo/OpenFlamingo-9B-vitl-mpt7b", "anas-awadalla/mpt-7b"),
}
CHOICES = ablations.CHOICES | {"eval": variants.evaluate_boxes}
VARIANTS = ("tiny", *PUBLISHED)


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that `variant` names; every entry can be overridden on the command line."""
    model, chosen = variants.parse(variant, "configs/pin_flamingo.py", VARIANTS, CHOICES)
    config = ConfigDict()
    config.program = "pin"
    config.run = "train"  # train (then evaluate and draw), evaluate, predict
    config.seed = 0

    # The frozen VLM, and what is trained on it.
    config.vlm = "assets/tiny_flamingo"
    config.language_model = ""  # of a published OpenFlamingo, whose checkpoint `vlm` is
    config.vision = ""  # its CLIP
    config.method = "pin"  # choose another by the variant, which gives its options too
    config.method_options = ConfigDict({"learned": False, "hidden": (512, 768)})
    config.dtype = "float32"  # of the frozen VLM's computation; the insert is float32
    config.remat = "none"  # what the backward pass computes again: none, full, dots
    config.attention = "xla"  # of the vision encoder; cudnn is faster on NVIDIA GPUs in bfloat16
    config.grid = 0  # cells along a side of the image; 0: the VLM's own, 16
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # of all devices; -1: those that are left
    config.rules = ()  # of where frozen weights stand on it, before those of pin_jax/runtime/sharding.py

    variants.data(config)
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
    config.train_scenes = ConfigDict()  # what of the scenes is otherwise in training
    config.vary_backgrounds = 0.8  # in training only: 11 photographs stand for many; 0 pastes on them as they are
    config.curriculum = 0.0  # share of training that predicts the name too, on scenes of 3 objects (published: 0.25)
    config.questions_per_image = 2  # asked together of one image; drawn uniformly where it has more objects
    config.text_length = 20  # tokens of a text; a name is one
    config.cache_images = 16_000  # scenes whose vision features are computed once; 0 draws scenes anew
    config.cache_folder = ""  # where they are kept; the workdir's own by default
    config.workers = 0  # processes that prepare data; 0 uses threads
    config.threads = 2

    # Optimisation: Adam without weight decay.
    config.batch_size = 32
    config.steps = 2400
    config.lr = 1.5e-3  # published: 1e-3, constant, for 150,000 steps
    config.schedule = "cosine"
    config.log_every = 20
    config.save_every = 500

    # Evaluation: on names and backgrounds that the insert never saw; or on a published set, or one's own.
    config.eval = ConfigDict(
        {
            "source": "scenes",  # or pvoc, coco, lvis, refcoco, refcoco+, refcocog, coco:FILE.json, tfds:NAME
            "split": "held_out",
            "background_split": "",  # backgrounds of another split: train are those that insert and VLM have seen
            "seed": 1_000_000,
            "images": 256,  # of a published set the first so many; 0 is all
            "context": (),  # rows `N_context`: the raw VLM after N worked examples; published: 2, 5, 10
            "context_seed": 1_000_000,  # of which examples stand before which question
            "context_images": 64,  # training scenes that the examples are drawn from
            "decoder": "greedy",  # greedy, beam; on the grid: grid_greedy, grid_beam, expected_iou (docs/decoding.md)
            "beams": 3,
            "candidates": 16,  # answers that expected_iou follows at a time
            "length_penalty": 1.0,
            "new_tokens": 12,
            "batch_size": 64,
        }
    )
    variants.select(config.eval)

    # Prediction on one's own image.
    config.image = ""
    config.prompts = ""  # names, separated by commas
    config.insert = ""  # a safetensors file; the workdir's own by default, then the shipped one
    if model in PUBLISHED:
        published(config, model)
    return variants.apply(config, chosen, CHOICES)


def published(config: ConfigDict, variant: str) -> None:
    """Makes it the run of the paper on an OpenFlamingo; cut-outs and backgrounds are yours to give (docs/data.md)."""
    config.vlm, config.language_model = PUBLISHED[variant]
    config.vision = "openai/clip-vit-large-patch14"
    as_published(config)
    config.text_length = 48
    config.eval.context = (2, 5, 10)  # rows of worked examples beside the insert


def as_published(config: ConfigDict) -> None:
    """The paper's data, optimisation and evaluation, for any published VLM."""
    config.dtype = "bfloat16"
    config.remat = "full"  # none is faster where memory allows

    # Data.
    config.scenes.update({"smallest": (5, 3, 2), "crop": 1.0})
    config.vary_backgrounds = 0.0
    config.curriculum = 0.25
    config.questions_per_image = 1
    config.cache_images = 0
    config.workers = 8

    # Optimisation: 160 epochs of 60,000 samples.
    config.batch_size = 64
    config.steps = 150_000
    config.lr = 1e-3
    config.schedule = "constant"
    config.save_every = 1000

    # run=compile: a TPU slice; config.batch_size is the global batch on it (docs/sharding.md).
    config.topology = "v5e:4x4"
    config.compile_steps = ("train", "decode")

    # Evaluation: 3 beams.
    config.eval.update({"images": 1024, "decoder": "beam", "batch_size": 64})
