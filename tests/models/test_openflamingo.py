"""The published OpenFlamingo models: shapes and parameter counts at full size, their configs, and a tiny one of each.

Transformers' MPT, GPT-NeoX and CLIP are counted on torch's meta device (marker `torch`). MPT-1B, the Perceiver and the
gated layers are in no library: their counts are worked out below. The 3B's trained part (Perceiver, gated layers, word
embedding) has the 1,046,992,944 parameters that users of the published model report.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pin_flamingo
from pin_jax.methods.pin import Pin
from pin_jax.models.flamingo import Flamingo
from pin_jax.weights.openflamingo.shapes import SHAPES
from pin_jax.weights.openflamingo.shapes import tiny as tiny_of
from pin_jax.weights.published import OPENFLAMINGO
from tests.fixtures import tiny

ROWS, VISION = 50280, 1024
CLIP = 303_179_776 - 2 * VISION  # transformers' count (test_vit) without the last norm
# name -> (parameters of the language model, gated layers, width, all, trained by OpenFlamingo)
SIZES = {
    "3b": (1_311_131_648, 24, 2048, 2_558_328_880, 1_046_992_944),
    "4b": (2_775_086_080, 16, 2560, 4_039_027_744, 1_089_480_736),
    "9b": (6_648_664_064, 8, 4096, 8_130_676_752, 1_384_781_840),
}


def perceiver(width=VISION, latents=64, depth=6, inner=8 * 64):
    """Latents and last norm; then, a layer, two norms, q, kv, out, and a feed-forward network with its norm."""
    layer = 2 * 2 * width + width * inner + width * 2 * inner + inner * width + 2 * width + 2 * 4 * width**2
    return latents * width + 2 * width + depth * layer


def gated(width, inner=8 * 64):
    """Two gates; norm, q, kv (of the vision tokens), out; a feed-forward network with its norm."""
    attention = 2 * width + width * inner + VISION * 2 * inner + inner * width
    return 2 + attention + 2 * width + 2 * 4 * width**2


def mpt_1b(width=2048, depth=24):
    """Embedding and last norm (no biases); a layer has 12 width^2, two norms, and a norm on q and on k."""
    return ROWS * width + width + depth * (12 * width**2 + 4 * width)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SHAPES)
def test_full_size(name):
    config = SHAPES[name]
    language, gates, width, everything, trained = SIZES[name]
    pixels, ids = jax.ShapeDtypeStruct((1, 1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = tiny.skeleton(Flamingo(config), pixels, ids)
    lm = shapes["lm"]
    own_gates = lm.pop("gates")
    assert count(shapes["vision"]) == CLIP
    assert count(shapes["perceiver"]) == perceiver()
    assert count(own_gates) == gates * gated(width) and own_gates["attn_gate"].shape == (gates,)
    assert count(lm) == language
    assert count((shapes, own_gates)) == everything
    assert {m.parameters for key, m in OPENFLAMINGO.items() if key.startswith(name)} == {everything}
    assert count((shapes["perceiver"], own_gates)) + ROWS * width == trained
    assert lm["embedding"].shape == (ROWS, width)
    if name == "3b":
        assert language == mpt_1b()
    # The insert's place: 256 tokens of 1024.
    assert (config.media_tokens, config.vision.width, config.vision.act) == (256, 1024, "quick_gelu")
    method = Pin(config)
    assert count(jax.eval_shape(method.init, jax.random.key(0))) == 1_217_280
    out = jax.eval_shape(
        lambda p, x, i: Flamingo(config).apply({"params": p}, x, i),
        {**shapes, "lm": {**lm, "gates": own_gates}}, pixels, ids,
    )  # fmt: skip
    assert out.shape == (1, 4, ROWS)


@pytest.mark.torch
def test_counts_on_the_meta_device():
    import torch
    import transformers

    def size(model):
        return sum(parameter.numel() for parameter in model.parameters())  # a tied head counts once

    with torch.device("meta"):
        neox = transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                vocab_size=ROWS, hidden_size=2560, num_hidden_layers=32, num_attention_heads=32,
                intermediate_size=10240, rotary_pct=1.0, use_parallel_residual=False,
            )
        )  # fmt: skip
        mpt = transformers.MptForCausalLM(
            transformers.MptConfig(vocab_size=ROWS, d_model=4096, n_heads=32, n_layers=32, max_seq_len=2048)
        )
        clip = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
            )
        )
    assert size(neox) == SIZES["4b"][0]
    assert size(mpt) == SIZES["9b"][0]
    assert size(clip) - 2 * VISION == CLIP


@pytest.mark.parametrize("name", SHAPES)
def test_the_tiny_one_of_each_runs(name):
    config = tiny_of(SHAPES[name])
    model = Flamingo(config)
    assert type(config.lm) is type(SHAPES[name].lm) and config.cross_every == SHAPES[name].cross_every
    pixels = jax.random.normal(jax.random.key(0), (2, 2, 28, 28, 3))
    ids = jnp.array(
        [[config.pad_token, config.image_token, 5, config.image_token, 6], [3, 4, config.image_token, 5, 6]]
    )
    params = tiny.random_params(tiny.skeleton(model, pixels, ids))
    assert count(params) < 150_000
    logits = np.asarray(tiny.run(model)(params, pixels, ids, ids != config.pad_token))
    assert logits.shape == (2, 5, 64) and np.isfinite(logits).all()


def test_every_published_model_is_a_variant():
    assert {name.removesuffix("_instruct") for name in OPENFLAMINGO} == set(SHAPES)
    for name in OPENFLAMINGO:
        config = pin_flamingo.get_config(name)
        assert config.vlm.startswith(f"openflamingo/OpenFlamingo-{name[0].upper()}B")
        assert config.vlm.endswith("instruct") == name.endswith("instruct")
        assert config.steps * config.batch_size == 160 * 60_000  # as published
    tiny_config = pin_flamingo.get_config("tiny")
    assert tiny_config.language_model == tiny_config.vision == ""
