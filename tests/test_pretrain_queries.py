"""The small BLIP-2's start: queries gather patches that are alike, and a name reads the query that holds it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pin_jax import pretrain_queries
from pin_jax.models.opt import OPT, OPTConfig
from pin_jax.models.qformer import QFormer, QFormerConfig
from pin_jax.pretrain_vision import unit

WIDTH, QUERIES = 64, 8
KEY = jax.random.key(0)


def clusters(kinds: int = 3, each: int = 12):
    centres = unit(jax.random.normal(jax.random.fold_in(KEY, 1), (kinds, WIDTH)))
    noise = 0.3 * jax.random.normal(jax.random.fold_in(KEY, 2), (kinds * each, WIDTH))
    return centres, (jnp.repeat(centres, each, 0) + noise)[None]


def purity(params, module, centres, media):
    """Mean over queries of the largest cosine with a centre, and how many centres are some query's nearest."""
    found = unit(module.apply({"params": params}, media)[0])
    cosines = found @ centres.T / WIDTH
    return float(cosines.max(1).mean()), len(set(np.asarray(cosines.argmax(1)).tolist()))


def test_queries_gather_what_is_alike():
    module = QFormer(QFormerConfig(queries=QUERIES, width=WIDTH, depth=4, heads=2, mlp=32, cross_every=1))
    centres, media = clusters()
    random = module.init(KEY, media)["params"]
    started = pretrain_queries.gather_init(random, jax.random.fold_in(KEY, 3))
    assert purity(random, module, centres, media)[0] < 0.8
    share, kinds = purity(started, module, centres, media)
    assert share > 0.9 and kinds >= 2


def test_a_name_reads_the_queries_that_hold_it():
    """Moving a query that holds the asked name changes the name's place more than moving another query does."""
    module = OPT(OPTConfig(vocab=10, width=WIDTH, depth=2, heads=2, mlp=32, positions=32))
    names = jax.random.normal(jax.random.fold_in(KEY, 4), (4, WIDTH))
    mask = jnp.ones((1, QUERIES + 3), bool)
    random = module.init(KEY, jnp.zeros((1, QUERIES + 3, WIDTH)), mask)["params"]
    started = pretrain_queries.search_init(random, jax.random.fold_in(KEY, 5), np.arange(4), names, QUERIES)
    held = np.arange(QUERIES) % 4  # query i holds name i % 4
    noise = 0.5 * jax.random.normal(jax.random.fold_in(KEY, 6), (QUERIES, WIDTH))
    prefix = pretrain_queries.EMBEDDING_SCALE * unit(unit(names)[held] + noise)

    @jax.jit
    def pull(lm, asked):
        text = lm["embedding"][jnp.array([8, 9, asked])]
        slope = jax.jacrev(lambda p: module.apply({"params": lm}, jnp.concatenate([p, text])[None], mask)[0, -1])(
            prefix
        )
        return jnp.sqrt((slope**2).sum((0, 2)))  # of each query, over all logits

    def advantage(lm):
        """Pull of the right queries over that of the wrong ones, mean over names."""
        pulls = [np.asarray(pull(lm, asked)) for asked in range(4)]
        return np.mean([p[held == n].mean() / p[held != n].mean() for n, p in enumerate(pulls)])

    assert advantage(started) > 2 > 1.5 > advantage(random)


def test_positions_lean_to_what_is_near():
    table = np.asarray(pretrain_queries.waves(40, WIDTH))
    np.testing.assert_allclose(table.var(1) + table.mean(1) ** 2, 1, atol=1e-4)
    products = table @ table[20] / WIDTH
    assert products.argmax() == 20 and products[19] > products[17] > products[12]
