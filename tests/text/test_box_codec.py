"""The box codec and the words around a box."""

import itertools

import numpy as np
import pytest

from input_pipeline.text import prompts
from input_pipeline.text.box_codec import BoxCodec, area, iou

CODEC = BoxCodec()


def test_every_box_survives_the_round_trip():
    spans = [(a, b) for a in range(16) for b in range(a, 16)]
    seen = set()
    for (c1, c2), (r1, r2) in itertools.product(spans, spans):
        text = CODEC.encode(np.array([c1, r1, c2, r2]))
        box, parsed = CODEC.decode(f"located at{text}.<|endofchunk|>")
        assert parsed and box.tolist() == [14 * c1, 14 * r1, 14 * (c2 + 1), 14 * (r2 + 1)]
        assert CODEC.to_cells(box).tolist() == [c1, r1, c2, r2]
        seen.add(text)
    assert len(seen) == 136**2
    assert {"[0,0,14,14]", "[210,210,224,224]"} <= {text.strip() for text in seen}


def test_values_and_text_of_the_published_setting():
    assert CODEC.values == list(range(0, 225, 14))
    assert CODEC.encode(np.array([1, 2, 3, 15])) == " [14,28,56,224]"
    np.testing.assert_array_equal(CODEC.to_pixels(np.array([[1, 2, 3, 15]])), [[14, 28, 56, 224]])


@pytest.mark.parametrize(
    "text",
    ["", " a box", "[0,0,14,14]", " [0,0,14]", " [0, 0, 14, 14]", " [0,0,14,15]", " [0,0,0,14]", " [28,0,14,14]",
     " [0,14,14,14]", " [0,0,14,238]", " [-14,0,14,14]", " [0,0,14,14", " [a,b,c,d]", " [0.0,0,14,14]"],
)  # fmt: skip
def test_bad_text_counts_as_the_first_cell(text):
    box, parsed = CODEC.decode(text)
    assert not parsed and box.tolist() == [0, 0, 14, 14]


def test_first_box_of_several_is_read():
    assert CODEC.decode(" [0,0,28,28]. [14,14,28,28]")[0].tolist() == [0, 0, 28, 28]


@pytest.mark.parametrize(
    ("pixels", "cells"),
    [([0, 0, 14, 14], [0, 0, 0, 0]), ([13, 0, 15, 224], [0, 0, 1, 15]), ([224, 224, 224, 224], [15, 15, 15, 15]),
     ([-5, 3, 500, 3], [0, 0, 15, 0]), ([14, 28, 28, 42], [1, 2, 1, 2])],
)  # fmt: skip
def test_to_cells_is_the_smallest_cover(pixels, cells):
    assert CODEC.to_cells(np.array(pixels)).tolist() == cells


def test_grid_must_divide_the_image():
    with pytest.raises(ValueError, match="grid 15 must divide image_size 224"):
        BoxCodec(224, 15)


def test_iou_and_area():
    a = np.array([0, 0, 10, 10])
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [10, 0, 20, 10]])
    np.testing.assert_allclose(iou(a, others), [1, 1 / 3, 0, 0])
    np.testing.assert_allclose(area(np.array([[0, 0, 3, 4], [5, 5, 3, 9]])), [12, 0])


def test_prompts():
    assert prompts.question("cat") == "In the image is a cat located at"
    for name in ("apple", "egg", "igloo", "orange", "umbrella", "Owl"):
        assert prompts.question(name) == f"In the image is an {name} located at"
    assert prompts.prompt_and_target("cat", " [0,0,14,14]") == ("In the image is a cat located at", " [0,0,14,14]")


def test_curriculum_predicts_the_name_too():
    for name in ("cat", "apple"):
        prompt, target = prompts.prompt_and_target(name, " [0,0,14,14]", curriculum=True)
        assert prompt == f"In the image is {prompts.article(name)}"
        assert prompt + target == prompts.question(name) + " [0,0,14,14]"
        assert name in target
