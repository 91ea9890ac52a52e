"""Shared by every search over a VLM: its compiled calls, and reordering the rows of beams."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from pin_jax.models.interface import Inserts, VisionLanguageModel


def calls(vlm: VisionLanguageModel, params: Any, inserts: Inserts) -> tuple[Callable, Callable]:
    """The VLM's `prefill` and `step` with their parameters and inserts."""
    apply = functools.partial(vlm.apply, inserts.variables(params))

    def prefill(vision, ids, mask, steps, **options):
        return apply(vision, ids, mask, steps, inserts, **options, method="prefill")

    return prefill, functools.partial(apply, method="step")


def take(array: Shaped[Array, "R b *rest"], index: Int[Array, "R k"]) -> Shaped[Array, "R k *rest"]:
    """Of each row's beams those with an index."""
    return jnp.take_along_axis(array, index.reshape(*index.shape, *[1] * (array.ndim - 2)), 1)


def cache_rows(parents: Int[Array, "R k"], beams: int) -> Int[Array, " R_k"]:
    """The rows of a cache of `beams` beams that the given parents stand in."""
    return (jnp.arange(len(parents))[:, None] * beams + parents).reshape(-1)
