"""`pin_jax.load_vlm` on folders in Hugging Face's layout: shards, meshes, dtypes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pin_jax
from input_pipeline.errors import UserError
from input_pipeline.text.questions import BoxQuestions, shared_opening
from pin_jax import training_data
from pin_jax.models.blip2 import BLIP2_FLAN_T5_XL, BLIP2_OPT_2_7B, BLIP2_OPT_6_7B
from pin_jax.programs import pin
from pin_jax.runtime import sharding
from pin_jax.vlm import _codec
from pin_jax.weights import blip2
from pin_jax.weights.convert import Rule, convert, linear
from pin_jax.weights.parameters import flatten
from tests.fixtures import tiny_blip2
from tests.fixtures.golden_files import ROOT
from tests.fixtures.host_devices import host_devices


@pytest.fixture(scope="module", params=["opt", "t5"])
def folder(request, tmp_path_factory):
    return tiny_blip2.write(tmp_path_factory.mktemp(request.param), request.param)


def inputs(vlm, kind):
    """Pixels, ids, mask and what else a call takes."""
    size = vlm.codec.image_size
    pixels = vlm.pixels(np.random.default_rng(0).integers(0, 255, (2, size, size, 3), np.uint8))
    ids, mask = vlm.tokenize([vlm.frame.prompt("In the image is a cat located at")] * 2)
    labels = {"labels": jnp.asarray(ids[:, -3:])} if vlm.frame.encoder_decoder else {}
    return pixels, jnp.asarray(ids), jnp.asarray(mask), labels


def test_apply(folder):
    vlm, params = pin_jax.load_vlm(folder)
    pixels, ids, mask, labels = inputs(vlm, folder)
    apply = jax.jit(lambda params, pixels: vlm.apply(params, pixels, ids, mask, **labels))
    logits = apply(params, pixels)
    assert logits.shape == (2, 3 if labels else ids.shape[1], vlm.model.config.lm.vocab)
    assert (np.asarray(ids) == vlm.model.config.image_token).sum(1).tolist() == [tiny_blip2.QUERIES] * 2
    other = apply(params, pixels + 0.5)
    assert np.abs(logits - other).max() > 1e-3  # the image is read
    size = vlm.codec.image_size
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    theirs = vlm.processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(vlm.pixels(jnp.asarray(image)), theirs, atol=1e-5)


def test_training_texts(folder):
    """What the model reads and what counts: one text for OPT, two for T5."""
    vlm, _ = pin_jax.load_vlm(folder)
    questions = BoxQuestions(vlm.tokenizer, vlm.codec, 2, 80, vlm.frame)
    record = {"query_text": ["cat"], "cells": np.array([[1, 2, 3, 4]]), "image": np.zeros((2, 2, 3))}
    out = questions.random_map(record, np.random.default_rng(0))
    image, end = vlm.model.config.image_token, vlm.model.config.end_token
    assert vlm.tokenizer.convert_ids_to_tokens(end) == "</s>"
    answer = "labels" if vlm.frame.encoder_decoder else "ids"
    counted = out[answer][0][out["target"][0] > 0]
    assert vlm.tokenizer.decode(counted).lstrip().startswith("[2,4,8,10]") and counted[-1] == end
    assert (out["ids"][0] == image).sum() == tiny_blip2.QUERIES and not (out["ids"][1] == image).any()
    read = vlm.tokenizer.decode(out["ids"][0], skip_special_tokens=True)
    assert read == "In the image is a cat located at" + ("" if vlm.frame.encoder_decoder else " [2,4,8,10]")
    if not vlm.frame.encoder_decoder:  # cut where all texts still agree, they are the same texts
        opening = shared_opening(vlm.tokenizer, vlm.frame)
        assert vlm.tokenizer.decode(opening, skip_special_tokens=True) == "In the image is"
        once = dataclasses.replace(questions, opening=opening).random_map(record, np.random.default_rng(0))
        for key, before in (("ids", once["opening"]), ("target", np.zeros(len(opening)))):
            np.testing.assert_array_equal(np.concatenate([before, once[key][0]]), out[key][0])
    texts = vlm.detokenize(np.stack([counted, counted]))
    box, parsed = vlm.codec.decode(texts[0])
    assert parsed and box.tolist() == [2, 4, 8, 10]
    with pytest.raises(UserError, match="'cat' has over 8 tokens; raise config.text_length"):
        BoxQuestions(vlm.tokenizer, vlm.codec, 2, 8, vlm.frame).random_map(record, np.random.default_rng(0))
    config = tiny_blip2.config_for(folder)
    for asked in (1, 2):
        config.questions_per_image = asked
        shapes = training_data.batch_shapes(config, vlm, len(questions._encode(vlm.frame.prefix)))
        opening = shared_opening(vlm.tokenizer, vlm.frame) if training_data.reads_once(config, vlm) else ()
        out = dataclasses.replace(questions, opening=opening).random_map(record, np.random.default_rng(0))
        for key, value in out.items():
            if key != "image":
                assert shapes[key].shape[-1] == value.shape[-1], (asked, key)
        assert ("opening" in shapes) == (asked == 2 and not vlm.frame.encoder_decoder)


def test_tokens_that_published_models_put_into_every_text(folder):
    """OPT's unknown token is `</s>`, which stands in front of every prompt; T5 has letters that it does not know."""
    vlm, _ = pin_jax.load_vlm(folder)
    texts = [vlm.frame.prompt(f"In the image is a {name} located at") for name in ("caf\u00e9 \u732b", "cat")]
    ids, mask = vlm.tokenize(texts)
    assert (ids == vlm.model.config.image_token).sum(1).tolist() == [tiny_blip2.QUERIES] * 2
    assert (ids == vlm.tokenizer.convert_tokens_to_ids("</s>")).sum(1).tolist() == [1, 1]
    assert (ids[~mask] == vlm.model.config.pad_token).all() and (ids[mask] != vlm.model.config.pad_token).all()


def test_places_of_the_image_are_counted(folder, tmp_path):
    """An image whose places are not the model's image token would be ignored without a word."""
    vlm, _ = pin_jax.load_vlm(folder)
    for name in ("<image>", "cat <image><image>"):
        with pytest.raises(UserError, match="places for images, but an image has 4; leave out <image>"):
            vlm.tokenize([vlm.frame.prompt(f"In the image is a {name} located at")])
        record = {"query_text": [name], "cells": np.array([[1, 2, 3, 4]]), "image": np.zeros((2, 2, 3))}
        with pytest.raises(UserError, match="places for the image, expected 4; leave <image> out of names"):
            BoxQuestions(vlm.tokenizer, vlm.codec, 2, 80, vlm.frame).random_map(record, np.random.default_rng(0))
    image = vlm.model.config.image_token
    meta = json.loads((folder / "config.json").read_text())
    copy = shutil.copytree(folder, tmp_path / "m")

    def loaded(**change):
        held = {key: value for key, value in (meta | change).items() if value != "left out"}
        (copy / "config.json").write_text(json.dumps(held))
        return pin_jax.load_vlm(copy)[0].model.config.image_token

    # null and left out are the tokenizer's own, by either name
    assert loaded(image_token_index=None) == loaded(image_token_index="left out", image_token_id=image) == image
    for change in ({"image_token_index": image - 1}, {"image_token_index": None, "image_token_id": 7},
                   {"image_token_id": image - 1}, {"image_token_index": 10**6}, {"image_token_index": -1}):  # fmt: skip
        with pytest.raises(UserError, match="image_token"):
            loaded(**change)
    moved = dataclasses.replace(
        vlm, model=type(vlm.model)(dataclasses.replace(vlm.model.config, image_token=image - 1))
    )
    with pytest.raises(UserError, match="4 places for the image, but the tokenizer makes 0 tokens"):
        moved.tokenize([vlm.frame.prompt("In the image is a cat")])


def test_folders_that_lack_a_part_or_hold_nonsense(folder, tmp_path):
    """A hub's cache may hold config and weights alone; numbers may be NaN."""

    def refused(change, words):
        copy = shutil.copytree(folder, tmp_path / words[:12].strip("."), dirs_exist_ok=True)
        change(copy)
        with pytest.raises(UserError, match=words) as caught:
            pin_jax.load_vlm(copy)
        assert "\n" not in str(caught.value)

    def only_weights(copy):
        for path in copy.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                path.unlink()

    def pixels(**entries):
        def change(copy):
            path = copy / "preprocessor_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | entries))

        return change

    def nan(copy):
        tensors = load_file(copy / "model.safetensors")
        tensors["qformer.layernorm.weight"][3] = np.nan
        tensors["language_projection.bias"] = tensors["language_projection.bias"].astype(np.int32)
        save_file(tensors, copy / "model.safetensors")

    refused(only_weights, "no vocabulary in it; it must hold tokenizer.json")
    refused(pixels(image_std=[0.5, 0.0, 0.5]), "std of the pixels is .*expected three numbers over 0")
    refused(pixels(do_normalize=False), "do_normalize is False, but only")
    refused(
        lambda f: (f / "processor_config.json").write_text('{"num_query_tokens": 5}'), "num_query_tokens is 5, but 4"
    )
    refused(nan, "language_projection.bias .* is int32.*|qformer.layernorm.weight .* holds NaN")


def test_an_image_that_16_cells_do_not_divide(tmp_path):
    """The grid is then the number next to 16 that does; one that is asked for must."""
    assert _codec(224, 0).grid == _codec(160, 0).grid == 16
    assert (_codec(364, 0).grid, _codec(378, 0).grid, _codec(28, 0).grid, _codec(13, 0).grid) == (14, 14, 14, 13)
    with pytest.raises(UserError, match="grid 16 must divide image_size 364"):
        _codec(364, 16)


def test_shards_and_dtypes(folder, tmp_path):
    kind = json.loads((folder / "config.json").read_text())["text_config"]["model_type"]
    vlm, params = pin_jax.load_vlm(folder)
    sharded = tiny_blip2.write(tmp_path / "sharded", kind, shards=3)
    half, half_params = pin_jax.load_vlm(sharded, dtype="bfloat16")
    assert vlm.identity == half.identity  # of the file, however it is cut up and run
    for key, value in flatten(half_params).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, flatten(params)[key].astype(jnp.bfloat16))
    published = pin_jax.load_vlm(folder, dtype="published")[0].model.config
    assert (published.vision.dtype, published.qformer.dtype) == ("float16", "float32")
    assert published.lm.dtype == ("float16" if kind == "opt" else "bfloat16")
    assert pin_jax.load_vlm(tiny_blip2.write(tmp_path / "other", kind, seed=1))[0].identity != vlm.identity


def test_host_memory_holds_one_tensor():
    """A stacked parameter is filled layer by layer where it will stand."""
    layers, side = 64, 256
    tensors = {f"h.{i}.w": i for i in range(layers)}

    class Lazy(dict):
        def __getitem__(self, key):
            return np.full((side, side), tensors[key], np.float32)

    shapes = {"stack": {"kernel": jax.ShapeDtypeStruct((layers, side, side), jnp.float32)}}
    places = sharding.shardings(shapes, sharding.make_mesh(devices=jax.devices()[:1]))
    table = [Rule(r"h\.(?P<layer>\d+)\.w", "stack/kernel", linear)]
    tracemalloc.start()
    try:
        params = convert(Lazy(tensors), table, shapes, shardings=places)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(params["stack"]["kernel"][:, 3, 5], np.arange(layers))
    assert peak < layers * side * side * 4 / 4, peak


def test_one_error_lists_everything(folder, tmp_path):
    kind = json.loads((folder / "config.json").read_text())["text_config"]["model_type"]
    bad = tiny_blip2.write(tmp_path, kind)
    tensors = load_file(bad / "model.safetensors")
    tensors["stray.weight"] = np.zeros(3, np.float32)
    del tensors["qformer.encoder.layer.1.attention.attention.key.bias"]
    tensors["language_projection.bias"] = np.zeros(5, np.float32)
    save_file(tensors, bad / "model.safetensors")
    with pytest.raises(UserError) as caught:
        pin_jax.load_vlm(bad)
    message = str(caught.value)
    for part in ("stray.weight", "qformer/blocks/attention/k/bias (layers 1)", "shape (5,), expected (32,)"):
        assert part in message
    with pytest.raises(UserError, match="expected one of float32, bfloat16"):
        pin_jax.load_vlm(folder, dtype="int8")
    with pytest.raises(UserError, match="no such folder"):
        pin_jax.load_vlm(tmp_path / "nowhere")


def test_duplicates_of_older_files(folder, tmp_path):
    """Tied tensors that files of transformers 4 repeat: taken when equal, refused when not."""
    kind = json.loads((folder / "config.json").read_text())["text_config"]["model_type"]
    again = tiny_blip2.write(tmp_path, kind)
    tensors = load_file(again / "model.safetensors")
    first, second = {
        "opt": ("model.decoder.embed_tokens.weight", "lm_head.weight"),
        "t5": ("shared.weight", "decoder.embed_tokens.weight"),
    }[kind]
    tensors[f"language_model.{second}"] = tensors[f"language_model.{first}"].copy()
    save_file(tensors, again / "model.safetensors")
    assert pin_jax.load_vlm(again)[0].identity == pin_jax.load_vlm(folder)[0].identity
    tensors[f"language_model.{second}"] += 1
    save_file(tensors, again / "model.safetensors")
    with pytest.raises(UserError, match="differs from another tensor"):
        pin_jax.load_vlm(again)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
          "ffn_dim": 10240, "word_embed_proj_dim": 2560, "vocab_size": 50304}, BLIP2_OPT_2_7B),
        ({"model_type": "opt", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
          "ffn_dim": 16384, "word_embed_proj_dim": 4096, "vocab_size": 50304}, BLIP2_OPT_6_7B),
        ({"model_type": "t5", "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32,
          "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, BLIP2_FLAN_T5_XL),
    ],
)  # fmt: skip
def test_pruned_configs(text, expected):
    assert blip2.config_of({"model_type": "blip-2", "text_config": text}) == expected


def test_forms_that_no_published_model_has():
    odd = {"text_config": {"model_type": "opt", "do_layer_norm_before": False}, "vision_config": {"qkv_bias": False}}
    with pytest.raises(UserError, match="vision_config: qkv_bias is False, but only True is computed here"):
        blip2.config_of(odd)
    del odd["vision_config"]
    with pytest.raises(UserError, match="text_config: do_layer_norm_before is False, but only True is computed here"):
        blip2.config_of(odd)
    with pytest.raises(UserError, match="language model 'llama'"):
        blip2.config_of({"text_config": {"model_type": "llama"}})


PROGRAM = """
import sys, jax, numpy as np, pin_jax
from pin_jax.runtime import sharding
from pin_jax.vlm import _codec
jax.config.update("jax_default_matmul_precision", "highest")
whole = pin_jax.load_vlm(sys.argv[1])
for sizes in ({"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 4, "fsdp": 2}):
    mesh = sharding.make_mesh(sizes)
    vlm, params = pin_jax.load_vlm(sys.argv[1], mesh=mesh)
    assert vlm.identity == whole[0].identity
    places = sharding.shardings(params, mesh)
    for one, other, place in zip(*(jax.tree.leaves(t) for t in (whole[1], params, places)), strict=True):
        assert other.sharding == place
        np.testing.assert_array_equal(one, other)
    held = [sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards if s.device == d)
            for d in jax.devices()]
    assert set(held) == {sharding.bytes_per_device(params, places)}, held
    print(held[0] / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
for sizes, words in (({"data": 3}, "3"), ({"fsdp": -1, "tensor": -1}, "-1"), ({"rows": 8}, "rows")):
    try:
        sharding.make_mesh(sizes)
    except sharding.UserError as error:
        assert words in str(error) and "config.mesh" in str(error), error
    else:
        raise AssertionError(sizes)
try:
    pin_jax.load_vlm(sys.argv[1], mesh=sharding.make_mesh({"fsdp": 8}), rules=((r"positions$", ("fsdp", None)),))
except sharding.UserError as error:
    assert "vision/positions (17, 32): 17 by fsdp=8" in str(error), error
else:
    raise AssertionError("an axis that does not divide")
"""


def test_any_mesh_that_divides(tmp_path):
    folder = tiny_blip2.write(tmp_path, "t5")
    env = {**os.environ, "XLA_FLAGS": host_devices(8), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [float(line) for line in done.stdout.split()]
    assert shares[0] < 0.3 and shares[1] < 0.4, shares


def test_a_run_on_t5(tmp_path):
    """Encoder-decoder: the box is the decoder's text; trained, decoded on the grid, evaluated again from its file."""
    config = tiny_blip2.config_for(tiny_blip2.write(tmp_path, "t5"), steps=3)
    config.eval.decoder = "grid_beam"
    pin.run(config, tmp_path / "w")
    first = json.loads((tmp_path / "w" / "results.json").read_text())
    assert first["pin"]["unparsed"] == 0 and first["raw"]["queries"] > 0
    config.run = "evaluate"
    pin.run(config, tmp_path / "w")
    assert json.loads((tmp_path / "w" / "results.json").read_text())["pin"] == first["pin"]
