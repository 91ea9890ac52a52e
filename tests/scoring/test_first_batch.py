"""The first batch as it is shown: its texts and boxes are those of the scenes, read back from the tokens."""

from __future__ import annotations

import numpy as np
import pytest

from input_pipeline.text import word_tokenizer
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame
from input_pipeline.text.questions import BoxQuestions
from pin_jax.scoring import first_batch

CODEC = BoxCodec(160, 16)


@pytest.mark.parametrize("curriculum", [False, True])
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_texts_are_those_of_the_scene(tmp_path, encoder_decoder, curriculum):
    tokenizer = word_tokenizer.build(["cat", "dog"], CODEC)
    questions = BoxQuestions(tokenizer, CODEC, 2, 20, Frame(encoder_decoder=encoder_decoder))
    record = {"query_text": ["cat"], "cells": np.array([[1, 2, 3, 4]]), "curriculum": curriculum}
    record["image"] = np.zeros((160, 160, 3), np.uint8)
    row = questions.random_map(record, np.random.default_rng(0))
    batch = {key: value[None] for key, value in row.items()}
    hidden = tokenizer.convert_tokens_to_ids(["<image>", "<pad>"])
    ((read, answer),) = first_batch.texts(batch, tokenizer, hidden)[0]  # the second question is all pads
    assert read == ("In the image is a" if curriculum else "In the image is a cat located at")
    assert answer.startswith(" cat located at [10," if curriculum else " [10,")
    np.testing.assert_array_equal(CODEC.decode(answer)[0], [10, 20, 40, 50])
    first_batch.draw(tmp_path / "a.png", batch["image"], batch, tokenizer, CODEC, hidden)
    assert (tmp_path / "a.png").stat().st_size > 1000
