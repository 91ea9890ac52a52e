"""Locating named objects in pictures: `PIN`, a VLM and its insert, and `locate`, in one call for one picture."""

from __future__ import annotations

import difflib
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import Picture, open_image
from pin_jax import adapters, evaluate, sources
from pin_jax.decoding import distribution
from pin_jax.models.interface import Inserts
from pin_jax.runtime import sharding
from pin_jax.scoring import found as finding
from pin_jax.scoring.found import Found
from pin_jax.vlm import VLM, load_vlm, on_grid


def check_names(vlm: VLM, names: Sequence[str]) -> None:
    """Whether a VLM can be asked for names: a small one knows its own alone.

    Raises:
      UserError: no name, or an unknown one.
    """
    if isinstance(names, str):
        raise UserError(f"names {names!r}: expected a list of names, such as [{names!r}]")
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"names {list(names)}: expected one or more, such as 'cat'")
    for name in names:
        if vlm.names and name not in vlm.names:
            near = difflib.get_close_matches(name, vlm.names, 3, 0.5)
            hint = f"; near it: {', '.join(near)}" if near else f"; its {len(vlm.names)} names are in its model card"
            raise UserError(f"prompt {name!r}: the small VLM does not know that name{hint}")


class PIN:
    """A frozen VLM and what unlocks it: boxes, probabilities and drawings of what is named.

    Nothing that is asked changes it: threads may ask at the same time. `train` puts another insert in, in one go.

    Attributes:
      vlm: the frozen VLM. config: the entries of its config (`configs/`), which `train` starts from.
      method, params: what is trained and its parameters; None where the VLM is asked as it is.
      inserts: what they put into the VLM.
    """

    def __init__(self, vlm: VLM, config: ConfigDict, method: Any = None, params: Any = None):
        self.vlm, self.config = vlm, config
        self._set(method, params)

    def _set(self, method: Any, params: Any) -> None:
        inserts = Inserts() if method is None else method.inserts(params)
        self._trained = method, params, inserts  # in one go: a thread that asks sees one insert, never half of two

    @property
    def method(self) -> Any:
        return self._trained[0]

    @property
    def params(self) -> Any:
        return self._trained[1]

    @property
    def inserts(self) -> Inserts:
        return self._trained[2]

    @classmethod
    def from_pretrained(
        cls,
        source: str | pathlib.Path,
        insert: str | pathlib.Path | None = None,
        *,
        mesh: Mesh | Mapping[str, int] | None = None,
        **overrides: Any,
    ) -> PIN:
        """A VLM and its insert, from disk or hub.

        Args:
          source: of the VLM, a hub id, a folder, or one of the small models that ship: `tiny_blip2`, `tiny_flamingo`;
            or an adapter's folder or hub id, which names its VLM.
          insert: a file, an adapter's folder or hub id, or `none` (the VLM as it is). By default the one that the
            source has beside it, if any.
          mesh: of devices, or the sizes of its axes (docs/sharding.md); one device by default. Batches are split over
            it.
          **overrides: entries of the model's config: `dtype="float32"`, `grid=8`, `eval={"decoder": "grid_greedy"}`.

        Raises:
          UserError: what cannot be found or read, does not belong together, or an entry that cannot be.
        """
        if (held := sources.adapter(source)) is not None:
            about, own = held
            source, insert = about.pop("vlm"), own if insert in (None, "") else insert
            overrides = {key: value for key, value in about.items() if value} | overrides
        config = sources.config_of(source, overrides)
        path = sources.insert_path(source, insert)  # before weights are read
        if not isinstance(mesh, Mesh):
            mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else sharding.make_mesh(mesh)
        vlm = read_vlm(config, mesh)
        return cls(vlm, config, *(adapters.load(path, vlm, config.method) if path is not None else ()))

    # --- asking -------------------------------------------------------------------------------------------------------

    def locate(
        self,
        images: Picture | Sequence[Picture],
        names: Sequence[str] | Sequence[Sequence[str]],
        **decoding: Any,
    ) -> list[list[Found]]:
        """Asks where things are.

        Args:
          images: paths, PIL images or uint8[H, W, 3], of any sizes; or one of them.
          names: what to look for in every image, one question each; or a list for each image of its own.
          **decoding: entries of config.eval, such as `decoder="grid_greedy"`, which is quicker; by default the box of
            highest expected IoU, which is its score (docs/decoding.md).

        Returns:
          A list for each image: one `Found` a name, in their order.

        Raises:
          UserError: a picture that cannot be read, or a name that a small VLM does not know.
        """
        pictures = listed(images)
        lists = self._names(names, len(pictures))
        return _locate(self.vlm, self.inserts, pictures, lists, self._options(decoding))

    def distribution(
        self, image: Picture, name: str, size: tuple[int, int] | None = None, candidates: int = 256
    ) -> np.ndarray:
        """The probability that a pixel lies inside the box, from all answers on the grid that the VLM weighs.

        Args:
          size: height and width of the result, the picture's own by default.
          candidates: the answers that are followed at a time (`pin_jax.decoding.distribution.inside`).

        Returns:
          float32[H, W] from 0 to 1.

        Raises:
          UserError: as `locate`; a size or a number of candidates below 1.
        """
        if candidates < 1 or min(size or (1, 1)) < 1:
            raise UserError(f"candidates {candidates}, size {size}: expected numbers from 1")
        inserts, codec = self.inserts, self.vlm.codec
        check_names(self.vlm, [name])
        vision, ((width, height),) = _look(self.vlm, [image], inserts, 1)
        search = functools.partial(
            distribution.inside, automaton=evaluate.choices(self.vlm), candidates=candidates, cells=codec.grid,
            side=codec.image_size,
        )  # fmt: skip
        cells = evaluate.batched(self.vlm, vision, evaluate.where([(0, name)]), inserts, 1, "", search)[0]
        height, width = size or (height, width)
        rows, columns = ((np.arange(n) * codec.grid + codec.grid // 2) // n for n in (height, width))
        return cells[rows.clip(max=codec.grid - 1)][:, columns.clip(max=codec.grid - 1)]

    @staticmethod
    def draw(image: Picture, found: Sequence[Found]) -> Image.Image:
        """The picture with boxes and names on it; see `pin_jax.scoring.found.draw`."""
        return finding.draw(image, found)

    def _options(self, decoding: Mapping[str, Any]) -> ConfigDict:
        """config.eval with other entries."""
        changed = {f"eval.{key}": value for key, value in decoding.items()}
        return (sources.changed(self.config, changed) if changed else self.config).eval

    def _names(self, names: Any, count: int) -> list[list[str]]:
        """A list of names for each of so many images."""
        if isinstance(names, str):
            raise UserError(f"names {names!r}: expected a list of names, such as [{names!r}]")
        names = list(names)
        each = bool(names) and not isinstance(names[0], str)
        if each and len(names) != count:
            raise UserError(f"names: {len(names)} lists for {count} images; give one each, or one list of names")
        lists = [list(own) for own in names] if each else [names] * count
        for own in lists[: None if each else 1]:
            check_names(self.vlm, own)
        return lists


# --- in parts ---------------------------------------------------------------------------------------------------------


def _locate(
    vlm: VLM, inserts: Inserts, pictures: Sequence[Picture], lists: Sequence[Sequence[str]], options: ConfigDict
) -> list[list[Found]]:
    """`PIN.locate`, of names that have been checked."""
    vision, sizes = _look(vlm, pictures, inserts, options.batch_size)
    questions = [(i, name) for i, own in enumerate(lists) for name in own]
    answers = evaluate.locate(vlm, vision, _bucket(questions, options.batch_size), inserts, options, "")
    out: list[list[Found]] = [[] for _ in pictures]
    for (i, name), answer in zip(questions, answers, strict=False):  # a bucket has more
        box = finding.scaled(answer.box, [side / vlm.codec.image_size for side in sizes[i]])
        out[i].append(Found(name, box, float(answer.score), answer.text, bool(answer.parsed)))
    return out


def _look(
    vlm: VLM, pictures: Sequence[Picture], inserts: Inserts, batch: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Vision tokens float[images, N, D] (and more behind them), and the widths and heights of the pictures."""
    squares, sizes, side = [], [], vlm.codec.image_size
    for picture in pictures:
        photo = open_image(picture)
        sizes.append(photo.size)
        # squashed, as in training and evaluation
        squares.append(np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC)))
    return evaluate.encode(vlm, _bucket(squares, batch), batch, inserts), sizes


def listed(images: Picture | Iterable[Picture]) -> list[Picture]:
    """One picture, or several, as a list.

    Raises:
      UserError: there is none.
    """
    one = isinstance(images, str | pathlib.Path | Image.Image) or getattr(images, "ndim", 4) < 4
    images = [images] if one else list(images)
    if not images:
        raise UserError("images: none given; give paths, PIL images or uint8[H, W, 3] arrays")
    return images


def _bucket(items: list[Any], batch: int) -> list[Any]:
    """The same, the last one again until a power of two is full, so that other numbers compile nothing anew."""
    count = len(items)
    return items if count >= batch else items + items[-1:] * (min(batch, 1 << (count - 1).bit_length()) - count)


def read_vlm(config: ConfigDict, mesh: Mesh) -> VLM:
    """The VLM of a config on a mesh, its boxes on config.grid.

    Raises:
      UserError: as `load_vlm` and `on_grid`.
    """
    pieces = {"language_model": config.language_model, "vision": config.vision} if config.language_model else {}
    rules = sharding.rules(config.rules)
    vlm, _ = load_vlm(config.vlm, config.dtype, mesh, rules, config.remat, config.attention, **pieces)
    return on_grid(vlm, config.grid)


def locate(
    vlm: VLM, inserts: Inserts, image: Any, names: Sequence[str], options: ConfigDict | dict[str, Any] | None = None
) -> list[Found]:
    """Asks a VLM where things are in a picture: `PIN.locate` for one who has the parts.

    Args:
      vlm: from `pin_jax.load_vlm`.
      inserts: of a trained method, from `pin_jax.load_adapter`; `Inserts()` asks the frozen VLM as it is.
      image: a path, a PIL image or uint8[H, W, 3].
      names: what to look for, one question each.
      options: as config.eval; by default greedy decoding on the grid of boxes, where every answer parses.

    Returns:
      One `Found` a name, in their order.

    Raises:
      UserError: a picture that cannot be read, or a name that a small VLM does not know.
    """
    check_names(vlm, names)
    chosen = {"decoder": "grid_greedy", "beams": 3, "length_penalty": 1.0, "new_tokens": 12, "batch_size": len(names)}
    return _locate(vlm, inserts, [image], [names], ConfigDict(chosen | dict(options or {})))[0]
