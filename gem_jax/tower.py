"""The frozen towers together: an image-text model's tokens, and what its attention wants to know of the picture."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gem_jax import stitching
from gem_jax.pretrained import ImageText
from pin_jax.models.vit import SecondStream, Streams
from pin_jax.weights.dino import Encoder


@flax.struct.dataclass
class Beside:
    """What may stand beside the pixels of windows; n windows of N patches, M places of the maps.

    Attributes:
      regions: int32[n, M], of each place. count: more than the highest of them.
      places: int32[n, N], of patches in their picture's grid. cells: int32[n, M], of places in theirs.
        (arrays of either kind, or None.)
      grid, cell_grid: those (rows, columns), where the windows are one picture's and share their last attention.
    """

    regions: Any = None
    places: Any = None
    cells: Any = None
    count: int = flax.struct.field(pytree_node=False, default=0)
    grid: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))
    cell_grid: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))


def streams(
    model: ImageText, proxy: Encoder | None, stream: SecondStream, params: Any, pixels: jax.Array, beside: Beside
) -> Streams:
    """Pixels float[B, H, W, 3], normalised for the model -> both streams' tokens.

    Args:
      params: {"model", "proxy"}.
    """
    known: dict[str, Any] = {}
    if proxy:
        patch = proxy.module.config.patch
        grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
        plain = pixels * jnp.array(model.std) + jnp.array(model.mean)
        seen = (plain - jnp.array(proxy.mean)) / jnp.array(proxy.std)
        found: Any = proxy.module.apply({"params": params["proxy"]}, seen.astype(pixels.dtype))
        known = {"features": found.tokens[:, -grid[0] * grid[1] :], "grid": grid}
    if beside.regions is not None:
        known |= {"regions": beside.regions, "count": beside.count}
    places, cells = beside.places, beside.cells
    if places is not None and cells is not None:
        size = beside.cell_grid[0] * beside.cell_grid[1]
        if "features" in known:
            known |= {"features": stitching.whole(known["features"], cells, size), "grid": beside.cell_grid}
        if "regions" in known:
            whole = jnp.zeros(size, jnp.int32).at[cells].set(known["regions"])
            known["regions"] = whole[None]
    attend = functools.partial(stream.attend, **known) if known else stream.attend
    if places is not None and cells is not None:
        attend = stitching.shared(attend, places, beside.grid, cells if proxy else places)
    stream = dataclasses.replace(stream, attend=attend)
    return model.module.apply({"params": params["model"]}, pixels, stream, method="image_tokens")
