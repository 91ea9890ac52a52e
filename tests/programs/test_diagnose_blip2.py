"""`config.run=diagnose` on both kinds of BLIP-2: the image's queries stand in the text, or in the encoder's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pin_jax import vlm
from pin_jax.models.interface import Inserts
from pin_jax.programs import pin
from pin_jax.scoring import diagnosis
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
    likely = found["likelihood"]
    assert likely.keys() == {
        "asked",
        "asked behind a text that says it",
        "asked, with a text that says it in the image's places",
        "asked, each image's vision tokens fitted to its answer",
    }
    assert likely["asked"] < likely["asked, each image's vision tokens fitted to its answer"] < 0


def test_words_in_the_image_s_places_are_those_of_a_text(tmp_path):
    """A text that fills all places stands there as if it had been written there; a short one leaves the others."""
    model = vlm.load_vlm(tiny_blip2.write(tmp_path / "vlm", "opt"))[0]
    parts = 2 * [("In the image is a", " cat", " located at", " [0,10,40,80]")]
    texts = diagnosis.encode(model.tokenizer, model.frame, parts, True)
    config = model.model.config
    rng = np.random.default_rng(0)
    vision = rng.normal(size=(2, config.media_tokens, config.vision.width)).astype(np.float32)
    held = model.model, model.params, Inserts(), vision
    words = rng.integers(10, 30, (2, config.image_places + 3))
    written = texts.inputs["ids"].copy()
    written[written == config.image_token] = words[:, : config.image_places].ravel()
    direct = diagnosis.likelihood(*held, diagnosis.Texts({**texts.inputs, "ids": written}, texts.name))
    assert diagnosis.in_place_of_images(*held, texts, words) == pytest.approx(direct, rel=1e-5)
    asked, short = diagnosis.likelihood(*held, texts), diagnosis.in_place_of_images(*held, texts, words[:, :1])
    assert diagnosis.in_place_of_images(*held, texts, [[], []]) == pytest.approx(asked, rel=1e-5)
    assert len({round(x, 5) for x in (asked, short, direct)}) == 3
