"""Heat maps of large photographs: one prompt or a strip of rows at a time, with what all of them at once give."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gem_jax import heatmaps
from gem_jax.evaluation.boxes import Boxes
from gem_jax.evaluation.points import Points
from gem_jax.evaluation.segmentation import IGNORE, Segmentation
from gem_jax.heatmaps import Enlarged
from tests.fixtures import gem_models
from tests.fixtures.gem_models import photo

SMALL = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32)
SIZE = (40, 60)


def test_one_map_is_that_of_all():
    maps, whole = Enlarged(SMALL, SIZE), heatmaps.enlarge(SMALL, SIZE)
    assert maps.shape == (6, *SIZE) and np.asarray(maps).dtype == np.float32
    np.testing.assert_array_equal(np.asarray(maps), whole)
    for k in range(6):
        np.testing.assert_array_equal(maps[k], whole[k])
    np.testing.assert_array_equal(np.asarray(maps.only([3, 1])), whole[[3, 1]])


@pytest.mark.parametrize("strip", [1, 6 * 60 * 4 * 7, 2**28])
def test_strips_make_the_whole(monkeypatch, strip):
    monkeypatch.setattr(Enlarged, "STRIP", strip)
    parts = list(Enlarged(SMALL, SIZE).strips())
    assert len(parts) == {1: 40, 2**28: 1}.get(strip, 6)
    whole = np.zeros((6, *SIZE), np.float32)
    for rows, part in parts:
        assert part.nbytes <= max(strip, 6 * 60 * 4)
        whole[:, rows] = part
    np.testing.assert_allclose(whole, heatmaps.enlarge(SMALL, SIZE), rtol=1e-5, atol=1e-6)


def test_scores_of_strips_are_those_of_the_whole(monkeypatch):
    rng = np.random.default_rng(1)
    names = ["cat", "dog", "sky", "car"]
    record = {
        "labels": rng.choice([IGNORE, -1, 0, 1, 2, 3], SIZE), "query_text": [*names, "a", "b"],
        "boxes": np.array([[3, 4, 20, 30]] * 6, np.float32),
        "points": [{"name": name, "x": int(x), "y": int(x) // 2, "positive": bool(x % 2)}
                   for name in names for x in rng.integers(0, 60, 4)],
    }  # fmt: skip

    def scores(maps):
        out = {}
        for evaluator in (Segmentation(names, 20.0, background=("a", "b")), Points(), Boxes()):
            own = maps.only(range(4)) if isinstance(evaluator, Points) and isinstance(maps, Enlarged) else maps
            evaluator.add(record, own[:4] if isinstance(evaluator, Points) and own is maps else own)
            out |= evaluator.scores()
        return out

    whole = scores(heatmaps.enlarge(SMALL, SIZE))
    assert scores(Enlarged(SMALL, SIZE)) == whole
    monkeypatch.setattr(Enlarged, "STRIP", 6 * 60 * 4 * 7)
    assert scores(Enlarged(SMALL, SIZE)) == whole and whole["mIoU"] > 0


def test_memory_does_not_grow_with_the_prompts():
    gem = gem_models.gem(gem_models.arrays(), "gelu", size=(48, 64))
    large, names = photo(0, (1500, 2000)), ["cat", "dog", "sky", "grass", "red dog", "red sky", "red grass", "red cat"]

    def peak(prompts) -> int:
        gem.locate(photo(0), prompts)  # compiled
        tracemalloc.start()
        gem.locate(large, prompts)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    one, many = peak(names[:1]), peak(names)
    assert many < 1.2 * one, f"{one / 2**20:.0f} MiB for one prompt, {many / 2**20:.0f} MiB for {len(names)}"
