"""`config.run=diagnose` on both kinds of BLIP-2: the image's queries stand in the text, or in the encoder's."""

from __future__ import annotations

import json

import pytest

from pin_jax.programs import pin
from tests.fixtures import tiny_blip2


@pytest.mark.parametrize("kind", ["opt", pytest.param("t5", marks=pytest.mark.heavy)])
def test_attention_on_queries_and_name(tmp_path, kind):
    folder = tiny_blip2.write(tmp_path / "vlm", kind)
    pin.run(tiny_blip2.config_for(folder, run="diagnose"), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert len(found["attention"]) == 2  # the language model's layers: of T5 those of the decoder that read the encoder
    for row in found["attention"]:
        assert 0 < row["image"] < 1 and 0 < row["name"] < 1
    reached = found["gradients"]["numbers of a box"]
    assert reached["media"] > 0 and reached["vision"] > 0 and reached["media"] != pytest.approx(reached["vision"])
