"""OpenFlamingo from its pieces on disk: every layout gives the same model; what does not belong is one line."""

import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from input_pipeline.errors import UserError
from pin_jax.vlm import load_vlm
from pin_jax.weights.openflamingo import load as load_openflamingo
from pin_jax.weights.openflamingo.load import open_pieces
from tests.fixtures import tiny, torch_files

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
OLDER = "lang_encoder.gated_cross_attn_layers."


def write_tokenizer(folder, words):
    """A tokenizer of that many words; OpenFlamingo's three come on top."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def language_folder(folder, weights, meta, words):
    """A language model as published: config.json, its weights with its own vocabulary, a tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(meta))
    save_file(weights, folder / "model.safetensors")
    write_tokenizer(folder, words)


def grown(table):
    """An embedding as before OpenFlamingo cut it: a few rows that no token has."""
    return np.concatenate([table, np.full((8, table.shape[1]), np.nan, table.dtype)])


@pytest.fixture
def mpt(tmp_path, golden):
    """The golden OpenFlamingo on MPT in pieces: checkpoint weights (newer layout), folders, the golden arrays."""
    weights, arrays = golden("flamingo_tiny")
    meta = json.loads(str(arrays["meta"]))
    checkpoint = {k: v for k, v in weights.items() if k.startswith("perceiver.") or ".gated_cross_attn_layer." in k}
    checkpoint["lang_encoder.transformer.wte.weight"] = weights["lang_encoder.transformer.wte.weight"]
    language = {
        k.removeprefix("lang_encoder.").replace(".decoder_layer.", "."): v
        for k, v in weights.items()
        if k.startswith("lang_encoder.transformer") and "gated" not in k
    }
    language["transformer.wte.weight"] = grown(language["transformer.wte.weight"])
    lm = meta["lm"]
    described = {"model_type": "mpt", "vocab_size": 68, "d_model": lm["d_model"], "n_heads": lm["n_heads"],
                 "n_layers": lm["n_layers"], "expansion_ratio": 4, "no_bias": True,
                 "attn_config": {"alibi": True, "alibi_bias_max": 8, "qk_ln": False, "clip_qkv": None}}  # fmt: skip
    language_folder(tmp_path / "lm", language, described, meta["endofchunk_token"])
    tower = {k.removeprefix("vision_encoder.m."): v for k, v in weights.items() if k.startswith("vision_encoder.")}
    vision = meta["vision"]
    described = {"hidden_size": vision["width"], "intermediate_size": vision["mlp"], "image_size": vision["image"],
                 "num_hidden_layers": vision["layers"], "num_attention_heads": vision["heads"],
                 "patch_size": vision["patch"], "hidden_act": "quick_gelu"}  # fmt: skip
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": described}))
    whole = {f"vision_model.{key}": value for key, value in tower.items()}  # as published: with the text tower
    whole |= {
        "text_model.final_layer_norm.weight": np.ones(4),
        "logit_scale": np.ones(()),
        "visual_projection": np.ones(2),
    }
    save_file(whole, tmp_path / "clip" / "model.safetensors")
    return checkpoint, tmp_path / "lm", tmp_path / "clip", arrays, weights


def compare(vlm, arrays):
    """The logits of the golden file."""
    pixels = jnp.asarray(rearrange(arrays["in/vision_x"], "b i 1 c h w -> b i h w c"))
    logits = tiny.run(vlm.model)(vlm.params, pixels, jnp.asarray(arrays["in/input_ids"]))
    np.testing.assert_allclose(logits, arrays["out/logits"], **TOLERANCE)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def load(checkpoint, language_model, vision, **pieces):
    """The VLM, on a grid that divides the tiny image."""
    return load_vlm(checkpoint, grid=2, language_model=language_model, vision=vision, **pieces)[0]


def test_the_published_pieces_make_the_golden_model(mpt, tmp_path, monkeypatch):
    checkpoint, lm, clip, arrays, _ = mpt
    path = tmp_path / "checkpoint.pt"
    torch_files.write(path, torch_files.state_dict(checkpoint), monkeypatch)
    vlm = load(path, lm, clip)
    config, meta = vlm.model.config, json.loads(str(arrays["meta"]))
    assert config == tiny.fixture_config(arrays["meta"])
    assert config.cross_every == meta["cross_attn_every_n_layers"] and config.lm.vocab == 60
    assert (config.end_token, config.image_token, config.pad_token) == (57, 58, 59)
    compare(vlm, arrays)
    # What goes around the model.
    assert vlm.suppressed == (58, 59) and vlm.codec.image_size == 28 and vlm.codec.grid == 2
    ids, mask = vlm.tokenize(["<image> w5 w6 <|endofchunk|>", "w7"])
    assert ids.tolist() == [[58, 5, 6, 57], [59, 59, 59, 7]] and mask.sum() == 5
    assert vlm.mean == load_openflamingo.CLIP_MEAN
    # Every other way in which the same checkpoint is found on disk.
    variants = {
        "module": {f"module.{key}": value for key, value in checkpoint.items()},
        "older": {
            key.replace("transformer.blocks.", "gated_cross_attn_layers.").replace(
                ".gated_cross_attn_layer.", "."
            ): value
            for key, value in checkpoint.items()
        },
        "frozen": checkpoint
        | {
            f"lang_encoder.transformer.blocks.{i}.decoder_layer.norm_1.weight": np.full(32, 3, np.float32)
            for i in range(4)
        },
    }
    torch_files.write(path, {"epoch": 1, "model_state_dict": torch_files.state_dict(variants["module"])}, monkeypatch)
    assert same(load(tmp_path, lm, clip).params, vlm.params)  # a folder with one .pt file, too
    assert any(key.startswith(OLDER) for key in variants["older"])
    torch_files.write(path, torch_files.state_dict(variants["older"]), monkeypatch)
    assert same(load(path, lm, clip).params, vlm.params)
    torch_files.write(path, torch_files.state_dict(variants["frozen"]), monkeypatch)
    frozen = load(path, lm, clip).params  # the checkpoint's own frozen weights count, not the folder's
    assert (frozen["lm"]["blocks"]["norm_1"]["scale"] == 3).all()
    assert same(frozen["lm"]["gates"], vlm.params["lm"]["gates"])


def test_a_whole_checkpoint_is_enough_for_the_weights(mpt, tmp_path, monkeypatch):
    _, lm, clip, arrays, weights = mpt
    torch_files.write(tmp_path / "x.pt", torch_files.state_dict(weights), monkeypatch)
    for folder in (lm, clip):
        save_file({"transformer.norm_f.weight" if folder is lm else "vision_model.x": np.zeros(1)},
                  folder / "model.safetensors")  # fmt: skip
    compare(load(tmp_path / "x.pt", lm, clip), arrays)


def test_pickled_and_open_clip_folders(mpt, tmp_path, monkeypatch):
    checkpoint, lm, clip, arrays, weights = mpt
    path = tmp_path / "x.pt"
    torch_files.write(path, torch_files.state_dict(checkpoint), monkeypatch)
    expected = load(path, lm, clip)
    # The language model as pytorch_model.bin, in two shards.
    language = dict(load_openflamingo.tensors_of(lm))
    (lm / "model.safetensors").unlink()
    half = sorted(language)[: len(language) // 2]
    places = {key: f"pytorch_model-{1 + (key not in half)}.bin" for key in language}
    for name in set(places.values()):
        part = {key: value for key, value in language.items() if places[key] == name}
        torch_files.write(lm / name, torch_files.state_dict(part), monkeypatch)
    (lm / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    # CLIP as open_clip names it.
    tower, names = dict(load_openflamingo.tensors_of(clip)), {}
    shutil.rmtree(clip)
    clip.mkdir()
    prefix = "vision_model."
    names["visual.class_embedding"] = tower[f"{prefix}embeddings.class_embedding"]
    names["visual.conv1.weight"] = tower[f"{prefix}embeddings.patch_embedding.weight"]
    names["visual.positional_embedding"] = tower[f"{prefix}embeddings.position_embedding.weight"]
    names["visual.proj"] = names["text_projection"] = np.zeros((24, 8), np.float32)
    pairs = [("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")]
    for i in range(2):
        theirs, ours = f"visual.transformer.resblocks.{i}.", f"encoder.layers.{i}."
        pairs += [(f"{ours}layer_norm{k}", f"transformer.resblocks.{i}.ln_{k}") for k in (1, 2)]
        pairs += [(f"{ours}self_attn.out_proj", f"transformer.resblocks.{i}.attn.out_proj")]
        pairs += [(f"{ours}mlp.fc1", f"transformer.resblocks.{i}.mlp.c_fc")]
        pairs += [(f"{ours}mlp.fc2", f"transformer.resblocks.{i}.mlp.c_proj")]
        for kind in ("weight", "bias"):
            parts = [tower[f"{prefix}{ours}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            names[f"{theirs}attn.in_proj_{kind}"] = np.concatenate(parts)
    for ours, theirs in pairs:
        for kind in ("weight", "bias"):
            names[f"visual.{theirs}.{kind}"] = tower[f"{prefix}{ours}.{kind}"]
    save_file(names, clip / "open_clip_model.safetensors")
    vision = {"image_size": 28, "layers": 2, "width": 24, "head_width": 6, "patch_size": 14, "mlp_ratio": 2}
    meta = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (clip / "open_clip_config.json").write_text(json.dumps(meta))
    found = load(path, lm, clip)
    assert found.model.config == expected.model.config and same(found.params, expected.params)
    assert found.mean == (0.1, 0.2, 0.3)
    meta["model_cfg"]["quick_gelu"] = False
    (clip / "open_clip_config.json").write_text(json.dumps(meta))
    config = open_pieces(path, lm, clip, remat="full").model.config
    assert (config.vision.act, config.vision.remat, config.remat) == ("gelu", "full", "full")


def test_gpt_neox_with_ids_given_and_half_precision(tmp_path, golden, monkeypatch):
    weights, arrays = golden("flamingo_neox")
    meta = json.loads(str(arrays["meta"]))
    checkpoint = {k: v for k, v in weights.items() if k.startswith("perceiver.") or "gated" in k or "embed_" in k}
    language = {k.removeprefix("lang_encoder."): v for k, v in weights.items()
                if k.startswith("lang_encoder.gpt_neox") and "gated" not in k}  # fmt: skip
    language["gpt_neox.embed_in.weight"] = grown(language["gpt_neox.embed_in.weight"])
    language["lm_head.weight"] = grown(weights["lang_encoder.embed_out.weight"])
    language["gpt_neox.layers.0.attention.bias"] = np.ones((1, 1, 8, 8), bool)
    language_folder(tmp_path / "lm", language, meta["lm"] | {"vocab_size": 56}, 45)
    (tmp_path / "clip").mkdir()
    tower = {k.removeprefix("vision_encoder."): v for k, v in weights.items() if k.startswith("vision_encoder.")}
    save_file(tower, tmp_path / "clip" / "model.safetensors")
    described = json.dumps({"model_type": "clip_vision_model", **meta["vision"]})
    (tmp_path / "clip" / "config.json").write_text(described)
    pieces = {"language_model": tmp_path / "lm", "vision": tmp_path / "clip"}
    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 1, 3, 4, 2))
    seen = arrays["in/mask"].astype(bool)

    def logits(vlm):
        ids, mask = jnp.asarray(arrays["in/ids"]), jnp.asarray(arrays["in/mask"])
        return np.asarray(tiny.run(vlm.model)(vlm.params, pixels, ids, mask))[seen]

    path = tmp_path / "x.pt"
    torch_files.write(path, torch_files.state_dict(checkpoint), monkeypatch)
    whole = load(path, **pieces)
    assert (whole.model.config.image_token, whole.model.config.end_token) == (meta["image"], meta["end"])
    np.testing.assert_allclose(logits(whole), arrays["out/logits"][seen], **TOLERANCE)
    # The head may be the folder's, cut to the checkpoint's rows.
    del checkpoint["lang_encoder.embed_out.weight"]
    torch_files.write(path, torch_files.state_dict(checkpoint), monkeypatch)
    assert same(load(path, **pieces).params, whole.params)
    half = load(path, **pieces, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_allclose(logits(half), arrays["out/logits"][seen], atol=0.05 * np.abs(arrays["out/logits"]).max())
    # Without a tokenizer the ids are arguments.
    (tmp_path / "lm" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer.json in it; give tokenizer=FOLDER, or image_token_id="):
        load(path, **pieces)
    ids = {"image_token_id": meta["image"], "end_token_id": meta["end"], "pad_token_id": meta["pad"]}
    given = load(path, **pieces, **ids)
    assert given.tokenizer is None and given.model.config == whole.model.config
    with pytest.raises(UserError, match=r"token ids \{'pad': 48\} are beyond the 48 rows"):
        load(path, **pieces, **ids | {"pad_token_id": 48})
    write_tokenizer(tmp_path / "elsewhere", 45)
    assert load(path, **pieces, tokenizer=tmp_path / "elsewhere").model.config == whole.model.config


def test_hub_ids_in_place_of_paths(mpt, tmp_path, monkeypatch):
    checkpoint, lm, clip, *_ = mpt
    (tmp_path / "hub").mkdir()
    torch_files.write(tmp_path / "hub" / "checkpoint.pt", torch_files.state_dict(checkpoint), monkeypatch)
    torch_files.write(lm / "pytorch_model.bin", torch_files.state_dict(load_openflamingo.tensors_of(lm)), monkeypatch)
    (lm / "model.safetensors").unlink()
    folders = {"a/checkpoint": tmp_path / "hub", "a/language": lm, "a/clip": clip, "a/words": lm}
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folders[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    pieces = open_pieces("a/checkpoint", "a/language", "a/clip", tokenizer="a/words")
    assert len(pieces.tokenizer) == 60 and "lang_encoder.transformer.norm_f.weight" in pieces.tensors
    patterns = {name: [p for n, p in asked if n == name] for name in folders}
    assert patterns["a/checkpoint"] == [["*.pt"]]
    assert ["*.bin" in p for p in patterns["a/language"]] == [False, True]  # pickles only where there is nothing else
    assert ["*.safetensors" in p for p in patterns["a/clip"]] == [True]
    assert not any("safetensors" in p for p in patterns["a/words"][0])  # a tokenizer needs no weights


def test_pieces_that_do_not_belong_are_one_line(mpt, tmp_path, monkeypatch):
    checkpoint, lm, clip, *_ = mpt
    path = tmp_path / "x.pt"
    torch_files.write(path, torch_files.state_dict(checkpoint), monkeypatch)
    meta = json.loads((lm / "config.json").read_text())

    def refused(said, *pieces, **changes):
        (lm / "config.json").write_text(json.dumps(meta | changes))
        with pytest.raises(UserError, match=said) as caught:
            load(*(pieces or (path, lm, clip)))
        assert "\n" not in str(caught.value)

    refused("width 64, but .*x.pt was trained with one of width 32", d_model=64)
    refused("a vocabulary of 40, but the word embedding of .*x.pt has 60 rows", vocab_size=40)
    refused("12 layers, but .*x.pt has cross-attention before layers 1, 3;", n_layers=12)
    refused("model_type is 'llama'; expected mpt, mosaic_gpt, gpt_neox", model_type="llama")
    refused("no_bias is False, but only True is computed here", no_bias=False)
    refused("attn_config: clip_qkv is 6, but only None is computed here", attn_config={"clip_qkv": 6})
    del meta["d_model"]
    refused("config.json: lacks 'd_model'")
    meta["d_model"] = 32
    refused("no such folder", path, tmp_path / "nowhere", clip)
    refused("no such file", tmp_path / "none.pt", lm, clip)
    refused("expected one .pt file in it, found none", lm, lm, clip)
    described = json.loads((clip / "config.json").read_text())
    described["vision_config"]["hidden_size"] = 32
    (clip / "config.json").write_text(json.dumps(described))
    refused("vision model .*: width 32, but .*x.pt was trained on one of width 24")
    described["vision_config"]["hidden_size"] = 24
    (clip / "config.json").write_text(json.dumps(described))
    write_tokenizer(lm, 50)
    refused("tokenizer of .*: 53 tokens with OpenFlamingo's own, but the word embedding of .*x.pt has 60 rows")
    write_tokenizer(lm, 57)
    torch_files.write(path, torch_files.state_dict({"a": np.zeros(2, np.float32)}), monkeypatch)
    refused("no gated cross-attention or no Perceiver in it")
    del checkpoint["perceiver.layers.3.1.3.weight"]
    checkpoint["stray"] = np.zeros(2, np.float32)
    torch_files.write(path, torch_files.state_dict(checkpoint), monkeypatch)
    refused("no place for: stray; .*no key fills: perceiver/layers/fc2/kernel .layers 3")
    path.write_bytes(path.read_bytes()[:-100])
    refused("cut short")


def test_mosaic_gpt_is_read_as_mpt_1b(tmp_path, golden):
    _, arrays = golden("mpt1b_tiny")
    meta = {"model_type": "mosaic_gpt", "vocab_size": 60, "d_model": 32, "n_heads": 4, "n_layers": 3, "mlp_ratio": 4,
            "alibi": True, "alibi_bias_max": 8, "attn_qk_ln": True, "attn_clip_qkv": None, "no_bias": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(meta))
    config = load_openflamingo.language_config(tmp_path)
    described = json.loads(str(arrays["meta"]))
    assert (config.width, config.depth, config.heads, config.vocab) == (32, 3, 4, 60)
    assert config.qk_norm == described["qk_ln"] and config.alibi_max == described["alibi_bias_max"]
    (tmp_path / "config.json").write_text(json.dumps(meta | {"attn_clip_qkv": 8}))
    with pytest.raises(UserError, match="clip_qkv is 8"):
        load_openflamingo.language_config(tmp_path)
