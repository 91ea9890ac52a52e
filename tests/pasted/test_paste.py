"""The paste recipe against the published one, over many layouts; masks and compositing; referrals."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline.pasted import paste
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.referrals import referrals

LAYOUTS = 10_000


def is_uniform(values, support) -> bool:
    """Chi-squared against the uniform law on `support`: mean k - 1, variance 2 (k - 1), so six sigmas of room."""
    counts = np.array([np.sum(np.asarray(values) == v) for v in support])
    if counts.sum() != len(values):
        return False
    expected = len(values) / len(support)
    free = len(support) - 1
    return float(((counts - expected) ** 2 / expected).sum()) < free + 6 * np.sqrt(2 * free)


def test_is_uniform_can_say_no():
    rng = np.random.default_rng(0)
    assert is_uniform(rng.integers(0, 8, LAYOUTS), range(8))
    assert not is_uniform(rng.integers(0, 9, LAYOUTS), range(8))
    assert not is_uniform(rng.integers(0, 7, LAYOUTS), range(8))
    assert not is_uniform(rng.binomial(7, 0.5, LAYOUTS), range(8))


@pytest.mark.parametrize(("count", "smallest"), [(1, 5), (2, 3), (3, 2)])
def test_layouts_follow_the_published_law(count, smallest):
    rng = np.random.default_rng(count)
    first_size, first_place, fallbacks = [], [], 0
    for _ in range(LAYOUTS):
        aspects = np.exp(rng.normal(0, 0.5, count))
        boxes = paste.layout(rng, aspects)
        assert boxes.shape == (count, 4)
        assert (boxes >= 0).all() and (boxes <= 15).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
        w, h = (boxes[:, 2:] - boxes[:, :2] + 1).T
        sizes = np.maximum(w, h) - 1
        assert ((sizes >= smallest) & (sizes <= 15)).all()
        for aspect, size, cells in zip(aspects, sizes, zip(w, h, strict=True), strict=True):
            assert paste.footprint(aspect, size) == cells
        for i in range(count):
            if sum(shared_pixels(boxes[i], other) for other in boxes[:i]) > 0.5:
                fallbacks += 1  # ten refusals: only then, and only at the smallest size
                assert sizes[i] == smallest
        first_size.append(sizes[0])
        if sizes[0] == 9:
            first_place.append(boxes[0, 1] if w[0] < h[0] else boxes[0, 0])
    assert is_uniform(first_size, range(smallest, 16))  # the first proposal is never refused
    assert is_uniform(first_place, range(7))
    assert (fallbacks > 0) == (count > 1)  # the rule was put to the test


class Draws:
    """A stand-in for numpy's generator that plays numbers from a list and notes the ranges it was asked for."""

    def __init__(self, numbers):
        self.numbers, self.ranges = list(numbers), []

    def integers(self, low, high):
        self.ranges.append((low, high))
        return self.numbers.pop(0)


def test_ten_tries_and_then_the_smallest_size_unchecked():
    whole, refused = [15, 0, 0], [14, 1, 1]  # size, column, row
    sizes, fallback = (3, 16), [(0, 13), (0, 13)]
    draws = Draws(whole + refused * 10 + [12, 0])
    boxes = paste.layout(draws, [1.0, 1.0])
    assert boxes.tolist() == [[0, 0, 15, 15], [12, 0, 15, 3]]
    assert draws.ranges == [sizes, (0, 1), (0, 1)] + [sizes, (0, 2), (0, 2)] * 10 + fallback
    draws = Draws([3, 0, 0] + [3, 1, 0] * 9 + [3, 2, 0])  # an overlap of 3/4 is too much, of 1/2 it is not
    assert paste.layout(draws, [1.0, 1.0]).tolist() == [[0, 0, 3, 3], [2, 0, 5, 3]]
    assert not draws.numbers


def shared_pixels(a, b) -> float:
    """max(intersection / area of one, intersection / area of the other), counted pixel by pixel."""
    one, other = np.zeros((2, 16, 16), bool)
    one[a[1] : a[3] + 1, a[0] : a[2] + 1] = True
    other[b[1] : b[3] + 1, b[0] : b[2] + 1] = True
    return (one & other).sum() / min(one.sum(), other.sum())


def test_overlap_formula():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (np.sort(rng.integers(0, 16, (2, 2)), 0).reshape(-1) for _ in range(2))
        assert paste.overlap(a, b) == pytest.approx(shared_pixels(a, b))


@pytest.mark.parametrize(
    ("aspect", "s", "cells"),
    [(1.0, 5, (6, 6)), (2.0, 5, (6, 3)), (0.5, 7, (5, 8)), (10.0, 4, (5, 2)), (0.1, 15, (3, 16)), (1.5, 9, (10, 7)),
     (1.4, 5, (6, 5)), (0.7, 5, (5, 6)), (0.68, 5, (4, 6))],
)  # fmt: skip
def test_footprint(aspect, s, cells):
    assert paste.footprint(aspect, s) == cells


def discs():
    """Two cut-outs: a red disc on nothing, and an opaque blue square."""
    y, x = np.mgrid[:40, :40] - 19.5
    red = np.zeros((40, 40, 4), np.uint8)
    red[x**2 + y**2 < 400] = (255, 0, 0, 255)
    return [Image.fromarray(red, "RGBA"), Image.new("RGBA", (10, 10), (0, 0, 255, 255))]


def test_later_objects_lie_on_top_and_masks_show_it():
    boxes = np.array([[0, 0, 7, 7], [4, 4, 9, 9]])
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    image = paste.compose(grey, discs(), boxes, cell=4)
    masks = paste.masks(discs(), boxes, grid=16, cell=4)
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and masks.shape == (2, 64, 64)
    blue = (image == (0, 0, 255)).all(-1)
    np.testing.assert_array_equal(masks[1], blue)
    window = np.zeros((64, 64), bool)
    window[16:40, 16:40] = True
    np.testing.assert_array_equal(blue, window)
    assert not (masks[0] & masks[1]).any()
    assert (image[masks[0]] == (255, 0, 0)).mean() > 0.9
    assert (image[masks[0]][:, 0] > 128).all()
    disc = np.pi * 16**2 * 3 / 4  # the square hides the lower right quarter
    assert abs(masks[0].sum() / disc - 1) < 0.05
    assert (image[40:, :] == 128).all() and (np.asarray(grey) == 128).all()


def says(phrase: str, name: str) -> str:
    """The place in `left X`, `X left` or `X on left`; the empty string when the phrase is the name alone."""
    rest = phrase.replace(name, "").strip()
    return rest.removeprefix("on ")


def check_place(place, box, other, index, twin):
    """Asserts that a relative place is true of the boxes."""
    x, y = (box[:2] + box[2:]) / 2
    u, v = (other[:2] + other[2:]) / 2
    truth = {
        "left": x < u, "right": x > u or (x == u and y == v), "above": y < v, "top": y < v, "below": y > v,
        "bottom": y > v, "before": index > twin, "in front": index > twin, "behind": index < twin,
    }  # fmt: skip
    assert truth[place], (place, box, other)
    if place in ("before", "in front", "behind"):
        assert shared_pixels(box, other) > 0


def test_referrals_of_twins_are_true():
    rng = np.random.default_rng(0)
    seen, forms = set(), set()
    for _ in range(2000):
        boxes = paste.layout(rng, np.exp(rng.normal(0, 0.5, 3)))
        said = referrals(rng, ["red cat", "red cat", "dog"], boxes, 16, absolute_share=0.0)
        assert said[2] == "dog"
        for i, twin in ((0, 1), (1, 0)):
            place = says(said[i], "red cat")
            check_place(place, boxes[i], boxes[twin], i, twin)
            seen.add(place)
            forms.add(said[i].replace("red cat", "X").replace(place, "P"))
    assert seen == {"left", "right", "above", "top", "below", "bottom", "before", "in front", "behind"}
    assert forms == {"X P", "P X", "X on P"}


def test_absolute_places_are_true():
    rng = np.random.default_rng(0)
    seen, alone = set(), 0
    codec = BoxCodec()
    for _ in range(2000):
        boxes = paste.layout(rng, np.exp(rng.normal(0, 0.5, 1)))
        place = says(referrals(rng, ["dog"], boxes, 16, absolute_share=0.7)[0], "dog")
        seen.add(place)
        if not place:
            alone += 1
            continue
        x1, y1, x2, y2 = codec.to_pixels(boxes[0]) / 224
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        middle = 1 / 3 <= x < 2 / 3 and 1 / 3 <= y < 2 / 3
        truth = {
            "left": x < 1 / 3, "right": x >= 2 / 3, "above": y < 1 / 3, "top": y < 1 / 3, "below": y >= 2 / 3,
            "bottom": y >= 2 / 3, "middle": middle, "center": middle,
        }  # fmt: skip
        assert truth[place], (place, boxes)
    assert seen == {"", "left", "right", "above", "top", "below", "bottom", "middle", "center"}
    assert 0.25 < alone / 2000 < 0.35


def test_synonyms_may_stand_in():
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 3, 3]])
    said = {referrals(rng, ["dog"], boxes, 16, 0.0, {"dog": ("hound",)})[0] for _ in range(50)}
    assert said == {"dog", "hound"}
