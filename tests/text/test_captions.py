"""What the small VLM is told: names and looks of what is in the picture, boxes only of what is not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from input_pipeline.pasted import cutouts, looks
from input_pipeline.pasted.names import twemoji_table
from input_pipeline.pasted.scenes import SceneConfig, Scenes
from input_pipeline.text import captions, word_tokenizer
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame

CODEC = BoxCodec(160, 16)
NAMES = tuple(sorted(twemoji_table()))


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer.build(NAMES, CODEC)


@pytest.fixture(scope="module")
def records():
    config = SceneConfig(image_size=160, crop=0.4, split="all", look_share=0.6, smallest=(5, 4, 4))
    scenes = Scenes(config, 3, 200)
    return [scenes.describe(i) for i in range(200)]


def rows(tokenizer, records):
    texts = captions.CaptionTexts(tokenizer, NAMES, CODEC, length=48)
    for i, record in enumerate(records):
        out = texts.random_map(record, np.random.default_rng(i))
        for ids, weights in zip(out["ids"], out["weights"], strict=True):
            yield record, [int(t) for t in ids if t != tokenizer.pad_token_id], weights


def test_boxes_are_only_of_names_that_are_not_in_the_picture(tokenizer, records):
    located = 0
    for record, ids, _ in rows(tokenizer, records):
        for name in re.findall(r"In the image is an? (.+?) located at \[", tokenizer.decode(ids)):
            located += 1
            assert name in NAMES and name not in record["names"]
    assert located > 100


def test_no_number_stands_anywhere_else(tokenizer, records):
    for _, ids, _ in rows(tokenizer, records):
        text = re.sub(r"located at \[\d+,\d+,\d+,\d+\]", "", tokenizer.decode(ids))
        assert not re.search(r"\d", re.sub(r"located at \[[\d,]*$", "", text)), text


def test_every_statement_is_true_of_the_picture(tokenizer, records):
    stated = 0
    for record, ids, _ in rows(tokenizer, records):
        look_of = dict(zip(record["names"], record["looks"], strict=True))
        text = tokenizer.decode(ids)
        for name, words in re.findall(r"is an? ([^<]+?) looking like \[([a-z,]+)\]", text):
            assert tuple(words.split(",")) == look_of[name].words()
            stated += 1
        for slot, name, word in re.findall(r"The (\w+) of the ([^<]+?) is (\w+)\.", text):
            assert getattr(look_of[name], slot) == word
            stated += 1
        for said in re.findall(r"A photo of (.+?)\.", text):
            assert all(name in said for name in record["names"])
    assert stated > 300


def test_answers_weigh_most(tokenizer, records):
    for _, ids, weights in rows(tokenizer, records):
        words = tokenizer.convert_ids_to_tokens(ids)
        for word, weight in zip(words, weights, strict=False):
            if word.strip() in looks.COLOURS:
                assert weight == captions.ANSWER


def test_text_survives_the_tokenizer(tokenizer):
    for name in NAMES:
        text = f"<image>In the image is a {name} located at [0,10,150,160].<|endofchunk|>"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids and len(ids) == 20 and tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id in tokenizer("A photo of a zebrafish")["input_ids"]


def test_look_questions_line_up_with_their_answers(tokenizer, records):
    record = next(r for r in records if len(r["names"]) == 2)
    out = captions.LookQuestions(tokenizer, max_objects=3).map(record)
    assert out["ids"].shape == (12, 12) and (out["slot"] >= 0).sum() == 8
    for ids, answer, slot in zip(out["ids"], out["answer"], out["slot"], strict=True):
        if slot >= 0:
            text = tokenizer.decode(ids[ids != tokenizer.pad_token_id])
            name = re.fullmatch(r"<image>The \w+ of the (.+) is", text)[1]
            look = record["looks"][record["names"].index(name)]
            assert tokenizer.decode([answer]) == f" {look.words()[slot]}"


def test_an_image_of_several_tokens(tokenizer, records):
    record = next(r for r in records if len(r["names"]) == 2)
    one, three = (captions.LookQuestions(tokenizer, max_objects=3, image="<image>" * n).map(record) for n in (1, 3))
    np.testing.assert_array_equal(three["ids"][:8, 2:][one["ids"][:8] != 0], one["ids"][:8][one["ids"][:8] != 0])
    assert ((three["ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum(1)[:8] == 3).all()
    one, three = (
        captions.CaptionTexts(tokenizer, NAMES, CODEC, 48, box_rows=0, image="<image>" * n).random_map(
            record, np.random.default_rng(0)
        )
        for n in (1, 3)
    )
    np.testing.assert_array_equal(three["ids"][:, 2:], one["ids"])
    np.testing.assert_array_equal(three["weights"][:, 2:], one["weights"])


def test_a_look_stays_inside_its_box_and_changes_the_picture():
    sprite = cutouts.load("twemoji")[10][1]
    plain = looks.apply(sprite, looks.Look("big"), (40, 30))
    for look in (looks.Look("big", "red"), looks.Look("big", pattern="striped"), looks.Look("big", border="blue")):
        drawn = looks.apply(sprite, look, (40, 30))
        assert drawn.size == (40, 30) and drawn.mode == "RGBA"
        assert np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).mean() > 2


def test_sentences_say_what_is_true_and_weigh_it(tokenizer, records):
    frame = Frame("<image>" * 3, suffix="<|endofchunk|>")
    texts = captions.Sentences(tokenizer, frame, 80)
    stated = 0
    for i, record in enumerate(records):
        out = texts.random_map({**record, "vision": np.zeros((4, 2))}, np.random.default_rng(i))
        ids, target = out["ids"], out["target"]
        assert ids.shape == target.shape == (80,) and not target[:3].any() and out["vision"].shape == (4, 2)
        text = tokenizer.decode([token for token in ids if token != tokenizer.pad_token_id])
        look_of = dict(zip(record["names"], record["looks"], strict=True))
        said = re.findall(r"The (\w+) of the ([^.]+?) is (\w+)\.", text)
        stated += len(said)
        assert len(said) == 2 and all(getattr(look_of[name], slot) == word for slot, name, word in said)
        assert not re.search(r"\d", text) and all(name in text for name in record["names"])
        words = tokenizer.convert_ids_to_tokens(ids)
        weighed = {word.strip() for word, weight in zip(words, target, strict=True) if weight == captions.NAME}
        assert weighed == set(record["names"]) and (target == captions.ANSWER).sum() == 2
    assert stated == 400
    bare = captions.Sentences(tokenizer, frame, 80, 1, without_caption=0.5)
    rows = [bare.random_map({**records[0], "vision": np.zeros((4, 2))}, np.random.default_rng(i)) for i in range(200)]
    captioned = [(row["target"] == captions.NAME).any() for row in rows]
    assert 70 < sum(captioned) < 130
    assert [(row["target"] == captions.ANSWER).sum() for row in rows] == [1 if said else 3 for said in captioned]


def test_questions_about_the_longest_name_fit(tokenizer, records):
    """One that did not would leave rows of two lengths."""
    name = "cat dog cat dog cat dog cat dog cat dog cat dog cat dog cat dog cat dog cat dog cat dog cat dog"
    length = captions.longest_question(tokenizer, ["cat", name])
    assert length > 24
    asked = captions.LookQuestions(tokenizer, 1, length).map({"names": [name], "looks": [looks.Look("big", "red")]})
    assert asked["ids"].shape == (4, length) and (asked["ids"][0] == tokenizer.pad_token_id).sum() <= 2


def test_of_a_long_name_the_first_token_has_the_weight():
    """The others follow without an image, and would hide in the mean whether it is read."""
    long = word_tokenizer.build(("cat",), CODEC)
    record = {"names": ["cat cat cat"], "looks": [looks.Look("big", "red")], "vision": np.zeros((4, 2))}
    out = captions.Sentences(long, Frame("<image>"), 40, 0).random_map(record, np.random.default_rng(0))
    name = out["target"][out["ids"] == long.convert_tokens_to_ids(" cat")]
    assert name.tolist() == [captions.NAME, captions.COPY, captions.COPY]
