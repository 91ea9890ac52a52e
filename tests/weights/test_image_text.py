"""CLIP, SigLIP and BLIP against transformers, read from whole folders; published sizes; real CLIP token ids."""

from __future__ import annotations

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors
from transformers import CLIPTokenizerFast

from gem_jax import GEM, pretrained
from gem_jax.attention import ATTENTION_METHODS, WITH_PROXY, method
from input_pipeline.errors import UserError
from pin_jax.models.blip import BLIP
from pin_jax.models.clip import BACKBONES, CLIP, CLIPConfig, TextConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.weights.configs.image_text import hugging_face
from pin_jax.weights.published import IMAGE_TEXT
from tests.fixtures import gem_models, published
from tests.fixtures.golden_files import GOLDEN, split_weights

NAMES = ("model_clip_quick_gelu", "model_clip_gelu", "model_siglip", "model_blip")


def write(folder: pathlib.Path, weights: dict[str, np.ndarray], config: str) -> pathlib.Path:
    """A folder in Hugging Face's layout, with a tokenizer of its kind; the word embedding gets a row for each token."""
    meta, tensors = json.loads(str(config)), {k: np.array(v, order="C") for k, v in weights.items()}
    kind, text = meta["model_type"], meta["text_config"]
    tokens = {"clip": published.clip, "siglip": published.siglip, "blip": published.blip}[kind](folder)
    published.image_processor(folder, kind, meta["vision_config"]["image_size"])
    for key, value in tensors.items():
        if key.endswith(("token_embedding.weight", "word_embeddings.weight")):
            tensors[key] = np.pad(value, [(0, max(0, tokens - len(value))), (0, 0)])
            text["vocab_size"] = len(tensors[key])
            if kind == "clip":  # the end token, at which the text is pooled, is the last one
                tensors[key][tokens - 1] = value[text["eos_token_id"]]
                text["eos_token_id"] = tokens - 1
    (folder / "config.json").write_text(json.dumps(meta))
    safetensors.save_file(tensors, folder / "model.safetensors")
    return folder


def compare(folder: pathlib.Path, weights: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    """Reads the folder and compares embeddings and tokens."""
    model = pretrained.load(write(folder, weights, arrays["config"]))

    def run(method: str, *args) -> np.ndarray:
        return np.asarray(model.module.apply({"params": model.params}, *args, method=method))

    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 2, 3, 1))
    tokens = run(lambda m, x: m.vision(x).tokens, pixels)
    np.testing.assert_allclose(tokens, arrays["out/tokens"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run("image", pixels), arrays["out/image"], rtol=1e-5, atol=1e-5)
    ids = arrays["in/ids"]
    if isinstance(model.module, CLIP) and model.config.text.pool == "eos":
        ids = np.where(
            ids == json.loads(str(arrays["config"]))["text_config"]["eos_token_id"], model.config.text.eos, ids
        )
    np.testing.assert_allclose(run("text", ids), arrays["out/text"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_golden(golden, name, tmp_path):
    compare(tmp_path / "m", *golden(name))


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_live_torch(name, tmp_path):
    from tests.fixtures.golden.make_image_text import reference

    compare(tmp_path / "m", *split_weights(reference(name, seed=7)))


@pytest.mark.parametrize("name", ["model_siglip", "model_blip"])
def test_gem_runs_on_it(golden, name, tmp_path):
    weights, arrays = golden(name)
    gem = GEM.from_pretrained(write(tmp_path / "m", weights, arrays["config"]), depth=3, size=(28, 14))
    heat = np.asarray(gem([np.zeros((9, 7, 3), np.uint8), _photo()], ["cat", "photo"]))
    assert heat.shape == (2, 2, 28, 14) and np.isfinite(heat).all() and heat[1].max() == 1


def test_siglip_2_is_read_as_it_was_trained(golden, tmp_path):
    """Gemma's tokenizer: lower case, `<eos>` (1) behind, filled with `<pad>` (0), though the config's default is 1."""
    weights, arrays = golden("model_siglip")
    folder = write(tmp_path / "m", weights, arrays["config"])
    (folder / "spiece.model").unlink()
    tokens = published.siglip2(folder)
    meta = json.loads((folder / "config.json").read_text())
    tensors = safetensors.load_file(folder / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = np.pad(tensors[name], [(0, tokens - len(tensors[name])), (0, 0)])
    safetensors.save_file(tensors, folder / "model.safetensors")
    meta["text_config"]["vocab_size"] = tokens
    del meta["text_config"]["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(meta))
    # As transformers 5 saves the processor, with a null in it: the kind's own default.
    (folder / "preprocessor_config.json").unlink()
    published.image_processor(folder, "siglip", 28, nested=True)
    held = json.loads((folder / "processor_config.json").read_text())
    held["image_processor"] |= {"image_mean": None, "image_std": [0.25, 0.5, 0.5]}
    (folder / "processor_config.json").write_text(json.dumps(held))
    model = pretrained.load(folder)
    low, high = model.tokenize(["a cat", "A Cat"])
    assert low.tolist() == high.tolist() and len(low) == meta["text_config"]["max_position_embeddings"]
    end = low.tolist().index(1)
    assert 0 < end and set(low[end + 1 :]) == {0} and low[0] == model.tokenizer.get_vocab()["a"]
    assert (model.mean, model.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(
        UserError, match="tokenizer_class in tokenizer_config.json makes it a 'T5Tokenizer'|cannot be read"
    ):
        pretrained.load(folder)


def test_timms_config_beside_open_clips_is_not_looked_at(data, tmp_path):
    folder = _open_clip(tmp_path / "m", data, True)
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_clip_224", "num_classes": 512}))
    assert pretrained.load(folder).config.vision.act == "quick_gelu"


def _photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_siglip_tokens_pool_to_the_single_token_case(golden, tmp_path):
    """With one patch, attention pooling has nothing to choose: every token's own projection is the pooled one."""
    weights, arrays = golden("model_siglip")
    model = pretrained.load(write(tmp_path / "m", weights, arrays["config"]))
    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 2, 3, 1))[:, :7, :7]
    stream = method("clip", model.config.vision, 2)
    apply = model.module.apply
    pooled = apply({"params": model.params}, pixels, method="image")
    tokens = apply({"params": model.params}, pixels, stream, method="image_tokens").second
    np.testing.assert_allclose(tokens[:, 0], pooled, rtol=1e-5, atol=1e-5)


def test_every_weight_that_is_wrong_is_listed(golden, tmp_path):
    weights, arrays = golden("model_clip_gelu")
    weights = dict(weights)
    del weights["text_projection.weight"], weights["vision_model.encoder.layers.1.mlp.fc1.bias"]
    weights["stray.weight"] = weights["another.bias"] = np.zeros(3, np.float32)
    folder = write(tmp_path / "m", weights, arrays["config"])
    with pytest.raises(UserError) as caught:
        pretrained.load(folder)
    for word in ("stray.weight", "another.bias", "text_projection/kernel", "vision/blocks/fc1/bias (layers 1)"):
        assert word in str(caught.value)


def test_real_clip_token_ids():
    data = gem_models.arrays()
    texts = json.loads(str(data["tok/texts"]))
    tokenizer = CLIPTokenizerFast.from_pretrained(GOLDEN / "clip_bpe")
    clip = CLIP(CLIPConfig(ViTConfig(), TextConfig()))
    ids = pretrained.ImageText(clip, None, tokenizer).tokenize(texts)
    assert ids.shape == (5, 16)
    np.testing.assert_array_equal(ids, data["tok/ids"][:, :16])


def test_long_texts_keep_the_whole_context_and_the_end():
    clip = CLIP(CLIPConfig(ViTConfig(), TextConfig()))
    model = pretrained.ImageText(clip, None, CLIPTokenizerFast.from_pretrained(GOLDEN / "clip_bpe"))
    ids = model.tokenize(["a photo of " * 40, "a"])
    assert ids.shape == (2, 77) and ids[0, -1] == 49407 and (ids[1, 3:] == 0).all()


# --- open_clip's layout, and whose weights need which activation ------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return gem_models.arrays()


def _open_clip(folder: pathlib.Path, data, quick_gelu: bool) -> pathlib.Path:
    return gem_models.write_open_clip(folder, data, quick_gelu)


@pytest.mark.parametrize(
    ("name", "says_quick", "needs"),
    [
        ("plain", True, "quick_gelu"),
        ("plain", False, "gelu"),
        ("ViT-B-16-openai", False, "quick_gelu"),
        ("metaclip_400m", False, "quick_gelu"),
        ("CLIP-ViT-B-16-laion2B", True, "gelu"),
    ],
)
def test_open_clip_folder_and_activation(data, tmp_path, name, says_quick, needs, capsys):
    gem = GEM.from_pretrained(_open_clip(tmp_path / name, data, says_quick), size=64)
    config = gem.model.config
    assert config.vision.act == config.text.act == needs
    if (name, needs) == ("plain", "quick_gelu"):
        text = gem.text_features(data["text/ids"])
        np.testing.assert_allclose(text, data["quickgelu/f32/default/text_emb"], rtol=1e-5, atol=1e-5)


def test_activation_can_be_said(data, tmp_path):
    folder = _open_clip(tmp_path / "openai", data, True)
    assert pretrained.load(folder, activation="gelu").config.vision.act == "gelu"
    with pytest.raises(UserError, match="activation 'relu6': expected one of gelu, gelu_tanh, quick_gelu"):
        pretrained.load(folder, activation="relu6")


def test_bfloat16(data, tmp_path):
    folder = _open_clip(tmp_path / "m", data, True)
    gem = GEM.from_pretrained(folder, dtype="bfloat16", size=64)
    assert gem.model.params["vision"]["blocks"]["qkv"]["kernel"].dtype == jnp.bfloat16
    pixels = jnp.asarray(data["image/sq64"].transpose(0, 2, 3, 1))
    tokens = np.asarray(gem.image_tokens(pixels)[0], np.float32)
    expected = data["quickgelu/f32/default/sq64/feat_gem"]
    cosine = (tokens * expected).sum(-1) / np.linalg.norm(tokens, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.mean() > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "open_clip_model.safetensors").unlink(), "neither open_clip_model.safetensors nor"),
        (
            lambda f: (f / "vocab.json").unlink(),
            "no vocabulary in it; it must hold tokenizer.json, or vocab.json with merges.txt",
        ),
        (lambda f: (f / "open_clip_config.json").write_text("{"), "not readable as JSON"),
        (
            lambda f: (f / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}}}'),
            "vision_cfg: lacks 'image_size'",
        ),
        (lambda f: (f / "open_clip_config.json").unlink(), r"config\.json: no such file"),
        (lambda f: (f / "open_clip_model.safetensors").write_bytes(b"no"), "not an intact safetensors file"),
    ],
)
def test_broken_folders_are_one_line(data, tmp_path, change, message):
    folder = _open_clip(tmp_path / "m", data, True)
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        pretrained.load(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        pretrained.load("no such thing")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type 'bert'; expected one of clip, siglip, blip"):
        pretrained.load(tmp_path)


# --- published sizes --------------------------------------------------------------------------------------------------

# As transformers counts models of these sizes, logit_scale included; open_clip publishes the same in millions.
PUBLISHED = {name: IMAGE_TEXT[name].parameters for name in BACKBONES}


def count(module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(pretrained.skeleton(module)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    config = BACKBONES[name]
    assert count(CLIP(config)) == PUBLISHED[name]
    size = config.vision.image_size
    pixels, ids = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((3, 77), jnp.int32)
    params = {"params": pretrained.skeleton(CLIP(config))}
    for name in ATTENTION_METHODS.keys() - set(WITH_PROXY):  # whose places are those of another encoder
        stream = method(name, config.vision)

        def tokens(params, pixels, stream=stream):
            return CLIP(config).apply(params, pixels, stream, method="image_tokens")

        for out in jax.tree.leaves(jax.eval_shape(tokens, params, pixels)):
            assert out.shape == (2, config.vision.tokens, config.embed)
    text = jax.eval_shape(lambda p, i: CLIP(config).apply(p, i, method="text"), params, ids)
    assert text.shape == (3, config.embed)


def test_published_size_of_siglip_and_blip():
    siglip = hugging_face({"text_config": {}, "vision_config": {}}, "siglip")
    assert count(CLIP(siglip)) == IMAGE_TEXT["SigLIP-B/16"].parameters
    blip = hugging_face({"text_config": {"num_attention_heads": 12}, "vision_config": {}}, "blip")
    # Salesforce/blip-itm-base as transformers counts it, less the matching head and its cross-attention.
    assert count(BLIP(blip)) == IMAGE_TEXT["BLIP-B/16"].parameters
