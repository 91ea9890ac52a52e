"""Locating named objects in pictures: `PIN`, a VLM and its insert, and `locate`, in one call for one picture."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import Picture, listed, open_image
from pin_jax import adapter_folder, adapters, evaluate, fitting, methods, sources, train
from pin_jax.decoding import distribution
from pin_jax.models.interface import Inserts
from pin_jax.runtime import sharding
from pin_jax.runtime.processes import workdirs
from pin_jax.scoring import found as finding
from pin_jax.scoring.found import Found
from pin_jax.vlm import VLM, load_vlm, on_grid
from pin_jax.weights import smolvlm

# Entries of a config that a VLM was read with.
OF_VLM = ("vlm", "language_model", "vision", "dtype", "grid", "placement", "example")


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
        self.vlm = vlm
        self._set(config, method, params)

    def _set(self, config: ConfigDict, method: Any, params: Any) -> None:
        """In one go: a thread that asks sees one insert, never half of two."""
        config = config.copy_and_resolve_references()
        if method is not None:
            with config.unlocked():
                config.method, options = methods.describe(method)
                config.method_options = ConfigDict(options)
        self._now = config, method, params, Inserts() if method is None else method.inserts(params)

    @property
    def config(self) -> ConfigDict:
        return self._now[0]

    @property
    def method(self) -> Any:
        return self._now[1]

    @property
    def params(self) -> Any:
        return self._now[2]

    @property
    def inserts(self) -> Inserts:
        return self._now[3]

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

    # --- training, and handing on -------------------------------------------------------------------------------------

    def train(
        self,
        config: ConfigDict | Mapping[str, Any] | None = None,
        workdir: str | pathlib.Path | None = None,
        **overrides: Any,
    ) -> PIN:
        """Trains a method on the frozen VLM, and asks with what came out from then on.

        Args:
          config: of the whole training, or entries that are otherwise than in `self.config`:
            `{"scenes": {"cutouts": "folder:mine"}, "steps": 300}`. The method starts anew, whatever is in use.
          workdir: where checkpoints, the insert and the log go, so that the same call goes on where it was stopped; by
            default nowhere: they are deleted at the end.
          **overrides: entries, as in `config`.

        Returns:
          Itself.

        Raises:
          UserError: as `main.py`'s train run; or entries of another VLM than this one.
        """
        base = config if isinstance(config, ConfigDict) and "program" in config else self.config
        changes = dict(overrides) if base is config else dict(config or {}) | overrides
        if changes.get("method", base.method) != base.method:  # whose options are others, and none of these stay
            base = base.copy_and_resolve_references()
            with base.unlocked():
                base.method_options = ConfigDict(methods.defaults(changes["method"]))
        chosen = sources.changed(base, changes | {"run": "train"})
        other = [key for key in OF_VLM if chosen[key] != self.config[key]]
        if other:
            raise UserError(
                f"train: {', '.join(f'config.{key} {chosen[key]!r}' for key in other)} is not what this VLM was read"
                " with; read it so, PIN.from_pretrained(..., ENTRY=VALUE)"
            )
        ways = sharding.row_ways(self.vlm.mesh)
        chosen.batch_size = train.global_batch(chosen, self.vlm.mesh)
        if chosen.batch_size % ways:
            raise UserError(f"config.batch_size {chosen.batch_size}: no multiple of the {ways} devices that share it")
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory()) if workdir is None else workdir
            claimed = stack.enter_context(workdirs.claimed(epath.Path(folder)))
            fitting.claim(chosen, claimed, self.vlm)
            fitting.plan(chosen, "a folder that is deleted at the end" if workdir is None else claimed, self.vlm)
            params = jax.device_get(fitting.fit(chosen, claimed, self.vlm))
        method = methods.build(chosen.method, self.vlm.model.config, chosen.method_options)
        self._set(chosen, method, params)
        return self

    def evaluate(self, **overrides: Any) -> dict[str, dict[str, Any]]:
        """The rows of the table of `config.run=evaluate` (docs/evaluation.md), by name.

        The VLM as it is, what no picture tells, and with the insert.

        Args:
          **overrides: entries of the config, such as `eval={"images": 64, "decoder": "greedy"}`.
        """
        config = sources.changed(self.config, overrides | {"run": "evaluate"})
        return evaluate.evaluate(config, self.vlm, self.inserts if self.method is not None else None, config.method)[0]

    def save_pretrained(self, folder: str | pathlib.Path, results: Mapping[str, Any] | None = None) -> None:
        """Writes the adapter's folder, which `from_pretrained` reads: the insert, its config and a model card.

        Args:
          results: scores for the card, such as `pin.evaluate()["pin"]`.

        Raises:
          UserError: there is no insert, or it cannot be written.
        """
        adapter_folder.write(folder, **self._written(results))

    def push_to_hub(self, repo: str, private: bool = False, results: Mapping[str, Any] | None = None) -> str:
        """Writes that folder to the Hugging Face hub, as the account that is logged in; returns its address.

        Raises:
          UserError: no account, no permission, or the hub cannot be reached.
        """
        return adapter_folder.push(repo, private, **self._written(results))

    def _written(self, results: Mapping[str, Any] | None) -> dict[str, Any]:
        config, method, params, _ = self._now
        if method is None:
            raise UserError("the VLM is asked as it is: there is no insert to write; train one, or give insert=FILE")
        return {"config": config, "vlm": self.vlm, "params": params, "results": results}

    # --- what is asked ------------------------------------------------------------------------------------------------

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
    if config.get("placement", "answer") != "answer":
        vlm = dataclasses.replace(vlm, frame=smolvlm.placed(vlm.model, config.placement))
    if config.get("example", ()):
        vlm = dataclasses.replace(vlm, frame=vlm.frame.behind(*config.example))
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
