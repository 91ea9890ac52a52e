"""Scenes as box questions: every object of an image asked in its own text, all of them together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.memory import Memory, remembered
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame, prompt_and_target
from input_pipeline.text.referrals import every_phrase

PLACE = "<image>"  # a place of the image in a text
KEPT = 50_000  # encoded texts: every prompt, and all 18,496 boxes


@dataclasses.dataclass(frozen=True)
class BoxQuestions(grain.transforms.RandomMap):
    """A scene's record -> training texts.

    `<image>In the image is a NAME located at [x1,y1,x2,y2].<|endofchunk|>`; only the target counts in the loss.

    Returns ids int32[Q, T] (right-padded), target float32[Q, T] (1 where the token counts), places int32[Q, P] (where
    these tokens stand; -1 behind them) and the record's `vision` or `image`. Rows beyond the image's objects are all
    pads. With an opening, there is opening int32[S] too, and ids, target and places are of what is behind it. Where the
    frame keeps prompt and answer apart, ids hold the prompt, and labels int32[Q, T] the answer, to which target and
    places belong.

    Attributes:
      tokenizer: a transformers tokenizer. codec: of boxes.
      questions: Q; with more objects than that, the ones asked are drawn uniformly.
      length: T, beyond the image's own tokens.
      frame: what stands around prompt and answer.
      targets: P; 0 makes no places.
      opening: tokens that every text begins with, from `shared_opening`, which are to be read once an image.
      told: how many of them stand in front of the image, to be read once for all images: they are told int32[C] then.
    """

    tokenizer: Any
    codec: BoxCodec
    questions: int
    length: int
    frame: Frame = Frame()
    targets: int = 0
    opening: tuple[int, ...] = ()
    told: int = 0
    _memory: Memory = dataclasses.field(default_factory=lambda: Memory(KEPT), repr=False, compare=False)

    @remembered
    def _encode(self, text: str) -> list[int]:
        """Token ids; prompts and boxes come again and again, so those used last are kept."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        asked = rng.permutation(len(record["query_text"]))[: self.questions]
        pad, frame = self.tokenizer.pad_token_id, self.frame
        shared = len(self.opening)
        room = self.length + max(0, len(self._encode(frame.prefix)) - 1) - shared
        out: dict[str, np.ndarray] = {"ids": np.full((self.questions, room), pad, np.int32)}
        if frame.encoder_decoder:
            out["labels"] = np.full((self.questions, self.length), pad, np.int32)
        written = out["labels" if frame.encoder_decoder else "ids"]
        out["target"] = np.zeros(written.shape, np.float32)
        if self.targets:
            out["places"] = np.full((self.questions, self.targets), -1, np.int32)
        for row, i in enumerate(asked):
            prompt, answer = prompt_and_target(
                record["query_text"][i], self.codec.encode(record["cells"][i]), record.get("curriculum", False)
            )
            read, answer = self._encode(frame.prompt(prompt)), self._encode(answer + frame.suffix)
            places = read.count(self._encode(PLACE)[0])
            if places != frame.prefix.count(PLACE):
                raise UserError(
                    f"text of {record['query_text'][i]!r} has {places} places for the image, expected"
                    f" {frame.prefix.count(PLACE)}; leave {PLACE} out of names"
                )
            if tuple(read[:shared]) != self.opening:
                raise UserError(f"text of {record['query_text'][i]!r} does not begin as the others; change its name")
            read = read[shared:]
            before = [] if frame.encoder_decoder else read
            fits = len(read) <= room and len(before) + len(answer) <= written.shape[1]
            if not fits or 0 < self.targets < len(answer):
                raise UserError(
                    f"text of {record['query_text'][i]!r} has over {self.length} tokens; raise config.text_length, or"
                    " set it to 0 for as many as the longest name needs"
                )
            out["ids"][row, : len(read)] = read
            written[row, : len(before) + len(answer)] = before + answer
            out["target"][row, len(before) : len(before) + len(answer)] = 1
            if self.targets:
                out["places"][row, : len(answer)] = np.arange(len(before), len(before) + len(answer))
        out |= {"opening": np.array(self.opening[self.told :], np.int32)} if shared else {}
        out |= {"told": np.array(self.opening[: self.told], np.int32)} if self.told else {}
        return out | {key: record[key] for key in ("vision", "image") if key in record}


def shared_opening(tokenizer: Any, frame: Frame) -> tuple[int, ...]:
    """Tokens that the texts of all questions begin with: the frame's prefix, and `In the image is`."""
    texts = [frame.prompt(prompt_and_target(name, "")[0]) for name in ("cat", "apple")]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tuple(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*rows, strict=False)))


def needed_lengths(
    tokenizer: Any, codec: BoxCodec, frame: Frame, phrases: Iterable[str], curriculum: bool
) -> tuple[int, int]:
    """`length` and `targets` of `BoxQuestions` that hold every training text, and every target.

    Of grids finer than 16 x 16 boxes of every height and width are looked at, not every box.

    Args:
      phrases: all that objects are asked for by. curriculum: whether there are targets with the name in them too.
    """

    def counts(texts: Iterable[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    spans = [(low, high) for low in range(codec.grid) for high in range(low, codec.grid)]
    pairs = itertools.product(spans, spans) if codec.grid <= 16 else zip(spans, spans, strict=True)
    boxes = [codec.encode(np.array([x1, y1, x2, y2])) for (x1, x2), (y1, y2) in pairs]
    longest_box = boxes[int(np.argmax(counts(boxes)))]
    extra = max(0, counts([frame.prefix])[0] - 1)
    length, targets = 1, 1
    for early in (False, True)[: 1 + curriculum]:
        texts = [prompt_and_target(phrase, longest_box, early) for phrase in dict.fromkeys(phrases)]
        read = counts(frame.prompt(prompt) for prompt, _ in texts)
        written = counts(target + frame.suffix for _, target in texts)
        targets = max(targets, *written)
        for r, w in zip(read, written, strict=True):
            length = max(length, r - extra, w) if frame.encoder_decoder else max(length, r + w - extra)
    return length, targets


class Curriculum:
    """Training samples in order: a first share from `early` scenes with the name in the target, the rest from `late`.

    Sample i is a pure function of (seed, i): passes over a source are shuffled anew each time.

    Attributes:
      early, late: random-access sources of scene records. total: number of samples. share: of them from `early`.
    """

    def __init__(self, early: Any, late: Any, total: int, share: float, seed: int):
        self.early, self.late, self.total, self.share, self.seed = early, late, total, share, seed
        self.boundary = round(total * share)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def phrases(self) -> set[str]:
        """All that an object may be asked for by."""
        out: set[str] = set()
        for part in (self.early, self.late):
            scenes = getattr(part, "scenes", part)  # those of a bank of features
            out |= every_phrase(scenes.names, scenes.config.twins > 0 or scenes.config.absolute_share > 0)
        return out

    def __len__(self) -> int:
        return self.total

    def __repr__(self) -> str:
        return f"Curriculum({self.early!r}, {self.late!r}, {self.total}, {self.boundary}, {self.seed})"

    def _order(self, phase: int, epoch: int, length: int) -> np.ndarray:
        if (phase, epoch) not in self._orders:
            while len(self._orders) >= 4:  # the epochs that threads may still be reading
                self._orders.pop(next(iter(self._orders)))
            rng = np.random.default_rng([self.seed, phase, epoch])
            self._orders[phase, epoch] = rng.permutation(length)
        return self._orders[phase, epoch]

    def __getitem__(self, index: int) -> dict[str, Any]:
        phase = int(index >= self.boundary)
        source = (self.early, self.late)[phase]
        epoch, place = divmod(int(index) - phase * self.boundary, len(source))
        return source[int(self._order(phase, epoch, len(source))[place])] | {"curriculum": phase == 0}
