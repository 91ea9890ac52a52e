"""The decoder's first language: prefixes of words stand where queries will, and are made as trained queries are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.pasted import looks
from input_pipeline.text import captions, word_tokenizer
from input_pipeline.text.box_codec import BoxCodec
from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.language.opt import OPT, OPTConfig
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.small import language, numbers
from pin_jax.small import words as pretrain_words

NAMES = ("cat", "dog", "red apple", "tree")
CODEC = BoxCodec(32, 8)
WIDTH, QUERIES = 32, 6
SLOTS = tuple(looks.SLOTS.values())


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer.build(NAMES, CODEC)


def texts(tokenizer, **options):
    return captions.CaptionTexts(tokenizer, NAMES, CODEC, 48, image="", **options)


class Bank:
    """Scenes whose `vision` is already what the queries are to be: float[Q, D]."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self.names = 3 * rng.normal(size=(len(NAMES), WIDTH))
        self.looks = [0.5 * rng.normal(size=(len(words), WIDTH)) for words in SLOTS]
        self.said = pretrain_words.Said(NAMES, (1, 3), count, 0)

    def __len__(self):
        return len(self.said)

    def holds(self, record, k):
        """What a query of the k-th object is, before noise."""
        index = record["looks"][k].indices()
        return self.names[NAMES.index(record["names"][k])] + sum(t[i] for t, i in zip(self.looks, index, strict=True))

    def __getitem__(self, i):
        record, rng = self.said[i], np.random.default_rng(i)
        rows = [self.holds(record, k % len(record["names"])) for k in range(QUERIES)]
        own = 0.2 * rng.normal(size=(3, WIDTH))[np.arange(QUERIES) % len(record["names"])]
        return record | {"vision": np.stack(rows) + own + 0.3 * rng.normal(size=(QUERIES, WIDTH))}

    def apply(self, params, vision):
        return jnp.asarray(vision), jnp.asarray(vision) @ self.names.T


def test_words_of_queries_are_measured():
    bank = Bank(400)
    words = pretrain_words.fit_words(bank, {}, bank, NAMES, 400)
    for i in range(20):
        record = bank.said[i]
        index = record["looks"][0].indices()
        made = words.mean + words.names[NAMES.index(record["names"][0])]
        made = made + sum(words.looks[slot, index[slot]] for slot in range(len(SLOTS)))
        np.testing.assert_allclose(made, bank.holds(record, 0), atol=0.15)
    assert 0.2 < float(words.residual.std()) < 0.3  # what is common to an object's few queries counts as its own
    assert 0.2 < float(words.objects.std()) < 0.35 and len(words.objects) == sum(
        len(bank.said[i]["names"]) for i in range(400)
    )


def test_scenes_are_said_at_random_and_again_the_same():
    said = pretrain_words.Said(NAMES, (1, 3), 500, 7)
    assert said[3] == pretrain_words.Said(NAMES, (1, 3), 500, 7)[3] and said[3] != said[4]
    colours = [record["looks"][0].colour for record in (said[i] for i in range(500))]
    assert {len(said[i]["names"]) for i in range(50)} == {1, 2, 3}
    assert max(colours.count(c) for c in looks.SLOTS["colour"]) < 2 * 500 / len(looks.SLOTS["colour"])


def test_every_object_stands_in_the_prefix_with_its_look(tokenizer):
    said = pretrain_words.Said(NAMES, (1, 3), 60, 1)
    prefixes = pretrain_words.Prefixes(texts(tokenizer, box_rows=0.0), QUERIES, (20, 10, 5), background=0.5)
    empty = 0
    for i in range(60):
        record = said[i]
        out = prefixes.random_map(record, np.random.default_rng(i))
        held = {NAMES.index(n): look.indices() for n, look in zip(record["names"], record["looks"], strict=True)}
        assert set(held) == set(out["names"].tolist()) - {-1}
        own = {}
        for name, look, row in zip(out["names"].tolist(), out["looks"].tolist(), out["objects"].tolist(), strict=True):
            assert name < 0 or (held[name] == look and own.setdefault(name, row) == row < 20)
        assert out["residual"].max() < 10 and out["background"].max() < 5 and 0 <= out["noise"] < 1
        assert word_tokenizer.IMAGE not in tokenizer.decode(out["ids"][0])
        empty += (out["names"] < 0).sum()
    assert 0.2 < empty / (60 * QUERIES) < 0.5  # half of those that are not the first of an object


def test_a_prefix_is_the_sum_of_what_its_queries_hold():
    rng = np.random.default_rng(0)
    mean, names, table, objects, residual, background = (
        rng.normal(size=size).astype(np.float32)
        for size in (WIDTH, (4, WIDTH), (len(SLOTS), 9, WIDTH), (3, WIDTH), (5, WIDTH), (2, WIDTH))
    )
    batch = {
        "names": np.array([[2, -1]]), "looks": np.array([[[1, 3, 0, 8], [0, 0, 0, 0]]]), "objects": np.array([[2, 0]]),
        "residual": np.array([[4, 1]]), "background": np.array([[0, 1]]), "noise": np.array([0.5], np.float32),
    }  # fmt: skip
    made = pretrain_words.prefix(pretrain_words.QueryWords(mean, names, table, objects, residual, background), batch)
    held = names[2] + table[0, 1] + table[1, 3] + table[2, 0] + table[3, 8] + 0.5 * (objects[2] + residual[4])
    np.testing.assert_allclose(made[0], np.stack([mean + held, mean + background[1]]), atol=1e-5)


def test_keywords_and_rows_about_one_object(tokenizer):
    record = {"names": ["cat", "dog"], "looks": [looks.Look("big", "red"), looks.Look("tiny", "blue")]}
    rng = np.random.default_rng(0)
    rows = texts(tokenizer, keywords=1.0, alone=1.0, box_rows=0.0).random_map(record, rng)["ids"]
    for row in rows[1:]:
        words = tokenizer.decode([i for i in row if i != tokenizer.pad_token_id])
        assert ("cat" in words) != ("dog" in words) and "The" not in words
    assert any(f"{slot} cat {word}." in tokenizer.decode(row) for row in rows for slot, word in (("size", "big"),
               ("colour", "red"), ("pattern", "plain"), ("border", "plain")))  # fmt: skip


def test_the_loss_is_that_of_the_vlm_whose_queries_say_the_same(tokenizer):
    lm = OPTConfig(vocab=len(tokenizer), width=WIDTH, depth=3, heads=2, mlp=32, positions=80)
    config = Blip2Config(
        vision=ViTConfig(image_size=32, patch=8, width=WIDTH, depth=1, heads=2, mlp=32, class_token=False),
        qformer=QFormerConfig(queries=QUERIES, width=WIDTH, depth=2, heads=2, mlp=32, cross_every=1),
        lm=lm, image_token=1, end_token=2, pad_token=0,
    )  # fmt: skip
    vlm, rng = Blip2(config), jax.random.key(0)
    vision = jax.random.normal(rng, (2, config.vision.tokens, WIDTH))
    params = jax.jit(vlm.init)(rng, jnp.zeros((1, 1, 32, 32, 3)), jnp.zeros((1, 2), jnp.int32))["params"]
    record = pretrain_words.Said(NAMES, (2, 2), 1, 0)[0]
    row = texts(tokenizer, box_rows=0.0).random_map(record, np.random.default_rng(0))
    ids, weights = (np.stack([row[key], row[key]]) for key in ("ids", "weights"))
    front = np.full((*ids.shape[:2], QUERIES), config.image_token, np.int32)
    given = {"vision": vision, "ids": np.concatenate([front, ids], -1)}
    given["weights"] = np.concatenate([0.0 * front, weights], -1).astype(np.float32)
    given["weights"][..., QUERIES] = 0  # no loss on the first word, which nothing predicts in training on words
    expected, parts = jax.jit(functools.partial(language.loss_fn, vlm))(params, params["vision"], given)

    fuse = jax.jit(functools.partial(vlm.apply, method="fuse"))
    media = fuse({"params": params}, vision[:, None]).reshape(-1, WIDTH)
    nothing = jnp.zeros((1, WIDTH))
    words = pretrain_words.QueryWords(
        jnp.zeros(WIDTH), nothing, jnp.zeros((len(SLOTS), 9, WIDTH)), nothing, nothing,
        media,
    )  # fmt: skip
    batch = {
        "names": -np.ones((2, QUERIES), np.int32), "looks": np.zeros((2, QUERIES, len(SLOTS)), np.int32),
        "objects": np.zeros((2, QUERIES), np.int32), "residual": np.zeros((2, QUERIES), np.int32),
        "noise": np.ones(2, np.float32),
        "background": np.arange(2 * QUERIES).reshape(2, QUERIES), "ids": ids, "weights": weights,
    }  # fmt: skip
    source = numbers.NumberTexts(tokenizer, NAMES, CODEC, QUERIES, (1, 1, 1), scenes=1, length=47)
    told = {key: np.stack([x, x])[:, None] for key, x in source.scene(np.random.default_rng(1)).items()}
    told |= {key: np.zeros_like(told[key]) for key in ("weights", "has_value", "has_look")}  # they count for nothing
    held = words, numbers.CodeSpace(jnp.eye(WIDTH), jnp.float32(1.0))
    trained = {
        "lm": params["lm"],
        "codes": numbers.start_codes(rng, CODEC.grid + 1, WIDTH),
        "heads": numbers.start_heads(WIDTH, CODEC.grid + 1),
    }
    for given in (batch, {"vision": media.reshape(2, QUERIES, WIDTH), "ids": ids, "weights": weights}):
        own = functools.partial(numbers.loss_fn, OPT(lm), pad=config.pad_token)
        loss, found = jax.jit(own)(trained, held, given | {"numbers": told})
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(found["answers"], parts["answers"])
