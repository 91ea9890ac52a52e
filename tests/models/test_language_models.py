"""MPT and GPT-NeoX against transformers, alone and inside a Flamingo: pads on the left, no image, two images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.language.gpt_neox import GPTNeoXConfig
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.weights.convert import convert
from pin_jax.weights.openflamingo.rules import openflamingo
from tests.fixtures import tiny
from tests.fixtures.golden_files import split_weights

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NEOX = GPTNeoXConfig(vocab=48, width=32, depth=4, heads=4, mlp=64)
FORMS = {
    "mpt": MPTConfig(vocab=48, width=24, depth=2, heads=6),
    "neox": NEOX,
    "neox_parallel": GPTNeoXConfig(vocab=48, width=32, depth=4, heads=4, mlp=64, rotary_share=0.25, parallel=True),
}


def prefill_and_steps(model, params, vision, ids, mask, after):
    """Logits of the last prompt token and of each token fed after it, through the cache: float[B, 1 + steps, V]."""
    logits, cache = tiny.run(model, "prefill")(params, vision, ids, mask, steps=after.shape[1])
    out = [logits]
    for token in after.T:
        logits, cache = tiny.run(model, "step")(params, cache, token)
        out.append(logits)
    return np.stack(out, 1)


def compare_language(name, weights, arrays):
    """Our language model in a Flamingo whose gates are shut (at zero) is the language model alone."""
    config = tiny.flamingo_config(lm=FORMS[name], cross_every=2)
    model, ids, mask = Flamingo(config), jnp.asarray(arrays["in/ids"], jnp.int32), jnp.asarray(arrays["in/mask"])
    pixels = jnp.zeros((3, 1, 28, 28, 3))
    params = jax.tree.map(lambda s: jnp.ones(s.shape), tiny.skeleton(model, pixels, ids))
    lm = params["lm"]
    lm["gates"] = jax.tree.map(jnp.zeros_like, lm["gates"])
    given = {f"lang_encoder.{key}": value for key, value in weights.items()}
    own = {key: value for key, value in lm.items() if key != "gates"}
    table = [rule for rule in openflamingo(2, config.lm) if rule.target is None or rule.target.startswith("lm/")]
    filled = convert(given, table, {"lm": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), own)})
    params["lm"] = {**filled["lm"], "gates": lm["gates"]}
    logits = np.asarray(tiny.run(model)(params, pixels, ids, mask))
    seen = arrays["in/mask"].astype(bool)
    np.testing.assert_allclose(logits[seen], arrays["out/logits"][seen], **TOLERANCE)
    vision = tiny.run(model, "encode")(params, pixels)
    cached = prefill_and_steps(model, params, vision, ids[:, :6], mask[:, :6], ids[:, 6:])
    np.testing.assert_allclose(cached, arrays["out/logits"][:, 5:], **TOLERANCE)


@pytest.mark.parametrize("name", FORMS)
def test_golden_language_model(golden, name):
    compare_language(name, *golden(name))


@pytest.mark.torch
@pytest.mark.parametrize("name", FORMS)
def test_live_torch_language_model(name):
    from tests.fixtures.golden.make_flamingo import language

    compare_language(name, *split_weights(language(name, seed=7)))


def flamingo_of(arrays) -> FlamingoConfig:
    """The config of the golden OpenFlamingo on GPT-NeoX."""
    meta = json.loads(str(arrays["meta"]))
    heads = {"heads": meta["heads"], "head_dim": meta["head_dim"]}
    return FlamingoConfig(
        vision=ViTConfig(image_size=28, patch=14, width=16, depth=2, heads=2, mlp=32, post_norm=False),
        lm=NEOX,
        perceiver=PerceiverConfig(width=16, latents=5, depth=2, **heads),
        cross_every=meta["cross_every"], cross_heads=meta["heads"], cross_head_dim=meta["head_dim"],
        image_token=meta["image"], end_token=meta["end"], pad_token=meta["pad"],
    )  # fmt: skip


def compare_flamingo(weights, arrays):
    """Vision tokens, media and logits, in one pass and through the cache."""
    config = flamingo_of(arrays)
    model, ids, mask = Flamingo(config), jnp.asarray(arrays["in/ids"], jnp.int32), jnp.asarray(arrays["in/mask"])
    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 1, 3, 4, 2))
    params = jax.device_put(
        convert(weights, openflamingo(config.cross_every, config.lm), tiny.skeleton(model, pixels, ids))
    )
    vision = tiny.run(model, "encode")(params, pixels)
    np.testing.assert_allclose(vision, arrays["out/vision"], **TOLERANCE)
    np.testing.assert_allclose(tiny.run(model, "fuse")(params, vision), arrays["out/media"], **TOLERANCE)
    seen = arrays["in/mask"].astype(bool)
    logits = np.asarray(tiny.run(model)(params, pixels, ids, mask))
    np.testing.assert_allclose(logits[seen], arrays["out/logits"][seen], **TOLERANCE)
    cached = prefill_and_steps(model, params, vision, ids[:, :7], mask[:, :7], ids[:, 7:])
    np.testing.assert_allclose(cached, arrays["out/logits"][:, 6:], **TOLERANCE)


def test_golden_flamingo_on_gpt_neox(golden):
    weights, arrays = golden("flamingo_neox")
    ids = arrays["in/ids"]
    image = json.loads(str(arrays["meta"]))["image"]
    # What the file is for: an image late in the text, two images, pads on the left, and a row without any image.
    assert ((ids == image).sum(1) == [2, 2, 0]).all() and (arrays["in/mask"].min(1) == [1, 0, 0]).all()
    assert ids[0, 0] != image
    compare_flamingo(weights, arrays)


@pytest.mark.torch
def test_live_torch_flamingo_on_gpt_neox():
    from tests.fixtures.golden.make_flamingo import flamingo_neox

    compare_flamingo(*split_weights(flamingo_neox(seed=7)))


@pytest.mark.torch
def test_the_torch_reference_computes_what_openflamingo_did(golden):
    import torch
    import transformers

    from tests.fixtures.golden import make_flamingo

    weights, arrays = golden("flamingo_tiny")
    meta = json.loads(str(arrays["meta"]))
    sd = {key: torch.from_numpy(value) for key, value in weights.items()}
    lm, vision = meta["lm"], meta["vision"]
    language = transformers.MptForCausalLM(
        transformers.MptConfig(
            vocab_size=lm["vocab"], d_model=lm["d_model"], n_heads=lm["n_heads"], n_layers=lm["n_layers"]
        )
    ).eval()
    names = {key: f"lang_encoder.{key}" for key in language.state_dict()}
    names |= {k: v.replace(".norm_", ".decoder_layer.norm_").replace(".attn.", ".decoder_layer.attn.")
              .replace(".ffn.", ".decoder_layer.ffn.") for k, v in names.items() if ".blocks." in k}  # fmt: skip
    language.load_state_dict({key: sd[name] for key, name in names.items()})
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=vision["width"], intermediate_size=vision["mlp"], num_hidden_layers=vision["layers"],
            num_attention_heads=vision["heads"], image_size=vision["image"], patch_size=vision["patch"],
            hidden_act=vision["act"],
        )
    ).eval()  # fmt: skip
    prefix = "vision_encoder.m."
    ours = {key.removeprefix("vision_model."): key for key in tower.state_dict()}
    tower.load_state_dict({full: sd[prefix + key] for key, full in ours.items()})
    with torch.no_grad():
        _, media, logits = make_flamingo.run(
            sd, tower, language, language.transformer.blocks, "lang_encoder.gated_cross_attn_layers.",
            meta["cross_attn_every_n_layers"], torch.from_numpy(arrays["in/vision_x"])[:, :, 0],
            torch.from_numpy(arrays["in/input_ids"]), None, meta["image_token"],
        )  # fmt: skip
    np.testing.assert_allclose(media, arrays["out/perceiver"], **TOLERANCE)
    np.testing.assert_allclose(logits, arrays["out/logits"], **TOLERANCE)
