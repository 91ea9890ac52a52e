"""Decoding: beams that cover everything find the best text there is; one beam is greedy; the cache changes nothing."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax.decoding import search
from pin_jax.models.interface import Inserts
from tests.fixtures import tiny

STEPS = 3
WORDS = (4, 5, 6)
ALLOWED = (*WORDS, tiny.END)
SUPPRESS = tuple(t for t in range(30) if t not in ALLOWED)


@pytest.fixture(scope="module")
def asked():
    vlm, params = tiny.flamingo()
    size = vlm.config.vision.image_size
    pixels = jax.random.normal(jax.random.key(0), (2, 1, size, size, 3))
    ids = jnp.array([[tiny.IMAGE, 4, 5], [tiny.PAD, tiny.IMAGE, 6]], jnp.int32)
    return vlm, params, pixels, ids, ids != tiny.PAD


def scores(vlm, params, pixels, ids, mask, texts) -> np.ndarray:
    """Sum of log p of texts (tuples of ids, of one length) after one prompt, by the whole forward pass."""
    rows = jnp.concatenate([jnp.tile(ids, (len(texts), 1)), jnp.array(texts, jnp.int32)], 1)
    seen = jnp.pad(jnp.tile(mask, (len(texts), 1)), [(0, 0), (0, len(texts[0]))], constant_values=True)
    logits = logits_of(vlm, params, pixels, rows, seen)[:, ids.shape[1] - 1 : -1]
    log_p = jax.nn.log_softmax(logits.at[..., jnp.array(SUPPRESS)].set(-1e9))
    return np.asarray(jnp.take_along_axis(log_p, rows[:, ids.shape[1] :, None], 2).sum((1, 2)))


@functools.partial(jax.jit, static_argnums=0)  # one program: op by op the compiler would be called for each
def logits_of(vlm, params, pixels, ids, mask):
    return vlm.apply({"params": params}, pixels, ids, mask)


def jitted(search_fn, vlm, steps, suppress, **options):
    """A search as one program of params, vision, ids and mask."""

    def run(params, vision, ids, mask):
        return search_fn(vlm, params, vision, ids, mask, Inserts(), steps, suppress, **options)

    return jax.jit(run)


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize("penalty", [pytest.param(0.0, marks=HEAVY), 1.0, pytest.param(2.0, marks=HEAVY)])
def test_wide_beams_find_the_best_text(asked, penalty):
    vlm, params, pixels, ids, mask = asked
    vision = vlm.apply({"params": params}, pixels, method="encode")
    found = jitted(search.beam, vlm, STEPS, SUPPRESS, beams=27, length_penalty=penalty)(params, vision, ids, mask)
    for r in range(2):
        prompt = (vlm, params, pixels[r : r + 1], ids[r : r + 1], mask[r : r + 1])
        best = {}
        for n in range(1, STEPS + 1):
            texts = [(*head, tiny.END) for head in itertools.product(WORDS, repeat=n - 1)]
            texts += list(itertools.product(WORDS, repeat=n)) if n == STEPS else []  # cut off by the length
            for text, score in zip(texts, scores(*prompt, texts), strict=True):
                best[text] = score / n**penalty
        text = max(best, key=best.get)
        assert np.asarray(found[r]).tolist() == [*text, *[tiny.PAD] * (STEPS - len(text))]


def test_one_beam_is_greedy_and_greedy_is_the_uncached_loop(asked):
    vlm, params, pixels, ids, mask = asked
    config = vlm.config
    suppress = (config.image_token, config.pad_token, config.end_token)
    vision = vlm.apply({"params": params}, pixels, method="encode")
    greedy = jitted(search.greedy, vlm, 6, suppress)(params, vision, ids, mask)
    beam = jitted(search.beam, vlm, 6, suppress, beams=1)(params, vision, ids, mask)
    row, seen = ids, mask
    for _ in range(6):
        logits = logits_of(vlm, params, pixels, row, seen)[:, -1]
        token = logits.at[:, jnp.array(suppress)].set(-1e9).argmax(-1)[:, None].astype(row.dtype)
        row, seen = jnp.concatenate([row, token], 1), jnp.pad(seen, [(0, 0), (0, 1)], constant_values=True)
    np.testing.assert_array_equal(greedy, row[:, ids.shape[1] :])
    np.testing.assert_array_equal(beam, greedy)


def test_after_the_end_come_pads(asked):
    vlm, params, pixels, ids, mask = asked
    vision = vlm.apply({"params": params}, pixels, method="encode")
    every_other = tuple(t for t in range(vlm.config.lm.vocab) if t != vlm.config.end_token)
    out = search.greedy(vlm, params, vision, ids, mask, Inserts(), 4, every_other)
    end, pad = vlm.config.end_token, vlm.config.pad_token
    np.testing.assert_array_equal(out, [[end, pad, pad, pad]] * 2)
