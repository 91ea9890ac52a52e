"""Whether an insert can move a VLM: places, gradients and attention are those of the model, and the verdict says it."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax import methods, vlm
from pin_jax.models import attention
from pin_jax.models.interface import Inserts
from pin_jax.programs import pin
from pin_jax.scoring import diagnosis
from tests.fixtures.small import config_for, write_vlm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def flamingo(folder):
    return vlm.load(folder)


def test_what_is_looked_at(flamingo):
    texts = diagnosis.encode(
        flamingo.tokenizer,
        flamingo.frame,
        [("In the image is a", " red apple", " located at", " [0,10,40,80]")],
        True,
    )
    ids, target = texts.inputs["ids"][0], texts.inputs["target"][0]
    assert flamingo.tokenizer.convert_ids_to_tokens(ids[texts.name[0]].tolist()) == [" red apple"]
    assert flamingo.tokenizer.convert_ids_to_tokens(ids[target > 0].tolist()) == ["0", "10", "40", "80"]


def test_gradients_at_the_joints(flamingo):
    """One image thrice, asked the same: all agree, and nothing stands between vision tokens and media here."""
    parts = 3 * [("In the image is a", " red apple", " located at", " [0,10,40,80]")]
    texts = diagnosis.encode(flamingo.tokenizer, flamingo.frame, parts, True)
    method = methods.build("pin", flamingo.model.config)
    vision = np.random.default_rng(0).normal(size=(1, 100, 128)).astype(np.float32).repeat(3, 0)
    params = method.init(jax.random.key(0))
    found = diagnosis.gradients(flamingo.model, flamingo.params, method, params, vision, texts)
    np.testing.assert_allclose(found["media"], found["vision"], rtol=1e-5)
    np.testing.assert_allclose(found["shared"], 1, rtol=1e-4)
    assert found["insert"] > 0


def test_the_likelihood_of_what_is_looked_at(flamingo):
    parts = [("In the image is a", " red apple", " located at", " [0,10,40,80]"),
             ("In the image is a", " cat", " located at", " [20,10,40,30]")]  # fmt: skip
    texts = diagnosis.encode(flamingo.tokenizer, flamingo.frame, parts, True)
    vision = np.random.default_rng(0).normal(size=(2, 100, 128)).astype(np.float32)
    found = diagnosis.likelihood(flamingo.model, flamingo.params, Inserts(), vision, texts)
    ids, target = (texts.inputs[key] for key in ("ids", "target"))
    logits = flamingo.model.apply({"params": flamingo.params}, None, ids, ids != 0, vision=vision[:, None])
    each = jax.nn.log_softmax(logits)[:, :-1]
    own = np.take_along_axis(np.asarray(each), ids[:, 1:, None], -1)[..., 0]
    expected = [row[at[1:] > 0].mean() for row, at in zip(own, target, strict=True)]
    assert target.sum() == 8 and found == pytest.approx(np.mean(expected), rel=1e-4)


def test_watched_attention_is_that_of_the_model():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 4, 2, 8)), jnp.float32) for _ in range(3))
    bias = attention.visible(jnp.tril(jnp.ones((4, 4), bool)))[None, None]
    with attention.watching() as seen:
        out = attention.plain(q, k, v, bias)
    attention.plain(q, k, v, bias)
    assert len(seen) == 1  # what runs outside is not collected
    np.testing.assert_allclose(jnp.einsum("bhts,bshd->bthd", seen[0], v), out, atol=1e-5)


def test_watched_grouped_attention_is_by_head_of_queries():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 4, heads, 8)), jnp.float32) for heads in (6, 2, 2))
    bias = attention.visible(jnp.tril(jnp.ones((4, 4), bool)))[None, None]
    with attention.watching() as seen:
        out = attention.grouped(q, [(k, v, bias)])
    assert [x.shape for x in seen] == [(2, 6, 4, 4)]
    np.testing.assert_allclose(jnp.einsum("bhts,bshd->bthd", seen[0], v.repeat(3, 2)), out, atol=1e-5)


def test_the_verdict():
    (moves,) = diagnosis.verdict(1.0, 2.0, 15.0, 10.0)
    assert "can move" in moves and "0.50" in moves
    overlooked, drowned = diagnosis.verdict(0.1, 2.0, 150.0, 10.0)
    assert "little to move" in overlooked and "15 times" in drowned and "warmup" in drowned


def test_what_an_insert_leaves_of_an_image(flamingo):
    """All of it where it is only added to (this Flamingo's vision tokens are read as they are), else less."""
    vision = np.random.default_rng(0).normal(size=(4, 100, 128)).astype(np.float32)
    insert = Inserts(vision_output=jnp.asarray(9 * np.random.default_rng(1).normal(size=(100, 128)), jnp.float32))
    assert diagnosis.kept(flamingo.model, flamingo.params, insert, vision) == pytest.approx(1, abs=1e-4)
    drowned = Inserts(vision_output=1e9 * insert.vision_output)  # float32 has no room for both
    assert diagnosis.kept(flamingo.model, flamingo.params, drowned, vision) < 0.9
    more = Inserts(fusion_input=jnp.ones((2, 128)))
    assert diagnosis.kept(flamingo.model, flamingo.params, more, vision) is None
    (_, bent) = diagnosis.verdict(1.0, 2.0, 15.0, 10.0, content=0.1)
    assert "bent" in bent and "0.10" in bent and len(diagnosis.verdict(1.0, 2.0, 15.0, 10.0, content=0.9)) == 1


def test_the_run(folder, tmp_path):
    config = config_for(folder, run="diagnose")
    pin.run(config, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    cross, own = found["attention"]  # the one layer's
    assert cross["image"] == pytest.approx(1) and cross["name"] is None and 0 < own["name"] < 1
    assert found["gradients"].keys() == {"numbers of a box", "names in a caption"}
    assert found["psi_norm"] > 0 and found["verdict"]
    assert len(found["likelihood"]) == 3 and all(value < 0 for value in found["likelihood"].values())


def test_what_is_fitted_to_an_answer_makes_it_likely(flamingo):
    parts = [("In the image is a", " red apple", " located at", " [0,10,40,80]"),
             ("In the image is a", " cat", " located at", " [20,10,40,30]")]  # fmt: skip
    texts = diagnosis.encode(flamingo.tokenizer, flamingo.frame, parts, True)
    vision = np.random.default_rng(0).normal(size=(2, 100, 128)).astype(np.float32)
    held = flamingo.model, flamingo.params, Inserts(), vision
    before = diagnosis.likelihood(*held, texts)
    assert diagnosis.fitted(*held, texts, steps=0) == pytest.approx(before, rel=1e-5)
    assert diagnosis.fitted(*held, texts, steps=20) > before
