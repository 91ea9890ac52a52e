"""Scores of boxes against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from input_pipeline.text.box_codec import BoxCodec, all_boxes, iou
from pin_jax.scoring import metrics

CODEC = BoxCodec(40, 4)


def test_iou_against_pycocotools():
    from pycocotools.mask import iou as reference

    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.uniform(0, 40, (50, 2, 2)), 1).reshape(50, 4) for _ in range(2))
    xywh = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], 1) for x in (a, b)]
    np.testing.assert_allclose(iou(a[:, None], b[None]), reference(*xywh, [0] * 50), atol=1e-9)


def test_summary_counts_sizes_and_others():
    true = np.array([[0, 0, 40, 40], [0, 0, 10, 10], [0, 0, 4, 4]], np.float32)
    predicted = np.array([[0, 0, 40, 20], [0, 0, 10, 10], [20, 20, 24, 24]], np.float32)
    others = [np.zeros((0, 4)), np.array([[0, 0, 10, 20]]), np.array([[20, 20, 24, 24]])]
    got = metrics.summary(predicted, true, others, np.array([True, True, False]), 40)
    # At 224 px the areas are 224^2, 56^2 and 22.4^2: large, medium and neither.
    assert got["mIoU"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert got["mIoU_L"] == pytest.approx(0.5) and got["queries_L"] == 1
    assert got["mIoU_M"] == pytest.approx(1.0) and got["queries_M"] == 1
    assert got["P@0.5"] == pytest.approx(2 / 3) and got["P@0.7"] == pytest.approx(1 / 3)
    assert got["unparsed"] == pytest.approx(1 / 3) and got["queries"] == 3
    assert got["asked_iou"] == pytest.approx(0.5) and got["other_iou"] == pytest.approx((0.5 + 1) / 2)


def test_all_boxes_are_the_codecs_boxes():
    boxes = all_boxes(CODEC)
    assert len(boxes) == (4 * 5 // 2) ** 2 == len({tuple(b) for b in boxes.tolist()})
    for box in boxes:
        text = " [" + ",".join(str(int(v)) for v in box) + "]"
        decoded, parsed = CODEC.decode(text)
        assert parsed and decoded.tolist() == box.tolist()


def test_the_constant_box_is_the_best_one():
    rng = np.random.default_rng(0)
    true = metrics.random_boxes(rng, 30, CODEC)
    best = metrics.constant_box(true, CODEC)
    scores = [iou(true, box).mean() for box in all_boxes(CODEC)]
    assert iou(true, best).mean() == pytest.approx(max(scores))


def test_random_boxes_are_uniform():
    boxes = metrics.random_boxes(np.random.default_rng(0), 20_000, CODEC)
    _, counts = np.unique(boxes, axis=0, return_counts=True)
    assert len(counts) == 100 and counts.min() > 140 and counts.max() < 260
