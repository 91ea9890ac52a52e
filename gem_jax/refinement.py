"""What can be done to maps after any method, with the picture's own edges: PAMR, and means over regions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image

from gem_jax import heatmaps, regions
from gem_jax.evaluation.on_device import interpolation, rounded

REFINEMENTS = ("", "pamr", "regions")
ITERATIONS, DILATIONS = 10, (8, 16)  # as NACLIP publishes them
ROOM = 2**30  # bytes of a picture's maps; larger ones are refined at a smaller size


def refine(kind: str, maps: jax.Array | np.ndarray, photo: Image.Image, own: np.ndarray | None) -> jax.Array:
    """Small maps float32[P, h, w] -> float32[P, H, W], of the picture's own size where that fits in `ROOM`.

    Args:
      kind: `pamr` or `regions`. own: the picture's regions, int32[H, W] of its own size; for `regions` alone.
    """
    shrink = min(1.0, (ROOM / (4 * len(maps) * photo.height * photo.width)) ** 0.5)
    size = max(maps.shape[1], int(photo.height * shrink)), max(maps.shape[2], int(photo.width * shrink))
    if kind == "regions":
        assert own is not None
        own = regions.resized(own, size)
        own = np.unique(own, return_inverse=True)[1].reshape(size)
        small = np.asarray(maps)
        matrices = [heatmaps.bilinear(n, m) for n, m in zip(small.shape[1:], size, strict=True)]
        return jnp.asarray(regions.means(small, own, matrices)[:, own])
    room = rounded(size)  # few programs for many sizes
    pixels = np.asarray(photo.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    pixels = np.pad(pixels, [(0, room[0] - size[0]), (0, room[1] - size[1]), (0, 0)])
    matrices = [interpolation(n, m) for n, m in zip(maps.shape[1:], size, strict=True)]
    return _pamr(jnp.asarray(maps), *matrices, pixels, np.array(size))[:, : size[0], : size[1]]


@functools.partial(jax.jit, static_argnames=("iterations", "dilations"))
def _pamr(maps, rows, columns, pixels, size, iterations: int = ITERATIONS, dilations: tuple[int, ...] = DILATIONS):
    large = jnp.matmul(jnp.matmul(rows, maps, precision="highest"), columns.T, precision="highest")
    return pamr(large, pixels, size, iterations, dilations)


def pamr(
    maps: Float[Array, "P H W"],
    pixels: Float[Array, "H W 3"],
    size: Int[Array, " 2"],
    iterations: int = ITERATIONS,
    dilations: tuple[int, ...] = DILATIONS,
) -> Float[Array, "P H W"]:
    """Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, sec. 3.3).

    A pixel's neighbours j are the eight around it at each of the dilations. `iterations` times

        m_i <- sum_j a_ij m_j,   a_i. = softmax_j mean over channels of -|x_i - x_j| / (0.1 sigma_i + 1e-8),

    sigma_i the standard deviation (of a sample) of the channel over the neighbours and, once a dilation, i itself.
    Beyond the border stands the nearest pixel.

    Args:
      pixels: any numbers; only their proportions count.
      size: the picture's (height, width); what lies beyond is padding and is not looked at.
    """
    reach, (height, width) = max(dilations), maps.shape[1:]

    def bordered(x: Array, first: int) -> Array:
        """x with `reach` more rows and columns on each side of axes first and first + 1."""
        for axis, end in ((first, size[0]), (first + 1, size[1])):
            place = jnp.clip(jnp.arange(-reach, x.shape[axis] + reach), 0, end - 1)
            x = jnp.take(x, place, axis)
        return x

    def shifted(x: Array, down: int, right: int, first: int) -> Array:
        at = (slice(None),) * first + (slice(reach + down, reach + down + height),
                                       slice(reach + right, reach + right + width))  # fmt: skip
        return x[at]

    around = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    wide = jnp.promote_types(maps.dtype, jnp.float32)
    x = pixels.astype(wide)
    beside = bordered(x, 0)
    near = jnp.stack([shifted(beside, *at, 0) for at in around])  # [J, H, W, 3]
    sample = jnp.concatenate([near, jnp.repeat(x[None], len(dilations), 0)])
    sigma = jnp.std(sample, axis=0, ddof=1)
    logits = -(jnp.abs(x - near) / (0.1 * sigma + 1e-8)).mean(-1)
    weights = jax.nn.softmax(logits, axis=0)

    def one(m: Float[Array, "H W"]) -> Float[Array, "H W"]:
        def step(_: int, m: Array) -> Array:
            beside = bordered(m, 0)
            return sum(w * shifted(beside, *at, 0) for w, at in zip(weights, around, strict=True))  # pyright: ignore

        return jax.lax.fori_loop(0, iterations, step, m.astype(wide))

    return jax.lax.map(one, maps)
