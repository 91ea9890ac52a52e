"""GEM against the authors' own outputs: float32 at 1e-5, float64 at 1e-10, tokens, texts and maps."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax import heatmaps
from pin_jax.models.vit import resize_positions
from tests.fixtures import gem_models
from tests.fixtures.gem_models import SETTINGS

DATA = gem_models.arrays()
CASES = sorted({tuple(key.split("/")[:4]) for key in DATA if "/feat_gem" in key})
LOOSE, TIGHT = {"rtol": 1e-5, "atol": 1e-5}, {"rtol": 1e-10, "atol": 1e-10}


def pixels(image: str, dtype=np.float32) -> jax.Array:
    return jnp.asarray(DATA[f"image/{image}"].transpose(0, 2, 3, 1), dtype)


@functools.cache
def outputs(act: str, precision: str, setting: str, image: str):
    """GEM's tokens and the original ones, as numpy."""
    with jax.enable_x64(precision == "f64"):
        dtype = np.float64 if precision == "f64" else np.float32
        gem = gem_models.gem(DATA, act, dtype, **SETTINGS[setting])
        both = gem.image_tokens(pixels(image, dtype))
        assert all(tokens.dtype == dtype for tokens in both)
        return tuple(np.asarray(tokens) for tokens in both)


def test_the_file_has_every_case():
    assert len(CASES) == 10
    assert {case[2] for case in CASES} == set(SETTINGS)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_tokens(case):
    tokens, original = outputs(*case)
    within = TIGHT if case[1] == "f64" else LOOSE
    np.testing.assert_allclose(tokens, DATA["/".join(case) + "/feat_gem"], **within)
    if "/".join(case) + "/feat_ori" in DATA:
        np.testing.assert_allclose(original, DATA["/".join(case) + "/feat_ori"], **within)


@pytest.mark.parametrize("key", [key for key in DATA if key.endswith("/text_emb")])
def test_texts(key):
    act, precision = key.split("/")[:2]
    with jax.enable_x64(precision == "f64"):
        dtype, within = (np.float64, TIGHT) if precision == "f64" else (np.float32, LOOSE)
        ids = DATA["text/ids"]
        np.testing.assert_array_equal(ids.argmax(-1), DATA["text/eot_argmax"])
        text = gem_models.gem(DATA, act, dtype).text_features(ids)
        np.testing.assert_allclose(text, DATA[key], **within)


@pytest.mark.parametrize("act", gem_models.ACTS)
@pytest.mark.parametrize("stream", ["gem", "ori"])
def test_maps(act, stream):
    gem = gem_models.gem(DATA, act)
    case = f"{act}/f32/default"
    tokens = jnp.asarray(outputs(act, "f32", "default", "sq64")[stream == "ori"])
    small = heatmaps.similarity(tokens, jnp.asarray(DATA[f"{case}/text_emb"]), (8, 8))
    for raw, name in ((True, "raw"), (False, "minmax")):
        large, _ = gem._finish(small, np.ones(small.shape[:2], bool), size=(64, 64), raw=raw)
        expected = DATA[f"{case}/sq64/logits_{stream}_{name}"]
        np.testing.assert_allclose(large[..., ::3, ::3], expected, rtol=1e-5, atol=2e-5 if name == "minmax" else 1e-5)


def test_positions_are_resized_as_the_authors_do():
    table = DATA["sd/visual.positional_embedding"]
    with jax.enable_x64(True):
        for grid in ((14, 14), (8, 8)):
            out = resize_positions(jnp.asarray(table, np.float64), grid, True)
            np.testing.assert_allclose(out, DATA[f"posemb/{grid[0]}x{grid[1]}"][0], **TIGHT)


def test_whole_image_embedding():
    gem = gem_models.gem(DATA, "gelu")
    out = gem.model.module.apply({"params": gem.model.params}, pixels("sq64"), method="image")
    np.testing.assert_allclose(out, DATA["check/plain_open_clip_image_emb_sq64"], **LOOSE)


def test_meta_is_what_the_tests_read():
    meta = json.loads(str(DATA["meta"]))
    assert meta["gem"] == "WalBouss/GEM@5fa677c" and len(meta["prompts"]) == len(meta["classes"])
