"""How long training texts are: as long as the longest name needs, in every phase and for every frame."""

from __future__ import annotations

import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame
from input_pipeline.text.questions import BoxQuestions, Curriculum, needed_lengths
from input_pipeline.text.referrals import every_phrase, referrals
from pin_jax import training_data

CODEC = BoxCodec(64, 4)
NAMES = ("cat", "water bottle", "aerosol can (red)")


class Letters:
    """A tokenizer of letters, but for `<image>`; a coordinate of two digits is one token longer than of one."""

    pad_token_id = 0

    def __call__(self, texts, add_special_tokens=False):
        def encode(text):
            return [1] * text.count("<image>") + [2] * len(text.replace("<image>", ""))

        return {"input_ids": encode(texts) if isinstance(texts, str) else [encode(text) for text in texts]}


def test_a_worked_example():
    """It is as the frame's own texts, with words for the image."""
    assert Frame("<image>" * 3, "</s>", "</s>").behind("cat", "A", "B").prefix == "catA</s>B</s>\n<image><image><image>"
    turns = "<|im_start|>user\nIn it:{}<|im_end|>\n<|im_start|>assistant\n"
    frame = Frame(turns.format("<image><image>"), suffix="<|im_end|>")
    shown = frame.behind(" hat", "A hat", " here")
    assert shown.prompt("Where?") == turns.format(" hat") + "A hat here<|im_end|>\n" + frame.prompt("Where?")


FRAMES = (Frame(), Frame("<image>" * 5, "", "</s>"), Frame("<image>" * 5, "</s>", "</s>", encoder_decoder=True))


@pytest.mark.parametrize("curriculum", [False, True])
@pytest.mark.parametrize("frame", FRAMES)
def test_the_longest_text_just_fits(frame, curriculum):
    needed, targets = needed_lengths(Letters(), CODEC, frame, NAMES, curriculum)
    longest = max(NAMES, key=len)
    record = {"query_text": [longest], "cells": np.array([[2, 2, 3, 3]]), "curriculum": False}
    for early in (False, True)[: 1 + curriculum]:
        texts = BoxQuestions(Letters(), CODEC, 1, needed, frame, targets)
        out = texts.random_map(record | {"curriculum": early}, np.random.default_rng(0))
        places = out["places"][0]
        np.testing.assert_array_equal(places[places >= 0], out["target"][0].nonzero()[0])
        assert (places < 0).sum() == 0 or early < curriculum  # the longest target is that of the first quarter
    for length, most in (needed - 1, targets), (needed, targets - 1):
        texts = BoxQuestions(Letters(), CODEC, 1, length, frame, most)
        with pytest.raises(
            UserError, match=r"'aerosol can \(red\)' has over .* tokens; raise config.text_length, or set it"
        ):
            for early in (False, True)[: 1 + curriculum]:
                texts.random_map(record | {"curriculum": early}, np.random.default_rng(0))


def test_every_phrase_holds_all_referrals():
    known = every_phrase(["cat", "dog"], True)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        low = rng.integers(0, 3, (2, 2))
        boxes = np.concatenate([low, low + 1], 1)
        names = ["cat", "cat"] if seed % 2 else ["cat", "dog"]
        assert set(referrals(rng, names, boxes, 4, 0.7)) <= known
    assert every_phrase(["cat"], False) == {"cat"}


# 32 letters of the prompt, 14 of the box, 4 of the end, and one token of the image's five
@pytest.mark.parametrize(
    ("given", "found"), [(0, 51), (60, 60), (50, "config.text_length 50: the longest text needs 51")]
)
def test_the_length_of_a_run(given, found):
    vlm = types.SimpleNamespace(tokenizer=Letters(), codec=CODEC, frame=FRAMES[1])
    scenes = types.SimpleNamespace(names=["cat"], config=types.SimpleNamespace(twins=0.0, absolute_share=0.0))
    source = Curriculum(scenes, types.SimpleNamespace(scenes=scenes), 1, 0.0, 0)
    config = ConfigDict({"text_length": given, "curriculum": 0.0})
    if isinstance(found, int):
        assert training_data.text_lengths(config, vlm, source)[0] == found
    else:
        with pytest.raises(UserError, match=found):
            training_data.text_lengths(config, vlm, source)
