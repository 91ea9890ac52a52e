"""BLIP-2 in Hugging Face's layout: its config.json, the table of its weights, and what else its folder holds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.text.prompts import Frame
from pin_jax.models.blip2 import PRESETS, Blip2, Blip2Config
from pin_jax.models.opt import OPTConfig
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.t5 import T5Config
from pin_jax.models.vit import ViTConfig
from pin_jax.weights import files
from pin_jax.weights.clip import eva_vision
from pin_jax.weights.convert import Rule, flat, linear, module
from pin_jax.weights.registry import Published

PARTS = ("vision", "qformer", "lm")
# dtype of each part's computation and weights, as it was published (LAVIS)
PUBLISHED = {"vision": "float16", "qformer": "float32", "opt": "float16", "t5": "bfloat16"}

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
# Published configs name only what differs from the defaults of transformers' config classes, which are these.
_VISION = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
}  # fmt: skip
_QFORMER = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2, "use_qformer_text_input": False,
}  # fmt: skip
_OPT = {
    "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12,
    "max_position_embeddings": 2048, "activation_function": "relu", "do_layer_norm_before": True,
    "word_embed_proj_dim": None, "enable_bias": True, "pad_token_id": 1,
    "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True,
}  # fmt: skip
_T5 = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": None,
    "num_heads": 8, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "dense_act_fn": None, "pad_token_id": 0,
    "decoder_start_token_id": 0,
}  # fmt: skip


def recognises(folder: pathlib.Path) -> bool:
    """Whether a folder holds a BLIP-2 of Hugging Face."""
    path = folder / "config.json"
    return path.is_file() and files.read_json(path).get("model_type") == "blip-2"


def config_of(
    meta: Mapping[str, Any], dtypes: Mapping[str, Any] | None = None, attention: str = "xla", **fields: Any
) -> Blip2Config:
    """A `config.json`, pruned or not -> our config.

    Args:
      meta: the file. dtypes: of the computation, by part (`PARTS`).
      attention: of the vision encoder, see `ViTConfig`.
      **fields: of every part: unroll, remat.

    Raises:
      UserError: a form of the architecture that no published BLIP-2 has.
    """
    vision = _VISION | meta.get("vision_config", {})
    qformer = _QFORMER | meta.get("qformer_config", {})
    text = meta.get("text_config", {})
    kind = text.get("model_type", "opt")
    dtypes = dtypes or {}
    if kind not in ("opt", "t5"):
        raise UserError(f"BLIP-2 on language model {kind!r}: expected opt or t5; take a BLIP-2 of OPT or Flan-T5")
    text = (_OPT if kind == "opt" else _T5) | text
    gated = kind == "opt" or text["feed_forward_proj"].startswith("gated-")
    refused = {
        "qkv_bias false": not vision["qkv_bias"],
        "use_qformer_text_input true": qformer["use_qformer_text_input"],
        "an image that is no square": not isinstance(vision["image_size"], int),
        "a post-norm OPT": kind == "opt" and not text["do_layer_norm_before"],
        "an OPT without final norm": kind == "opt" and text["_remove_final_layer_norm"],
        "an OPT with projected embeddings": kind == "opt"
        and text["word_embed_proj_dim"] not in (None, text["hidden_size"]),
        "a T5 without gated feed-forward": not gated,
    }
    if any(refused.values()):
        raise UserError(f"BLIP-2 config with {', '.join(k for k, v in refused.items() if v)}: not supported")
    if kind == "opt":
        lm = OPTConfig(
            vocab=text["vocab_size"], width=text["hidden_size"], depth=text["num_hidden_layers"],
            heads=text["num_attention_heads"], mlp=text["ffn_dim"], positions=text["max_position_embeddings"],
            act=_ACTIVATIONS[text["activation_function"]], dtype=dtypes.get("lm"), **fields,
        )  # fmt: skip
        end, image = 2, 50265
    else:
        gate = text["feed_forward_proj"].removeprefix("gated-")
        act = text["dense_act_fn"] or ("gelu_new" if gate == "gelu" else gate)  # transformers reads gated-gelu so
        lm = T5Config(
            vocab=text["vocab_size"], width=text["d_model"], depth=text["num_layers"],
            decoder_depth=text["num_decoder_layers"] or text["num_layers"], heads=text["num_heads"],
            head_dim=text["d_kv"], mlp=text["d_ff"], buckets=text["relative_attention_num_buckets"],
            max_distance=text["relative_attention_max_distance"], act=_ACTIVATIONS[act],
            eps=text["layer_norm_epsilon"], start=text["decoder_start_token_id"], dtype=dtypes.get("lm"), **fields,
        )  # fmt: skip
        end, image = 1, 32100
    vit = ViTConfig(
        image_size=vision["image_size"], patch=vision["patch_size"], width=vision["hidden_size"],
        depth=vision["num_hidden_layers"], heads=vision["num_attention_heads"], mlp=vision["intermediate_size"],
        act=_ACTIVATIONS[vision["hidden_act"]], eps=vision["layer_norm_eps"], patch_bias=True, pre_norm=False,
        antialias=False, dtype=dtypes.get("vision"), attention=attention, **fields,
    )  # fmt: skip
    queries = QFormerConfig(
        queries=meta.get("num_query_tokens", 32), width=qformer["hidden_size"], depth=qformer["num_hidden_layers"],
        heads=qformer["num_attention_heads"], mlp=qformer["intermediate_size"],
        cross_every=qformer["cross_attention_frequency"], act=_ACTIVATIONS[qformer["hidden_act"]],
        eps=qformer["layer_norm_eps"], dtype=dtypes.get("qformer"), **fields,
    )  # fmt: skip
    image = meta.get("image_token_index", meta.get("image_token_id")) or image
    return Blip2Config(vit, queries, lm, image_token=image, end_token=end, pad_token=text["pad_token_id"])


def qformer(prefix: str = r"qformer\.", to: str = "qformer/", cross_every: int = 2) -> list[Rule]:
    """The Q-Former without its queries -> `models.qformer.QFormer`; arguments as `clip_vision`."""
    layer = prefix + r"encoder\.layer\.(?P<layer>\d+)\."
    rules = module(prefix + "layernorm", f"{to}norm", kind="norm")

    def reading(index: int) -> int | None:
        return None if index % cross_every else index // cross_every

    for name, ours, fields in (
        ("attention", f"{to}blocks/attention", {}),
        ("crossattention", f"{to}cross", {"layer": reading}),
    ):
        for theirs in ("query", "key", "value"):
            rules += module(layer + rf"{name}\.attention\.{theirs}", f"{ours}/{theirs[0]}", **fields)
        rules += module(layer + rf"{name}\.output\.dense", f"{ours}/out", **fields)
        rules += module(layer + rf"{name}\.output\.LayerNorm", f"{ours}/norm", kind="norm", **fields)
    return [
        *rules,
        *module(layer + r"intermediate_query\.dense", f"{to}blocks/fc1"),
        *module(layer + r"output_query\.dense", f"{to}blocks/fc2"),
        *module(layer + r"output_query\.LayerNorm", f"{to}blocks/norm", kind="norm"),
    ]


def opt(prefix: str = "", to: str = "") -> list[Rule]:
    """OPT -> `models.opt.OPT`; the head is tied, and `convert` checks that a stored one is equal."""
    decoder = prefix + r"model\.decoder\."
    layer, blocks = decoder + r"layers\.(?P<layer>\d+)\.", f"{to}blocks"
    return [
        Rule(decoder + r"embed_tokens\.weight", f"{to}embedding"),
        Rule(prefix + r"lm_head\.weight", f"{to}embedding"),
        Rule(decoder + r"embed_positions\.weight", f"{to}positions"),
        *module(decoder + "final_layer_norm", f"{to}norm", kind="norm"),
        *module(layer + "self_attn_layer_norm", f"{blocks}/norm_1", kind="norm"),
        *module(layer + r"self_attn\.(q|k|v|out)_proj", rf"{blocks}/\2"),
        *module(layer + "final_layer_norm", f"{blocks}/norm_2", kind="norm"),
        *module(layer + "(fc[12])", rf"{blocks}/\2"),
    ]


def t5(prefix: str = "", to: str = "") -> list[Rule]:
    """T5 -> `models.t5.T5`, its head untied."""
    rules = [
        Rule(prefix + r"shared\.weight", f"{to}embedding"),
        Rule(prefix + r"(?:encoder|decoder)\.embed_tokens\.weight", f"{to}embedding"),  # older files repeat it
        Rule(prefix + r"lm_head\.weight", f"{to}head/kernel", linear),
    ]
    for stack, last in (("encoder", 1), ("decoder", 2)):
        layer = prefix + rf"{stack}\.block\.(?P<layer>\d+)\.layer\."
        ours, plain = f"{to}{stack}/blocks", {"bias": False}
        rules += [
            Rule(
                prefix + rf"{stack}\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
                f"{to}{stack}/bias",
            ),
            *module(prefix + rf"{stack}\.final_layer_norm", f"{to}{stack}/norm", kind="norm", **plain),
            *module(layer + r"0\.SelfAttention\.([qkv])", rf"{ours}/self_attention/\2", **plain),
            *module(layer + r"0\.SelfAttention\.o", f"{ours}/self_attention/out", **plain),
            *module(layer + r"0\.layer_norm", f"{ours}/norm_1", kind="norm", **plain),
            *module(layer + rf"{last}\.DenseReluDense\.(wi_0|wi_1|wo)", rf"{ours}/\2", **plain),
            *module(layer + rf"{last}\.layer_norm", f"{ours}/norm_2", kind="norm", **plain),
        ]
    return [
        *rules,
        # An accident of training that T5's first checkpoints hold: the bias of a cross-attention, which is not used.
        Rule(prefix + r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight", None),
        *module(layer + r"1\.EncDecAttention\.([qkv])", rf"{ours}/cross_attention/\2", bias=False),
        *module(layer + r"1\.EncDecAttention\.o", f"{ours}/cross_attention/out", bias=False),
        *module(layer + r"1\.layer_norm", f"{ours}/norm_cross", kind="norm", bias=False),
    ]


def table(config: Blip2Config) -> list[Rule]:
    """The rules of a whole BLIP-2 -> `models.blip2.Blip2`."""
    lm = t5 if isinstance(config.lm, T5Config) else opt
    return [
        Rule("query_tokens", "qformer/queries", flat),
        *eva_vision(r"vision_model\.", "vision/"),
        *qformer(cross_every=config.qformer.cross_every),
        *module("language_projection", "projection"),
        *lm(r"language_model\.", "lm/"),
    ]


def frame(config: Blip2Config) -> Frame:
    """What stands around prompt and answer: the image's places and `</s>` in front, `</s>` behind."""
    images = "<image>" * config.qformer.queries
    if isinstance(config.lm, T5Config):
        return Frame(prefix=images, separator="</s>", suffix="</s>", encoder_decoder=True)
    return Frame(prefix=f"{images}</s>", suffix="</s>")


def _dtypes(dtype: Any, kind: str) -> dict[str, Any]:
    """A name, `published`, or a mapping -> a dtype for each of `PARTS`; kind is `opt` or `t5`."""
    if dtype == "published":
        dtype = {"vision": PUBLISHED["vision"], "qformer": PUBLISHED["qformer"], "lm": PUBLISHED[kind]}
    dtypes = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(PARTS, dtype)
    if set(dtypes) != set(PARTS):
        raise UserError(f"dtype {dtypes!r}: expected one name, published, or a name for each of {', '.join(PARTS)}")
    return dtypes


def architecture(
    source: str, dtype: Any, attention: str = "xla", **fields: Any
) -> tuple[Blip2, dict[str, Any], Frame] | None:
    """A published BLIP-2 by name or folder, without its weights; see `published.architecture`."""
    if source in PRESETS:
        config = PRESETS[source]
        dtypes = _dtypes(dtype, "t5" if isinstance(config.lm, T5Config) else "opt")
        parts = {name: dataclasses.replace(getattr(config, name), dtype=dtypes[name], **fields) for name in PARTS}
        parts["vision"] = dataclasses.replace(parts["vision"], attention=attention)
        config = dataclasses.replace(config, **parts)
    elif recognises(pathlib.Path(source)):
        meta = files.read_json(pathlib.Path(source) / "config.json")
        dtypes = _dtypes(dtype, meta.get("text_config", {}).get("model_type", "opt"))
        config = config_of(meta, dtypes, attention, **fields)
    else:
        return None
    return Blip2(config), dtypes | {"projection": dtypes["lm"]}, frame(config)


def read(folder: pathlib.Path, dtype: Any = None, **fields: Any) -> Published:
    """Everything but the weights themselves; see `published.Published`.

    Args:
      dtype: of weights and computation: a name, `published`, or a name for each of `PARTS`.
      **fields: see `config_of`.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    model, dtypes, around = architecture(str(folder), dtype, **fields)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        processor = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: tokenizer or image processor cannot be read ({error})") from error
    if tokenizer.convert_tokens_to_ids("<image>") != model.config.image_token:  # files from before it was a token
        tokenizer.add_tokens("<image>", special_tokens=True)
    # Box texts end with `</s>`; for captions the published generation configs stop OPT at a newline.
    end = tokenizer.convert_tokens_to_ids(around.suffix)
    model = Blip2(dataclasses.replace(model.config, end_token=end))
    return Published(model, files.Tensors(folder), table(model.config), dtypes, tokenizer, processor, around)
