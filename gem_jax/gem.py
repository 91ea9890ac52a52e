"""GEM on a frozen image-text model: heat maps of what is named, without training (Bousselham et al., CVPR 2024)."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gem_jax import attention as attention_lib
from gem_jax import heatmaps, pretrained, proxies, windows
from gem_jax.pretrained import ImageText
from input_pipeline.errors import UserError
from input_pipeline.images import Picture, listed
from input_pipeline.images import open_image as picture
from input_pipeline.text.prompt_sets import PROMPT_SETS
from input_pipeline.text.prompts import article, is_template
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import Streams, normalise
from pin_jax.runtime import reporting
from pin_jax.scoring.found import Found, draw
from pin_jax.weights.dino import Encoder

TEMPLATES = ("a photo of a {}.",)


class GEM:
    """A frozen image-text model with an attention function that localises.

    Attributes:
      model: the frozen model. stream: the attention function and its second stream.
      size: images are resized to this (height, width) before they are looked at; multiples of the patch.
      templates: prompts are put into each (`{}`, or `{article} {}` for a/an) and averaged (prompt ensembling);
        or the name of a set, `openai_80` or `openai_7`.
      batch_size: images that go through the tower together.
      proxy: another encoder, whose features ProxyCLIP attends by. cell: pixels along a side of a place of the maps.
    """

    def __init__(
        self,
        model: ImageText,
        depth: int = 7,
        iterations: int = 1,
        temperature: float | None = None,
        attention: str = "gem",
        parts: str = "qkv",
        size: int | tuple[int, int] = 448,
        templates: str | Sequence[str] = TEMPLATES,
        batch_size: int = 8,
        proxy: str | pathlib.Path | Encoder | None = None,
    ):
        """See the class, and `attention.method` for depth, iterations, temperature, attention and parts.

        Args:
          proxy: see `proxies.load`; read where the attention is `proxyclip` alone.

        Raises:
          UserError: a setting that cannot be.
        """
        if isinstance(templates, str):
            if templates not in PROMPT_SETS:
                raise UserError(f"templates {templates!r}: expected one of {', '.join(PROMPT_SETS)}, or texts")
            templates = PROMPT_SETS[templates]
        self.model, self.templates, self.batch_size = model, tuple(templates), batch_size
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)  # pyright: ignore[reportAttributeAccessIssue]
        vision = model.config.vision
        self.proxy: Encoder | None = None
        if attention == "proxyclip":
            if proxy is None or proxy == "":
                raise UserError(
                    "attention proxyclip: needs another encoder; give proxy, such as facebook/dino-vitb8 or"
                    " assets/tiny_flamingo (config.proxy)"
                )
            self.proxy = proxy if isinstance(proxy, Encoder) else proxies.load(proxy, vision.dtype)
        self.cell = self.proxy.module.config.patch if self.proxy else vision.patch
        self._step = math.lcm(vision.patch, self.cell)
        if len(self.size) != 2 or any(side <= 0 or side % self._step for side in self.size):
            of = "patch" if self.cell == vision.patch else "patch and its proxy's together"
            raise UserError(f"size {size}: expected multiples of the model's {of}, {self._step}")
        self._params = {"model": model.params, "proxy": self.proxy.params if self.proxy else {}}
        if not self.templates or not all(map(is_template, self.templates)):
            raise UserError(
                f"templates {self.templates}: expected one or more texts with {{}} in the name's place, once, and"
                " {article} for a or an if wanted; no other braces"
            )
        self.stream = attention_lib.method(attention, vision, depth, iterations, temperature, parts)
        self._tokens = jax.jit(self._both)
        self._one = jax.jit(self._stream, static_argnames="original")
        self._similarity = jax.jit(heatmaps.similarity, static_argnames="grid")
        self._finish = jax.jit(self._finished, static_argnames=("size", "raw"))
        self._known: dict[str, np.ndarray] = {}

    @classmethod
    def from_pretrained(
        cls, source: str | pathlib.Path, *, dtype: Any = None, activation: str | None = None, **options: Any
    ) -> GEM:
        """A model from disk or hub: see `pretrained.load` for source, dtype and activation, the class for the rest."""
        return cls(pretrained.load(source, dtype, activation), **options)

    # --- text ---------------------------------------------------------------------------------------------------------

    def text_features(self, prompts: Sequence[str] | np.ndarray | jax.Array) -> jax.Array:
        """Names, or token ids int[C, T] of whole texts -> float[C, E], L2-normalised.

        A name is put into every template; the mean of the normalised texts is normalised again.

        Raises:
          UserError: no prompt, or an empty one.
        """
        if not isinstance(prompts, str) and hasattr(prompts, "shape"):
            return self.model.encode_text(np.asarray(prompts))
        prompts = _checked(prompts)  # pyright: ignore[reportArgumentType] (an array has been told by its shape)
        known = self._known  # other threads may ask for other prompts meanwhile
        new = [p for p in dict.fromkeys(prompts) if p not in known]
        if new:
            texts = [t.format(p, article=article(p)) for p in new for t in self.templates]
            rows = np.asarray(self.model.encode_text(self.model.tokenize(texts)), np.float32)
            means = unit_length(jnp.asarray(rows.reshape(len(new), len(self.templates), -1).mean(1)))
            rows = dict(zip(new, np.asarray(means), strict=True))
            known = rows | {p: known[p] for p in prompts if p in known} if len(known) > 10_000 else known | rows
            self._known = known
        return jnp.asarray(np.stack([known[p] for p in prompts]))

    # --- image --------------------------------------------------------------------------------------------------------

    def image_tokens(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pixels float[B, H, W, 3], normalised -> tokens of the attention's stream and of the original one.

        Returns:
          float[B, N, E] twice, after the projection and before any normalisation; the class token, if the model has
          one, stands first.
        """
        streams = self._tokens(self._params, pixels)
        return streams.second, streams.tokens

    def _both(self, params: Any, pixels: jax.Array) -> Streams:
        stream = self.stream
        if self.proxy:
            module = self.proxy.module
            grid = (pixels.shape[1] // self.cell, pixels.shape[2] // self.cell)
            plain = pixels * jnp.array(self.model.std) + jnp.array(self.model.mean)
            seen = (plain - jnp.array(self.proxy.mean)) / jnp.array(self.proxy.std)
            found: Any = module.apply({"params": params["proxy"]}, seen.astype(pixels.dtype))
            features = found.tokens[:, -grid[0] * grid[1] :]
            stream = dataclasses.replace(stream, attend=functools.partial(stream.attend, features=features, grid=grid))
        return self.model.module.apply({"params": params["model"]}, pixels, stream, method="image_tokens")

    def preprocess(self, images: Sequence[Picture], size: tuple[int, int] | None = None) -> np.ndarray:
        """Pictures of any size -> uint8[B, H, W, 3] of `size` (the model's by default), bicubic, aspect not kept."""
        return np.stack([windows.resized(picture(image), size or self.size) for image in images])

    def _stream(self, params: Any, images: jax.Array, original: bool) -> jax.Array:
        """uint8[B, H, W, 3] -> float[B, N, E] of one stream; what the other alone needs is not computed."""
        streams = self._both(params, normalise(images, self.model.mean, self.model.std))
        assert streams.second is not None  # its attention has a second stream
        return streams.tokens if original else streams.second

    def similarity(self, images: np.ndarray, text: np.ndarray | jax.Array, original: bool = False) -> jax.Array:
        """Cosine of patches and texts before enlargement.

        Args:
          images: uint8[B, H, W, 3], sides multiples of the patch. text: float[B, C, E] or float[C, E].

        Returns:
          float32[B, C, h, w]. The number of texts compiles no tower anew; that of images is padded to a power of two.
        """
        count, texts = len(images), text.shape[-2]
        text = jnp.broadcast_to(jnp.asarray(text), (count, *text.shape[-2:]))
        text = jnp.pad(text, [(0, 0), (0, _bucket(texts) - texts), (0, 0)])
        patch = self.model.config.vision.patch if original else self.cell
        grid, out = (images.shape[1] // patch, images.shape[2] // patch), []
        for start in range(0, count, self.batch_size):
            chunk, own = images[start : start + self.batch_size], text[start : start + self.batch_size]
            room = min(_bucket(len(chunk)), self.batch_size) - len(chunk)
            chunk, own = np.pad(chunk, [(0, room)] + [(0, 0)] * 3), jnp.pad(own, [(0, room), (0, 0), (0, 0)])
            tokens = self._one(self._params, chunk, original=original)
            maps = self._similarity(tokens, own, grid=grid)
            out.append(maps[: len(maps) - room, :texts].astype(jnp.promote_types(maps.dtype, jnp.float32)))
        return jnp.concatenate(out)

    # --- heat maps ----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        prompts: Sequence[str] | Sequence[Sequence[str]],
        *,
        raw: bool = False,
        original: bool = False,
    ) -> jax.Array:
        """Heat maps of what the prompts name.

        Args:
          images: paths, PIL images or uint8[H, W, 3], of any sizes; or one of them; or uint8[B, H, W, 3].
          prompts: names for all images; or a list of names for each image of its own.
          raw: cosines instead of maps between 0 and 1. original: of plain CLIP's last tokens.

        Returns:
          float32[B, C, H, W] of `self.size`, min-max over the pixels of each map. Where images have lists of different
          lengths, C is the longest and the maps of places without a prompt are zero.

        A bad image among others is told in one line and its maps are zero; so is a map without contrast.

        Raises:
          UserError: no image, or none that can be read; an empty prompt; not one list of prompts for each image.
        """
        images = listed(images)
        lists = self._lists(prompts, len(images))
        most = max(map(len, lists))
        known = {tuple(own): np.asarray(self.text_features(own)) for own in lists}
        text = np.stack([np.pad(known[tuple(own)], [(0, most - len(own)), (0, 0)]) for own in lists])
        pixels, readable = self._readable(images)
        maps = self.similarity(pixels, text, original)
        given = np.array([[i < len(own) for i in range(most)] for own in lists]) & readable[:, None]
        heat, flat = self._finish(maps, given, size=self.size, raw=raw)
        for i, k in np.argwhere(np.asarray(flat)):
            reporting.say(f"image {i}, prompt {lists[i][k]!r}: the map is constant; it is shown as zero")
        return heat

    def _readable(self, images: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
        """`preprocess`, but a bad image is black, and False in the second result bool[B]."""
        rows, errors = [], {}
        for i, image in enumerate(images):
            try:
                rows.append(self.preprocess([image])[0])
            except UserError as error:
                rows.append(np.zeros((*self.size, 3), np.uint8))
                errors[i] = error
        if len(errors) == len(images):
            raise errors[0]
        for i, error in errors.items():
            reporting.say(f"image {i} of {len(images)} is left out: {error}")
        return np.stack(rows), np.array([i not in errors for i in range(len(images))])

    def _lists(self, prompts: Any, count: int) -> list[list[str]]:
        if isinstance(prompts, str):
            raise UserError(f"prompts {prompts!r}: expected a list of names, such as [{prompts!r}]")
        prompts = list(prompts)
        if not prompts or isinstance(prompts[0], str):
            return [_checked(prompts)] * count
        if len(prompts) != count:
            raise UserError(f"prompts: {len(prompts)} lists for {count} images; give one each, or one list of names")
        return [_checked(own) for own in prompts]

    @staticmethod
    def _finished(maps: jax.Array, given: jax.Array, size: tuple[int, int], raw: bool) -> tuple[jax.Array, jax.Array]:
        """Enlarged maps, and which of them bool[B, C] have no contrast."""
        large = heatmaps.enlarge(maps, size)
        flat = given & ~raw & heatmaps.constant(large)
        return jnp.where(given[..., None, None], large if raw else heatmaps.minmax(large), 0), flat

    def maps(self, image: Picture, prompts: Sequence[str], **options: Any) -> np.ndarray:
        """Cosines float32[C, H, W] at the image's own resolution; `large_maps`, all prompts at once."""
        return np.asarray(self.large_maps(image, prompts, **options))

    def large_maps(
        self,
        image: Picture,
        prompts: Sequence[str],
        *,
        window: int = 0,
        stride: int = 0,
        shorter: int = 0,
        original: bool = False,
    ) -> heatmaps.Enlarged:
        """Cosines at the image's own resolution, for evaluation and for large images, enlarged where they are read.

        Args:
          window: 0 looks at the whole image, squashed to `self.size`; else the side of the square windows that slide
            over it, a multiple of the patch. stride: from one window to the next (half a window by default).
          shorter: with windows, the image is resized, aspect kept, until its shorter side has this many pixels
            (the window by default).

        Returns:
          float32[C, H, W] of the image's own height and width, not min-maxed; windows that overlap are averaged.

        Raises:
          UserError: a picture or a prompt that cannot be taken; windows that are no multiples of the patch, or of more
            than 100 million pixels together.
        """
        cut = self.cut([image], window, stride, shorter)
        small = self.small_maps(cut, [prompts], original)[0]
        return heatmaps.Enlarged(np.asarray(small), cut.sizes[0])

    def cut(self, images: Sequence[Picture], window: int = 0, stride: int = 0, shorter: int = 0) -> windows.Windows:
        """Pictures as the tower takes them; see `large_maps`."""
        return windows.cut(
            [picture(image) for image in images], self.size, self._step, window, stride, shorter, self.cell
        )

    def small_maps(
        self, cut: windows.Windows, prompts: Sequence[Sequence[str]], original: bool = False
    ) -> list[jax.Array] | list[np.ndarray]:
        """Cosines float32[C, rows, columns] of each picture's patches with its own C prompts, before enlargement.

        Whole pictures' maps stay on the device; windows are put together on the host.
        """
        most = max(map(len, prompts))
        known = {tuple(own): np.asarray(self.text_features(own)) for own in {tuple(p): p for p in prompts}.values()}
        if len(known) == 1:
            text = next(iter(known.values()))
        else:
            rows = [np.pad(known[tuple(own)], [(0, most - len(own)), (0, 0)]) for own in prompts]
            text = np.stack(rows)[cut.owners]
        maps = self.similarity(cut.pixels, text, original)
        found = list(maps) if cut.whole else windows.joined(cut, np.asarray(maps))
        return [own[: len(asked)] for own, asked in zip(found, prompts, strict=True)]

    def locate(
        self, images: Picture | Sequence[Picture], names: Sequence[str], threshold: float = 0.5, **options: Any
    ) -> list[list[Found]]:
        """Where things are: PIN's question and its form of an answer, without any training.

        Args:
          images: as in a call. names: what to look for in every image.
          threshold, **options: as in `boxes`.

        Returns:
          A list for each image: one `Found` a name, in their order; its score is the highest cosine of the name's map.

        Raises:
          UserError: a picture or a name that cannot be taken.
        """
        out = []
        for image in listed(images):
            maps = self.large_maps(image, names, **options)
            out.append(self.found(maps, _checked(names), threshold))
        return out

    @staticmethod
    def found(maps: heatmaps.Enlarged, names: Sequence[str], threshold: float = 0.5) -> list[Found]:
        """Where each name of `large_maps` is; one map is in memory at a time."""
        out = []
        for k, name in enumerate(names):
            cosines = maps[k]
            x1, y1, x2, y2 = (float(v) for v in heatmaps.box(heatmaps.minmax(cosines), threshold))
            out.append(Found(name, (x1, y1, x2, y2), float(cosines.max())))
        return out

    def boxes(self, image: Picture, names: Sequence[str], threshold: float = 0.5, **options: Any) -> np.ndarray:
        """A box for each name: around the largest component of its min-max map over a threshold.

        Args:
          **options: of `large_maps`.

        Returns:
          float32[C, 4], x1, y1, x2, y2 in pixels of the image: what PIN's evaluation takes.
        """
        return np.array([at.box for at in self.locate([image], names, threshold, **options)[0]], np.float32)

    @staticmethod
    def draw(image: Picture, found: Sequence[Found]) -> Image.Image:
        """The picture with boxes and names on it; see `pin_jax.scoring.found.draw`."""
        return draw(image, found)


def _checked(prompts: Iterable[str]) -> list[str]:
    if isinstance(prompts, str):
        raise UserError(f"prompts {prompts!r}: expected a list of names, such as [{prompts!r}]")
    prompts = list(prompts)
    if not prompts or any(not isinstance(p, str) or not p.strip() for p in prompts):
        raise UserError(f"prompts {prompts}: expected names, none of them empty, such as ['cat', 'remote control']")
    return [p.strip() for p in prompts]


def _bucket(n: int) -> int:
    """The power of two that holds n."""
    return 1 << (n - 1).bit_length()
