"""Makes the small VLM: stage 1 (vision), stage 2 (language and cross-attention), its scores; and asks it anything."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from PIL import Image
from safetensors import numpy as safetensors

from input_pipeline import captions, cutouts, looks
from input_pipeline.boxes import BoxCodec
from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.loader import batches
from input_pipeline.scenes import Scenes, scene_config
from pin_jax import evaluate, features, reporting, word_tokenizer
from pin_jax import pretrain_language as language
from pin_jax import pretrain_vision as vision
from pin_jax import vlm as vlm_lib
from pin_jax.fit import State, adamw, fit
from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.interface import Inserts
from pin_jax.models.mpt import MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import ViTConfig

RUNS = ("train", "evaluate", "ask")
SHIPPED = pathlib.Path("assets/tiny_flamingo")


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Does what config.run names."""
    if config.run not in RUNS:
        raise UserError(f"config.run {config.run!r}: expected one of {', '.join(RUNS)}")
    workdir.mkdir(parents=True, exist_ok=True)
    if config.run == "train":
        train(config, workdir)
    own = workdir / config.name
    vlm = vlm_lib.load(config.vlm or (own if own.exists() else SHIPPED))
    if config.run == "ask":
        ask(config, vlm)
    else:
        score(config, workdir, vlm)


# --- the two stages ---------------------------------------------------------------------------------------------------


def flamingo(config: ConfigDict) -> tuple[Flamingo, Any, tuple[str, ...], BoxCodec]:
    """The module, its tokenizer, the names it is to know, and its box codec."""
    names = tuple(sorted(set(cutouts.load(config.scenes.cutouts).names)))
    codec = BoxCodec(config.vision.image_size, config.grid)
    tokenizer = word_tokenizer.build(names, codec)
    ids = tokenizer.convert_tokens_to_ids
    shape = FlamingoConfig(
        vision=ViTConfig(**config.vision),
        lm=MPTConfig(vocab=len(tokenizer), **config.lm),
        perceiver=PerceiverConfig(width=config.vision.width, **config.perceiver) if config.perceiver else None,
        cross_every=config.cross_every,
        cross_heads=config.cross_heads,
        cross_head_dim=config.cross_head_dim,
        image_token=ids(word_tokenizer.IMAGE),
        end_token=ids(word_tokenizer.END),
        pad_token=ids(word_tokenizer.PAD),
        unroll=True,
    )
    return Flamingo(shape), tokenizer, names, codec


def train_vision(config: ConfigDict, workdir: pathlib.Path, names: tuple[str, ...], codec: BoxCodec) -> Any:
    """Stage 1: see `pretrain_vision`. Returns its parameters."""
    model = vision.BagOfWordsModel(ViTConfig(**config.vision), len(names))
    size = config.vision.image_size
    params = jax.jit(functools.partial(model.init, method="everything"))(
        jax.random.key(config.seed), np.zeros((1, size, size, 3), np.uint8), np.zeros((1, 1), np.int32)
    )["params"]

    def step(tx, look_weight, state, batch, rng, keep):
        grad = jax.grad(functools.partial(vision.loss_fn, model), has_aux=True)
        grads, metrics = grad(state.params, batch, rng, keep, look_weight)
        updates, opt = tx.update(grads, state.opt, state.params)
        return State(optax.apply_updates(state.params, updates), opt), metrics

    def make(phase):
        def iterator():
            options = {**config.scenes, **phase["scenes"]}
            scenes = Scenes(scene_config(options, codec), phase["seed"] + config.seed, phase["images"])
            words = vision.BagOfWords(names, options["objects"][1])
            return batches(scenes, [words], phase["batch"], shuffle=False, threads=config.threads)

        return iterator

    for k, part in enumerate(config.vision_fits):
        phases = [(p["images"] // p["batch"], make(p), list(p["keep"])) for p in part["phases"]]
        tx = adamw(part["lr"], part["schedule_steps"] or sum(steps for steps, _, _ in phases))
        step_fn = jax.jit(functools.partial(step, tx, part["look_weight"]), donate_argnums=0, static_argnums=3)
        title = f"stage 1, vision, part {k + 1}"
        params = fit(title, workdir / f"vision_{k + 1}", State(params, tx.init(params)), step_fn, phases, config)
    return params


def train_language(
    config: ConfigDict, workdir: pathlib.Path, seen: Any, model: Flamingo, tokenizer, names, codec
) -> Any:
    """Stage 2: see `pretrain_language`. `seen` is stage 1's parameters; returns the whole Flamingo's."""
    size = config.vision.image_size
    params = jax.jit(model.init)(
        jax.random.key(config.seed), np.zeros((1, 1, size, size, 3), np.float32), np.zeros((1, 2), np.int32)
    )["params"]
    ids = np.array(tokenizer.convert_tokens_to_ids([f" {name}" for name in names]))
    params = language.match_init(
        {**params, "vision": seen["encoder"]}, jax.random.key(config.seed + 1), ids, seen["names"]
    )
    frozen = params.pop("vision")
    vlm = vlm_lib.VLM(model, {"vision": frozen}, tokenizer, codec, vision.MEAN, vision.STD, vlm_lib.identity(frozen))
    scenes = Scenes(
        scene_config({**config.scenes, **config.language_scenes}, codec), config.seed + 100, config.language_images
    )
    with reporting.progress("vision features", len(scenes), "image") as advance:
        bank = features.build(scenes, vlm.encode, workdir / "cache", vlm.identity, progress=advance)

    def step(tx, state, batch, rng, option):
        del rng, option
        grads, metrics = jax.grad(functools.partial(language.loss_fn, model), has_aux=True)(state.params, frozen, batch)
        updates, opt = tx.update(grads, state.opt, state.params)
        return State(optax.apply_updates(state.params, updates), opt), metrics

    for k, part in enumerate(config.language_fits):

        def iterator(seed=config.seed + k, options=part["texts"]):
            texts = captions.CaptionTexts(tokenizer, names, codec, config.text_length, **options)
            return batches(bank, [texts], config.language_batch, seed=seed, threads=config.threads)

        tx = adamw(part["lr"], part["schedule_steps"] or part["steps"])
        step_fn = jax.jit(functools.partial(step, tx), donate_argnums=0, static_argnums=3)
        title, phases = f"stage 2, language, part {k + 1}", [(part["steps"], iterator, [None])]
        folder = workdir / f"language_{k + 1}{config.suffix}"
        params = fit(title, folder, State(params, tx.init(params)), step_fn, phases, config)
    return {**params, "vision": frozen}


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Both stages; leaves the VLM's folder in the workdir."""
    model, tokenizer, names, codec = flamingo(config)
    reporting.plan(
        f"train the small VLM, in {workdir}",
        {
            "names": f"{len(names)} ({config.scenes.cutouts}), vocabulary {len(tokenizer)}",
            "stage 1": f"{sum(p['images'] for part in config.vision_fits for p in part['phases']):,} images",
            "connector": f"{model.config.perceiver.latents} latents" if model.config.perceiver else "vision tokens",
            "stage 2": f"{sum(p['steps'] for p in config.language_fits) * config.language_batch:,} samples",
            "devices": evaluate.devices(),
        },
    )
    seen = train_vision(config, workdir, names, codec)
    params = train_language(config, workdir, seen, model, tokenizer, names, codec)
    vlm = vlm_lib.VLM(model, params, tokenizer, codec, vision.MEAN, vision.STD, "", names)
    vlm_lib.save(workdir / config.name, vlm)
    safetensors.save_file(
        vlm_lib.flatten({k: v for k, v in seen.items() if k != "encoder"}), workdir / "stage_1_heads.safetensors"
    )


# --- what it knows ----------------------------------------------------------------------------------------------------


def score(config: ConfigDict, workdir: pathlib.Path, vlm: vlm_lib.VLM) -> dict[str, Any]:
    """What the VLM knows of held-out scenes: right answers on looks, right names in captions; writes knows.json."""
    options = {**config.scenes, **config.language_scenes, "background_split": "held_out", "vary": 0.0}
    scenes = Scenes(scene_config(options, vlm.codec), config.eval.seed, config.eval.images)
    records = [scenes[i] for i in range(len(scenes))]
    seen = evaluate.encode(vlm, [r["image"] for r in records])
    most = max(len(r["names"]) for r in records)
    rows = captions.LookQuestions(vlm.tokenizer, most)
    count = jax.jit(functools.partial(language.right_answers, vlm.model))
    plain = vlm.tokenizer.convert_tokens_to_ids(f" {looks.NONE}")
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
    said = [set(vlm.tokenizer.tokenize(text)) for text in written]
    truth = [{f" {name}" for name in r["names"]} for r in records]
    known = {f" {name}" for name in vlm.names}
    right = sum(len(a & b) for a, b in zip(said, truth, strict=True))
    knows["names recalled in captions"] = right / sum(map(len, truth))
    knows["names right in captions"] = right / max(sum(len(a & known) for a in said), 1)
    reporting.results_table(f"what the VLM knows, {len(records)} held-out scenes", {"share right": knows}, tuple(knows))
    reporting.write_json(
        workdir / f"knows{config.suffix}.json", {**knows, "scenes": len(records), "versions": reporting.versions()}
    )
    if knows["colour"] < config.gate:
        reporting.say(
            f"colour answers {knows['colour']:.3f} are under the gate {config.gate}: an insert has little to unlock"
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
