"""Pasted scenes as a grain random-access source: scene i is a pure function of (seed, i)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.pasted import backgrounds as backgrounds_lib
from input_pipeline.pasted import cutouts as cutouts_lib
from input_pipeline.pasted import looks, paste
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.referrals import referrals


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What a scene is made of. The defaults are the published recipe.

    Attributes:
      image_size, grid: see `BoxCodec`.
      cutouts, backgrounds: specs of the two sources.
      split: which names (`train`, `held_out`, `all`); backgrounds follow unless `background_split` says otherwise.
      exclude: names left out of the source.
      objects: smallest and largest number of objects; their number is drawn uniformly.
      smallest, largest: sizes by number of objects, in cells less one; see `paste.layout`.
      crop, vary: see `Backgrounds`.
      look_share: probability of each look (tint, pattern, border); 0 pastes cut-outs as they are, as published.
      look_scenes: share of scenes in which looks are drawn at all.
      look_slots: which looks may be drawn: of tint (`colour`), `pattern` and `border`.
      pairs: which pairs of name and tint may be drawn: `train`, `held_out` (two tints of every name) or `all`.
      mirror: probability of mirroring a cut-out (0 as published).
      twins: probability that a scene pastes one category twice (positional referrals; 0 is off).
      absolute_share: probability that a lone name carries its absolute place; only with twins > 0.
      with_masks: also return bool[n, H, W] masks.
    """

    image_size: int = 224
    grid: int = 16
    cutouts: str = "twemoji"
    backgrounds: str = "photos"
    split: str = "train"
    background_split: str = ""
    exclude: tuple[str, ...] = ()
    objects: tuple[int, int] = (1, 3)
    smallest: tuple[int, ...] = paste.PUBLISHED_SMALLEST
    largest: int | None = None
    crop: float = 1.0
    vary: float = 0.0
    look_share: float = 0.0
    look_scenes: float = 1.0
    look_slots: tuple[str, ...] = looks.DRAWN
    pairs: str = "all"
    mirror: float = 0.0
    twins: float = 0.0
    absolute_share: float = 0.0
    with_masks: bool = False

    def __post_init__(self):
        if self.image_size % self.grid:
            raise UserError(f"scenes: grid {self.grid} must divide image_size {self.image_size}; choose a divisor")
        paste.check_sizes(self.objects, self.smallest, self.largest, self.grid)

    @property
    def codec(self) -> BoxCodec:
        return BoxCodec(self.image_size, self.grid)


def scene_config(options: Mapping[str, Any], codec: BoxCodec, **changes: Any) -> SceneConfig:
    """A run's scenes: its options at the codec's size and grid, with changes.

    Raises:
      UserError: an option that does not exist.
    """
    chosen = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in dict(options).items()} | changes
    known = {field.name for field in dataclasses.fields(SceneConfig)}
    for name in chosen.keys() - known:
        raise UserError(f"scene option {name!r}: expected one of {', '.join(sorted(known))}")
    return SceneConfig(**{"image_size": codec.image_size, "grid": codec.grid, **chosen})


class Scenes:
    """Random-access source of pasted scenes.

    Each record is a dict:
      image: uint8[H, W, 3];
      boxes: float32[n, 4], x1, y1, x2, y2 in pixels, in paste order;
      cells: int64[n, 4], the same on the grid, both ends inclusive;
      names: list of n category names; said: list of n phrases that refer to them (the names, but for referrals);
      looks: list of n `Look`, or None; target: int, the object asked for, drawn uniformly; image_id: int;
      masks: bool[n, H, W] when asked for.
    """

    def __init__(self, config: SceneConfig, seed: int, length: int, on_bad_record: str = "skip"):
        self.config, self.seed, self.length = config, seed, length
        self.bad_records = BadRecordLog(
            on_bad_record
        )  # of cut-outs and photographs; others of the same name stand for such ones
        self.cutouts = cutouts_lib.load(config.cutouts, config.split, config.exclude)
        background_split = config.background_split or config.split
        self.backgrounds = backgrounds_lib.load(
            config.backgrounds, background_split, config.crop, config.vary, self.bad_records
        )
        self.names = sorted(set(self.cutouts.names))
        self._by_name: dict[str, list[int]] = {name: [] for name in self.names}
        for index, name in enumerate(self.cutouts.names):
            self._by_name[name].append(index)

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:  # grain compares this when it restores an iterator
        return f"Scenes({self.config}, seed={self.seed}, length={self.length})"

    def _draw_names(self, rng: np.random.Generator) -> list[str]:
        low, high = self.config.objects
        count = min(int(rng.integers(low, high + 1)), len(self.names))
        names = [self.names[i] for i in rng.choice(len(self.names), count, replace=False)]
        if count > 1 and rng.random() < self.config.twins:
            names[1] = names[0]
        return names

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, chosen, mirrored, rng = self._plan(index)
        config, cell = self.config, self.config.codec.cell
        boxes = record["cells"]
        sizes = [(int(w) * cell, int(h) * cell) for w, h in boxes[:, 2:] - boxes[:, :2] + 1]
        bare = (looks.NONE,) * 3
        sprites = []
        for k, (cutout, size, flip) in enumerate(zip(chosen, sizes, mirrored, strict=True)):
            if record["looks"] and record["looks"][k].words()[1:] != bare:
                whole = self.cutouts[cutout][1]
                sprites.append(
                    looks.apply(
                        whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else whole, record["looks"][k], size
                    )
                )
            else:
                sprite = self.cutouts.render(cutout, size)
                sprites.append(sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else sprite)
        record["image"] = paste.compose(self.backgrounds.draw(rng, config.image_size), sprites, boxes, cell)
        if config.with_masks:
            record["masks"] = paste.masks(sprites, boxes, config.grid, cell)
        return record

    def describe(self, index: int) -> dict[str, Any]:
        """The record without its picture: cheap, for features computed before."""
        return self._plan(index)[0]

    def _good(self, options: list[int], place: int) -> tuple[int, float]:
        """A cut-out of a name and its width / height; where it cannot be read, the next one of the name.

        Raises:
          UserError: none of them can be read.
        """
        for k in range(len(options)):
            cutout = options[(place + k) % len(options)]
            try:
                return cutout, self.cutouts.aspect(cutout)
            except UserError as error:
                self.bad_records.add(error)
        raise UserError(
            f"cut-outs: none of {self.cutouts.names[options[0]]!r} can be read ({self.bad_records.report()})"
        )

    def _plan(self, index: int) -> tuple[dict[str, Any], list[int], list[bool], np.random.Generator]:
        """Everything but the picture.

        Returns:
          The record, the cut-outs' indices, which of them are mirrored, and the generator that draws the background
          next.
        """
        config = self.config
        rng = np.random.default_rng([self.seed, int(index)])
        names = self._draw_names(rng)
        chosen, aspects = [], []
        for name in names:
            options = self._by_name[name]
            cutout, aspect = self._good(options, int(rng.integers(len(options))))
            chosen.append(cutout)
            aspects.append(aspect)
        boxes = paste.layout(rng, aspects, config.grid, config.smallest, config.largest)
        said = list(names)
        if config.twins > 0 or config.absolute_share > 0:
            said = referrals(rng, names, boxes, config.grid, config.absolute_share)
        scene_looks = None
        mirrored = [bool(rng.random() < config.mirror) if config.mirror else False for _ in chosen]
        if config.look_share:
            share = config.look_share if rng.random() < config.look_scenes else 0.0
            sides = boxes[:, 2:] - boxes[:, :2] + 1
            scene_looks = [
                looks.draw(rng, int(w), int(h), config.grid, share, config.look_slots, looks.tints(name, config.pairs))
                for name, (w, h) in zip(names, sides, strict=True)
            ]
        record = {
            "boxes": config.codec.to_pixels(boxes),
            "cells": boxes,
            "names": names,
            "query_text": said,
            "looks": scene_looks,
            "target": int(rng.integers(len(names))),
            "image_id": int(index),
        }
        return record, chosen, mirrored, rng
