"""Windows that share the last block's attention: against the blocks done by hand, and where sharing changes nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax import GEM, stitching
from gem_jax.attention import clip_surgery
from input_pipeline.errors import UserError
from pin_jax.models.vit import AttentionContext
from tests.fixtures.gem_models import photo

SAID = ("A photo of {article} {}.",)
PLACES = np.array([[0, 1, 3, 4], [1, 2, 4, 5]])  # two windows of 2 x 2 over a picture of 2 x 3 patches


def test_attention_runs_over_the_whole_picture():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5, 2, 4)) for _ in range(3))
    inputs = rng.standard_normal((2, 5, 8))

    def whole(x):
        patches = [np.mean([x[w, 1 + i] for w in range(2) for i in range(4) if PLACES[w, i] == g], 0) for g in range(6)]
        return np.stack([x[:, 0].mean(0), *patches])

    v_all = whole(v)
    expected = np.zeros((2, 5, 2, 4))
    for h in range(2):
        logits = v_all[:, h] @ v_all[:, h].T / 2
        out = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) @ v_all[:, h]
        expected[:, :, h] = [out[[0, *(1 + PLACES[w])]] for w in range(2)]
    with jax.enable_x64():
        places = jnp.asarray(PLACES)
        shared = stitching.shared(clip_surgery, places, (2, 3), places)
        context = functools.partial(AttentionContext, jnp.asarray(inputs), (2, 2), 1)
        given = [jnp.asarray(x) for x in (q, k, v)]
        np.testing.assert_allclose(shared(*given, context=context(last=True)), expected, rtol=1e-9)
        alone = clip_surgery(*given, context=context(last=False))
        np.testing.assert_array_equal(shared(*given, context=context(last=False)), alone)
        assert np.abs(np.asarray(alone) - expected).max() > 0.05


OPTIONS = {"proxyclip": {"proxy": "assets/tiny_flamingo"}, "corrclip": {"proxy": "assets/tiny_flamingo", "merge": 0.9}}


@pytest.mark.parametrize(
    "attention",
    ["gem", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("corrclip", "naclip", "proxyclip"))],
)
def test_sharing_between_windows(attention):
    gem = GEM.from_pretrained(
        "assets/tiny_clip", attention=attention, size=160, templates=SAID, **OPTIONS.get(attention, {})
    )  # fmt: skip
    square, wide = photo(0, (160, 160)), photo(1, (160, 320))
    one = {"window": 160, "stride": 80}
    np.testing.assert_allclose(  # a single window has nobody to share with
        gem.maps(square, ["cat"], **one, stitch=True), gem.maps(square, ["cat"], **one), rtol=1e-4, atol=1e-5
    )  # fmt: skip
    shared, alone = (gem.maps(wide, ["cat", "dog"], **one, stitch=stitch) for stitch in (True, False))
    assert shared.shape == (2, 160, 320) and np.isfinite(shared).all() and np.abs(shared - alone).max() > 1e-3
    np.testing.assert_allclose(  # whole pictures have no windows
        gem.maps(square, ["cat"], stitch=True), gem.maps(square, ["cat"]), rtol=1e-5, atol=1e-6
    )  # fmt: skip


def test_a_stitched_uniform_picture_is_seen_alike_everywhere():
    # Overlapping windows of one colour: every place has the same neighbours, so windows cannot be told by their seams.
    gem = GEM.from_pretrained("assets/tiny_clip", attention="maskclip", size=160, templates=SAID)
    with pytest.raises(UserError, match="plain CLIP's attention is not shared"):
        GEM(gem.model, attention="clip", size=160, templates=SAID).maps(photo(0), ["cat"], window=160, stitch=True)
    shared = gem.small_maps(gem.cut([photo(1, (160, 320))], 160, 80, stitch=True), [["cat"]])[0]
    alone = gem.small_maps(gem.cut([photo(1, (160, 320))], 160, 80), [["cat"]])[0]
    assert shared.shape == alone.shape == (1, 10, 20)
    np.testing.assert_allclose(shared[:, :, :5], alone[:, :, :5], rtol=1e-4, atol=1e-5)  # seen by one window alone
    assert np.abs(shared - alone).max() > 1e-4  # values of two windows are averaged before the head, not after it
