"""The small BLIP-2's decoder learns to read numbers in its context, as it reads looks: from words, with no image.

A language model that has read the world's text can copy a number that its context holds. One that meets box syntax only
for absent names, with random numbers, learns that numbers are not to be found in the prefix, and no insert can make it
look there. So imagined scenes say numbers too: each object has four, drawn at random, and a prefix holds a code of them
beside name and looks. No picture is drawn, and no number is tied to one; the codes are thrown away afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.loader import pad_rows
from input_pipeline.pasted import looks, paste
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.captions import ANSWER, REST, Text, list_statement
from input_pipeline.text.word_tokenizer import END
from pin_jax.models.layers import standardise
from pin_jax.small.language import text_loss
from pin_jax.small.words import QueryWords, owners, prefix

SLOTS = len(looks.SLOTS)  # of a look, and numbers of a box
WORDS = max(map(len, looks.SLOTS.values()))
CURVES, DIRECTIONS = 8, 40  # cosines of a slot's codes; directions that the Q-Former passes best
STATEMENTS, NAME_AT, LIST_AT = (
    2,
    5,
    (8, 10, 12, 14),
)  # of a row; places in one: its name, and before its words
NAME_LAYER, LIST_LAYER = 1, 2  # after which the throwaway heads read these places
HEAD_WEIGHT = 0.3
ALIKE = 0.25  # what is left of the difference of two words that start alike


# --- codes ------------------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class CodeSpace:
    """Where codes lie: basis float[D, K], orthonormal directions of the prefix; norm float[], of every code."""

    basis: jax.Array
    norm: jax.Array


def passed_directions(media: Callable[[jax.Array], jax.Array], vision: jax.Array | np.ndarray) -> jax.Array:
    """Directions float[E, K] of a prefix that a common shift of all vision tokens moves most, by its mean Jacobian.

    What an insert adds reaches the decoder through these: codes elsewhere would teach it what no insert can say.

    Args:
      media: vision tokens float[B, N, D] -> prefixes float[B, Q, E]. vision: some pictures.
    """
    jacobian = jax.jit(jax.jacfwd(lambda shift: media(vision + shift)))(jnp.zeros(vision.shape[-1]))
    return jnp.linalg.svd(jacobian.reshape(-1, *jacobian.shape[2:]).mean(0))[0][:, :DIRECTIONS]


def start_codes(rng: jax.Array, values: int, directions: int = DIRECTIONS) -> jax.Array:
    """Codes float[4, V, K]: smooth curves over the numbers, a subspace a slot; they train with the decoder."""
    v, k = np.arange(values), np.arange(1, CURVES + 1)
    curves = np.cos(np.pi * k * (v[:, None] + 0.5) / values) / np.sqrt(k)
    rotation = jax.random.orthogonal(rng, directions)[:, : SLOTS * CURVES].reshape(directions, SLOTS, CURVES)
    return jnp.einsum("vc,dsc->svd", curves, rotation)


def codes_in(space: CodeSpace, codes: jax.Array) -> jax.Array:
    """The codes float[4, V, K] as vectors float[4, V, D] of the prefix, all of one norm."""
    return space.norm * (codes / jnp.linalg.norm(codes, axis=-1, keepdims=True)) @ space.basis.T


def start_heads(width: int, values: int) -> dict[str, Any]:
    """Linear heads that read all numbers and looks of a name; they are thrown away after training."""
    size = SLOTS * (values + WORDS)
    return {place: {"kernel": jnp.zeros((width, size)), "bias": jnp.zeros(size)} for place in ("name", "list")}


def start_alike(embedding: jax.Array, pairs: list[tuple[int, int]]) -> jax.Array:
    """Embeddings float[V, D] where second tokens start near first ones: what is read behind one is behind the other."""
    for first, second in pairs:
        embedding = embedding.at[second].set(embedding[first] + ALIKE * (embedding[second] - embedding[first]))
    return embedding


# --- data -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NumberTexts(grain.transforms.RandomMap):
    """Puts imagined scenes with numbers beside a sample, under `numbers`.

    A row of two statements: `In the image is a cat located at [0,10,40,80].`, a present name's answered from its codes
    and an absent one's by a random box; and `looking like [big,red,plain,blue].` The second is about another object
    than the first, or of the other kind, so that there is nothing to copy.

    `numbers` holds R of them: ids int32[R, T] and weights float32[R, T]; of each, what `prefix` reads, with worded
    float32[Q, 4] (is the look said?); codes float32[Q, 4, V], how much of each number's code a query holds; and of each
    statement, for the heads, value and look int32[2, 4] with has_value and has_look bool[2, 4].

    Attributes:
      tokenizer, names, codec: as in `CaptionTexts`. queries: Q. rows: of the tables objects, residual, background.
      scenes: R. length: T. background: share of queries that hold no object.
      single: share of scenes that have one object whatever chance says.
      either: share of objects that hold in each slot a word or a number, not both; lists then say what is there.
      boxes: share of objects whose numbers make a box, as the recipe pastes them; the others' are any four.
      blur: how soft the distributions around a number may be, in [0, 1].
      gain: of the codes.
      about_looks, absent: shares of statements.
    """

    tokenizer: Any
    names: tuple[str, ...]
    codec: BoxCodec
    queries: int
    rows: tuple[int, int, int]
    scenes: int = 1
    length: int = 39
    background: float = 0.35
    single: float = 0.1
    either: float = 0.1
    boxes: float = 0.5
    blur: float = 1.0
    gain: float = 1.0
    about_looks: float = 0.3
    absent: float = 0.12

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        told = [self.scene(rng) for _ in range(self.scenes)]
        return record | {"numbers": {key: np.stack([scene[key] for scene in told]) for key in told[0]}}

    def scene(self, rng: np.random.Generator) -> dict[str, Any]:
        """One imagined scene and its row."""
        count = 1 if rng.random() < self.single else int(rng.integers(1, 4))
        names = rng.choice(len(self.names), count, replace=False)
        look = np.stack([rng.integers(0, len(words), count) for words in looks.SLOTS.values()], 1)
        values = np.stack([self._values(rng, rng.random() < self.boxes) for _ in names])
        both = rng.random((count, 1)) >= self.either
        coded = rng.random((count, SLOTS)) < 0.6
        coded, worded = both | coded, both | ~coded
        own = owners(rng, count, self.queries, self.background)
        text, about = self._row(rng, names, look, values, coded, worded)
        encoded = self.tokenizer(text.text, return_offsets_mapping=True, add_special_tokens=False)
        weights = np.array([text.weight_at(start) for start, _ in encoded["offset_mapping"]], np.float32)
        object_rows = rng.integers(0, self.rows[0], count)
        known = np.array(about)[:, None] >= 0
        return {
            "ids": pad_rows(np.array(encoded["input_ids"], np.int32), self.length, self.tokenizer.pad_token_id),
            "weights": pad_rows(weights, self.length),
            "names": np.where(own < 0, -1, names[own]).astype(np.int32),
            "looks": look[own].astype(np.int32),
            "worded": worded[own].astype(np.float32),
            "objects": object_rows[own].astype(np.int32),
            "residual": rng.integers(0, self.rows[1], self.queries).astype(np.int32),
            "background": rng.integers(0, self.rows[2], self.queries).astype(np.int32),
            "noise": np.float32(rng.random() ** 0.5),
            "codes": self._spread(rng, values, coded, own),
            "value": values[about].astype(np.int32),
            "look": look[about].astype(np.int32),
            "has_value": coded[about] & known,
            "has_look": worded[about] & known,
        }

    def _values(self, rng: np.random.Generator, box: bool) -> np.ndarray:
        """Four numbers 0..grid: left, top, right and bottom of a box, or any."""
        if not box:
            return rng.integers(0, self.codec.grid + 1, SLOTS)
        aspect = float(np.exp(rng.normal(0, 0.35)))
        return paste.layout(rng, [aspect], self.codec.grid)[0] + np.array([0, 0, 1, 1])

    def _row(self, rng, names, look, values, coded, worded) -> tuple[Text, list[int]]:
        """The row's text, and the object of each statement (-1: of an absent name)."""
        text, about = Text(), []
        first, of_looks = int(rng.integers(len(names))), rng.random(STATEMENTS) < self.about_looks
        if len(names) == 1:
            of_looks[1] = not of_looks[0]
        for i in range(STATEMENTS):
            k = first if i == 0 or len(names) == 1 else (first + int(rng.integers(1, len(names)))) % len(names)
            if not of_looks[i] and rng.random() < self.absent:
                other = int(rng.choice(np.setdiff1d(rng.choice(len(self.names), len(names) + 1, replace=False), names)))
                words, name, k, weight = map(str, self._values(rng, True) * self.codec.cell), other, -1, REST
            else:
                said = [
                    str(values[k, j] * self.codec.cell) if number else slot[look[k, j]]
                    for j, (slot, number) in enumerate(
                        zip(looks.SLOTS.values(), ~worded[k] if of_looks[i] else coded[k], strict=True)
                    )
                ]
                words, name, weight = said, names[k], ANSWER
            list_statement(text, self.names[name], bool(of_looks[i]), words, weight, 1.0).add(END)
            about.append(k)
        return text, about

    def _spread(self, rng, values, coded, own) -> np.ndarray:
        """How much of each code a query holds, float32[Q, 4, V]: a distribution around the number, as a query that
        averages over patches would have; amplitude by object and query; strays, most of all on the background."""
        count, size = len(values), self.codec.grid + 1
        softest, noise, faintest = 2 - 1.5 * self.blur, 0.2 + 0.3 * self.blur, 0.8 - 0.5 * self.blur
        sharpness = np.exp(rng.uniform(np.log(softest), np.log(6), (count, 1, 1)))
        logits = -np.abs(np.arange(size) - values[..., None]) * sharpness + noise * rng.normal(
            size=(count, SLOTS, size)
        )
        soft = np.exp(logits - logits.max(-1, keepdims=True))
        soft /= soft.sum(-1, keepdims=True)
        amplitude = rng.uniform(faintest, 1.8, (count, 1, 1)) / (soft**2).sum(-1, keepdims=True) ** 0.25
        held = (self.gain * soft * amplitude * coded[..., None])[own]
        held *= (rng.uniform(0.4, 1.6, len(own)) * (rng.random(len(own)) < 0.9))[:, None, None]
        stray = rng.random((len(own), SLOTS, size)) ** 6
        stray *= rng.uniform(0, 1.2) * (rng.random() < 0.7) / stray.sum(-1, keepdims=True)
        return np.where((own < 0)[:, None, None], stray, held + 0.15 * stray).astype(np.float32)


# --- loss -------------------------------------------------------------------------------------------------------------


def loss_fn(
    lm: nn.Module, params: Any, held: tuple[QueryWords, CodeSpace], batch: dict[str, Any], pad: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted next-token cross-entropy of rows behind prefixes, those of numbers among them, and the heads'.

    Args:
      lm: an `OPT` as wide as the prefix. params: its own under `lm`, `codes` and `heads`.
      batch: ids int[B, R, T] and weights float[B, R, T] behind `vision` float[B, Q, D], a picture's queries, or behind
        a prefix of words (`Prefixes`); and `numbers`, of `NumberTexts`. pad: token id.
    """
    words, space = held
    told = {key: x.reshape(-1, *x.shape[2:]) for key, x in batch["numbers"].items()}
    codes = jnp.einsum("bqsv,svd->bqd", told["codes"], codes_in(space, params["codes"]))
    first = batch["vision"] if "vision" in batch else prefix(words, batch)
    count, rows = batch["ids"].shape[:2]
    media = jnp.concatenate([jnp.repeat(first, rows, 0), prefix(words, told) + codes])
    ids, weights = (
        jnp.concatenate([part[key].reshape(-1, part[key].shape[-1]) for part in (batch, told)])
        for key in ("ids", "weights")
    )
    x = jnp.concatenate([media, params["lm"]["embedding"][ids]], 1)
    mask = jnp.concatenate([jnp.ones(media.shape[:2], bool), ids != pad], 1)
    states: Any = lm.apply({"params": params["lm"]}, x[:, :-1], mask[:, :-1], method="states")
    states = states[:, :, media.shape[1] :]
    logits: Any = lm.apply({"params": params["lm"]}, states[-1], method="logits")
    loss, parts = text_loss(logits, ids, weights)
    known, told_parts = _heads_loss(params["heads"], states[:, count * rows :], told)
    ahead = logits[count * rows :].argmax(-1) == told["ids"][:, 1:]
    at = jnp.concatenate([jnp.array(LIST_AT) + i * _statement() for i in range(STATEMENTS)])
    read = told["has_value"].reshape(len(ahead), -1) & (told["weights"][:, 1:][:, at] >= ANSWER)
    parts |= {"numbers": (ahead[:, at] & read).sum() / read.sum()}
    return loss + HEAD_WEIGHT * known, parts | told_parts


def _statement() -> int:
    """Tokens of a statement: ten before its list closes, four words, three commas and `].` with the end."""
    return LIST_AT[-1] + 5


def _heads_loss(heads: Any, states: jax.Array, told: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of numbers and looks, read from the place of each name and of each word of a list.

    Args:
      states: float[L, B, T, D], after each layer. told: see `NumberTexts`.
    """
    total, parts = 0.0, {}
    values = told["codes"].shape[-1]
    for place, layer, at in (("name", NAME_LAYER, (NAME_AT,)), ("list", LIST_LAYER, LIST_AT)):
        x = jnp.stack([states[layer][:, np.array(at) + i * _statement()] for i in range(STATEMENTS)], 1)
        logits = standardise(x) @ heads[place]["kernel"] + heads[place]["bias"]  # [B, 2, places, 4 * (V + words)]
        numbers, words = jnp.split(logits, [SLOTS * values], -1)
        for key, part in (("value", numbers), ("look", words)):
            part = part.reshape(*part.shape[:-1], SLOTS, -1)
            label = jnp.broadcast_to(told[key][:, :, None], part.shape[:-1])
            has = jnp.broadcast_to(told[f"has_{key}"][:, :, None], part.shape[:-1])
            cost = optax.softmax_cross_entropy_with_integer_labels(part, label)
            total += (cost * has).sum() / jnp.maximum(has.sum(), 1)
            parts[f"{key}s at {place}"] = ((part.argmax(-1) == label) & has).sum() / jnp.maximum(has.sum(), 1)
    return total, parts
