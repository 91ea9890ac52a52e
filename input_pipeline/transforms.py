"""Grain transforms of records with pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import grain
import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Squash(grain.transforms.Map):
    """Resizes the picture to a square whatever its aspect, and the boxes with it (PIN, section 5).

    The record's `size` stays that of the photograph; `input_pipeline.transforms.unsquash` takes boxes back.

    Attributes:
      size: side of the square, in pixels.
    """

    size: int

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        height, width = record["image"].shape[:2]
        picture = Image.fromarray(record["image"]).resize((self.size, self.size), Image.Resampling.BICUBIC)
        scale = np.array([self.size / width, self.size / height] * 2, np.float32)
        return record | {
            "image": np.asarray(picture), "boxes": record["boxes"] * scale, "size": (width, height)
        }  # fmt: skip


def unsquash(boxes: np.ndarray, side: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes float[..., 4] of a square of `side` pixels -> pixels of a photograph of size (width, height)."""
    return np.asarray(boxes, np.float64) * np.array([size[0], size[1]] * 2) / side


@dataclasses.dataclass(frozen=True)
class Only(grain.transforms.Map):
    """Keeps some entries of a record, so that what is left stacks into batches."""

    keys: tuple[str, ...]

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        return {key: record[key] for key in self.keys}
