"""Teacher forcing: where only the places that count go through the head, the loss is that of all of them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.interface import Inserts
from pin_jax.models.language.llama import LlamaConfig
from pin_jax.models.language.opt import OPTConfig
from pin_jax.models.language.t5 import T5Config
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from pin_jax.train import box_loss
from pin_jax.vlm import skeleton
from tests.fixtures import tiny

LANGUAGE_MODELS = {
    "opt": OPTConfig(vocab=30, width=16, depth=1, heads=2, mlp=32, positions=32),
    "t5": T5Config(vocab=30, width=16, depth=1, decoder_depth=1, heads=2, head_dim=8, mlp=32),
}


def built(kind: str):
    """(model, params) of a tiny VLM; two vision queries, or four vision tokens."""
    if kind == "flamingo":
        return tiny.flamingo()
    qformer = QFormerConfig(queries=2, width=16, depth=1, heads=2, mlp=32, cross_every=1)
    model = Blip2(Blip2Config(tiny.VISION, qformer, LANGUAGE_MODELS[kind], tiny.IMAGE, tiny.END, tiny.PAD))
    return model, tiny.random_params(skeleton(model))


def questions(kind: str) -> dict[str, np.ndarray]:
    """Two questions about each of two images; the targets differ in length, and one row has none."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, tiny.IMAGE, (2, 2, 9))
    ids[..., : 2 if kind != "flamingo" else 1] = tiny.IMAGE
    target = np.zeros(ids.shape, np.float32)
    target[0, 0, 4:8] = target[0, 1, 8:] = target[1, 0, 3:6] = 1
    batch = {"ids": ids, "target": target}
    if kind == "t5":
        batch["labels"] = rng.integers(0, tiny.IMAGE, ids.shape)
        target[0, 0, 0] = 1  # its first token is predicted too
    places = np.full((2, 2, 6), -1)
    for row in np.ndindex(2, 2):
        found = target[row].nonzero()[0]
        places[row][: len(found)] = found
    return batch | {"vision": rng.standard_normal((2, 4 if kind == "flamingo" else 5, 16)), "places": places}


@pytest.mark.parametrize("kind", ["flamingo", "opt", "t5"])
def test_only_the_places_that_count_go_through_the_head(kind):
    model, params = built(kind)
    batch = {key: jnp.asarray(value, jnp.float32 if value.dtype == float else None)
             for key, value in questions(kind).items()}  # fmt: skip
    every = {key: value for key, value in batch.items() if key != "places"}

    def loss(insert, batch):
        return box_loss(model, params, Inserts(vision_output=insert), batch)

    insert = jnp.ones(batch["vision"].shape[1:])
    some, all_of_them = (jax.jit(jax.value_and_grad(loss))(insert, texts) for texts in (batch, every))
    np.testing.assert_allclose(some[0], all_of_them[0], rtol=1e-6)
    np.testing.assert_allclose(some[1], all_of_them[1], rtol=1e-5, atol=1e-7)
    assert np.abs(some[1]).max() > 1e-3
    # Of tensors over the vocabulary there are [R, P, V], and none of all places.
    places = re.findall(r"f32\[4,(\d+),30\]", str(jax.make_jaxpr(jax.grad(loss))(insert, batch)))
    assert set(places) == {"6"}, set(places)


def opened(batch: dict, count: int) -> dict:
    """The same questions with their first tokens apart, read once an image."""
    own = {key: value[..., count:] for key, value in batch.items() if key in ("ids", "target")}
    places = np.where(batch["places"] < 0, -1, batch["places"] - count)
    return {**batch, **own, "places": places, "opening": batch["ids"][:, 0, :count]}


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_what_all_questions_begin_with_is_read_once(kind):
    """Loss and gradients are those of every question read from its beginning, learned words in front included."""
    if kind == "opt":
        model, params = built(kind)
        vision, width = questions(kind)["vision"], 16
    else:
        lm = LlamaConfig(vocab=30, width=16, depth=2, heads=4, key_heads=2, head_dim=4, mlp=32)
        config = SmolVLMConfig(
            dataclasses.replace(tiny.VISION, class_token=False), lm, 1, tiny.IMAGE, tiny.END, tiny.PAD
        )
        model, width = SmolVLM(config), 16
        params = tiny.random_params(skeleton(model))
        vision = np.random.default_rng(1).standard_normal((2, config.media_tokens, tiny.VISION.width))
    batch = questions("opt") | {"vision": vision}
    places = 2 if kind == "opt" else model.config.image_places
    front = np.full((2, 2, places + 1), tiny.IMAGE)
    front[..., -1] = 5  # the image, and a word that all share
    ids = np.concatenate([front, batch["ids"][..., 2:]], -1)
    ids[1, 1] = tiny.PAD  # an image with one object
    batch["target"] = np.concatenate([np.zeros(front.shape), batch["target"][..., 2:]], -1)
    batch["places"] = np.where(batch["places"] < 0, -1, batch["places"] + places - 1)
    batch["places"][1, 1], batch["target"][1, 1] = -1, 0
    ids[1, 1, : places + 1] = front[1, 1]  # `opening` is that of row 0; this row counts nothing
    batch["ids"] = ids

    def loss(learned, batch):
        return box_loss(model, params, Inserts(vision_output=learned[0], text=learned[1]), batch)

    learned = jnp.ones(vision.shape[1:]), jnp.asarray(np.random.default_rng(2).standard_normal((3, width)))
    arrays = [jax.tree.map(jnp.asarray, texts) for texts in (batch, opened(batch, places + 1))]
    with jax.default_matmul_precision("highest"):
        each, once = (jax.jit(jax.value_and_grad(loss))(learned, texts) for texts in arrays)
    np.testing.assert_allclose(once[0], each[0], rtol=1e-5)
    for a, b in zip(once[1], each[1], strict=True):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # Words in front of the image, the same for all samples, are read once for all, unless something stands before them.
    told = np.array([[7, 9, 8]] * 2)
    behind = {**arrays[1], "opening": jnp.concatenate([told, arrays[1]["opening"]], 1)}
    before = {**arrays[1], "told": jnp.asarray(told)}
    with jax.default_matmul_precision("highest"):
        for given in (learned, (learned[0], None)):
            each, once_for_all = (jax.jit(jax.value_and_grad(loss))(given, texts) for texts in (behind, before))
            np.testing.assert_allclose(once_for_all[0], each[0], rtol=1e-5)
            for a, b in zip(*(jax.tree.leaves(found[1]) for found in (each, once_for_all)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
            assert abs(float(each[0]) - float(jax.jit(loss)(given, arrays[1]))) > 1e-4  # they are read
    other = {**arrays[1], "opening": arrays[1]["opening"].at[:, -1].set(6)}
    assert abs(float(loss(learned, other)) - float(once[0])) > 1e-4  # it is read
