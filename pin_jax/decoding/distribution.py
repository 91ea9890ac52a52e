"""Where an object lies, as a probability of every place: all that the grid's decoders weigh, not the best box alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pin_jax.decoding import grid
from pin_jax.decoding.automaton import BoxAutomaton
from pin_jax.models.interface import Inserts, VisionLanguageModel


@functools.partial(jax.jit, static_argnames=("vlm", "candidates", "cells", "side"))
def inside(
    vlm: VisionLanguageModel,
    params: Any,
    vision: Float[Array, "B I N D"],
    ids: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    inserts: Inserts,
    automaton: BoxAutomaton,
    candidates: int,
    cells: int,
    side: int,
) -> Float[Array, "R cells cells"]:
    """The probability that a cell of the grid lies inside the box that is asked for.

    It is summed over boxes that stand for the whole distribution (`grid.resample`), so it has no bias towards likely
    boxes; with as many candidates as the grid has beginnings of answers it is exact.

    Args:
      vlm, params, vision, ids, mask, inserts, automaton: as in `grid.search`.
      candidates: the answers that are followed at a time.
      cells: along a side of the grid. side: of the image, in pixels.

    Returns:
      Rows of cells from the top, from 0 to 1.
    """
    found, log_p = grid.search(
        vlm, params, vision, ids, mask, inserts, automaton, candidates, grid.KEPT * candidates, grid.resample
    )
    weights = jax.nn.softmax(jnp.where(log_p > grid.IMPOSSIBLE, log_p, -jnp.inf))
    boxes = jnp.asarray(automaton.boxes)[found][..., None]
    centres = (jnp.arange(cells) + 0.5) * side / cells

    def covered(low: Any, high: Any) -> Float[Array, "R M cells"]:
        return ((low <= centres) & (centres < high)).astype(jnp.float32)

    columns, rows = covered(boxes[:, :, 0], boxes[:, :, 2]), covered(boxes[:, :, 1], boxes[:, :, 3])
    return jnp.einsum("rm,rmy,rmx->ryx", weights, rows, columns, precision="highest")
