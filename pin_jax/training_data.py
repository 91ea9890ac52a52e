"""Training data of a run: scenes in order, their texts, batches of this process, and the first one as a picture."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.loader import batches
from input_pipeline.pasted import sizes
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text.questions import BoxQuestions, Curriculum, needed_lengths, shared_opening
from pin_jax.models.base import ImagesInText
from pin_jax.runtime import feature_cache, reporting, sharding
from pin_jax.runtime.files import AnyPath
from pin_jax.scoring import first_batch
from pin_jax.vlm import VLM


def training_source(config: ConfigDict, vlm: VLM, workdir: AnyPath, in_vision: bool = False) -> Curriculum:
    """Training samples in order; with config.cache_images > 0 from that many scenes, which are cached.

    Args:
      in_vision: the method acts inside the vision encoder: pictures are cached instead of features.
    """
    total = config.steps * config.batch_size
    options = dict(config.scenes) | dict(config.train_scenes)
    most = options["objects"][1]
    folder = epath.Path(config.cache_folder) if config.cache_folder else workdir / "cache"
    encode, what = functools.partial(vlm.encode, dtype=None), "vision features"
    if in_vision:
        encode, what = None, "pictures"
    # Features in another dtype are other features; those of float32 have the name that they always had.
    computed = vlm.identity if vlm.encoder_dtype == np.float32 else f"{vlm.identity} {vlm.encoder_dtype}"
    cached = min(config.cache_images, total) if config.cache_images else 0
    parts: list[Any] = []
    for phase, share in enumerate((config.curriculum, 1 - config.curriculum)):
        objects = (most, most) if phase == 0 else tuple(options["objects"])
        length = max(1, round((cached or total) * share))
        scenes: Any = Scenes(
            scene_config(options, vlm.codec, split="train", objects=objects, vary=config.vary_backgrounds),
            2 * config.seed + phase,  # another seed, other scenes
            length,
            config.on_bad_record,
        )
        if cached and share > 0:
            bar = reporting.progress(f"{what} of {length:,} scenes", length, "image")
            with sizes.kept(scenes.cutouts, folder), bar as advance:
                scenes = feature_cache.build(scenes, encode, folder, computed, progress=advance)
        parts.append(scenes)
    early, late = parts
    return Curriculum(early, late, total, config.curriculum, config.seed)


def text_lengths(config: ConfigDict, vlm: VLM, source: Curriculum) -> tuple[int, int]:
    """Tokens of a training text and of its target: as many as the longest name of the source needs.

    A text may be longer (config.text_length).

    Raises:
      UserError: config.text_length is too small for it, which else would be found out in mid-run.
    """
    given, phrases = config.text_length, source.phrases()
    needed, targets = needed_lengths(vlm.tokenizer, vlm.codec, vlm.frame, phrases, config.curriculum > 0)
    if given and given < needed:
        raise UserError(
            f"config.text_length {given}: the longest text needs {needed} tokens; give as many, or 0 for what is needed"
        )
    return given or needed, targets


def training_batches(config: ConfigDict, vlm: VLM, source: Curriculum, start: int = 0):
    """Batches of this process, in the order of the source.

    Sample i is a function of i alone: whatever the number of workers and of processes, step s has the same samples.

    Args:
      start: the step after which to go on.
    """
    length, targets = text_lengths(config, vlm, source)
    opening = shared_opening(vlm.tokenizer, vlm.frame) if reads_once(config, vlm) else ()
    told = opening.index(vlm.model.config.image_token) if opening and config.get("example", ()) else 0
    texts = BoxQuestions(
        vlm.tokenizer, vlm.codec, config.questions_per_image, length, vlm.frame, targets, opening, told
    )
    index, count = sharding.process_part(vlm.mesh)
    return batches(
        source,
        [texts],
        config.batch_size // count,
        seed=config.seed,
        shuffle=False,
        workers=config.workers,
        threads=config.threads,
        process=(index, count),
        start=start,
    )


def reads_once(config: ConfigDict, vlm: VLM) -> bool:
    """Whether what all questions of an image begin with, the image among it, goes through the language model once."""
    in_text = isinstance(vlm.model, ImagesInText) and not vlm.frame.encoder_decoder
    return in_text and config.questions_per_image > 1


def planned_length(config: ConfigDict) -> int:
    """Tokens of a text where no names are read, for a plan: config.text_length, or what LVIS's longest names need."""
    return config.text_length or (48 if config.language_model else 40)


def batch_shapes(config: ConfigDict, vlm: VLM, front: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch with pictures, as `training_batches` makes it.

    Args:
      front: tokens that the VLM's frame puts before a prompt.
    """
    size, rows = vlm.codec.image_size, (config.batch_size, config.questions_per_image)
    length = planned_length(config)
    texts = {"ids": length + max(0, front - 1), "target": length + max(0, front - 1)}
    if vlm.frame.encoder_decoder:
        texts |= {"target": length, "labels": length}
    texts["places"] = length - 5 if config.curriculum else 16  # without `In the image is a`; a box and the end
    opened = {}
    if reads_once(config, vlm):  # `In the image is` stands behind the frame's prefix
        opening = front + 4
        texts |= {key: texts[key] - opening for key in ("ids", "target")}
        opened["opening"] = jax.ShapeDtypeStruct((config.batch_size, opening), jnp.int32)
    shapes = {
        key: jax.ShapeDtypeStruct((*rows, length), jnp.float32 if key == "target" else jnp.int32)
        for key, length in texts.items()
    }
    return shapes | opened | {"image": jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.uint8)}


def draw_first_batch(workdir: AnyPath, vlm: VLM, source: Curriculum, batch: dict[str, np.ndarray]) -> epath.Path:
    """Draws the pictures, texts and boxes of the first batch; returns where."""
    images: Any = batch.get("image")
    if images is None:  # features are cached: the same scenes, with their pictures
        _, count = sharding.process_part(vlm.mesh)
        early, late = (getattr(part, "scenes", part) for part in (source.early, source.late))
        scenes = Curriculum(early, late, source.total, source.share, source.seed)
        images = [scenes[i * count]["image"] for i in range(min(first_batch.SHOWN, len(batch["ids"])))]
    path = epath.Path(workdir) / "first_batch.png"
    hidden = (vlm.model.config.pad_token, vlm.model.config.image_token)
    first_batch.draw(path, images, batch, vlm.tokenizer, vlm.codec, hidden)
    return path
