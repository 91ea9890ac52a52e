"""The small BLIP-2 that ships: it answers by name what it sees, and does not know where."""

from __future__ import annotations

from configs import pin_blip2, tiny_vlm
from pin_jax import evaluate, vlm
from pin_jax.models.blip2 import Blip2
from pin_jax.small import recipe
from tests.fixtures.golden_files import ROOT


def test_it_answers_by_name(tmp_path):
    config = tiny_vlm.get_config("blip2")
    config.eval.images = 96
    shipped = vlm.load(ROOT / "assets" / config.name)
    assert isinstance(shipped.model, Blip2)
    knows = recipe.score(config, tmp_path, shipped)
    assert knows["colour"] > 0.83 and knows["tint"] > 0.65 and knows["pattern"] > 0.9  # 96 of the card's 512 scenes


def test_it_writes_boxes_and_does_not_know_where():
    config = pin_blip2.get_config("tiny")
    config.eval.images = 48
    rows = evaluate.evaluate(config, vlm.load(ROOT / config.vlm), None)[0]
    assert rows["raw"]["unparsed"] < 0.1 and rows["raw"]["asked_iou"] < rows["raw"]["other_iou"] + 0.05


def test_its_files_are_small():
    assert sum(p.stat().st_size for p in (ROOT / "assets" / "tiny_blip2").iterdir()) < 25 * 2**20
