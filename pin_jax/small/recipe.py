"""Makes the small VLMs: stage 1 (vision, queries), stage 2 (language and connector), scores; and asks them anything."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.loader import batches
from input_pipeline.pasted import cutouts, looks
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text import captions, word_tokenizer
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame
from pin_jax import evaluate
from pin_jax import vlm as vlm_lib
from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.interface import Inserts
from pin_jax.models.mpt import MPTConfig
from pin_jax.models.opt import OPT, OPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from pin_jax.runtime import feature_cache, files, reporting
from pin_jax.runtime.train_stage import adamw, train_stage
from pin_jax.small import language, queries, vision, words
from pin_jax.weights import parameters

RUNS = ("train", "evaluate", "ask")
SHIPPED = pathlib.Path("assets")


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Does what config.run names."""
    if config.run not in RUNS:
        raise UserError(f"config.run {config.run!r}: expected one of {', '.join(RUNS)}")
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


@dataclasses.dataclass
class Shape:
    """What a config describes: a module, its tokenizer, the names it is to know, its box codec and its frame."""

    model: nn.Module
    tokenizer: Any
    names: tuple[str, ...]
    codec: BoxCodec
    frame: Frame = Frame()


def build(config: ConfigDict) -> Shape:
    """The small Flamingo of a config, or with config.qformer the small BLIP-2."""
    names = tuple(sorted(set(cutouts.load(config.scenes.cutouts).names)))
    codec = BoxCodec(config.vision.image_size, config.grid)
    tokenizer = word_tokenizer.build(names, codec)
    ids = tokenizer.convert_tokens_to_ids
    shared = {
        "vision": ViTConfig(**config.vision),
        "image_token": ids(word_tokenizer.IMAGE),
        "end_token": ids(word_tokenizer.END),
        "pad_token": ids(word_tokenizer.PAD),
    }
    if config.qformer:
        lm, qformer = OPTConfig(vocab=len(tokenizer), **config.lm), QFormerConfig(**config.qformer)
        frame = Frame(prefix=word_tokenizer.IMAGE * qformer.queries)
        return Shape(Blip2(Blip2Config(qformer=qformer, lm=lm, **shared)), tokenizer, names, codec, frame)
    shape = FlamingoConfig(
        lm=MPTConfig(vocab=len(tokenizer), **config.lm),
        perceiver=PerceiverConfig(width=config.vision.width, **config.perceiver) if config.perceiver else None,
        cross_every=config.cross_every,
        cross_heads=config.cross_heads,
        cross_head_dim=config.cross_head_dim,
        unroll=True,
        **shared,
    )
    return Shape(Flamingo(shape), tokenizer, names, codec)


def _bag_of_words(shape: Shape, qformer: bool) -> vision.BagOfWordsModel:
    """The model of stage 1, or of its queries."""
    config = shape.model.config
    return vision.BagOfWordsModel(config.vision, len(shape.names), config.qformer if qformer else None)


def _words_loss(model: vision.BagOfWordsModel, look_weight: float):
    """The loss of stage 1 for `fit`; its option is the share of patches that are seen."""

    def loss(params, held, batch, rng, keep):
        del held
        return vision.loss_fn(model, params, batch, rng, keep, look_weight)

    return loss


def train_vision(config: ConfigDict, workdir: pathlib.Path, shape: Shape) -> Any:
    """Stage 1: see `pretrain_vision`. Returns its parameters."""
    model = _bag_of_words(shape, False)
    size = config.vision.image_size
    params = jax.jit(functools.partial(model.init, method="everything"))(
        jax.random.key(config.seed), np.zeros((1, size, size, 3), np.uint8), np.zeros((1, 1), np.int32)
    )["params"]

    def make(phase):
        def iterator():
            options = {**config.scenes, **phase["scenes"]}
            scenes = Scenes(scene_config(options, shape.codec), phase["seed"] + config.seed, phase["images"])
            words = vision.BagOfWords(shape.names, options["objects"][1])
            return batches(scenes, [words], phase["batch"], shuffle=False, threads=config.threads)

        return iterator

    for k, part in enumerate(config.vision_fits):
        phases = [(p["images"] // p["batch"], make(p), list(p["keep"])) for p in part["phases"]]
        tx = adamw(part["lr"], part["schedule_steps"] or sum(steps for steps, _, _ in phases))
        title, loss = f"stage 1, vision, part {k + 1}", _words_loss(model, part["look_weight"])
        params = train_stage(title, workdir / f"vision_{k + 1}", params, tx, loss, phases, config)
    return params


def train_queries(config: ConfigDict, workdir: pathlib.Path, shape: Shape, seen: Any, bank: Any) -> Any:
    """Stage 1 of BLIP-2's queries: the same words, read from them. `seen` and what returns: parameters of stage 1."""
    model = _bag_of_words(shape, True)
    part, most = config.query_fit, config.language_scenes.objects[1]
    params = jax.jit(functools.partial(model.init, method="everything"))(
        jax.random.key(config.seed), bank[0]["vision"][None], np.zeros((1, 1), np.int32)
    )["params"]
    encoder = queries.gather_init(params["encoder"], jax.random.key(config.seed + 2))
    params = {**{name: x for name, x in seen.items() if name != "encoder"}, "encoder": encoder}

    def iterator():
        words = vision.BagOfWords(shape.names, most)
        return batches(bank, [words], part.batch, seed=config.seed, threads=config.threads)

    tx = adamw(part.lr, part.steps)
    loss, phases = _words_loss(model, part.look_weight), [(part.steps, iterator, [None])]
    return train_stage("stage 1, queries", workdir / f"queries{config.suffix}", params, tx, loss, phases, config)


def train_words(config: ConfigDict, workdir: pathlib.Path, shape: Shape, seen: Any, bank: Any, params: Any) -> Any:
    """The decoder behind prefixes of words (`pretrain_words`).

    Args:
      seen: parameters of the queries' stage. bank: scene records with `vision`. params: of the language model.

    Returns:
      The language model's parameters.
    """
    part = config.words_fit
    made_of = words.fit_words(_bag_of_words(shape, True), seen, bank, shape.names, part.images)
    scenes = words.Said(shape.names, tuple(config.language_scenes.objects), part.steps * part.batch, config.seed + 200)
    texts = captions.CaptionTexts(shape.tokenizer, shape.names, shape.codec, config.text_length, image="", **part.texts)
    rows = tuple(len(table) for table in (made_of.objects, made_of.residual, made_of.background))
    prefixes = words.Prefixes(texts, config.qformer.queries, rows)
    tx, lm = adamw(part.lr, part.steps), OPT(shape.model.config.lm)

    def loss(params, made_of, batch, rng, option):
        del rng, option
        return words.loss_fn(lm, params, made_of, batch, shape.model.config.pad_token)

    def iterator():
        return batches(scenes, [prefixes], part.batch, seed=config.seed, threads=config.threads)

    phases = [(part.steps, iterator, [None])]
    return train_stage("stage 2, words", workdir / f"words{config.suffix}", params, tx, loss, phases, config, made_of)


def train_language(config: ConfigDict, workdir: pathlib.Path, shape: Shape, seen: Any) -> Any:
    """Stage 2: see `pretrain_language`. `seen` is stage 1's parameters; returns the whole VLM's."""
    size, model, frozen = config.vision.image_size, shape.model, seen["encoder"]
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
        bank = feature_cache.build(scenes, vlm.encode, workdir / "cache", vlm.identity, progress=advance)
    params = jax.jit(model.init)(
        jax.random.key(config.seed), np.zeros((1, 1, size, size, 3), np.float32), np.zeros((1, 2), np.int32)
    )["params"]
    rng = jax.random.key(config.seed + 1)
    ids = np.array(shape.tokenizer.convert_tokens_to_ids([f" {name}" for name in shape.names]))
    if config.qformer:
        seen = train_queries(config, workdir, shape, seen, bank)
        params = queries.start(params, rng, seen["encoder"], ids, seen["names"])
        params["lm"] = train_words(config, workdir, shape, seen, bank, params["lm"])
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
    return {**params, "vision": frozen}


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """All stages; leaves the VLM's folder in the workdir."""
    shape = build(config)
    connector = "vision tokens"
    if config.qformer or config.perceiver:
        connector = f"{config.qformer.queries} queries" if config.qformer else f"{config.perceiver.latents} latents"
    reporting.plan(
        f"train the small VLM, in {workdir}",
        {
            "names": f"{len(shape.names)} ({config.scenes.cutouts}), vocabulary {len(shape.tokenizer)}",
            "stage 1": f"{sum(p['images'] for part in config.vision_fits for p in part['phases']):,} images",
            "connector": connector,
            "stage 2": f"{sum(p['steps'] for p in config.language_fits) * config.language_batch:,} samples",
            "devices": reporting.devices(),
        },
    )
    seen = train_vision(config, workdir, shape)
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
    vlm_lib.save(workdir / config.name, vlm)


# --- what it knows ----------------------------------------------------------------------------------------------------


def score(config: ConfigDict, workdir: pathlib.Path, vlm: vlm_lib.VLM) -> dict[str, Any]:
    """What the VLM knows of held-out scenes: right answers on looks, right names in captions; writes knows.json."""
    options = {**config.scenes, **config.language_scenes, "background_split": "held_out", "vary": 0.0}
    scenes = Scenes(scene_config(options, vlm.codec), config.eval.seed, config.eval.images)
    records = [scenes[i] for i in range(len(scenes))]
    seen = evaluate.encode(vlm, [r["image"] for r in records])
    most = max(len(r["names"]) for r in records)
    rows = captions.LookQuestions(vlm.tokenizer, most, image=vlm.frame.prefix)
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
    files.write_json(
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
    prompts = [text for text in config.prompts.prompt_and_target("|") if text.strip()]
    if not prompts:
        raise UserError("config.prompts is empty: give texts to go on from, --config.prompts='A photo of'")
    seen = evaluate.encode(vlm, [square], 1)
    written = evaluate.ask(vlm, seen, [(0, text) for text in prompts], Inserts(), config.eval, "asking")
    for prompt, text in zip(prompts, written, strict=True):
        reporting.say(f"{prompt}{text}")
    return written
