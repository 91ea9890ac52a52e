"""Teacher forcing: where only the places that count go through the head, the loss is that of all of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.interface import Inserts
from pin_jax.models.language.opt import OPTConfig
from pin_jax.models.language.t5 import T5Config
from pin_jax.models.qformer import QFormerConfig
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
