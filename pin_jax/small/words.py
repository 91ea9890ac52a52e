"""The small BLIP-2's decoder learns language before it meets an image: behind prefixes of words, as queries say them.

A language model that is given an image's queries must look a name up in a prefix and read there what goes with it.
Large ones have long learned to; a small one that starts on images finds it cheaper to guess looks by their frequency,
and stays there. Here every look is as likely as any other, so that guessing does not pay, and prefixes are as many as
one likes. What a query looks like that holds a name and a look is measured on the trained queries (`fit_words`), so
that the decoder goes on with real ones where it stopped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.pasted import looks
from input_pipeline.text.captions import CaptionTexts
from pin_jax.small.vision import BagOfWordsModel

RIDGE = 1.0  # of the fit, in queries
MARGIN = 2.0  # a query that names an absent object by this much more is taken for background
KEEP = 20_000  # residuals that are kept


@flax.struct.dataclass
class QueryWords:
    """What a query is made of: mean + names[n] + the sum over slots of looks[slot, word] + its object's own + its own.

    Attributes:
      mean: float[D]. names: float[names, D]. looks: float[4, words, D], zero beyond a slot's own words.
      objects: float[K, D], what is particular to an object: the same in all of its queries.
      residual, background: float[K, D], of queries that hold an object, and, from the mean, of those that do not.
    """

    mean: jax.Array
    names: jax.Array
    looks: jax.Array
    objects: jax.Array
    residual: jax.Array
    background: jax.Array


def fit_words(model: BagOfWordsModel, params: Any, bank: Any, names: tuple[str, ...], images: int) -> QueryWords:
    """Measures `QueryWords` by least squares on the queries of some pictures.

    Each query belongs to the object in its picture whose name it scores highest, unless it scores an absent one higher.

    Args:
      model, params: what scores names on queries. bank: scene records with `vision`. names: all of them, in the
        order of the model's. images: how many records are read.
    """
    index = {name: i for i, name in enumerate(names)}
    images = min(images, len(bank))
    read = jax.jit(lambda vision: model.apply({"params": params}, vision))
    tokens, held, seen, owner = [], [], [], []
    for start in range(0, images, 50):
        numbers = range(start, min(start + 50, images))
        records = [bank[i] for i in numbers]
        found, logits = jax.device_get(read(np.stack([r["vision"] for r in records])))
        for i, token, score, record in zip(numbers, found, logits, records, strict=True):
            ids = np.array([index[name] for name in record["names"]])
            own = score[:, ids].argmax(1)
            real = score[np.arange(len(score)), ids[own]] >= score.max(1) - MARGIN
            tokens.append(token)
            owner.append(i * len(index) + ids[own])
            held.append(np.where(real, ids[own], -1))
            seen.append(np.array([look.indices() for look in record["looks"]])[own])
    tokens, held, seen, owner = (np.concatenate(x) for x in (tokens, held, seen, owner))
    mean, real = tokens.mean(0), held >= 0
    sizes = [len(index), *map(len, looks.SLOTS.values())]
    starts = np.cumsum([0, *sizes])
    columns = np.concatenate([held[real, None], seen[real]], 1) + starts[:-1]
    design = np.zeros((len(columns), starts[-1]), np.float32)
    np.put_along_axis(design, columns, 1, 1)
    target = tokens[real] - mean
    weights = np.linalg.solve(design.T @ design + RIDGE * np.eye(starts[-1]), design.T @ target)
    parts = np.split(weights.astype(np.float32), starts[1:-1])
    table = np.zeros((len(looks.SLOTS), max(sizes[1:]), tokens.shape[1]), np.float32)
    for slot, part in enumerate(parts[1:]):
        table[slot, : len(part)] = part
    residual = target - design @ weights
    _, owner, count = np.unique(owner[real], return_inverse=True, return_counts=True)
    objects = np.zeros((len(count), tokens.shape[1]))
    np.add.at(objects, owner, residual)
    objects /= count[:, None]
    residual, background = (residual - objects[owner])[:KEEP], (tokens[~real] - mean)[:KEEP]
    return QueryWords(*(jnp.asarray(x, jnp.float32) for x in (mean, parts[0], table, objects, residual, background)))


class Said(grain.sources.RandomAccessDataSource):
    """Random-access source of scenes that nobody draws: `names` and `looks`, each as likely as any other.

    Attributes:
      names: all of them. objects: fewest and most in a scene. count: how many scenes. seed: of all.
    """

    def __init__(self, names: tuple[str, ...], objects: tuple[int, int], count: int, seed: int):
        self.names, self.objects, self.count, self.seed = names, objects, count, seed

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Said({len(self.names)} names, {self.objects}, {self.count}, {self.seed})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        chosen = rng.choice(len(self.names), rng.integers(self.objects[0], self.objects[1] + 1), replace=False)
        return {
            "names": [self.names[i] for i in chosen],
            "looks": [looks.Look(*(str(rng.choice(words)) for words in looks.SLOTS.values())) for _ in chosen],
        }


@dataclasses.dataclass(frozen=True)
class Prefixes(grain.transforms.RandomMap):
    """A scene's record -> its texts (`CaptionTexts` without an image) and what each query of its prefix holds.

    Returns ids and weights as `CaptionTexts` does, names int32[Q] (-1: background), looks int32[Q, 4]; objects,
    residual and background int32[Q], rows of the tables; and noise float32[], the weight of objects and residual.

    Attributes:
      texts: of the record. queries: Q. rows: of the tables objects, residual and background.
      background: share of such queries.
    """

    texts: CaptionTexts
    queries: int
    rows: tuple[int, int, int]
    background: float = 0.35

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        index = {name: i for i, name in enumerate(self.texts.names)}
        ids = np.array([index[name] for name in record["names"]])
        seen = np.array([look.indices() for look in record["looks"]])
        own = owners(rng, len(ids), self.queries, self.background)
        return self.texts.random_map(record, rng) | {
            "names": np.where(own < 0, -1, ids[own]).astype(np.int32),
            "looks": seen[own].astype(np.int32),
            "objects": rng.integers(0, self.rows[0], len(ids))[own].astype(np.int32),
            "residual": rng.integers(0, self.rows[1], self.queries).astype(np.int32),
            "background": rng.integers(0, self.rows[2], self.queries).astype(np.int32),
            "noise": np.float32(rng.random() ** 0.5),
        }


def owners(rng: np.random.Generator, objects: int, queries: int, background: float) -> np.ndarray:
    """Which object each query holds, int[Q]: some hold none (-1), and every object is held by one at least."""
    own = rng.choice(objects, queries, p=rng.dirichlet(np.full(objects, 3.0)))
    own = np.where(rng.random(queries) < background, -1, own)
    own[:objects] = np.arange(objects)
    return rng.permutation(own)


def prefix(words: QueryWords, batch: dict[str, jax.Array]) -> jax.Array:
    """Queries float[B, Q, D] as `Prefixes` describes them; of the looks those that `worded` float[B, Q, 4] says."""
    name = words.names[jnp.maximum(batch["names"], 0)]
    said = batch.get("worded", jnp.ones(len(looks.SLOTS)))[..., None]
    look = sum(said[..., i, :] * words.looks[i][batch["looks"][..., i]] for i in range(len(looks.SLOTS)))
    noise = batch["noise"][:, None, None]
    held = name + look + noise * (words.objects[batch["objects"]] + words.residual[batch["residual"]])
    return words.mean + jnp.where(batch["names"][..., None] < 0, words.background[batch["background"]], held)
