"""In-context examples: k worked examples (image, prompt, answer) stand in front of every question.

`<image>prompt answer<|endofchunk|> ... <image>question`: a row of text then has k + 1 images, and each token attends to
the most recent one before it. The answer may be a box (the `k context` rows of PIN's table) or a caption (few-shot
captioning); `evaluate.ask` takes a `InContext` for either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.text import prompts
from input_pipeline.text.box_codec import BoxCodec


@dataclasses.dataclass(frozen=True)
class Example:
    """A worked example.

    Attributes:
      image: index into the pool. prompt, answer: the text, and how it rightly goes on, up to the full stop.
    """

    image: int
    prompt: str
    answer: str


def box_examples(records: Sequence[dict], codec: BoxCodec) -> list[Example]:
    """Every object of scene records as an example: where it is."""
    return [
        Example(i, prompts.question(name), codec.encode(cells))
        for i, record in enumerate(records)
        for name, cells in zip(record["query_text"], record["cells"], strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class InContext:
    """Draws k examples for each question, of k different images; the same ones for the same (seed, question).

    Attributes:
      vision: float[P, N, D], the vision tokens of a pool of images.
      examples: that may be drawn. k: how many. seed: of the draws.

    Raises:
      UserError: the examples are of fewer than k images.
    """

    vision: np.ndarray
    examples: Sequence[Example]
    k: int
    seed: int = 0
    frame: prompts.Frame = prompts.Frame()

    def __post_init__(self):
        images = len({example.image for example in self.examples})
        if images < self.k:
            raise UserError(f"{self.k} examples in context, of a pool of {images} images; raise the pool's size")

    def draw(self, question: int) -> list[Example]:
        """The k examples in front of a question."""
        rng = np.random.default_rng([self.seed, question])
        chosen: dict[int, Example] = {}
        for i in rng.permutation(len(self.examples)):
            chosen.setdefault(self.examples[i].image, self.examples[i])
            if len(chosen) == self.k:
                break
        return list(chosen.values())[: self.k]

    def text(self, question: int) -> str:
        """What stands in front of a question's own text."""
        return "".join(self.frame.prompt(shot.prompt) + shot.answer + self.frame.suffix for shot in self.draw(question))

    def media(self, questions: Sequence[int] | np.ndarray, vision: np.ndarray) -> np.ndarray:
        """Vision tokens float[R, N, D] of the questions' own images -> float[R, k + 1, N, D], the examples' first."""
        shots = [[shot.image for shot in self.draw(question)] for question in questions]
        shown = self.vision[np.array(shots, int).reshape(len(shots), self.k)]
        return np.concatenate([shown, vision[:, None]], 1)
