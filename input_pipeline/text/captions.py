"""The texts that the small VLM learns language from: captions, questions of looks, and box syntax without an image.

No number is ever tied to an image: box texts name objects that are NOT in the picture, with random boxes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline.loader import pad_rows
from input_pipeline.pasted import looks, paste
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame, article, question

ANSWER, NAME, COPY, REST = 6.0, 3.0, 1.0, 0.3


@dataclasses.dataclass
class Text:
    """A text under construction, with a loss weight for every piece."""

    text: str = ""
    spans: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # (end, weight)

    def add(self, piece: str, weight: float = REST) -> Text:
        self.text += piece
        self.spans.append((len(self.text), weight))
        return self

    def weight_at(self, offset: int) -> float:
        """Loss weight of the token that starts at a character."""
        return next(weight for end, weight in self.spans if offset < end)


def caption(text: Text, names: Sequence[str]) -> Text:
    """`a photo of a cat, a dog and a red apple.`"""
    text.add("A photo of")
    for i, name in enumerate(names):
        if i:
            text.add(" and" if i == len(names) - 1 else ",")
        text.add(f" {article(name)}").add(f" {name}", NAME)
    return text.add(".")


def look_question(text: Text, slot: str, name: str, look: looks.Look) -> Text:
    """`The colour of the cat is red.`"""
    return text.add(f"The {slot} of the {name} is").add(f" {getattr(look, slot)}", ANSWER).add(".")


def keywords(text: Text, slot: str, name: str, look: looks.Look) -> Text:
    """` colour cat red.`: the answer straight behind the name, so that one step of attention finds it."""
    return text.add(f" {slot}").add(f" {name}").add(f" {getattr(look, slot)}", ANSWER).add(".")


def look_list(text: Text, name: str, look: looks.Look, syntax: float = REST) -> Text:
    """`In the image is a cat looking like [big,red,plain,blue].`: a list in the syntax of boxes, in words only."""
    text.add(f"In the image is {article(name)}").add(f" {name}", 1.0).add(" looking like").add(" [", syntax)
    for i, word in enumerate(look.words()):
        text.add("," if i else "", syntax).add(word, ANSWER)
    return text.add("].", syntax)


def list_statement(
    text: Text, name: str, of_looks: bool, words: Iterable[str], weight: float, syntax: float = REST
) -> Text:
    """`In the image is a cat located at [0,10,40,80].` or `looking like [..]`; `weight` is that of the words."""
    text.add(f"In the image is {article(name)}").add(f" {name}").add(" looking like" if of_looks else " located at")
    text.add(" [", syntax)
    for i, word in enumerate(words):
        text.add("," if i else "", syntax).add(word, weight)
    return text.add("].", syntax)


def box_statement(text: Text, name: str, box: str, weight: float = REST, syntax: float = REST) -> Text:
    """`In the image is a cat located at [0,10,40,80].`; `weight` is that of the numbers."""
    text.add(question(name))
    for piece in re.findall(r"\d+|\D+", box):
        text.add(piece, weight if piece.isdigit() else syntax)
    return text.add(".", syntax)


def _beyond(tokenizer: Any, image: str) -> int:
    """Tokens of an image beyond the first."""
    return len(tokenizer(image, add_special_tokens=False)["input_ids"]) - 1


def random_box(rng: np.random.Generator, codec: BoxCodec) -> str:
    """The text of a box drawn as the paste recipe draws them."""
    aspect = float(np.exp(rng.normal(0, 0.35)))
    return codec.encode(paste.layout(rng, [aspect], codec.grid)[0])


@dataclasses.dataclass(frozen=True)
class CaptionTexts(grain.transforms.RandomMap):
    """A scene's record -> three rows of token ids and loss weights, in the layout of training texts.

    Row 0 is a caption and a statement about one object's look; row 1 is statements about looks; row 2 is either that or
    box statements on absent names, mostly without the image, of which the second may repeat the first (in-context
    copying).

    Returns ids int32[3, T] and weights float32[3, T] (of predicting each token); the record's `vision` or `image`
    goes with them.

    Attributes:
      tokenizer: a transformers tokenizer. names: all names. codec: of boxes.
      length: T, beyond the image's own tokens but for one; longer rows are cut.
      box_rows: share of box statements among the third rows. box_with_image: share of them that have the image.
      syntax: weight of brackets and commas.
      keywords: share of statements about looks that are mere keywords.
      alone: share of rows of statements about looks that are all about one object.
      image: what stands for the image in a text.
    """

    tokenizer: Any
    names: tuple[str, ...]
    codec: BoxCodec
    length: int = 40
    box_rows: float = 0.6
    box_with_image: float = 0.3
    syntax: float = REST
    keywords: float = 0.0
    alone: float = 0.0
    image: str = "<image>"

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        names, seen = record["names"], record["looks"]
        first = caption(Text().add(self.image), [names[i] for i in rng.permutation(len(names))]).add("<|endofchunk|>")
        rows = [self._looks(first, names, seen, rng, 1), self._looks(Text().add(self.image), names, seen, rng, 2)]
        if rng.random() < self.box_rows:
            rows.append(self._boxes(names, rng))
        else:
            rows.append(self._looks(Text().add(self.image), names, seen, rng, 2))
        encoded = self.tokenizer([row.text for row in rows], return_offsets_mapping=True, add_special_tokens=False)
        length = self.length + _beyond(self.tokenizer, self.image)
        ids, weights = [], []
        for row, tokens, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids.append(pad_rows(np.array(tokens, np.int32), length, self.tokenizer.pad_token_id))
            weights.append(pad_rows(np.array([row.weight_at(start) for start, _ in offsets], np.float32), length))
        out = {"ids": np.stack(ids), "weights": np.stack(weights)}
        for key in ("vision", "image"):
            if key in record:
                out[key] = record[key]
        return out

    def _looks(self, row: Text, names: Sequence[str], seen: Sequence[looks.Look], rng, most: int) -> Text:
        about = rng.permutation(len(names))[:most]
        if self.alone and rng.random() < self.alone:  # a share of 0 draws no number: other recipes stay as they were
            about = np.repeat(about[:1], 2)
        for i in about:
            if self.keywords and rng.random() < self.keywords:
                for slot in rng.permutation(list(looks.SLOTS))[:2]:
                    keywords(row, str(slot), names[int(i)], seen[int(i)])
            elif rng.random() < 0.6:
                look_list(row, names[int(i)], seen[int(i)], self.syntax)
            else:
                for slot in rng.permutation(list(looks.SLOTS))[:2]:
                    look_question(row, str(slot), names[int(i)], seen[int(i)])
            row.add("<|endofchunk|>")
        return row

    def _boxes(self, names: Sequence[str], rng: np.random.Generator) -> Text:
        row = Text().add(self.image if rng.random() < self.box_with_image else "")
        drawn = (self.names[i] for i in rng.choice(len(self.names), 8, replace=False))
        absent = [name for name in drawn if name not in names][:2]
        first = random_box(rng, self.codec)
        box_statement(row, absent[0], first, syntax=self.syntax).add("<|endofchunk|>")
        if rng.random() < 0.6:
            box_statement(row, absent[0], first, COPY, self.syntax)
        else:
            box_statement(row, absent[1], random_box(rng, self.codec), syntax=self.syntax)
        return row.add("<|endofchunk|>")


@dataclasses.dataclass(frozen=True)
class Sentences(grain.transforms.RandomMap):
    """A scene's record -> one text behind a VLM's frame: its caption, then statements about looks, and no numbers.

    Returns ids int32[T] and target float32[T], the loss weight of every token, 0 in the frame's prefix; the record's
    `vision` goes with them. Of a name of several tokens the first has the weight of a name: once it is said, the others
    follow without an image.

    Attributes:
      tokenizer: a transformers tokenizer. frame: of the VLM. length: T; longer texts are cut.
      statements: how many follow the caption. without_caption: share of texts that are two statements more instead.
    """

    tokenizer: Any
    frame: Frame
    length: int
    statements: int = 2
    without_caption: float = 0.0

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        names, seen = record["names"], record["looks"]
        text, bare = Text().add(self.frame.prefix, 0.0), rng.random() < self.without_caption
        if not bare:
            caption(text, [names[i] for i in rng.permutation(len(names))])
        for k in range(self.statements + 2 * bare):
            i, slot = int(rng.integers(len(names))), str(rng.choice(list(looks.SLOTS)))
            look_question(text if bare and not k else text.add(" "), slot, names[i], seen[i])
        text.add(self.frame.suffix)
        encoded = self.tokenizer(text.text, return_offsets_mapping=True, add_special_tokens=False)
        weights = np.array([text.weight_at(start) for start, _ in encoded["offset_mapping"]], np.float32)
        weights[1:][(weights[1:] == NAME) & (weights[:-1] == NAME)] = COPY
        return {
            "ids": pad_rows(np.array(encoded["input_ids"], np.int32), self.length, self.tokenizer.pad_token_id),
            "target": pad_rows(weights, self.length),
            "vision": record["vision"],
        }


def longest_question(tokenizer: Any, names: Iterable[str]) -> int:
    """The `length` of `LookQuestions` that holds every question about these names."""
    texts = [
        f"The {slot} of the {name} is {word}" for name in names for slot, words in looks.SLOTS.items() for word in words
    ]
    return max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))


@dataclasses.dataclass(frozen=True)
class LookQuestions(grain.transforms.Map):
    """A scene's record -> its questions of looks with their answers, for scoring: `The colour of the cat is` -> ` red`.

    Returns ids int32[max_objects * 4, T] (left-padded), answer and slot int32[max_objects * 4] (-1 pads).
    """

    tokenizer: Any
    max_objects: int
    length: int = 12
    image: str = "<image>"

    def map(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        ids, answers, slots = [], [], []
        length = self.length + _beyond(self.tokenizer, self.image)
        for name, look in zip(record["names"], record["looks"], strict=True):
            for i, slot in enumerate(looks.SLOTS):
                text = f"{self.image}The {slot} of the {name} is {getattr(look, slot)}"
                *prompt, answer = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids.append([self.tokenizer.pad_token_id] * (length - len(prompt)) + prompt)
                answers.append(answer)
                slots.append(i)
        rows = self.max_objects * len(looks.SLOTS)
        out = {
            "ids": pad_rows(np.array(ids, np.int32), rows, self.tokenizer.pad_token_id),
            "answer": pad_rows(np.array(answers, np.int32), rows),
            "slot": pad_rows(np.array(slots, np.int32), rows, -1),
        }
        return out | {key: record[key] for key in ("vision", "image") if key in record}
