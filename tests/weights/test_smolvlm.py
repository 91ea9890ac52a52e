"""SmolVLM folders as published: they load, answer on the grid, and what is wrong with one is a line."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

import pin_jax
from configs import pin_smolvlm
from input_pipeline.errors import UserError
from pin_jax import evaluate, localisation, training_data
from pin_jax.models.interface import Inserts
from pin_jax.programs import pin
from pin_jax.runtime import sharding
from tests.fixtures import published

PATCHES, SHUFFLE, WIDTH, VISION = 8, 4, 24, 32
TEXT = {
    "_flash_attn_2_enabled": True, "architectures": ["VLlama3ForCausalLM"], "head_dim": 4, "hidden_size": WIDTH,
    "intermediate_size": 40, "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama",
    "neftune_noise_alpha": 0.0, "num_attention_heads": 6, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "pad_token_id": 2, "perceiver_config": {"model_type": "vllama3"}, "pixel_shuffle_factor": SHUFFLE,
    "qk_layer_norms": False, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_theta": 100000,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "use_resampler": False,
}  # fmt: skip


def tensors(meta: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights under the keys of transformers 4."""

    def weight(*shape):
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    tower, rows = "model.vision_model.", meta["text_config"]["vocab_size"]
    out = {
        f"{tower}embeddings.patch_embedding.weight": weight(VISION, 3, 8, 8),
        f"{tower}embeddings.patch_embedding.bias": weight(VISION),
        f"{tower}embeddings.position_embedding.weight": weight(PATCHES**2, VISION),
        "model.connector.modality_projection.proj.weight": weight(WIDTH, VISION * SHUFFLE**2),
        "model.text_model.embed_tokens.weight": weight(rows, WIDTH),
        "model.text_model.norm.weight": 1 + weight(WIDTH),
        "lm_head.weight": weight(rows, WIDTH),
    }
    for name in ("encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "post_layernorm"):
        out |= {f"{tower}{name}.weight": 1 + weight(VISION), f"{tower}{name}.bias": weight(VISION)}
    for name, shape in (("mlp.fc1", (48, VISION)), ("mlp.fc2", (VISION, 48))):
        out |= {
            f"{tower}encoder.layers.0.{name}.weight": weight(*shape),
            f"{tower}encoder.layers.0.{name}.bias": weight(shape[0]),
        }
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        at = f"{tower}encoder.layers.0.self_attn.{name}"
        out |= {f"{at}.weight": weight(VISION, VISION), f"{at}.bias": weight(VISION)}
    for layer in range(2):
        at = f"model.text_model.layers.{layer}."
        sizes = {"self_attn.q_proj": (24, WIDTH), "self_attn.k_proj": (8, WIDTH), "self_attn.v_proj": (8, WIDTH)}
        sizes |= {"self_attn.o_proj": (WIDTH, 24), "mlp.gate_proj": (40, WIDTH), "mlp.up_proj": (40, WIDTH)}
        sizes |= {"mlp.down_proj": (WIDTH, 40)}
        out |= {f"{at}{name}.weight": weight(*shape) for name, shape in sizes.items()}
        out |= {f"{at}{name}.weight": 1 + weight(WIDTH) for name in ("input_layernorm", "post_attention_layernorm")}
    return out


@pytest.fixture
def folder(tmp_path):
    """`HuggingFaceTB/SmolVLM-256M-Instruct`, tiny."""
    tokens = published.smollm2(tmp_path)
    published.image_processor(tmp_path, "idefics3", 64)
    (tmp_path / "processor_config.json").write_text('{"image_seq_len": 4, "processor_class": "Idefics3Processor"}')
    meta = {
        "architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": tokens - 2, "model_type": "idefics3",
        "scale_factor": SHUFFLE, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "transformers_version": "4.46.0", "use_reentrant_checkpointing": False, "vocab_size": tokens,
        "text_config": TEXT | {"vocab_size": tokens},
        "vision_config": {
            "hidden_size": VISION, "image_size": 64, "intermediate_size": 48, "max_image_size": {"longest_edge": 64},
            "model_type": "idefics3", "num_attention_heads": 4, "num_hidden_layers": 1, "patch_size": 8,
            "size": {"longest_edge": 256}, "tie_word_embeddings": False, "use_base_siglip": False,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(meta))
    save_file(tensors(meta, np.random.default_rng(0)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_it_answers_on_the_grid_whatever_the_name_of_its_form(folder):
    vlm, params = pin_jax.load_vlm(folder)
    assert vlm.codec.grid == 16 and vlm.frame.prefix.count("<image>") == 4
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    options = ConfigDict({"decoder": "grid_greedy", "batch_size": 4, "beams": 2, "new_tokens": 24})
    options.length_penalty = 1.0
    questions = [(0, "cat"), (1, "dog"), (1, "potted plant")]
    answers = evaluate.locate(vlm, vlm.encode(images), questions, Inserts(), options, "asking")
    assert all(answer.parsed for answer in answers)
    digits, _ = vlm.tokenize([vlm.frame.prompt("") + " [12,345]"])
    pieces = vlm.tokenizer.convert_ids_to_tokens(digits[0])
    assert pieces[-6:] == ["2", ",", "3", "4", "5", "]"]  # each digit is a token
    text = vlm.frame.prompt("In the image is a cat located at")
    ids, mask = vlm.tokenize([text])
    logits = vlm.apply(params, vlm.pixels(images[:1]), ids, mask)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"idefics3"', '"smolvlm"'))
    again, others = pin_jax.load_vlm(folder)
    assert again.identity == vlm.identity
    np.testing.assert_array_equal(again.apply(others, vlm.pixels(images[:1]), ids, mask), logits)
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(others))


def test_smolvlm2_as_its_makers_wrote_it(folder, capsys):
    """HuggingFaceTB/SmolVLM2-500M-Video-Instruct: a padding id that its vocabulary has not, tokens named one by one."""
    before = pin_jax.load_vlm(folder)[0]
    path = folder / "config.json"
    meta = json.loads(path.read_text())
    del meta["text_config"]["perceiver_config"], meta["text_config"]["_flash_attn_2_enabled"]
    meta |= {"model_type": "smolvlm", "pad_token_id": 128002, "architectures": ["SmolVLMForConditionalGeneration"]}
    meta["vision_config"]["model_type"] = "smolvlm_vision"
    path.write_text(json.dumps(meta))
    published.image_processor(folder, "smolvlm", 64)
    named = {
        "end_of_utterance_token": "<end_of_utterance>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>", "image_token": "<image>",
    }  # fmt: skip
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | named | {"extra_special_tokens": named}
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    capsys.readouterr()
    vlm = pin_jax.load_vlm(folder)[0]
    said = capsys.readouterr().out
    assert "do_image_splitting is true; here a picture is not cut into tiles" in said and said.count("tiles") == 1
    assert vlm.model.config == before.model.config and vlm.model.config.pad_token == 2
    published.image_processor(folder, "smolvlm", 64)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_tile_twice": True}))
    with pytest.raises(UserError, match="'do_tile_twice' .* is not known here"):
        pin_jax.load_vlm(folder)


def test_the_diagnosis_sees_the_image_s_tokens_in_the_text(folder, tmp_path):
    config = pin_smolvlm.get_config("256m")
    config.vlm, config.run, config.dtype = str(folder), "diagnose", "float32"
    assert not config.text_length  # as many tokens as the texts need
    pin.run(config, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert len(found["attention"]) == 2  # layers, of which each has 6 heads that read 2 of keys
    for row in found["attention"]:
        assert 0 < row["image"] < 1 and 0 < row["name"] < 1
    reached = found["gradients"]["numbers of a box"]
    assert reached["media"] > 0 and reached["vision"] > 0 and reached["insert"] > 0


def test_the_prompt_may_be_the_users_request(folder):
    """As transformers' chat template writes it: the request ends the user's turn, and the answer begins."""
    config = pin_smolvlm.get_config()
    config.vlm, config.dtype = str(folder), "float32"
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    before = localisation.read_vlm(config, mesh)
    config.placement = "request"
    after = localisation.read_vlm(config, mesh)
    start, end = "<|im_start|>User:<fake_token_around_image><global-img>", "<end_of_utterance>"
    image = f"{start}{'<image>' * 4}<fake_token_around_image>"
    assert after.frame.prompt("Where?") == f"{image}Where?{end}\nAssistant:"
    assert before.frame.prompt("Where?") == f"{image}{end}\nAssistant: Where?"
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    options = ConfigDict({"decoder": "grid_greedy", "batch_size": 1, "beams": 1, "new_tokens": 24})
    for vlm in (before, after):
        answers = evaluate.locate(vlm, vlm.encode(images), [(0, "cat")], Inserts(), options, "asking")
        assert answers[0].parsed
    config.vlm = "assets/tiny_flamingo"
    with pytest.raises(UserError, match="config.placement 'request': of SmolVLM alone; a Flamingo has 'answer'"):
        localisation.read_vlm(config, mesh)


def test_a_worked_example_is_told_once_a_batch(folder, tmp_path):
    """What training reads is the example and then each image's own opening: together what a prompt begins with."""
    config = pin_smolvlm.get_config()
    config.vlm, config.dtype, config.batch_size, config.steps = str(folder), "float32", 2, 2
    config.example = (" hat [1,2]", "In the image is a hat located at", " [1,2]")
    vlm = localisation.read_vlm(config, sharding.make_mesh(devices=jax.devices()[:1]))
    source = training_data.training_source(config, vlm, tmp_path)
    batch = next(iter(training_data.training_batches(config, vlm, source)))
    asked = vlm.tokenizer(vlm.frame.prompt("In the image is"), add_special_tokens=False)["input_ids"]
    told, opening = (np.asarray(batch[key]) for key in ("told", "opening"))
    assert told.shape[0] == opening.shape[0] == 2 and opening[0, 0] == vlm.model.config.image_token
    for row in np.concatenate([told, opening], 1):
        np.testing.assert_array_equal(row, asked[: len(row)])
    assert " hat [1,2]" in vlm.tokenizer.decode(told[0]) and vlm.model.config.image_token not in told
    config.example = ()
    assert "told" not in next(iter(training_data.training_batches(config, vlm, source)))


def sharded(folder) -> list:
    """Its weights in two files, as the 2.2B's are published."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    paths = [folder / f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for path, own in zip(paths, (names[::2], names[1::2]), strict=True):
        save_file({name: whole[name] for name in own}, path, metadata={"format": "pt"})
    places = {name: paths[k % 2].name for k, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return paths


def test_shards_are_the_same_weights(folder):
    whole, _ = pin_jax.load_vlm(folder)
    sharded(folder)
    parts, params = pin_jax.load_vlm(folder)
    jax.tree.map(np.testing.assert_array_equal, whole.params, params)


def edited(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f: edited(f, model_type="idefics2"), "model_type 'idefics2'"),
        (lambda f: edited(f, scale_factor=3), "scale_factor 3 does not divide the 8 x 8 patches"),
        (lambda f: edited(f, text_config=TEXT | {"vocab_size": 400, "qk_layer_norms": True}), "qk_layer_norms is True"),
        (lambda f: edited(f, text_config={**TEXT, "model_type": "mistral"}), "model_type is 'mistral'; expected llama"),
        (lambda f: edited(f, image_token_id=5), "image_token_id is 5"),
        (lambda f: published.smollm2(f, image_token=False), "does not know <image>"),
        (
            lambda f: [path.unlink() for path in f.glob("*token*")] + [(f / "vocab.json").unlink()],
            "no vocabulary in it",
        ),
        (lambda f: edited(f, vision_config={"patch_size": 8, "image_size": 64, "num_frames": 8}), "num_frames"),
        (lambda f: sharded(f)[1].unlink(), "shards missing: model-00002-of-00002.safetensors"),
    ],
    ids=["idefics2", "shuffle", "norms", "decoder", "image id", "no image token", "no tokenizer", "video", "shard"],
)
def test_what_is_wrong_is_a_line(folder, spoil, words):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        pin_jax.load_vlm(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)
