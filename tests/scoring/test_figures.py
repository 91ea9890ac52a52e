"""Pictures of a run: names beside each other, files that a page can show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from pin_jax.scoring import figures, labels, pictures


def overlaps(corners, sizes) -> int:
    pairs = [(i, j) for i in range(len(corners)) for j in range(i)]
    ends = corners + sizes
    return sum(bool(((corners[i] < ends[j] - 1e-9) & (corners[j] < ends[i] - 1e-9)).all()) for i, j in pairs)


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_inside_and_beside_each_other(seed):
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.uniform(20, 180, 6), np.full(6, 14.0)], 1)
    anchors = rng.uniform(-20, 220, (6, 2)) if seed else np.zeros((6, 2))  # first all at one place
    corners = labels.place_labels(anchors, sizes, (200, 200))
    assert (corners >= 0).all() and (corners + sizes <= 200 + 1e-9).all()
    assert overlaps(corners, sizes) == 0


def test_long_names_of_boxes_that_lie_together(tmp_path):
    figure, axes = plt.subplots(figsize=(2.6, 2.9), dpi=pictures.DPI)
    axes.imshow(np.zeros((224, 224, 3), np.uint8))
    figure.canvas.draw()
    names = [f"a rather long name of an object {i}" for i in range(3)]
    texts = figures._label(axes, names, [np.array([150.0, 100 + i, 200, 200]) for i in range(3)])
    figure.canvas.draw()
    extents = [text.get_bbox_patch().get_window_extent() for text in texts]
    corners, ends = (np.array([e.get_points()[i] for e in extents]) for i in (0, 1))
    assert overlaps(corners, ends - corners) == 0
    inside = axes.get_window_extent().padded(0.5)
    assert all(inside.contains(*corner) for corner in (*corners, *ends))
    plt.close(figure)


def test_sheets_of_photographs_stay_small(tmp_path):
    noise = list(np.random.default_rng(0).integers(0, 255, (12, 224, 224, 3)).astype(np.uint8))  # the worst there is
    boxes = [[np.array([10.0, 10, 90, 90])]] * 12
    figures.predictions(tmp_path / "sheet.png", noise, ["title"] * 12, [["cat"]] * 12, boxes, boxes)
    assert (tmp_path / "sheet.png").stat().st_size <= 500_000
    assert Image.open(tmp_path / "sheet.png").width > 500
