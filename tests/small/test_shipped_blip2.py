"""The small BLIP-2 that ships: it answers by name what it sees, and, with its insert, knows where."""

from __future__ import annotations

from configs import pin_blip2, tiny_vlm
from pin_jax import adapters, evaluate, vlm
from pin_jax.models.blip2 import Blip2
from pin_jax.programs import pin
from pin_jax.small import recipe
from tests.fixtures.golden_files import ROOT


def test_it_answers_by_name(tmp_path):
    config = tiny_vlm.get_config("blip2")
    config.eval.images = 96
    shipped = vlm.load(ROOT / "assets" / config.name)
    assert isinstance(shipped.model, Blip2)
    knows = recipe.score(config, tmp_path, shipped)
    assert knows["colour"] > 0.86 and knows["tint"] > 0.74 and knows["pattern"] > 0.9  # 96 of the card's 512 scenes


def test_the_insert_that_ships_tells_it_where_things_are():
    config = pin_blip2.get_config("tiny")
    config.eval.images = 64
    shipped = vlm.load(ROOT / config.vlm)
    method, params = adapters.load(ROOT / config.vlm / pin.INSERT, shipped)
    rows = evaluate.evaluate(config, shipped, method.inserts(params))[0]
    # As it is it does not know where: no better than the best constant box.
    assert rows["raw"]["mIoU"] < rows["constant"]["mIoU"] + 0.02 and rows["pin"]["unparsed"] < 0.05
    assert rows["pin"]["mIoU"] > rows["constant"]["mIoU"] + 0.08
    assert rows["pin"]["asked_iou"] > rows["pin"]["other_iou"] + 0.2  # and it heeds the name


def test_its_files_are_small():
    assert sum(p.stat().st_size for p in (ROOT / "assets" / "tiny_blip2").iterdir()) < 20 * 2**20
