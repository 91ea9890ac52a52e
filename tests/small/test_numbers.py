"""Numbers in words: rows say what their codes hold, and no place of a drawn scene ever reaches the decoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_vlm
from input_pipeline.loader import batches
from input_pipeline.pasted import looks
from input_pipeline.text import captions
from pin_jax.small import decoder, numbers, queries, shape, words

SLOTS = tuple(looks.SLOTS.values())
QUERIES, WIDTH = 6, 16


@pytest.fixture(scope="module")
def built():
    return shape.build(tiny_vlm.get_config("blip2"))


def texts(built, **options):
    return numbers.NumberTexts(built.tokenizer, built.names, built.codec, QUERIES, (20, 10, 5), **options)


def scenes(built, count=80, **options):
    source = texts(built, **options)
    return [source.scene(np.random.default_rng(i)) for i in range(count)]


def test_each_list_says_what_its_object_holds(built):
    token = built.tokenizer.convert_ids_to_tokens
    kinds = {"number": 0, "word": 0, "absent": 0}
    for scene in scenes(built, either=0.5, absent=0.3):
        present = {built.names[i] for i in scene["names"] if i >= 0}
        for i in range(numbers.STATEMENTS):
            row = scene["ids"][i * 19 : (i + 1) * 19]
            name, located = token(int(row[numbers.NAME_AT])).strip(), token(int(row[6])) == " located"
            here = name in present
            assert here == bool(scene["has_value"][i].any() or scene["has_look"][i].any())
            for j, at in enumerate(numbers.LIST_AT):
                said, weight = token(int(row[at + 1])), scene["weights"][i * 19 + at + 1]
                assert weight == (captions.ANSWER if here else captions.REST)
                if not here:
                    kinds["absent"] += 1
                elif said.isdigit():
                    kinds["number"] += 1
                    assert int(said) == built.codec.values[scene["value"][i, j]] and scene["has_value"][i, j]
                    assert located or not scene["has_look"][i, j]
                else:
                    kinds["word"] += 1
                    assert said == SLOTS[j][scene["look"][i, j]] and scene["has_look"][i, j]
                    assert not located or not scene["has_value"][i, j]
    assert min(kinds.values()) > 50


def test_there_is_nothing_to_copy(built):
    """The second list of a row is of another object, or of the other kind."""
    for scene in scenes(built, single=0.5, absent=0.0):
        first, second = scene["ids"][:19], scene["ids"][19:38]
        assert first[numbers.NAME_AT] != second[numbers.NAME_AT] or first[6] != second[6]


def test_a_query_holds_the_codes_of_its_own_object(built):
    for scene in scenes(built, 40, blur=0.0, absent=0.0, about_looks=0.0, single=0.0):
        value = {}
        for i in range(numbers.STATEMENTS):
            name = built.tokenizer.convert_ids_to_tokens(int(scene["ids"][i * 19 + numbers.NAME_AT])).strip()
            value[built.names.index(name)] = scene["value"][i], scene["has_value"][i]
        for held, codes in zip(scene["names"], scene["codes"], strict=True):
            if held in value and codes.max() > 0.6:  # a tenth of the queries hold strays alone
                own, has = value[held]
                assert (codes.argmax(-1) == own)[has].all()


def test_codes_lie_where_an_insert_can_speak():
    rng = np.random.default_rng(0)
    passed = rng.normal(size=(WIDTH, 12)) * np.linspace(3, 0.01, 12)
    mix = jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), jnp.float32)

    def media(vision):  # what a common shift does through it is known
        return (vision.mean(1, keepdims=True) @ passed.T @ mix).repeat(3, 1)

    found = numbers.passed_directions(media, jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32))
    expected = np.linalg.svd(np.asarray(mix).T @ passed)[0]
    np.testing.assert_allclose(np.abs((np.asarray(found)[:, :3] * expected[:, :3]).sum(0)), 1, atol=1e-3)
    basis = jnp.linalg.qr(jnp.asarray(rng.normal(size=(64, 40)), jnp.float32))[0]
    codes = numbers.codes_in(numbers.CodeSpace(basis, jnp.float32(1.5)), numbers.start_codes(jax.random.key(0), 17))
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1.5, rtol=1e-4)
    near = jnp.linalg.norm(codes[:, 1:] - codes[:, :-1], axis=-1)
    assert float(near.max()) < float(jnp.linalg.norm(codes[:, 0] - codes[:, 8], axis=-1).min())
    assert abs(np.einsum("vd,ud->vu", codes[0], codes[1])).max() < 1e-4  # each slot has its own subspace


def test_words_that_start_alike():
    table = jax.random.normal(jax.random.key(0), (4, WIDTH))
    found = numbers.start_alike(table, [(0, 2)])
    np.testing.assert_allclose(found[2] - found[0], numbers.ALIKE * (table[2] - table[0]), rtol=1e-5)
    np.testing.assert_array_equal(found[jnp.array([0, 1, 3])], table[jnp.array([0, 1, 3])])


class Bank:
    """Drawn scenes whose boxes come from a seed of their own: all else is the same for any."""

    def __init__(self, names, places: int):
        self.said, self.places = words.Said(names, (1, 3), 30, 0), places

    def __len__(self):
        return 30

    def __getitem__(self, index):
        record, rng = self.said[index], np.random.default_rng((self.places, index))
        cells = rng.integers(0, 16, (len(record["names"]), 4))
        return record | {
            "vision": np.random.default_rng(index).normal(size=(5, WIDTH)).astype(np.float32),
            "cells": cells, "boxes": cells * 10.0, "target": int(rng.integers(9)), "image_id": index,
            "query_text": record["names"],
        }  # fmt: skip


def samples(built, places: int):
    """A batch of every source of the recipe that trains a decoder."""
    config = tiny_vlm.get_config("blip2")
    bank = Bank(built.names, places)
    held = jnp.zeros((7, WIDTH))
    made_of = words.QueryWords(held[0], held, jnp.zeros((4, 9, WIDTH)), held, held, held)
    own = decoder.Decoder({}, (made_of, None), queries.QueryBank(bank, lambda tokens: tokens, batch=8))
    for part in (config.words_fit, config.numbers_fit):
        for k, phase in enumerate(part.phases):
            source, transforms = decoder.data(config, built, own, part, phase)
            yield source, next(batches(source, transforms, 8, seed=k, threads=0))
    for part in config.language_fits:
        image = {"image": built.frame.prefix}
        rows = captions.CaptionTexts(built.tokenizer, built.names, built.codec, 40, **image, **part["texts"])
        yield bank, next(batches(bank, [rows], 8, seed=0, threads=0))


def test_no_box_of_a_drawn_scene_reaches_the_decoder(built):
    """Move every object of every drawn scene: each sample that the recipe trains a decoder on stays as it was."""
    count = 0
    for (source, one), (_, other) in zip(samples(built, 1), samples(built, 2), strict=True):
        count += 1
        if isinstance(source, queries.QueryBank):
            assert source[0].keys() == {"names", "looks", "vision"}
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for key in ("cells", "boxes", "target", "query_text"):
            assert key not in one
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    config = tiny_vlm.get_config("blip2")
    assert count == len(config.words_fit.phases) + len(config.numbers_fit.phases) + len(config.language_fits) > 6


def test_boxes_beside_a_picture_are_of_absent_names(built):
    """With a drawn scene's queries in front, `located at` is said of names alone that it does not have."""
    config = tiny_vlm.get_config("blip2")
    bank = queries.QueryBank(Bank(built.names, 0), lambda tokens: tokens)
    for part in (config.numbers_fit, *config.language_fits):
        rows = captions.CaptionTexts(built.tokenizer, built.names, built.codec, 40, image="", **part["texts"])
        for i in range(len(bank)):
            for row in rows.random_map(bank[i], np.random.default_rng(i))["ids"]:
                told = built.tokenizer.decode(row)
                for name in bank[i]["names"]:
                    assert f" {name} located at" not in told
