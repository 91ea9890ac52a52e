"""The small VLM and the insert that ship: what the README claims, on fewer scenes."""

from __future__ import annotations

import pytest

from configs import pin_flamingo
from pin_jax import adapters, evaluate, vlm
from tests.fixtures.golden_files import ROOT


@pytest.fixture(scope="module")
def rows():
    config = pin_flamingo.get_config("tiny")
    config.eval.images = 128
    frozen = vlm.load(ROOT / config.vlm)
    method, params = adapters.load(ROOT / config.vlm / "insert.safetensors", frozen)
    return evaluate.evaluate(config, frozen, method.inserts(params))[0]


def test_the_insert_unlocks_where(rows):
    assert rows["pin"]["mIoU"] > rows["constant"]["mIoU"] + 0.05
    assert rows["pin"]["asked_iou"] > rows["pin"]["other_iou"] + 0.1


def test_the_raw_model_does_not_know_where(rows):
    assert rows["raw"]["mIoU"] < rows["constant"]["mIoU"] + 0.02
    assert rows["raw"]["asked_iou"] < rows["raw"]["other_iou"]


def test_its_files_are_small():
    total = sum(p.stat().st_size for p in (ROOT / "assets" / "tiny_flamingo").iterdir())
    assert total < 25 * 2**20
