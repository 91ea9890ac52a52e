"""GEM on a frozen image-text model: heat maps of what is named, without training (Bousselham et al., CVPR 2024)."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gem_jax import asked, heatmaps, pretrained, proxies, refinement, tower, windows
from gem_jax import attention as attention_lib
from gem_jax import regions as regions_lib
from gem_jax.pretrained import ImageText
from input_pipeline.errors import UserError
from input_pipeline.images import Picture, listed
from input_pipeline.images import open_image as picture
from input_pipeline.text.prompt_sets import PROMPT_SETS
from input_pipeline.text.prompts import article, is_template
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import normalise
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
      proxy: another encoder, whose features ProxyCLIP and CorrCLIP attend by. cell: pixels along a side of a place of
        the maps.
      regions: what says which pixels belong together, where something asks for it. refinement: what is done to maps at
        the end.
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
        regions: str | pathlib.Path | regions_lib.Source = regions_lib.SLIC,
        merge: float = 0.8,
        refine: str = "",
    ):
        """See the class, and `attention.method` for depth, iterations, temperature, attention, parts and merge.

        Args:
          proxy: see `proxies.load`; read where the attention is `proxyclip` or `corrclip` alone.
          regions: `slic`, a folder of masks (`regions.Folder`), or a function (the picture as it was given, PIL image)
            -> int[H, W]; asked where the attention is `corrclip` or refine is `regions`.
          refine: `pamr` (pixels of the same colour share what they are), `regions` (each has its mean), or nothing; see
            `refinement.refine`.

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
        if attention in attention_lib.WITH_PROXY:
            if proxy is None or proxy == "":
                raise UserError(
                    f"attention {attention}: needs another encoder; give proxy, such as facebook/dino-vitb8 or"
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
        if refine not in refinement.REFINEMENTS:
            raise UserError(f"refine {refine!r}: expected one of {', '.join(refinement.REFINEMENTS[1:])}, or nothing")
        self.refinement = refine
        self._scoped = attention in attention_lib.WITH_REGIONS
        self.regions = regions_lib.source(regions) if self._scoped or refine == "regions" else None
        self.stream = attention_lib.method(attention, vision, depth, iterations, temperature, parts, merge)
        self._tokens = jax.jit(functools.partial(tower.streams, model, self.proxy, self.stream, beside=tower.Beside()))
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
        prompts = asked.names(prompts)  # pyright: ignore[reportArgumentType] (an array has been told by its shape)
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
        if self._scoped:
            raise UserError(
                "this attention keeps to regions of a picture, which pixels alone have none of; ask for maps"
            )
        streams = self._tokens(params=self._params, pixels=pixels)
        return streams.second, streams.tokens

    def preprocess(self, images: Sequence[Picture], size: tuple[int, int] | None = None) -> np.ndarray:
        """Pictures of any size -> uint8[B, H, W, 3] of `size` (the model's by default), bicubic, aspect not kept."""
        return np.stack([windows.resized(picture(image), size or self.size) for image in images])

    def _stream(self, params: Any, images: jax.Array, beside: tower.Beside, original: bool) -> jax.Array:
        """uint8[B, H, W, 3] -> float[B, N, E] of one stream; what the other alone needs is not computed."""
        pixels = normalise(images, self.model.mean, self.model.std)
        streams = tower.streams(self.model, self.proxy, self.stream, params, pixels, beside)
        assert streams.second is not None  # its attention has a second stream
        return streams.tokens if original else streams.second

    def similarity(self, cut: windows.Windows, text: np.ndarray | jax.Array, original: bool = False) -> jax.Array:
        """Cosine of patches and texts before enlargement.

        Args:
          text: float[C, E], or each window's own float[n, C, E].

        Returns:
          float32[n, C, h, w]. The number of texts compiles no tower anew; that of windows is padded to a power of two,
          where they do not share their attention.
        """
        images, texts = cut.pixels, text.shape[-2]
        text = jnp.broadcast_to(jnp.asarray(text), (len(images), *text.shape[-2:]))
        text = jnp.pad(text, [(0, 0), (0, _bucket(texts) - texts), (0, 0)])
        patch = self.model.config.vision.patch
        side = patch if original else self.cell
        grid, out = (images.shape[1] // side, images.shape[2] // side), []
        for chosen in cut.groups(self.batch_size):
            count = len(chosen)
            if not cut.shared:
                chosen = np.pad(chosen, (0, min(_bucket(count), self.batch_size) - count), mode="edge")
            beside = tower.Beside() if original else cut.beside(chosen, patch, self.cell, self._scoped)
            tokens = self._one(self._params, images[chosen], beside, original=original)
            maps = self._similarity(tokens, text[chosen], grid=grid)
            out.append(maps[:count, :texts].astype(jnp.promote_types(maps.dtype, jnp.float32)))
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
        lists = asked.lists(prompts, len(images))
        most = max(map(len, lists))
        pixels, readable = self._readable(images)
        cut = self.cut(list(pixels), keys=images)
        rows = [jnp.pad(own, [(0, most - len(own)), (0, 0), (0, 0)]) for own in self.small_maps(cut, lists, original)]
        maps = jnp.stack(rows)
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
        stitch: bool = False,
        original: bool = False,
    ) -> heatmaps.Enlarged:
        """Cosines at the image's own resolution, for evaluation and for large images, enlarged where they are read.

        Args:
          window: 0 looks at the whole image, squashed to `self.size`; else the side of the square windows that slide
            over it, a multiple of the patch. stride: from one window to the next (half a window by default).
          shorter: with windows, the image is resized, aspect kept, until its shorter side has this many pixels
            (the window by default). stitch: the windows share the last block's attention (`stitching`).

        Returns:
          float32[C, H, W] of the image's own height and width, not min-maxed; windows that overlap are averaged.

        Raises:
          UserError: a picture or a prompt that cannot be taken; windows that are no multiples of the patch, or of more
            than 100 million pixels together.
        """
        cut = self.cut([image], window, stride, shorter, stitch)
        small = self.small_maps(cut, [prompts], original)[0]
        return heatmaps.Enlarged(np.asarray(small), cut.sizes[0])

    def cut(
        self,
        images: Sequence[Picture],
        window: int = 0,
        stride: int = 0,
        shorter: int = 0,
        stitch: bool = False,
        keys: Sequence[Any] = (),
    ) -> windows.Windows:
        """Pictures as the tower takes them; see `large_maps`.

        Args:
          keys: what the source of regions knows each picture by; the picture as it is given by default.
        """
        if stitch and not self.stream.blocks:
            raise UserError("stitch: plain CLIP's attention is not shared between windows; choose another attention")
        photos = [picture(image) for image in images]
        found = windows.cut(photos, self.size, self._step, window, stride, shorter, self.cell, stitch and window > 0)
        if self.regions is None:
            return found
        asked = zip(keys or images, photos, strict=True)
        own = [regions_lib.read(self.regions, key, photo) for key, photo in asked]
        return dataclasses.replace(found, regions=own)

    def small_maps(
        self, cut: windows.Windows, prompts: Sequence[Sequence[str]], original: bool = False
    ) -> list[jax.Array] | list[np.ndarray]:
        """Cosines float32[C, rows, columns] of each picture's patches with its own C prompts, before enlargement.

        Whole pictures' maps stay on the device; windows are put together on the host. Refined maps are as large as the
        picture.
        """
        most = max(map(len, prompts))
        known = {tuple(own): np.asarray(self.text_features(own)) for own in {tuple(p): p for p in prompts}.values()}
        if len(known) == 1:
            text = next(iter(known.values()))
        else:
            rows = [np.pad(known[tuple(own)], [(0, most - len(own)), (0, 0)]) for own in prompts]
            text = np.stack(rows)[cut.owners]
        maps = self.similarity(cut, text, original)
        found = list(maps) if cut.whole else windows.joined(cut, np.asarray(maps))
        found = [own[: len(asked)] for own, asked in zip(found, prompts, strict=True)]
        if not self.refinement:
            return found
        regions = cut.regions or [None] * len(found)
        return [
            refinement.refine(self.refinement, own, photo, region)
            for own, photo, region in zip(found, cut.photos, regions, strict=True)
        ]

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
            out.append(self.found(maps, asked.names(names), threshold))
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


def _bucket(n: int) -> int:
    """The power of two that holds n."""
    return 1 << (n - 1).bit_length()
