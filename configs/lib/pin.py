"""The published recipe of PIN (Dorkenwald et al., CVPR 2024; docs/data.md), whatever the VLM, and what `tiny` changes.

`configs/pin_flamingo.py` and `configs/pin_blip2.py` add the model to it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.lib import variants


def published() -> ConfigDict:
    """The paper's data, optimisation and evaluation; the entries of the model are empty.

    Cut-outs and backgrounds are the user's to give: nothing else stands for them in silence.
    """
    config = ConfigDict()
    config.program = "pin"
    config.run = "train"  # train (then evaluate and draw), evaluate, predict, inspect, diagnose, compile
    config.seed = 0

    # The frozen VLM, and what is trained on it.
    config.vlm = ""
    config.language_model = ""  # of a published OpenFlamingo, whose checkpoint `vlm` is
    config.vision = ""  # its CLIP
    config.method = "pin"  # choose another by the variant, which gives its options too
    config.method_options = ConfigDict({"learned": False, "hidden": (512, 768)})
    config.dtype = "bfloat16"  # of the frozen VLM's computation; the insert is float32
    config.remat = "full"  # what the backward pass computes again: none (faster where memory allows), full, dots
    config.attention = "xla"  # of the vision encoder; cudnn is faster on NVIDIA GPUs in bfloat16
    config.grid = 0  # cells along a side of the image; 0: the VLM's own, 16
    config.placement = "answer"  # of the prompt in a SmolVLM's chat: at the start of the answer, or the user's request
    config.example = ()  # one in words in front of every prompt: in the image's places, asked, answered
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # of all devices; -1: those that are left
    config.rules = ()  # of where frozen weights stand on it, before those of pin_jax/runtime/sharding.py

    # Data: cut-outs pasted on backgrounds; COCO's and VOC's names stay out of training.
    variants.data(config)
    config.scenes = ConfigDict(
        {
            "cutouts": "",  # xpaste:pool.json, packed:DIR, folder:DIR, ...
            "backgrounds": "",  # folder:bg20k, packed:DIR, ...
            "objects": (1, 3),
            "smallest": (5, 3, 2),
            "crop": 1.0,
            "exclude": ("@coco", "@voc"),
            "twins": 0.0,
            "absolute_share": 0.0,
        }
    )
    config.train_scenes = ConfigDict()  # what of the scenes is otherwise in training
    config.vary_backgrounds = 0.0  # in training only: few photographs stand for many; 0 pastes on them as they are
    config.curriculum = 0.25  # share of training that predicts the name too, on scenes of 3 objects
    config.questions_per_image = 1  # asked together of one image; drawn uniformly where it has more objects
    config.text_length = 0  # tokens of a text; 0: as many as the longest name needs
    config.cache_images = 0  # scenes whose vision features are computed once; 0 draws scenes anew
    config.cache_folder = ""  # where they are kept; the workdir's own by default
    config.workers = 8  # processes that prepare data; 0 uses threads
    config.threads = 2

    # Optimisation: Adam without weight decay, 160 epochs of 60,000 samples.
    config.batch_size = 64
    config.steps = 150_000
    config.lr = 1e-3
    config.schedule = "constant"  # or cosine, to zero
    config.batch_per_device = 0  # above 0: batch_size is so many for each device that has rows of its own (data x fsdp)
    config.warmup = 0  # steps in which the learning rate rises from 0
    config.clip_norm = 0.0  # of all gradients together; 0 clips none
    config.accumulate = 1  # batches whose gradients make one update
    config.ema = 0.0  # decay of a moving average of what is trained, which is then evaluated and exported; 0 is none
    config.log_every = 20
    config.save_every = 1000
    config.keep = 3  # checkpoints
    config.say_every = 30.0  # seconds between lines of progress, where there is no terminal
    config.profile = ()  # first and last step of a trace, such as (100, 110)
    config.wandb = False  # Weights & Biases beside TensorBoard
    config.eval_every = 0  # steps between evaluations on a few scenes, of which the best insert is kept; 0 is none
    config.eval_subset = 64  # scenes of such an evaluation, others than those at the end

    # run=compile: a TPU slice; config.batch_size is the global batch on it (docs/sharding.md).
    config.topology = "v5e:4x4"
    config.compile_steps = ("train", "decode")

    # Evaluation: on names and backgrounds that the insert never saw; or on a published set, or one's own.
    config.eval = ConfigDict(
        {
            "source": "scenes",  # or pvoc, coco, lvis, refcoco, refcoco+, refcocog, coco:FILE.json, tfds:NAME
            "split": "held_out",
            "background_split": "",  # backgrounds of another split: train are those that insert and VLM have seen
            "seed": 1_000_000,
            "images": 1024,  # of a published set the first so many; 0 is all
            "context": (),  # rows `N_context`: the raw VLM after N worked examples; the paper's are (2, 5, 10)
            "context_seed": 1_000_000,  # of which examples stand before which question
            "context_images": 64,  # training scenes that the examples are drawn from
            "decoder": "beam",  # greedy, beam; on the grid: grid_greedy, grid_beam, expected_iou (docs/decoding.md)
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
    config.insert = ""  # a file; shipped, the small VLM's; none, the frozen VLM as it is; empty: the workdir's own
    return config


def tiny(vlm: str) -> ConfigDict:
    """What differs for a small VLM that ships: emoji on 11 photographs, objects of 5 or 6 cells at least, minutes."""
    config = published()
    config.vlm = vlm
    config.dtype, config.remat = "float32", "none"
    config.scenes.update(
        {"cutouts": "twemoji", "backgrounds": "photos", "smallest": (5, 4, 4), "crop": 0.4, "exclude": ()}
    )
    config.vary_backgrounds = 0.8  # 11 photographs stand for many
    config.curriculum = 0.0
    config.questions_per_image = 2
    config.text_length = 20  # a name is one token
    config.cache_images = 16_000
    config.workers = 0
    config.batch_size, config.steps, config.lr, config.schedule = 32, 2400, 1.5e-3, "cosine"
    config.save_every = 500
    config.eval.update({"images": 256, "decoder": "greedy"})
    return config
