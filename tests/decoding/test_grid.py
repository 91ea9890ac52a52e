"""Grid decoding: whatever the tokenizer, every box has its exact probability, and no forced token costs a step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from configs import pin_flamingo
from input_pipeline.errors import UserError
from input_pipeline.text import word_tokenizer
from input_pipeline.text.box_codec import BoxCodec, all_boxes, iou
from input_pipeline.text.prompts import Frame
from pin_jax import evaluate
from pin_jax.decoding import automaton as box_automaton
from pin_jax.decoding import grid, search
from pin_jax.models.flamingo import Flamingo
from pin_jax.models.interface import Inserts
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.vlm import VLM
from tests.fixtures import tiny

CODEC = BoxCodec(120, 4)  # 0, 30, 60, 90, 120: 100 boxes
VOCAB = 320
IMAGE, PAD = 318, 319  # ids that stand in no box
LONGEST = 20


def byte_level(by_words: bool, size: int) -> Any:
    """A byte-level BPE trained on boxes; where words do not stop it, digits, commas and brackets merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<pad>"])
    )


def unigram() -> Any:
    """A SentencePiece-like unigram model trained on boxes."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = {"special_tokens": ["<pad>", "<unk>"], "unk_token": "<unk>"}
    return _trained(tokenizer, trainers.UnigramTrainer(vocab_size=40, **special))


def _trained(tokenizer: Tokenizer, trainer: Any) -> Any:
    texts = [CODEC.encode(cells) + "." for cells in CODEC.to_cells(all_boxes(CODEC))]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", padding_side="left")


TOKENIZERS = {
    "words": lambda: word_tokenizer.build(["cat"], CODEC),
    "digits": lambda: byte_level(True, 257),
    "bpe": lambda: byte_level(True, 262),
    "merging_bpe": lambda: byte_level(False, 275),
    "unigram": unigram,
}


@functools.cache
def written(kind: str) -> tuple[box_automaton.BoxAutomaton, list[tuple[int, ...]]]:
    """A tokenizer's automaton, and the tokens of its boxes in their order, by the tokenizer."""
    tokenizer = TOKENIZERS[kind]()
    automaton = box_automaton.build(tokenizer, CODEC, ".")
    texts = [CODEC.encode(cells) + "." for cells in CODEC.to_cells(np.asarray(automaton.boxes))]
    return automaton, [tuple(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]


CALLS: list[int] = []


class Counting(Flamingo):
    """A Flamingo that notes each step in `CALLS`."""

    def step(self, *args):
        jax.debug.callback(lambda: CALLS.append(1))
        return super().step(*args)


@functools.cache
def asked():
    """A random VLM, and a question about each of two images."""
    lm = MPTConfig(vocab=VOCAB, width=16, depth=1, heads=2)
    model = Counting(dataclasses.replace(tiny.flamingo_config(lm=lm, perceiver=None), image_token=IMAGE, pad_token=PAD))
    shapes = tiny.skeleton(model, jnp.zeros((1, 1, 28, 28, 3)), jnp.zeros((1, 3), jnp.int32))
    params = tiny.random_params(shapes, scale=0.5)
    pixels = jax.random.normal(jax.random.key(0), (2, 1, 28, 28, 3))
    ids = jnp.array([[IMAGE, 4, 5], [PAD, IMAGE, 6]], jnp.int32)
    vision = tiny.run(model, "encode")(params, pixels)
    return model, params, vision, ids, ids != PAD


def find(kind: str, *options):
    """`grid_decode.search` on those questions, as numpy arrays, and the steps that it took."""
    CALLS.clear()
    model, params, vision, ids, mask = asked()
    out = grid.search(model, params, vision, ids, mask, Inserts(), written(kind)[0], *options)
    found, log_p = jax.tree.map(np.asarray, out)
    jax.effects_barrier()
    return found, log_p, len(CALLS)


def choices(texts: list[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """What can follow each prefix."""
    out: dict[tuple[int, ...], set[int]] = {}
    for text in texts:
        for i, token in enumerate(text):
            out.setdefault(text[:i], set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in out.items()}


@functools.cache
def by_hand(kind: str) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """log p float[R, N] of every box, by whole forward passes; and the greedy text of each question."""
    model, params, vision, ids, mask = asked()
    _, texts = written(kind)
    follow = choices(texts)
    tail = np.array([[*text, *[0] * (LONGEST - len(text))] for text in texts], np.int32)
    log_p, greedy = [], []
    for r in range(len(ids)):
        rows = jnp.concatenate([jnp.tile(ids[r], (len(texts), 1)), tail], 1)
        seen = jnp.pad(jnp.tile(mask[r], (len(texts), 1)), [(0, 0), (0, LONGEST)], constant_values=True)
        logits = tiny.run(model)(params, None, rows, seen, vision=vision[r : r + 1])
        logits = np.asarray(logits[:, ids.shape[1] - 1 : -1], np.float64)
        total, best = np.zeros(len(texts)), ()
        at = {text[:i]: (n, i) for n, text in enumerate(texts) for i in range(len(text))}
        for n, text in enumerate(texts):
            for i, token in enumerate(text):
                allowed = follow[text[:i]]
                total[n] += logits[n, i, token] - np.log(np.exp(logits[n, i, allowed]).sum())
        while best not in texts:
            n, i = at[best]
            best += (max(follow[best], key=lambda token, n=n, i=i: logits[n, i, token]),)
        log_p.append(total)
        greedy.append(best)
    return np.stack(log_p), greedy


def test_tokenizers_differ():
    """The cases are what they say: several tokens a number, and numbers merged with what stands around them."""
    kinds = {kind: written(kind) for kind in TOKENIZERS}
    lengths = {kind: {len(text) for text in texts} for kind, (_, texts) in kinds.items()}
    assert lengths["words"] == {10} and not kinds["words"][0].ragged
    assert len(lengths["digits"]) > 3 and kinds["digits"][0].ragged
    for kind in ("merging_bpe", "unigram"):
        tokens = {t for text in kinds[kind][1] for t in text}
        pieces = [TOKENIZERS[kind]().convert_ids_to_tokens(t) for t in tokens]
        assert any("," in piece and any(c.isdigit() for c in piece) for piece in pieces)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_automaton_writes_the_boxes_and_nothing_else(kind):
    automaton, texts = written(kind)
    found = {}

    def walk(state, text, index):
        for chain, length, allowed, target, offset in zip(
            *(
                np.asarray(getattr(automaton, name))[state]
                for name in ("chain", "length", "allowed", "target", "offset")
            ),
            strict=True,
        ):
            if not allowed:
                continue
            if target == box_automaton.FINAL:
                found[index + offset] = (*text, chain[0])
            else:
                walk(target, (*text, *chain[:length]), index + offset)

    walk(automaton.initial, automaton.start, 0)
    assert sorted(found) == list(range(len(texts)))
    for index, text in found.items():  # up to the token that settles which box it is
        assert texts[index][: len(text)] == text
        assert sum(other[: len(text)] == text for other in texts) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_enough_beams_find_every_box_with_its_probability(kind):
    """And forced tokens cost no step: there are as many as the longest answer has choices after its first."""
    _, texts = written(kind)
    found, log_p, steps = find(kind, 100, 100)
    expected, _ = by_hand(kind)
    for r in range(2):
        assert sorted(found[r].tolist()) == list(range(100))
        np.testing.assert_allclose(log_p[r], expected[r][found[r]], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 0], expected.argmax(1))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-5)
    assert np.ptp(expected[0] - expected[1]) > 0.1  # the questions are two
    follow = choices(texts)
    assert steps == max(sum(len(follow[text[:i]]) > 1 for i in range(len(text))) for text in texts) - 1
    assert steps == 3 or kind != "words"


@pytest.mark.parametrize("kind", ["words", "bpe", "merging_bpe"])
def test_greedy_takes_the_likeliest_token_that_can_follow(kind):
    found, log_p, _ = find(kind)
    expected, greedy = by_hand(kind)
    assert [written(kind)[1][i] for i in found[:, 0]] == greedy
    np.testing.assert_allclose(log_p[:, 0], [e[i] for e, i in zip(expected, found[:, 0], strict=True)], atol=1e-5)


def test_beams_return_a_probability_of_their_box():
    found, log_p, _ = find("bpe", 4)
    expected, _ = by_hand("bpe")
    np.testing.assert_allclose(log_p[:, 0], [e[i] for e, i in zip(expected, found[:, 0], strict=True)], atol=1e-5)


def test_spread_search_is_exact_when_there_is_room_and_keeps_the_mass_when_not():
    found, log_p, _ = find("bpe", 100, 100, grid.resample)
    expected, _ = by_hand("bpe")
    np.testing.assert_allclose(np.exp(log_p), np.exp(np.take_along_axis(expected, found, 1)), atol=1e-5)
    assert [len(set(row)) for row in found.tolist()] == [100, 100]
    found, log_p, _ = find("bpe", 6, 24, grid.resample)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-3)


def test_text_decoding_takes_a_step_for_each_token():
    CALLS.clear()
    never = tuple(sorted(set(range(VOCAB)) - {token for text in written("words")[1] for token in text}))
    jax.block_until_ready(search.greedy(*asked(), Inserts(), 10, never))
    jax.effects_barrier()
    assert len(CALLS) == 10


def test_expected_iou_is_the_best_of_all_boxes():
    automaton, _ = written("words")
    boxes = np.asarray(automaton.boxes)
    rng = np.random.default_rng(0)
    found = np.stack([rng.choice(100, 20, replace=False) for _ in range(24)])
    log_p = np.log(rng.dirichlet(np.full(20, 5.0), 24)).astype(np.float32) - 1.0
    log_p[:, -5:] = grid.NEGATIVE
    best, value = grid.best_expected(automaton.spans, automaton.boxes[found], jnp.asarray(log_p))
    weights = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)
    expected = np.stack([iou(boxes[:, None], boxes[f]) @ w for f, w in zip(found, weights, strict=True)])
    np.testing.assert_allclose(value, expected.max(1), rtol=1e-5)
    np.testing.assert_array_equal(best, boxes[expected.argmax(1)])
    assert any(i not in f for i, f in zip(expected.argmax(1), found, strict=True))  # not only those that were found


def test_spread_stands_for_everything():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(400, 0.2), 5)
    values = np.sort(rng.standard_normal((5, 400)), 1)  # neighbours are alike, as boxes are
    log_w, pick = grid.resample(jnp.log(jnp.asarray(weights, jnp.float32) + 1e-30), 40)
    kept = np.exp(log_w)
    np.testing.assert_allclose(kept.sum(1), 1, rtol=1e-4)
    assert all(len(set(p)) == 40 for p in np.asarray(pick).tolist())
    originals = np.take_along_axis(weights, np.asarray(pick), 1)
    np.testing.assert_array_less(originals * (1 - 1e-4), kept)
    for w, k, o in zip(weights, kept, originals, strict=True):
        whole = w[w > k.min() * (1 + 1e-4)]  # above the limit: all there, as they were
        np.testing.assert_allclose(np.sort(o[o > k.min() * (1 + 1e-4)]), np.sort(whole), rtol=1e-5)
    near = (kept * np.take_along_axis(values, np.asarray(pick), 1)).sum(1) - (weights * values).sum(1)
    top = np.argsort(-weights, 1)[:, :40]
    cut = np.take_along_axis(weights, top, 1)
    far = (cut * np.take_along_axis(values, top, 1)).sum(1) / cut.sum(1) - (weights * values).sum(1)
    assert np.abs(near).mean() < 0.02 < np.abs(far).mean()


def test_steps_of_different_lengths_are_the_whole_forward_pass():
    model, params, vision, ids, mask = asked()
    logits, cache = tiny.run(model, "prefill")(params, vision, ids, mask, steps=8, start=(7, 8), ragged=True)
    rows = [[*ids[0].tolist(), 7, 8], [*ids[1].tolist(), 7, 8]]

    def whole():
        padded = jnp.array([[PAD] * (10 - len(row)) + row for row in rows])
        return tiny.run(model)(params, None, padded, padded != PAD, vision=vision)[:, -1]

    np.testing.assert_allclose(logits, whole(), atol=1e-5)
    for tokens, lengths in (([[9, 10, 11], [12, 0, 0]], [3, 1]), ([[13, 0, 0], [14, 15, 0]], [1, 2])):
        logits, cache = tiny.run(model, "step")(params, cache, jnp.array(tokens), jnp.array(lengths))
        rows = [row + new[:n] for row, new, n in zip(rows, tokens, lengths, strict=True)]
        np.testing.assert_allclose(logits, whole(), atol=1e-5)


@pytest.fixture(scope="module")
def random_vlm():
    """A VLM with random weights and the small model's way with words."""
    model, params, *_ = asked()
    codec = BoxCodec(160, 16)
    tokenizer = word_tokenizer.build(["cat", "dog", "owl"], codec)
    image, pad = tokenizer.convert_tokens_to_ids(["<image>", "<pad>"])
    model = Flamingo(dataclasses.replace(model.config, image_token=image, pad_token=pad))
    return VLM(model, params, tokenizer, codec, (0, 0, 0), (1, 1, 1), "")


@pytest.mark.parametrize("decoder", grid.DECODERS)
def test_every_answer_parses(random_vlm, decoder):
    options = pin_flamingo.get_config("tiny").eval
    options.update({"decoder": decoder, "batch_size": 4})
    vision = np.random.default_rng(0).standard_normal((2, 4, 16)).astype(np.float32)
    where = [(i, name) for i in range(2) for name in ("cat", "dog", "owl")]
    answers = evaluate.locate(random_vlm, vision, where, Inserts(), options, "asking")
    assert len(answers) == 6
    for answer in answers:
        box, parsed = random_vlm.codec.decode(answer.text)
        assert parsed and answer.parsed and 0 < answer.score <= 1
        np.testing.assert_array_equal(box, answer.box)


def test_grid_of_the_small_model(random_vlm):
    automaton = box_automaton.build(random_vlm.tokenizer, random_vlm.codec, Frame().suffix)
    assert automaton.chain.shape == (272, 16, 2) and not automaton.ragged and automaton.room == 6
    assert len(automaton.boxes) == 18496


def test_refusals(random_vlm):
    config = pin_flamingo.get_config("tiny").eval
    config.decoder = "grid"
    with pytest.raises(UserError, match="config.eval.decoder 'grid'.*expected_iou"):
        evaluate.locate(random_vlm, np.zeros((1, 1, 1)), [(0, "cat")], Inserts(), config, "asking")
    with pytest.raises(UserError, match="different boxes become the same tokens"):
        box_automaton.build(word_tokenizer.build(["cat"], BoxCodec(64, 2)), CODEC, Frame().suffix)
    with pytest.raises(UserError, match="one cell"):
        box_automaton.build(random_vlm.tokenizer, dataclasses.replace(random_vlm.codec, grid=1), Frame().suffix)
