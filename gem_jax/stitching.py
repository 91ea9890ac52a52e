"""Windows of one picture that share the last block's attention (Moon et al., OV-Stitcher, 2026).

Each window goes through the tower alone until the last block. There what the windows have of each place of the picture
is averaged into one grid, attention runs over that whole grid, and every window takes back what its own places got.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pin_jax.models.vit import AttentionContext, AttentionFn


def whole(x: Float[Array, "n N *rest"], places: Int[Array, "n N"], count: int) -> Float[Array, "1 count *rest"]:
    """What windows have of each place, averaged where they overlap.

    Args:
      places: of each window's patches among the picture's, row by row. count: of those.
    """
    total = jnp.zeros((count, *x.shape[2:]), x.dtype).at[places].add(x)
    number = jnp.zeros(count, x.dtype).at[places].add(1)
    return (total / number.reshape(-1, *[1] * (x.ndim - 2)))[None]


def shared(
    attend: Callable[..., Array],
    places: Int[Array, "n N"],
    grid: tuple[int, int],
    results: Int[Array, "n M"],
) -> AttentionFn:
    """An attention function of a whole picture as one of its windows; in blocks before the last it stays as it is.

    Class tokens become one, their mean.

    Args:
      grid: the picture's patches (rows, columns). results: places of what the attention returns, where it has another
        grid than the tower (a proxy's); `places` else.
    """
    count = grid[0] * grid[1]

    def over_all(q: Array, k: Array, v: Array, context: AttentionContext) -> Array:
        if not context.last:
            return attend(q, k, v, context=context)
        first = context.first

        def stitched(x: Array) -> Array:
            return jnp.concatenate([x[:, :first].mean(0, keepdims=True), whole(x[:, first:], places, count)], 1)

        wide = AttentionContext(stitched(context.inputs), grid, first, last=True)
        out = attend(*map(stitched, (q, k, v)), context=wide)[0]
        kept = first if results is places else 0
        front = jnp.broadcast_to(out[:kept], (len(q), *out[:kept].shape))
        return jnp.concatenate([front, out[kept:][results]], 1)

    return over_all
