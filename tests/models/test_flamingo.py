"""The Flamingo against the OpenFlamingo reference, and its ways of running against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from pin_jax.models.flamingo import Flamingo, GatedCrossAttention
from pin_jax.models.interface import Inserts, Media
from pin_jax.models.language.mpt import MPTBlock
from pin_jax.models.perceiver import Perceiver
from pin_jax.weights.convert import convert
from pin_jax.weights.openflamingo.rules import openflamingo
from tests.fixtures import tiny
from tests.fixtures.tiny import run

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference(golden):
    """(model, params, arrays) of the golden OpenFlamingo."""
    weights, arrays = golden("flamingo_tiny")
    config = tiny.fixture_config(arrays["meta"])
    model = Flamingo(config)
    arrays["in/pixels"] = jnp.asarray(rearrange(arrays["in/vision_x"], "b i 1 c h w -> b i h w c"))
    shapes = tiny.skeleton(model, arrays["in/pixels"], jnp.asarray(arrays["in/input_ids"]))
    params = convert(weights, openflamingo(config.cross_every), shapes)
    return model, jax.device_put(params), arrays


def test_golden_vision_and_perceiver(reference):
    model, params, arrays = reference
    vision = run(model, "encode")(params, arrays["in/pixels"])
    np.testing.assert_allclose(vision, arrays["out/vision_tokens"][:, :, 0], **TOLERANCE)
    media = run(model, "fuse")(params, vision)
    np.testing.assert_allclose(media, arrays["out/perceiver"], **TOLERANCE)


def test_golden_logits_and_loss(reference):
    model, params, arrays = reference
    ids, config = jnp.asarray(arrays["in/input_ids"]), model.config
    logits = run(model)(params, arrays["in/pixels"], ids)
    np.testing.assert_allclose(logits, arrays["out/logits"], **TOLERANCE)
    labels = np.where(np.isin(ids, (config.image_token, config.pad_token)), -100, ids)
    np.testing.assert_array_equal(labels, arrays["in/labels"])
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, :-1], np.asarray(ids)[:, 1:, None], 2)[..., 0]
    loss = -log_p[labels[:, 1:] != -100].mean()
    np.testing.assert_allclose(loss, arrays["out/loss"], rtol=1e-5)


def test_golden_greedy_with_and_without_cache(reference):
    model, params, arrays = reference
    expected = arrays["out/greedy_suppressing_image_and_endofchunk"]
    ids, steps = np.asarray(arrays["in/input_ids"]), expected.shape[1]
    banned = jnp.array([model.config.image_token, model.config.end_token])

    def best(logits):
        return np.asarray(logits.at[:, banned].set(-jnp.inf).argmax(-1))

    vision = run(model, "encode")(params, arrays["in/pixels"])
    full = np.pad(ids, [(0, 0), (0, steps)], constant_values=model.config.pad_token)  # one shape, one compilation
    uncached = []
    for i in range(ids.shape[1], full.shape[1]):
        uncached.append(run(model)(params, None, jnp.asarray(full), vision=vision)[:, i - 1])
        full[:, i] = best(uncached[-1])
    np.testing.assert_array_equal(full[:, ids.shape[1] :], expected)

    logits, cache = run(model, "prefill")(params, vision, jnp.asarray(ids), jnp.ones_like(ids), steps=steps)
    for i in range(steps):
        np.testing.assert_allclose(logits, uncached[i], **TOLERANCE)
        np.testing.assert_array_equal(best(logits), expected[:, i])
        logits, cache = run(model, "step")(params, cache, jnp.asarray(expected[:, i]))


def random_inputs(rows: int, length: int, images: int = 1, seed: int = 0):
    """Pixels float[2, I, 28, 28, 3] for a batch of two, and ids int[R, T] that start with `<image>`."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, tiny.IMAGE, (rows, length))
    ids[:, 0] = tiny.IMAGE
    return jnp.asarray(rng.standard_normal((2, images, 28, 28, 3)), jnp.float32), ids


def test_cache_with_left_padding_equals_unpadded_uncached_rows():
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(2, 9)
    prompts, steps = (6, 4), 3
    vision = run(model, "encode")(params, pixels)
    padded = np.full((2, 6), tiny.PAD)
    for row, n in enumerate(prompts):
        padded[row, 6 - n :] = ids[row, :n]
    mask = jnp.asarray(padded != tiny.PAD)
    logits, cache = run(model, "prefill")(params, vision, jnp.asarray(padded), mask, steps=steps)
    cached = [logits]
    for i in range(steps):
        tokens = jnp.asarray([ids[row, n + i] for row, n in enumerate(prompts)])
        logits, cache = run(model, "step")(params, cache, tokens)
        cached.append(logits)
    uncached = run(model)(params, pixels, jnp.asarray(ids))
    for row, n in enumerate(prompts):
        np.testing.assert_allclose(np.stack(cached)[:, row], uncached[row, n - 1 : n + steps], **TOLERANCE)


def test_cache_keeps_the_last_image_of_each_row_and_goes_on_as_without_it():
    """A row of two images, one that has come to its first image only, and one that has seen none."""
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(3, 9, images=2)
    pixels = jnp.concatenate([pixels, pixels[:1] + 1])
    ids[0, 4] = tiny.IMAGE
    ids[2, 0] = 7
    mask = jnp.ones((3, 6), bool)
    vision = run(model, "encode")(params, pixels)
    logits, cache = run(model, "prefill")(params, vision, jnp.asarray(ids[:, :6]), mask, steps=3)
    cached = [logits]
    for i in range(6, 9):
        logits, cache = run(model, "step")(params, cache, jnp.asarray(ids[:, i]))
        cached.append(logits)
    uncached = run(model)(params, pixels, jnp.asarray(ids))
    np.testing.assert_allclose(np.stack(cached, 1), uncached[:, 5:], **TOLERANCE)
    assert cache.media[0].shape[2] == model.config.perceiver.latents


def test_beams_go_on_from_one_prompt_and_change_places():
    """Two beams of each of four prompts against whole texts; the prompts' keys are neither copied nor moved."""
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(4, 6)  # two rows an image
    ids[1, 0] = ids[2, 0] = tiny.PAD
    ids[1, 1] = ids[2, 1] = tiny.IMAGE
    ids[3, 0] = 7  # sees no image, and goes on so
    mask = jnp.asarray(ids != tiny.PAD)
    vision = run(model, "encode")(params, pixels)
    _, cache = run(model, "prefill")(params, vision, jnp.asarray(ids), mask, steps=3)
    beams = cache.reorder(jnp.repeat(jnp.arange(4), 2))
    first, second = np.arange(1, 9), np.arange(11, 19)
    _, beams = run(model, "step")(params, beams, jnp.asarray(first))
    parents = np.array([1, 0, 2, 2, 5, 4, 7, 7])
    moved = beams.reorder(jnp.asarray(parents))
    for keys in (*moved.prompt, *moved.media):
        assert any(keys is old for old in (*beams.prompt, *beams.media))
    logits, _ = run(model, "step")(params, moved, jnp.asarray(second))
    texts = np.concatenate([np.repeat(ids, 2, 0), first[parents, None], second[:, None]], 1)
    whole = run(model)(params, pixels, jnp.asarray(texts), jnp.asarray(texts != tiny.PAD))
    np.testing.assert_allclose(logits, whole[:, -1], **TOLERANCE)


def test_left_padding_changes_nothing_without_the_cache():
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(2, 9)
    padded = np.concatenate([np.full((2, 4), tiny.PAD), ids[:, :5]], 1)
    out = run(model)(params, pixels, jnp.asarray(padded), jnp.asarray(padded != tiny.PAD))
    np.testing.assert_allclose(out[:, 4:], run(model)(params, pixels, jnp.asarray(ids))[:, :5], **TOLERANCE)


def test_rows_that_are_a_multiple_of_the_images_equal_asking_one_by_one():
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(6, 5)
    together = run(model)(params, pixels, jnp.asarray(ids))
    for row in range(6):
        image = row // 3
        alone = run(model)(params, pixels[image : image + 1], jnp.asarray(ids[row : row + 1]))
        np.testing.assert_allclose(together[row], alone[0], **TOLERANCE)


def test_text_attends_only_to_the_most_recent_image():
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(2, 8, images=2)
    ids[:, 0] = 5
    ids[:, 2] = ids[:, 5] = tiny.IMAGE
    logits, first, second = (
        np.asarray(run(model)(params, p, jnp.asarray(ids)))
        for p in (pixels, pixels.at[:, 0].multiply(-1), pixels.at[:, 1].multiply(-1))
    )
    np.testing.assert_array_equal(logits[:, :2], first[:, :2])  # before any image: nothing to see
    assert np.abs(logits - first)[:, 2:5].max(-1).min() > 1e-4
    np.testing.assert_array_equal(logits[:, :5], second[:, :5])
    assert np.abs(logits - second)[:, 5:].max(-1).min() > 1e-4
    # Later text knows the first image through earlier text only: its own cross-attention is to the last one alone.
    media = jnp.zeros((2, 2, 3, 16))

    def seen(m):
        index = m.read(media, jnp.asarray(ids))[1].index
        return m.lm.media_keys(Media(media, jnp.pad(index, [(0, 0), (1, 0)])))[1]

    visible = model.apply({"params": params}, method=seen)
    expected = np.zeros((9, 6), bool)  # one learned embedding in front, three latents an image
    expected[3:6, :3] = expected[6:, 3:] = True
    np.testing.assert_array_equal(visible, np.stack([expected] * 2))


def test_text_that_sees_no_image_gets_zero_attention_but_its_feed_forward():
    layer = GatedCrossAttention(tiny.flamingo_config())
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    media, hidden = jax.random.normal(jax.random.key(1), (1, 4, 16)), jnp.zeros((2, 3, 4), bool)
    p = tiny.random_params(tiny.skeleton(layer, x, media, hidden))
    out = run(layer)(p, x, media, hidden)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normed = normed * p["norm_mlp"]["scale"] + p["norm_mlp"]["bias"]
    y = jax.nn.gelu(normed @ p["fc1"]["kernel"], approximate=False) @ p["fc2"]["kernel"]
    np.testing.assert_allclose(out, x + jnp.tanh(p["mlp_gate"]) * y, **TOLERANCE)


@pytest.mark.parametrize(("depth", "every"), [(5, 2), (4, 4), (3, 1)])
def test_gated_layers_stand_before_every_nth_block(depth, every):
    model, params = tiny.flamingo(depth, every)
    config, lm = model.config, params["lm"]
    pixels, ids = random_inputs(2, 5)
    media = run(model, "fuse")(params, run(model, "encode")(params, pixels))[:, 0]
    visible = jnp.ones((2, 5, media.shape[1]), bool)
    bias = config.lm.bias(jnp.arange(5)[None], jnp.arange(5), jnp.ones((2, 5), bool))
    assert lm["gates"]["attn_gate"].shape == (depth // every,)
    x = lm["embedding"][jnp.asarray(ids)]
    one = tiny.flamingo_config(1)  # a layer does not depend on how many there are: compiled once for all cases
    for i in range(depth):
        if (i + 1) % every == 0:
            gate = jax.tree.map(lambda a, g=(i + 1) // every - 1: a[g], lm["gates"])
            x = run(GatedCrossAttention(one))(gate, x, media, visible)
        x, _ = run(MPTBlock(one.lm))(jax.tree.map(lambda a, i=i: a[i], lm["blocks"]), x, bias)
    x = np.asarray(x)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = expected * lm["norm"]["scale"] @ lm["embedding"].T
    np.testing.assert_allclose(run(model)(params, pixels, jnp.asarray(ids)), expected, **TOLERANCE)


def test_unroll_and_remat_change_nothing():
    model, params = tiny.flamingo(5, 2)
    pixels, ids = random_inputs(2, 5)
    other = Flamingo(dataclasses.replace(model.config, unroll=True, remat=True))
    out, same = (run(m)(params, pixels, jnp.asarray(ids)) for m in (model, other))
    np.testing.assert_allclose(out, same, **TOLERANCE)


def test_bfloat16_stays_close_to_float32():
    model, params = tiny.flamingo()
    config = model.config
    towers = {
        name: dataclasses.replace(getattr(config, name), dtype=jnp.bfloat16) for name in ("vision", "lm", "perceiver")
    }
    half = Flamingo(dataclasses.replace(config, **towers))
    half_params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    pixels, ids = random_inputs(2, 9)
    expected = run(model)(params, pixels, jnp.asarray(ids))
    vision = run(model, "encode")(params, pixels).astype(jnp.bfloat16)
    inputs = jnp.asarray(ids[:, :8]), jnp.ones((2, 8))
    logits, cache = run(half, "prefill")(half_params, vision, *inputs, steps=1)
    after, _ = run(half, "step")(half_params, cache, jnp.asarray(ids[:, 8]))
    for out, position in ((logits, 7), (after, 8)):
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected[:, position], atol=0.05 * np.abs(expected).max())


def test_insert_on_the_vision_tokens():
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(2, 9)
    vision = run(model, "encode")(params, pixels)
    assert vision.shape == (2, 1, model.config.media_tokens, 16)
    shift = jnp.asarray(np.random.default_rng(1).standard_normal((4, 16)), jnp.float32)
    inserted = run(model)(params, pixels, jnp.asarray(ids), inserts=Inserts(vision_output=shift))
    shifted = run(model)(params, None, jnp.asarray(ids), vision=vision + shift)
    np.testing.assert_allclose(inserted, shifted, **TOLERANCE)


def test_insert_in_front_of_the_text():
    model, params = tiny.flamingo()
    pixels, ids = random_inputs(2, 9)
    ids[:, 1:3], ids[:, 0] = tiny.IMAGE, 4
    ids[:, 1] = 3
    inserts = Inserts(text=params["lm"]["embedding"][jnp.asarray([4, 3])])
    inserted = run(model)(params, pixels, jnp.asarray(ids[:, 2:]), inserts=inserts)
    np.testing.assert_allclose(inserted, run(model)(params, pixels, jnp.asarray(ids))[:, 2:], **TOLERANCE)


def test_inserts_among_the_vision_tokens():
    model, params = tiny.flamingo()
    pixels, _ = random_inputs(2, 9)
    extra = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16)), jnp.float32)
    vision = run(model, "encode")(params, pixels)
    fused = run(model, "fuse")(params, vision, Inserts(fusion_input=extra))
    together = jnp.concatenate([vision[:, 0], jnp.broadcast_to(extra, (2, 2, 16))], 1)
    expected = run(Perceiver(model.config.perceiver))(params["perceiver"], together)
    np.testing.assert_allclose(fused[:, 0], expected, **TOLERANCE)
    assert run(model, "encode")(params, pixels, Inserts(vision_input=extra)).shape == (2, 1, 6, 16)
