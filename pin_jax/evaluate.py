"""Evaluation: ask a VLM for every object of held-out scenes, read the boxes it writes, score them beside baselines."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text import prompts
from pin_jax.decoding import automaton, grid
from pin_jax.decoding import search as decode
from pin_jax.decoding.in_context import Example, InContext, box_examples
from pin_jax.models.interface import Inserts
from pin_jax.runtime import reporting, sharding
from pin_jax.scoring import metrics, photographs
from pin_jax.scoring.queries import Answer, Query, queries
from pin_jax.vlm import VLM

COLUMNS = ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "unparsed", "queries", "asked_iou", "other_iou")
TEXT_DECODERS = ("greedy", "beam")
RANDOM_DRAWS = 200
IN_MEMORY = 2**30  # bytes of vision tokens
LONGEST_ANSWER = 12  # tokens of a box


def ask(
    vlm: VLM,
    vision: np.ndarray,
    asked: list[tuple[int, str]],
    inserts: Inserts,
    options: ConfigDict,
    title: str = "asking",
    context: InContext | None = None,
) -> list[str]:
    """Decodes one text for each (image, prompt).

    Args:
      vision: float[images, N, D].
      asked: index of the image, and the text that the model goes on from (the VLM's frame is put around it).
      options: config.eval: decoder (one of `TEXT_DECODERS`), beams, length_penalty, new_tokens, batch_size.
      context: worked examples in front of each question.

    Returns:
      The new text of each question.
    """
    if options.decoder not in TEXT_DECODERS:
        raise UserError(
            f"config.eval.decoder {options.decoder!r}: expected {' or '.join(TEXT_DECODERS)}; "
            f"for boxes also {', '.join(grid.DECODERS)}"
        )
    search = functools.partial(decode.greedy, steps=options.new_tokens, suppress=vlm.suppressed)
    if options.decoder == "beam":
        search = functools.partial(
            decode.beam, steps=options.new_tokens, suppress=vlm.suppressed,
            beams=options.beams, length_penalty=options.length_penalty,
        )  # fmt: skip
    return vlm.detokenize(_batched(vlm, vision, asked, inserts, options.batch_size, title, search, context))


def _batched(
    vlm: VLM,
    vision: np.ndarray,
    asked: list[tuple[int, str]],
    inserts: Inserts,
    size: int,
    title: str,
    search: Callable,
    context: InContext | None = None,
) -> Any:
    """What a decoder makes of all questions, arrays of as many rows."""
    before = context.text if context else lambda question: ""
    ids, mask = vlm.tokenize([before(i) + vlm.frame.prompt(prompt) for i, (_, prompt) in enumerate(asked)])
    ids, mask = _bucket(ids, mask, vlm.tokenizer.pad_token_id)
    _check_length(vlm, ids.shape[1], inserts)
    inserts = inserts if vlm.mesh is None else sharding.replicate(inserts, vlm.mesh)
    out = []
    with reporting.progress(title, len(asked), "question") as advance:
        for start in range(0, len(asked), size):
            rows = np.arange(start, start + size).clip(max=len(asked) - 1)  # one batch shape, one compilation
            own = vision[np.array([asked[r][0] for r in rows])]
            inputs = context.media(rows, own) if context else own[:, None], ids[rows], mask[rows]
            with sharding.on(vlm.mesh):
                found = search(vlm.model, vlm.params, *(sharding.shard_rows(x, vlm.mesh) for x in inputs), inserts)
            out.append(jax.tree.map(sharding.fetch, found))
            advance(min(start + size, len(asked)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(asked)], *out)


class TooLong(UserError):
    """A text for which the language model has no positions."""


def _check_length(vlm: VLM, length: int, inserts: Inserts) -> None:
    """Refuses what a table of positions does not reach: a lookup beyond it would quietly give the last one."""
    positions = getattr(vlm.model.config.lm, "positions", None)
    length += LONGEST_ANSWER + (0 if inserts.text is None else inserts.text.shape[-2])  # and the answer
    if positions is not None and length > positions:
        raise TooLong(f"texts of {length} tokens: this language model has {positions} positions; give fewer examples")


def _bucket(ids: np.ndarray, mask: np.ndarray, pad: int, multiple: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pads the prompt length to a multiple, so that a longer name compiles nothing anew."""
    room = -ids.shape[1] % multiple
    return np.pad(ids, [(0, 0), (room, 0)], constant_values=pad), np.pad(mask, [(0, 0), (room, 0)])


def locate(
    vlm: VLM,
    vision: np.ndarray,
    asked: list[tuple[int, str]],
    inserts: Inserts,
    options: ConfigDict,
    title: str,
    context: InContext | None = None,
) -> list[Answer]:
    """Asks where each (image, name) is."""
    where = [(i, prompts.question(name)) for i, name in asked]
    if options.decoder not in grid.DECODERS:
        texts = ask(vlm, vision, where, inserts, options, title, context)
        return [Answer(text, *vlm.codec.decode(text)) for text in texts]
    search = functools.partial(
        grid.answer,
        automaton=automaton.build(vlm.tokenizer, vlm.codec, vlm.frame.suffix),
        decoder=options.decoder,
        beams={"grid_greedy": 1, "grid_beam": options.beams}.get(options.decoder, options.get("candidates", 16)),
    )
    found = zip(*_batched(vlm, vision, where, inserts, options.batch_size, title, search, context), strict=True)
    texts = [(vlm.codec.encode(vlm.codec.to_cells(box)), float(score)) for box, score in found]
    return [Answer(text, *vlm.codec.decode(text), score) for text, score in texts]


def scenes(config: ConfigDict, vlm: VLM) -> list[dict[str, Any]]:
    """The evaluation scenes: names and backgrounds that the insert never saw; or photographs of a published set."""
    if config.eval.source != "scenes":
        return photographs.read(config, vlm.codec.image_size, vlm.names)
    source = Scenes(
        scene_config(config.scenes, vlm.codec, split=config.eval.split, background_split=config.eval.background_split),
        config.eval.seed,
        config.eval.images,
        config.on_bad_record,
    )
    return [source[i] for i in range(len(source))]


def pool(config: ConfigDict, vlm: VLM) -> tuple[np.ndarray, list[Example]]:
    """Vision tokens and box examples of config.eval.context_images training scenes, for contexts."""
    source = Scenes(scene_config(config.scenes, vlm.codec, split="train"), config.eval.seed, config.eval.context_images)
    records = [source[i] for i in range(len(source))]
    return encode(vlm, [record["image"] for record in records]), box_examples(records, vlm.codec)


def encode(vlm: VLM, images: list[np.ndarray], batch_size: int = 32, inserts: Inserts = Inserts()) -> np.ndarray:
    """Vision tokens float[images, N, D] of pictures uint8[H, W, 3], with what a method puts into the encoder.

    Over a gigabyte they stand in a temporary file.
    """
    out = None
    for start in range(0, len(images), batch_size):
        chunk = np.stack(images[start : start + batch_size])
        short = batch_size - len(chunk)
        found = vlm.encode(np.pad(chunk, [(0, short), (0, 0), (0, 0), (0, 0)]), inserts)[: len(chunk)]
        if out is None:
            shape = (len(images), *found.shape[1:])
            large = np.prod(shape) * found.itemsize > IN_MEMORY
            out = (
                np.memmap(tempfile.TemporaryFile(), found.dtype, "w+", shape=shape)
                if large
                else np.empty_like(found, shape=shape)
            )
        out[start : start + len(chunk)] = found
    return out


def evaluate(
    config: ConfigDict, vlm: VLM, inserts: Inserts | None, row: str = ""
) -> tuple[dict[str, Any], list[dict], list[Query], list[Answer]]:
    """The rows of the table.

    raw: the frozen VLM as it is. N_context: the same after N worked examples, for each N in config.eval.context.
    random: on-grid boxes, the mean of many draws. constant: the best single box for these very queries. `row`
    (config.method by default): the VLM with what the method puts in; without inserts there is none.

    Returns:
      {"raw": scores, ...}, the scenes, the queries, and the answers with the inserts, else those of the raw VLM.
    """
    records = scenes(config, vlm)
    images = [record["image"] for record in records]
    vision = encode(vlm, images)
    seen = encode(vlm, images, inserts=inserts) if inserts and inserts.in_vision else vision
    asked = queries(records)
    true, others = np.stack([q.box for q in asked]), [q.others for q in asked]
    size = vlm.codec.image_size

    def score(boxes: np.ndarray, parsed: np.ndarray | None = None) -> dict[str, Any]:
        parsed = np.ones(len(boxes), bool) if parsed is None else parsed
        return metrics.summary(boxes, true, others, parsed, size)

    def answered(answers: list[Answer]) -> dict[str, Any]:
        return score(np.stack([a.box for a in answers]), np.array([a.parsed for a in answers]))

    where = [(q.image, q.name) for q in asked]
    asking = vlm, vision, where, Inserts(), config.eval

    def in_context(context: InContext) -> dict[str, Any]:
        try:
            return answered(locate(*asking, f"asking after {context.k} examples", context))
        except TooLong as error:
            reporting.say(f"no row {context.k}_context: {error}")
            return dict.fromkeys(draws[0])

    raw = locate(*asking, "asking the raw VLM")
    row = row or config.method
    found = locate(vlm, seen, where, inserts, config.eval, f"asking with {row}") if inserts else raw
    shown = pool(config, vlm) if config.eval.context else None
    contexts = [InContext(*shown, k, config.eval.context_seed, vlm.frame) for k in config.eval.context]
    rng = np.random.default_rng(config.eval.seed)
    draws = [score(metrics.random_boxes(rng, len(asked), vlm.codec)) for _ in range(RANDOM_DRAWS)]
    constant = metrics.constant_box(true, vlm.codec)
    rows = {
        "raw": answered(raw),
        **{f"{context.k}_context": in_context(context) for context in contexts},
        "random": {
            k: None if draws[0][k] is None else type(draws[0][k])(np.mean([d[k] for d in draws])) for k in draws[0]
        },
        "constant": score(np.tile(constant, (len(asked), 1))) | {"box": constant.tolist()},
        **({row: answered(found)} if inserts else {}),
    }
    rows["raw"]["distinct_boxes"] = len({tuple(a.box.tolist()) for a in raw})
    return rows, records, asked, found
