"""Evaluation: ask a VLM for every object of held-out scenes, read the boxes it writes, score them beside baselines.

Several processes share the images: each reads, encodes and asks about its own, and all of them get all answers.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
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
from pin_jax.runtime.processes import preemption
from pin_jax.scoring import metrics, photographs, queries
from pin_jax.scoring.queries import Answer
from pin_jax.vlm import VLM

COLUMNS = ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "unparsed", "queries", "asked_iou", "other_iou")
TEXT_DECODERS = ("greedy", "beam")
RANDOM_DRAWS = 200
IN_MEMORY = 2**30  # bytes of vision tokens
LONGEST_ANSWER = 12  # tokens of a box
SHOWN = 12  # pictures that every process gets, to be drawn


def ask(
    vlm: VLM,
    vision: np.ndarray,
    questions: list[tuple[int, str]],
    inserts: Inserts,
    options: ConfigDict,
    title: str = "asking",
    context: InContext | None = None,
    first: int = 0,
) -> list[str]:
    """Decodes one text for each (image, prompt). Each of several processes has its own, and all must ask.

    Args:
      vision: float[images, N, D].
      questions: index of the image, and the text that the model goes on from (the VLM's frame is put around it).
      options: config.eval: decoder (one of `TEXT_DECODERS`), beams, length_penalty, new_tokens, batch_size (a device).
      title: of the progress bar; none if empty.
      context: worked examples in front of each question. first: the number of this process's first question in it.

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
    return vlm.detokenize(batched(vlm, vision, questions, inserts, options.batch_size, title, search, context, first))


def batched(
    vlm: VLM,
    vision: np.ndarray,
    questions: list[tuple[int, str]],
    inserts: Inserts,
    size: int,
    title: str,
    search: Callable,
    context: InContext | None = None,
    first: int = 0,
) -> Any:
    """What a decoder makes of this process's questions, arrays of as many rows; all processes take part in each batch.

    Args:
      size: questions of a batch on each device that has rows of its own.
    """
    mesh, count, most = vlm.mesh, len(questions), sharding.largest(len(questions))
    before = context.text if context else lambda question: ""
    texts = [before(first + i) + vlm.frame.prompt(prompt) for i, (_, prompt) in enumerate(questions)]
    pad = vlm.tokenizer.pad_token_id
    ids, mask = vlm.tokenize(texts) if texts else (np.full((1, 1), pad, np.int32), np.ones((1, 1), bool))
    ids, mask = _bucket(ids, mask, pad, sharding.largest(ids.shape[1]))
    _check_length(vlm, ids.shape[1], inserts)
    inserts = inserts if mesh is None else sharding.replicate(inserts, mesh)
    ways = sharding.local_ways(mesh)
    size = min(size, -(-most // ways)) * ways  # a short set fills one batch
    out = []
    with reporting.progress(title, count, "question") as advance:
        for start in range(0, most, size):
            preemption.check()
            rows = np.arange(start, start + size).clip(max=max(count - 1, 0))  # one batch shape, one compilation
            images = [questions[r][0] for r in rows] if questions else []
            own = vision[np.array(images)] if questions else np.zeros((size, *vision.shape[1:]), vision.dtype)
            inputs = context.media(first + rows, own) if context else own[:, None], ids[rows], mask[rows]
            with sharding.on(mesh):
                found = search(vlm.model, vlm.params, *sharding.from_local_rows(inputs, mesh), inserts)
            out.append(sharding.local_rows(found, mesh))
            advance(min(start + size, count))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *out)


class TooLong(UserError):
    """A text for which the language model has no positions."""


def _check_length(vlm: VLM, length: int, inserts: Inserts) -> None:
    """Refuses what a table of positions does not reach: a lookup beyond it would quietly give the last one."""
    positions = getattr(vlm.model.config.lm, "positions", None)
    length += LONGEST_ANSWER + (0 if inserts.text is None else inserts.text.shape[-2])  # and the answer
    if positions is not None and length > positions:
        raise TooLong(f"texts of {length} tokens: this language model has {positions} positions; give fewer examples")


def _bucket(
    ids: np.ndarray, mask: np.ndarray, pad: int, length: int, multiple: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Pads prompts to a length, and that to a multiple, so that a longer name compiles nothing anew."""
    room = length - ids.shape[1] + -length % multiple
    return np.pad(ids, [(0, 0), (room, 0)], constant_values=pad), np.pad(mask, [(0, 0), (room, 0)])


def choices(vlm: VLM) -> automaton.BoxAutomaton:
    """Every box that a VLM can write, token by token."""
    with vlm.lock:
        return automaton.build(vlm.tokenizer, vlm.codec, vlm.frame.suffix)


def where(questions: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """(image, name) -> (image, prompt that asks where it is)."""
    return [(i, prompts.question(name)) for i, name in questions]


def locate(
    vlm: VLM,
    vision: np.ndarray,
    questions: list[tuple[int, str]],
    inserts: Inserts,
    options: ConfigDict,
    title: str,
    context: InContext | None = None,
    first: int = 0,
) -> list[Answer]:
    """Asks where each (image, name) is; arguments as in `ask`."""
    asked = where(questions)
    if options.decoder not in grid.DECODERS:
        texts = ask(vlm, vision, asked, inserts, options, title, context, first)
        return [Answer(text, *vlm.codec.decode(text)) for text in texts]
    search = functools.partial(
        grid.answer,
        automaton=choices(vlm),
        decoder=options.decoder,
        beams={"grid_greedy": 1, "grid_beam": options.beams}.get(options.decoder, options.get("candidates", 16)),
    )
    found = batched(vlm, vision, asked, inserts, options.batch_size, title, search, context, first)
    texts = [(vlm.codec.encode(vlm.codec.to_cells(box)), float(score)) for box, score in zip(*found, strict=True)]
    return [Answer(text, *vlm.codec.decode(text), score) for text, score in texts]


def scenes(config: ConfigDict, vlm: VLM) -> list[dict[str, Any]]:
    """This process's evaluation scenes: names and backgrounds that the insert never saw; or photographs of a set."""
    if config.eval.source != "scenes":
        return photographs.read(config, vlm.codec.image_size, vlm.names, vlm.mesh)
    source = Scenes(
        scene_config(config.scenes, vlm.codec, split=config.eval.split, background_split=config.eval.background_split),
        config.eval.seed,
        config.eval.images,
        config.on_bad_record,
    )
    return [source[i] for i in sharding.share(len(source), vlm.mesh)]


def pool(config: ConfigDict, vlm: VLM) -> tuple[np.ndarray, list[Example]]:
    """Vision tokens and box examples of config.eval.context_images training scenes, for contexts."""
    source = Scenes(scene_config(config.scenes, vlm.codec, split="train"), config.eval.seed, config.eval.context_images)
    records = [source[i] for i in range(len(source))]
    images = [record["image"] for record in records]
    return encode(vlm, images, config.eval.batch_size), box_examples(records, vlm.codec)


def encode(vlm: VLM, images: list[np.ndarray], batch_size: int = 32, inserts: Inserts = Inserts()) -> np.ndarray:
    """Vision tokens float32[images, N, D] of this process's pictures uint8[H, W, 3]; all processes must encode.

    Over a gigabyte they stand in a temporary file.

    Args:
      batch_size: of each device that has rows of its own. inserts: what a method puts into the encoder.
    """
    count, most, ways = len(images), sharding.largest(len(images)), sharding.local_ways(vlm.mesh)
    size, side = min(batch_size, -(-most // ways)) * ways, vlm.codec.image_size
    out: Any = None
    for start in range(0, most, size):
        preemption.check()
        own = images[start : start + size]
        chunk = np.stack([*own, *[np.zeros((side, side, 3), np.uint8)] * (size - len(own))])
        found = vlm.encode_rows(chunk, inserts)
        if out is None:
            shape = (count, *found.shape[1:])
            large = np.prod(shape) * found.itemsize > IN_MEMORY
            out = (
                np.memmap(tempfile.TemporaryFile(), found.dtype, "w+", shape=shape)
                if large
                else np.empty_like(found, shape=shape)
            )
        out[start : start + len(own)] = found[: len(own)]
    return out


class Evaluation:
    """Scenes to be asked about, with the vision tokens of this process's own; asked as often as one likes.

    All processes must take part in making it and in asking.

    Attributes:
      records: the scenes of all processes, in order; the first `SHOWN` with their pictures.
      queries: what is asked. photographs: of a published set, this process's; None of pasted scenes.
    """

    def __init__(self, config: ConfigDict, vlm: VLM):
        self.config, self.vlm = config, vlm
        own = scenes(config, vlm)
        self.photographs = own if isinstance(own, photographs.Photographs) else None
        self._images = [record["image"] for record in own]
        self._vision = encode(vlm, self._images, config.eval.batch_size)
        counts = sharding.gather([len(own)], vlm.mesh)
        start = sum(counts[: sharding.process_part(vlm.mesh)[0]]) if len(counts) > 1 else 0
        light = [
            {key: value for key, value in record.items() if key != "image" or start + i < SHOWN}
            for i, record in enumerate(own)
        ]
        self.records = sharding.gather(light, vlm.mesh)
        self.queries = queries.of_records(self.records)
        if not self.queries:
            raise UserError(f"config.eval.source {config.eval.source}: its images have no objects to ask for")
        self._first = sum(query.image < start for query in self.queries)
        self._own = [(q.image - start, q.name) for q in self.queries if start <= q.image < start + len(own)]
        self._true = np.stack([query.box for query in self.queries])

    def answers(self, inserts: Inserts = Inserts(), title: str = "", context: InContext | None = None) -> list[Answer]:
        """One answer for each query, on every process; arguments as in `ask`."""
        vision, options = self._vision, self.config.eval
        if inserts.in_vision:
            vision = encode(self.vlm, self._images, options.batch_size, inserts)
        found = locate(self.vlm, vision, self._own, inserts, options, title, context, self._first)
        return sharding.gather(found, self.vlm.mesh)

    def token_norm(self, inserts: Inserts) -> float:
        """Mean size of the vision tokens that an insert is added to."""
        vision = (
            encode(self.vlm, self._images, self.config.eval.batch_size, inserts) if inserts.in_vision else self._vision
        )
        norms = [float(np.linalg.norm(image, axis=-1).mean()) for image in vision]
        return float(np.mean(sharding.gather(norms, self.vlm.mesh)))

    def score(self, boxes: np.ndarray, parsed: np.ndarray | None = None) -> dict[str, Any]:
        """Scores of boxes float[queries, 4]; see `metrics.summary`."""
        parsed = np.ones(len(boxes), bool) if parsed is None else parsed
        others = [query.others for query in self.queries]
        return metrics.summary(boxes, self._true, others, parsed, self.vlm.codec.image_size)

    def score_answers(self, answers: list[Answer]) -> dict[str, Any]:
        """Scores of answers, one for each query."""
        return self.score(np.stack([a.box for a in answers]), np.array([a.parsed for a in answers]))

    def baselines(self) -> dict[str, dict[str, Any]]:
        """What no picture tells: random boxes of the grid, and the one box that is best for these queries."""
        rng, codec = np.random.default_rng(self.config.eval.seed), self.vlm.codec
        draws = [self.score(metrics.random_boxes(rng, len(self.queries), codec)) for _ in range(RANDOM_DRAWS)]
        random = {
            key: None if value is None else type(value)(np.mean([draw[key] for draw in draws]))
            for key, value in draws[0].items()
        }
        constant = metrics.constant_box(self._true, codec)
        row = self.score(np.tile(constant, (len(self.queries), 1))) | {"box": constant.tolist()}
        return {"random": random, "constant": row}


def evaluate(
    config: ConfigDict, vlm: VLM, inserts: Inserts | None, row: str = ""
) -> tuple[dict[str, Any], Evaluation, list[Answer]]:
    """The rows of the table.

    raw: the frozen VLM as it is. N_context: the same after N worked examples, for each N in config.eval.context.
    random: on-grid boxes, the mean of many draws. constant: the best single box for these very queries. `row`
    (config.method by default): the VLM with what the method puts in; without inserts there is none.

    Returns:
      {"raw": scores, ...}, what was asked, and the answers with the inserts, else those of the raw VLM.
    """
    test, row = Evaluation(config, vlm), row or config.method
    raw = test.answers(title="asking the raw VLM")
    found = test.answers(inserts, f"asking with {row}") if inserts else raw
    baselines = test.baselines()

    def in_context(context: InContext) -> dict[str, Any]:
        try:
            return test.score_answers(test.answers(title=f"asking after {context.k} examples", context=context))
        except TooLong as error:
            reporting.say(f"no row {context.k}_context: {error}")
            return dict.fromkeys(baselines["random"])

    contexts = []
    if config.eval.context:
        vision, examples = pool(config, vlm)
        seed = config.eval.context_seed
        contexts = [InContext(vision, examples, k, seed, vlm.frame) for k in config.eval.context]
    rows = {
        "raw": test.score_answers(raw) | {"distinct_boxes": len({tuple(answer.box.tolist()) for answer in raw})},
        **{f"{context.k}_context": in_context(context) for context in contexts},
        **baselines,
        **({row: test.score_answers(found)} if inserts else {}),
    }
    return rows, test, found
