"""Entries of foreign configs: computed, known to change nothing, or refused by name; broken ones are one line."""

from __future__ import annotations

import copy
import json
import random

import pytest
import transformers

from input_pipeline.errors import UserError
from pin_jax.weights import blip2
from pin_jax.weights.configs import image_text
from pin_jax.weights.configs.entries import PREPROCESSOR, SIZE, Table, one_of, pixel_statistics
from pin_jax.weights.openflamingo import language_models
from tests.fixtures import published

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "patch_size": 7, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 514, "width": 32, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
}
# As MosaicML's own code writes them: mosaicml/mpt-7b, and the MPT-1B of OpenFlamingo.
MPT = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
    },
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"}, "d_model": 4096, "emb_pdrop": 0,
    "embedding_fraction": 1.0, "expansion_ratio": 4,
    "init_config": {"emb_init_std": None, "init_std": 0.02, "name": "kaiming_normal_"}, "init_device": "cpu",
    "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "model_type": "mpt", "n_heads": 32,
    "n_layers": 32, "no_bias": True, "norm_type": "low_precision_layernorm", "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b", "torch_dtype": "bfloat16", "use_cache": False, "verbose": 0,
    "vocab_size": 50432,
}  # fmt: skip
MOSAIC_GPT = {
    "alibi": True, "alibi_bias_max": 8, "attn_clip_qkv": None, "attn_impl": "torch", "attn_pdrop": 0,
    "attn_qk_ln": True, "attn_softmax_scale": None, "attn_uses_sequence_id": False, "d_model": 2048,
    "emb_init_std": None, "emb_init_uniform_lim": None, "emb_pdrop": 0, "embedding_fraction": 1.0,
    "fan_mode": "fan_in", "init_device": "cpu", "init_div_is_residual": True, "init_gain": 0,
    "init_nonlinearity": "relu", "init_std": 0.02, "logit_scale": None, "low_precision_layernorm": True,
    "max_seq_len": 2048, "mlp_ratio": 4, "model_type": "mosaic_gpt", "n_heads": 16, "n_layers": 24, "no_bias": True,
    "param_init_fn": "kaiming_normal_", "prefix_lm": False, "resid_pdrop": 0, "softmax_scale": None,
    "vocab_size": 50432,
}  # fmt: skip


def language(folder, meta):
    (folder / "config.json").write_text(json.dumps(meta))
    return language_models.language_config(folder)


def open_clip(folder, meta):
    (folder / "open_clip_config.json").write_text(json.dumps(meta))
    return image_text.open_clip(folder)[0]


def dumped(config) -> dict:
    """A config as transformers writes it, every entry of the class."""
    return json.loads(json.dumps(config.to_dict(), default=str))


T5 = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CASES = {
    "blip2-opt": (
        dumped(transformers.Blip2Config(image_token_index=50265)), lambda f, m: blip2.config_of(m), "text_config"
    ),
    "blip2-t5": (
        dumped(transformers.Blip2Config(text_config=T5, image_token_index=32100)),
        lambda f, m: blip2.config_of(m), "text_config",
    ),
    **{
        kind: (
            dumped(config()), lambda f, m, kind=kind: image_text.hugging_face(m, kind), "vision_config"
        )
        for kind, config in (
            ("clip", transformers.CLIPConfig), ("siglip", transformers.SiglipConfig), ("blip", transformers.BlipConfig)
        )
    },
    "open_clip": (OPEN_CLIP, open_clip, "vision_cfg"),
    "mpt": (MPT, language, "attn_config"),
    "mpt-hf": (dumped(transformers.MptConfig()), language, "attn_config"),
    "mosaic_gpt": (MOSAIC_GPT, language, None),
    "gpt_neox": (dumped(transformers.GPTNeoXConfig()), language, "rope_parameters"),
}  # fmt: skip


def inside(meta, part):
    return meta["model_cfg"][part] if part in meta.get("model_cfg", {}) else meta[part] if part else meta


@pytest.mark.parametrize("kind", CASES)
def test_what_their_makers_write_is_known(kind, tmp_path):
    meta, read, part = CASES[kind]
    read(tmp_path, copy.deepcopy(meta))
    # Entries of training, and of generation, which older releases of transformers wrote into every config.
    older = copy.deepcopy(meta)
    generation = {"num_beams": 1, "bad_words_ids": None, "torch_dtype": None} if kind != "open_clip" else {}
    inside(older, part).update(generation | {"patch_dropout": 0.1})
    read(tmp_path, older)


@pytest.mark.parametrize("kind", CASES)
def test_an_entry_that_nobody_knows_is_refused_by_name(kind, tmp_path):
    meta, read, part = CASES[kind]
    for place in (None, part):
        odd = copy.deepcopy(meta)
        (inside(odd, place) if place else odd.get("model_cfg", odd))["a_new_form_of_attention"] = True
        with pytest.raises(
            UserError, match="'a_new_form_of_attention' .True. is not known here and may change"
        ) as caught:
            read(tmp_path, odd)
        assert "\n" not in str(caught.value) and "config.json" in str(caught.value).replace(
            "open_clip_config", "config"
        )


@pytest.mark.parametrize(
    ("kind", "part", "change"),
    [
        ("blip2-opt", "text_config", {"do_layer_norm_before": False}),
        ("blip2-opt", "text_config", {"word_embed_proj_dim": 512}),
        ("blip2-opt", "text_config", {"enable_bias": False}),
        ("blip2-opt", "qformer_config", {"use_qformer_text_input": True}),
        ("blip2-opt", "vision_config", {"qkv_bias": False}),
        ("blip2-opt", "vision_config", {"image_size": 225}),
        ("blip2-t5", "text_config", {"feed_forward_proj": "relu"}),
        ("blip2-t5", "text_config", {"scale_decoder_outputs": True}),
        ("siglip", "vision_config", {"vision_use_head": False}),
        ("clip", "vision_config", {"num_channels": 1}),
        ("clip", "vision_config", {"hidden_act": "swish"}),
        ("blip", "text_config", {"position_embedding_type": "relative_key"}),
        ("mpt", "attn_config", {"clip_qkv": 6}),
        ("mpt", "attn_config", {"attn_type": "multiquery_attention"}),
        ("mpt", None, {"no_bias": False}),
        ("mosaic_gpt", None, {"attn_clip_qkv": 8}),
        ("gpt_neox", None, {"attention_bias": False}),
        ("gpt_neox", None, {"tie_word_embeddings": True}),
        ("gpt_neox", "rope_parameters", {"rope_type": "yarn"}),
        ("gpt_neox", None, {"quantization_config": {"bits": 4}}),
        ("open_clip", "vision_cfg", {"attentional_pool": True}),
        ("open_clip", "vision_cfg", {"pool_type": "avg"}),
        ("open_clip", "vision_cfg", {"ls_init_value": 1e-5}),
        ("open_clip", "vision_cfg", {"no_ln_pre": True}),
        ("open_clip", "text_cfg", {"embed_cls": True}),
        ("open_clip", "text_cfg", {"hf_tokenizer_name": "bert-base-uncased"}),
        ("open_clip", "text_cfg", {"pool_type": "eos"}),  # without eos_id
    ],
)  # fmt: skip
def test_forms_that_are_not_computed_are_refused_by_name(kind, part, change, tmp_path):
    meta, read, _ = CASES[kind]
    odd = copy.deepcopy(meta)
    inside(odd, part).update(change)
    with pytest.raises(UserError, match=next(iter(change))):
        read(tmp_path, odd)


def test_forms_of_open_clip_that_are_computed(tmp_path):
    meta = copy.deepcopy(OPEN_CLIP)
    meta["model_cfg"]["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    meta["model_cfg"]["vision_cfg"] |= {"act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 2.02}
    config = open_clip(tmp_path, meta)
    assert (config.text.causal, config.text.pool, config.text.eps, config.text.act) == (False, "last", 1e-6, "gelu")
    assert (config.vision.act, config.vision.mlp, config.vision.eps) == ("gelu_tanh", 64, 1e-5)
    meta["model_cfg"]["text_cfg"] |= {"no_causal_mask": False, "pool_type": "eos", "eos_id": 2}
    config = open_clip(tmp_path, meta)
    assert (config.text.causal, config.text.pool, config.text.eos) == (True, "eos", 2)


def test_any_value_anywhere_is_read_or_one_line(tmp_path):
    """A seeded fuzz: every entry of every config replaced by what it may not be."""
    rng = random.Random(0)
    values = (-5, 0, 1.5, "x", None, True, [], {}, [1, 2], float("nan"), float("inf"), 10**30, "a" * 5000, {"a": 1})
    tried = refused = 0
    for kind, (meta, read, part) in CASES.items():
        for place in dict.fromkeys((None, part)):  # in the same order every time
            for name in inside(meta, place) if place else meta:
                for value in (rng.choice(values), "a" * 5000):
                    odd = copy.deepcopy(meta)
                    (inside(odd, place) if place else odd)[name] = value
                    tried += 1
                    try:
                        read(tmp_path, odd)
                    except UserError as error:
                        refused += 1
                        assert "\n" not in str(error) and len(str(error)) < 2000, (kind, name, value)
    assert tried > 300 and refused > 100


@pytest.mark.parametrize("held", [[], None, 5, "x"])
def test_what_is_no_object(held, tmp_path):
    for _, read, _ in CASES.values():
        with pytest.raises(UserError, match="expected an object"):
            read(tmp_path, held)
    for kind, (meta, read, part) in CASES.items():
        if part and held is not None and kind != "open_clip":
            with pytest.raises(UserError, match=part):
                read(tmp_path, {**meta, part: held})


def test_the_mechanism():
    table = Table({"size": (SIZE, 4)}, {"form": ("plain", None)}, ("who_.*",), ("part",))
    assert table.read({"form": None, "who_wrote": 1, "dropout": 0.5, "part": {}}, "here") == {"size": 4}
    with pytest.raises(UserError, match="here: size is True, expected a whole number .*; form is 'odd', but only"):
        table.read({"size": True, "form": "odd"}, "here")
    assert one_of(False).test(False) and not one_of(False).test(0)


def test_preprocessors(tmp_path):
    published.image_processor(tmp_path, "siglip", 28)
    where, found = image_text.preprocessor(tmp_path)
    assert where.name == "preprocessor_config.json" and found["image_mean"] == [0.5, 0.5, 0.5]
    published.image_processor(tmp_path / "new", "clip", 28, nested=True)  # transformers 5
    where, found = image_text.preprocessor(tmp_path / "new")
    assert where.name == "processor_config.json" and found["image_std"][0] == 0.26862954
    for odd in ({"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"image_mean": [0.5]}, {"to_bgr": True}):
        with pytest.raises(UserError, match=next(iter(odd))):
            PREPROCESSOR.read(odd, "here")
    half = ((0.5,) * 3, (0.5,) * 3)
    assert pixel_statistics(None, None, half, "here") == half
    with pytest.raises(UserError, match="std of the pixels is .*expected three numbers over 0"):
        pixel_statistics(None, [0.5, 0.0, 0.5], half, "here")
    with pytest.raises(UserError, match="mean of the pixels is .*nan"):
        pixel_statistics([0.5, float("nan"), 0.5], None, half, "here")
