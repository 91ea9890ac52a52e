"""The small BLIP-2's start: queries gather patches that are alike, and stand where the decoder looks for names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pin_jax.models.layers import standardise
from pin_jax.models.qformer import QFormer, QFormerConfig
from pin_jax.small import queries

WIDTH, QUERIES = 64, 8
KEY = jax.random.key(0)


def clusters(kinds: int = 3, each: int = 12):
    centres = standardise(jax.random.normal(jax.random.fold_in(KEY, 1), (kinds, WIDTH)))
    noise = 0.3 * jax.random.normal(jax.random.fold_in(KEY, 2), (kinds * each, WIDTH))
    return centres, (jnp.repeat(centres, each, 0) + noise)[None]


def purity(params, module, centres, media):
    """Mean over queries of the largest cosine with a centre, and how many centres are some query's nearest."""
    found = standardise(module.apply({"params": params}, media)[0])
    cosines = found @ centres.T / WIDTH
    return float(cosines.max(1).mean()), len(set(np.asarray(cosines.argmax(1)).tolist()))


def test_queries_gather_what_is_alike():
    module = QFormer(QFormerConfig(queries=QUERIES, width=WIDTH, depth=4, heads=2, mlp=32, cross_every=1))
    centres, media = clusters()
    random = module.init(KEY, media)["params"]
    started = queries.gather_init(random, jax.random.fold_in(KEY, 3))
    assert purity(random, module, centres, media)[0] < 0.8
    share, kinds = purity(started, module, centres, media)
    assert share > 0.9 and kinds >= 2


def test_the_decoder_begins_in_the_space_of_the_queries():
    """A query that is a name's vector stands where the name's own token does."""
    names = jax.random.normal(jax.random.fold_in(KEY, 4), (4, WIDTH))
    random = jax.random.normal(KEY, (10, WIDTH))
    params = {"projection": {"kernel": 0.02 * jnp.ones((WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)}}
    params |= {"lm": {"embedding": random}, "vision": {}, "qformer": {}}
    started = queries.start(params, KEY, {"queries": random}, np.arange(3, 7), names)
    assert started["qformer"] == {"queries": random}
    said = standardise(names) @ started["projection"]["kernel"]
    cosines = standardise(said) @ standardise(started["lm"]["embedding"]).T / WIDTH
    np.testing.assert_array_equal(cosines.argmax(1), np.arange(3, 7))
    assert float(cosines[np.arange(4), np.arange(3, 7)].min()) > 0.9
