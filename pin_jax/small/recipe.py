"""Makes the small VLMs: stage 1 (vision, queries), stage 2 (language and connector), scores; and asks them anything."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.loader import batches
from input_pipeline.pasted import looks
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text import captions
from pin_jax import evaluate
from pin_jax import vlm as vlm_lib
from pin_jax.models.interface import Inserts
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD
from pin_jax.runtime import feature_cache, files, reporting
from pin_jax.runtime.processes import launch
from pin_jax.runtime.train_stage import adamw, train_stage
from pin_jax.small import decoder, language, projection, queries, stage_1
from pin_jax.small.shape import Shape, build
from pin_jax.weights import gguf, parameters

RUNS = ("train", "evaluate", "ask")
SHIPPED = pathlib.Path("assets")


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Does what config.run names."""
    if config.run not in RUNS:
        raise UserError(f"config.run {config.run!r}: expected one of {', '.join(RUNS)}")
    launch.alone("the small VLM")
    files.needs_local(workdir, "the small VLM")
    files.make_folder(workdir)
    if config.run == "train":
        train(config, workdir)
    own = workdir / config.name
    vlm = vlm_lib.load(config.vlm or (own if own.exists() else SHIPPED / config.name))
    if config.run == "ask":
        ask(config, vlm)
    else:
        score(config, workdir, vlm)


# --- the stages -------------------------------------------------------------------------------------------------------


def feature_bank(config: ConfigDict, workdir: pathlib.Path, shape: Shape, frozen: Any) -> feature_cache.FeatureBank:
    """The drawn scenes of stage 2 with the tokens of the vision encoder whose parameters `frozen` are."""
    model: Any = shape.model
    if config.decoder:  # the encoder's tokens, before what is to refine them
        model = type(model)(dataclasses.replace(model.config, hidden=0))
    vlm = vlm_lib.VLM(
        model,
        {"vision": frozen},
        shape.tokenizer,
        shape.codec,
        CLIP_MEAN,
        CLIP_STD,
        parameters.identity(frozen),
    )
    options = {**config.scenes, **config.language_scenes}
    scenes = Scenes(scene_config(options, shape.codec), config.seed + 100, config.language_images)
    with reporting.progress("vision features", len(scenes), "image") as advance:
        return feature_cache.build(scenes, vlm.encode, workdir / "cache", vlm.identity, progress=advance)


def go_on(config: ConfigDict, workdir: pathlib.Path, shape: Shape) -> Any:
    """The last stage alone, from the small BLIP-2 in the folder config.blip2_of; the whole VLM's parameters."""
    params = vlm_lib.load(config.blip2_of).params
    bank = feature_bank(config, workdir, shape, params["vision"])
    return {**params, "lm": decoder.train(config, workdir, shape, bank, params, "numbers", config.numbers_fit)}


def around_a_decoder(config: ConfigDict, workdir: pathlib.Path, shape: Shape) -> Any:
    """A shipped encoder, an installed decoder, and between them a projection that learns: all their parameters."""
    frozen = stage_1.shipped_vision(config, shape)["encoder"]
    tensors = gguf.decoder(gguf.opened(config.decoder), shape.model.config.lm, "config.decoder")
    skeleton = vlm_lib.skeleton(shape.model)["lm"]
    lm = jax.tree.map(jnp.asarray, parameters.fill(skeleton, tensors, config.decoder))
    bank = feature_bank(config, workdir, shape, frozen)
    return {"vision": frozen, **projection.train(config, workdir, shape, bank, lm), "lm": lm}


def train_language(config: ConfigDict, workdir: pathlib.Path, shape: Shape, seen: Any) -> Any:
    """Stage 2: see `small.language`. `seen` is stage 1's parameters; returns the whole VLM's."""
    size, model, frozen = config.vision.image_size, shape.model, seen["encoder"]
    bank = feature_bank(config, workdir, shape, frozen)
    params = jax.jit(model.init)(
        jax.random.key(config.seed), np.zeros((1, 1, size, size, 3), np.float32), np.zeros((1, 2), np.int32)
    )["params"]
    rng = jax.random.key(config.seed + 1)
    ids = np.array(shape.tokenizer.convert_tokens_to_ids([f" {name}" for name in shape.names]))
    if "names" not in seen:
        seen = {**seen, **stage_1.train_names(config, workdir, shape, bank, "names of tokens")}
    if config.qformer:
        seen = stage_1.train_queries(config, workdir, shape, seen, bank)
        params = queries.start(params, rng, seen["encoder"], ids, seen["names"])
        params["lm"] = decoder.train(config, workdir, shape, bank, params, "words", config.words_fit)
    else:
        params = language.match_init(params, rng, ids, seen["names"])
    del params["vision"]

    def loss(params, frozen, batch, rng, option):
        del rng, option
        return language.loss_fn(model, params, frozen, batch)

    for k, part in enumerate(config.language_fits):

        def iterator(seed=config.seed + k, options=part["texts"]):
            image = {"image": shape.frame.prefix}
            texts = captions.CaptionTexts(
                shape.tokenizer, shape.names, shape.codec, config.text_length, **image, **options
            )
            return batches(bank, [texts], config.language_batch, seed=seed, threads=config.threads)

        tx = adamw(part["lr"], part["schedule_steps"] or part["steps"])
        title, phases = f"stage 2, language, part {k + 1}", [(part["steps"], iterator, [None])]
        folder = workdir / f"language_{k + 1}{config.suffix}"
        params = train_stage(title, folder, params, tx, loss, phases, config, frozen)
    if config.qformer:
        params["lm"] = decoder.train(config, workdir, shape, bank, params, "numbers", config.numbers_fit)
    return {**params, "vision": frozen}


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """All stages; leaves the VLM's folder in the workdir."""
    shape = build(config)
    connector = "a projection" if config.decoder else "vision tokens"
    if config.qformer or config.perceiver:
        connector = f"{config.qformer.queries} queries" if config.qformer else f"{config.perceiver.latents} latents"
    reused = config.vision_of and not (workdir / "vision_1").exists()
    images = sum(p["images"] for part in config.vision_fits for p in part["phases"])
    samples = sum(p["steps"] for p in config.language_fits) * config.language_batch
    if config.decoder:
        samples = config.projection.steps * config.projection.batch
    if config.qformer:
        fits = [config.numbers_fit] if config.blip2_of else [config.words_fit, config.numbers_fit]
        samples = sum(p["steps"] * fit.batch for fit in fits for p in fit.phases) + (not config.blip2_of) * samples
    reporting.plan(
        f"train the small VLM, in {workdir}",
        {
            "names": f"{len(shape.names)} ({config.scenes.cutouts}), vocabulary {len(shape.tokenizer)}",
            "stage 1": f"the vision encoder of {config.vision_of}" if reused else f"{images:,} images",
            "connector": connector,
            "stage 2": f"{samples:,} samples",
            "devices": reporting.devices(),
        },
    )
    if config.blip2_of:
        params = go_on(config, workdir, shape)
    elif config.decoder:
        params = around_a_decoder(config, workdir, shape)
    else:
        seen = stage_1.shipped_vision(config, shape) if reused else stage_1.train_vision(config, workdir, shape)
        params = train_language(config, workdir, shape, seen)
    vlm = vlm_lib.VLM(
        shape.model,
        params,
        shape.tokenizer,
        shape.codec,
        CLIP_MEAN,
        CLIP_STD,
        "",
        shape.names,
        shape.frame,
    )
    with files.told(workdir / config.name):
        vlm_lib.save(workdir / config.name, vlm, config.decoder)


# --- what it knows ----------------------------------------------------------------------------------------------------


def score(config: ConfigDict, workdir: pathlib.Path, vlm: vlm_lib.VLM) -> dict[str, Any]:
    """What the VLM knows of held-out scenes: right answers on looks, right names in captions; writes knows.json."""
    options = {**config.scenes, **config.language_scenes, "background_split": "held_out", "vary": 0.0}
    scenes = Scenes(scene_config(options, vlm.codec), config.eval.seed, config.eval.images)
    records = [scenes[i] for i in range(len(scenes))]
    seen = evaluate.encode(vlm, [r["image"] for r in records])
    most = max(len(r["names"]) for r in records)
    length = captions.longest_question(vlm.tokenizer, vlm.names)
    rows = captions.LookQuestions(vlm.tokenizer, most, length, image=vlm.frame.prefix)
    count = jax.jit(functools.partial(language.right_answers, vlm.model))
    plain = vlm.tokenizer(f" {looks.NONE}", add_special_tokens=False)["input_ids"][-1]
    totals: dict[str, float] = {}
    for start in range(0, len(records), 64):
        chunk = [
            rows.map({**r, "vision": v})
            for r, v in zip(records[start : start + 64], seen[start : start + 64], strict=True)
        ]
        batch = {key: np.stack([row[key] for row in chunk]) for key in chunk[0]}
        for key, value in count(vlm.params, batch, plain).items():
            totals[key] = totals.get(key, 0) + float(value)
    knows: dict[str, Any] = {slot: totals[slot] / totals[f"{slot}_count"] for slot in (*looks.SLOTS, "tint")}
    written = evaluate.ask(
        vlm, seen, [(i, "A photo of") for i in range(len(records))], Inserts(), config.eval, "captioning"
    )
    longest = sorted(vlm.names, key=len, reverse=True)  # `red apple` is not `apple`
    known = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b")
    said = [set(known.findall(text)) for text in written]
    truth = [set(record["names"]) for record in records]
    right = sum(len(a & b) for a, b in zip(said, truth, strict=True))
    knows["names recalled in captions"] = right / sum(map(len, truth))
    knows["names right in captions"] = right / max(sum(map(len, said)), 1)
    reporting.results_table(f"what the VLM knows, {len(records)} held-out scenes", {"share right": knows}, tuple(knows))
    files.write_json(
        workdir / f"knows{config.suffix}.json", {**knows, "scenes": len(records), "versions": reporting.versions()}
    )
    if knows["colour"] < config.gate:
        reporting.say(
            f"colour answers {knows['colour']:.3f} are under the gate {config.gate}:"
            " an insert may have little to unlock"
        )
    return knows


def ask(config: ConfigDict, vlm: vlm_lib.VLM) -> list[str]:
    """Lets the VLM go on from each text of config.prompts (separated by |) about config.image; prints what it says."""
    if not config.image:
        raise UserError("config.image is empty: give a picture, --config.image=photo.jpg")
    size = vlm.codec.image_size
    square = np.asarray(open_image(config.image).resize((size, size), Image.Resampling.BICUBIC))
    prompts = [text for text in config.prompts.split("|") if text.strip()]
    if not prompts:
        raise UserError("config.prompts is empty: give texts to go on from, --config.prompts='A photo of'")
    seen = evaluate.encode(vlm, [square], 1)
    written = evaluate.ask(vlm, seen, [(0, text) for text in prompts], Inserts(), config.eval, "asking")
    for prompt, text in zip(prompts, written, strict=True):
        reporting.say(f"{prompt}{text}")
    return written
