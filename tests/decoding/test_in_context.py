"""Worked examples in front of a question: their texts, their images in the right order, and the answers that follow."""

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax import evaluate, vlm
from pin_jax.decoding.in_context import Example, InContext, box_examples
from pin_jax.models.interface import Inserts
from tests.fixtures import tiny
from tests.fixtures.small import config_for, write_vlm

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return vlm.load(write_vlm(tmp_path_factory.mktemp("vlm")))


def tokens(frozen, images: int) -> np.ndarray:
    """Random vision tokens."""
    config = frozen.model.config
    return RNG.standard_normal((images, config.media_tokens, config.vision.width)).astype(np.float32)


def test_box_examples(frozen):
    cells = np.array([[0, 0, 1, 2], [3, 4, 5, 6]])
    records = [{"query_text": ["cat"], "cells": cells[:1]}, {"query_text": ["owl", "cat"], "cells": cells}]
    examples = box_examples(records, frozen.codec)
    assert [example.image for example in examples] == [0, 1, 1]
    assert examples[1].prompt == "In the image is an owl located at" and examples[1].answer == " [0,0,20,30]"
    context = InContext(tokens(frozen, 2), examples[2:], 1)
    assert context.text(0) == "<image>In the image is a cat located at [30,40,60,70].<|endofchunk|>"


def test_examples_are_of_different_images_and_repeat():
    examples = [Example(i // 4, "p", f" {i}") for i in range(40)]
    context = InContext(np.arange(10.0)[:, None, None], examples, 5, seed=1)
    drawn = [context.draw(question) for question in range(30)]
    assert all(len({shot.image for shot in shots}) == 5 for shots in drawn)
    assert {shot.answer for shots in drawn for shot in shots} == {f" {i}" for i in range(40)}  # every one has its turn
    assert drawn == [context.draw(question) for question in range(30)]
    assert drawn != [InContext(context.vision, examples, 5, seed=2).draw(question) for question in range(30)]
    own = -np.arange(30.0)[:, None, None]
    media = context.media(range(30), own)
    assert media.shape == (30, 6, 1, 1)
    np.testing.assert_array_equal(media[:, 5], own)
    np.testing.assert_array_equal(media[:, :5, 0, 0], [[shot.image for shot in shots] for shots in drawn])
    with pytest.raises(UserError, match="11 examples in context, of a pool of 10 images"):
        InContext(context.vision, examples, 11)


def test_answers_follow_from_all_images_and_texts(frozen):
    """Boxes and captions through `ask`, against the whole forward pass on rows put together by hand."""
    names = frozen.names[:4]
    shots = [
        Example(0, f"In the image is a {names[0]} located at", " [0,0,20,30]"),
        Example(1, "A photo of", f" a {names[1]} and a {names[2]}"),
    ]
    vision, seen = tokens(frozen, 2), tokens(frozen, 3)
    asked = [(2, f"In the image is a {names[3]} located at"), (0, "A photo of"), (1, "A photo of")]
    options = config_for("unused").eval
    options.batch_size, options.new_tokens = 2, 3
    context = InContext(vision, shots, 2)
    written = evaluate.ask(frozen, seen, asked, Inserts(), options, context=context)
    # Any two examples, in either order: the first questions meet both.
    orders = [[shot.image for shot in context.draw(i)] for i in range(3)]
    for i, (image, prompt) in enumerate(asked):
        text = "".join(f"<image>{shots[j].prompt}{shots[j].answer}.<|endofchunk|>" for j in orders[i])
        ids = frozen.tokenizer(f"{text}<image>{prompt}", add_special_tokens=False)["input_ids"]
        media = jnp.asarray(np.stack([*vision[orders[i]], seen[image]])[None])
        start = len(ids)
        while len(ids) < start + 3 and frozen.model.config.end_token not in ids[start:]:
            row = np.pad(ids, (0, 64 - len(ids)))[None]  # one shape; what comes later is not seen
            logits = np.array(tiny.run(frozen.model)(frozen.params, None, row, vision=media)[0, len(ids) - 1])
            logits[list(frozen.suppressed)] = -np.inf
            ids.append(int(logits.argmax()))
        assert written[i] == frozen.tokenizer.decode(ids[start:], skip_special_tokens=True)
    plain = evaluate.ask(frozen, seen, asked, Inserts(), options)
    assert plain != written


def test_context_rows_of_the_table(frozen):
    config = config_for("unused")
    config.eval.update({"images": 2, "context": (2,), "context_images": 3, "batch_size": 4})
    rows, test, _ = evaluate.evaluate(config, frozen, Inserts())
    assert list(rows) == ["raw", "2_context", "random", "constant", "pin"]
    assert rows["2_context"]["queries"] == len(test.queries)
