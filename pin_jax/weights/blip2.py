"""BLIP-2 in Hugging Face's layout: its config.json, the table of its weights, and what else its folder holds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.text.prompts import Frame
from pin_jax.models.blip2 import BLIP2_FLAN_T5_XL, BLIP2_OPT_2_7B, BLIP2_OPT_6_7B, Blip2, Blip2Config
from pin_jax.models.language.opt import OPTConfig
from pin_jax.models.language.t5 import T5Config
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from pin_jax.weights import files, published, tokenizers
from pin_jax.weights.clip import eva_vision
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import (
    ACTIVATION,
    ACTIVATIONS,
    EPS,
    FLAG,
    ID,
    REQUIRED,
    SIZE,
    TRANSFORMERS,
    Table,
    one_of,
    optional,
    part,
    pixel_statistics,
)
from pin_jax.weights.configs.image_text import preprocessor
from pin_jax.weights.convert import Rule, flat, linear, module
from pin_jax.weights.registry import Published

PARTS = ("vision", "qformer", "lm")
SHAPES = {"opt-2.7b": BLIP2_OPT_2_7B, "opt-6.7b": BLIP2_OPT_6_7B, "flan-t5-xl": BLIP2_FLAN_T5_XL}
BY_ID = {model.id: SHAPES[name] for name, model in published.BLIP2.items()}
# dtype of each part's computation and weights, as it was published (LAVIS)
PUBLISHED = {"vision": "float16", "qformer": "float32", "opt": "float16", "t5": "bfloat16"}

_COMMON = (*TRANSFORMERS, "projection_dim", "num_channels")
_FIXED = {"pruned_heads": ({},), "num_channels": (3,)}
# Published configs name only what differs from the defaults of transformers' config classes, which are these.
_WHOLE = Table(
    {
        "num_query_tokens": (SIZE, 32),
        "image_token_index": (optional(ID), None),
        "image_token_id": (optional(ID), None),
    },
    _FIXED | {"use_decoder_only_language_model": (True, False)},
    (*_COMMON, "image_text_hidden_size", "tie_word_embeddings"),
    ("vision_config", "qformer_config", "text_config"),
)
_VISION = Table(
    {
        "hidden_size": (SIZE, 1408),
        "intermediate_size": (SIZE, 6144),
        "num_hidden_layers": (SIZE, 39),
        "num_attention_heads": (SIZE, 16),
        "image_size": (SIZE, 224),
        "patch_size": (SIZE, 14),
        "hidden_act": (ACTIVATION, "gelu"),
        "layer_norm_eps": (EPS, 1e-6),
    },
    _FIXED | {"qkv_bias": (True,)},
    (*_COMMON, "tie_word_embeddings"),
)
_QFORMER = Table(
    {
        "hidden_size": (SIZE, 768),
        "num_hidden_layers": (SIZE, 12),
        "num_attention_heads": (SIZE, 12),
        "intermediate_size": (SIZE, 3072),
        "hidden_act": (ACTIVATION, "gelu"),
        "layer_norm_eps": (EPS, 1e-12),
        "cross_attention_frequency": (SIZE, 2),
    },
    _FIXED | {"use_qformer_text_input": (False,), "position_embedding_type": ("absolute",)},
    (
        *_COMMON,
        "tie_word_embeddings",
        "vocab_size",
        "max_position_embeddings",
        "encoder_hidden_size",
        "type_vocab_size",
    ),
)
_OPT = Table(
    {
        "vocab_size": (SIZE, 50272),
        "hidden_size": (SIZE, 768),
        "num_hidden_layers": (SIZE, 12),
        "ffn_dim": (SIZE, 3072),
        "num_attention_heads": (SIZE, 12),
        "max_position_embeddings": (SIZE, 2048),
        "activation_function": (ACTIVATION, "relu"),
        "word_embed_proj_dim": (optional(SIZE), None),
        "pad_token_id": (optional(ID), 1),
    },
    _FIXED
    | {
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "enable_bias": (True,),
        "layer_norm_elementwise_affine": (True,),
        "tie_word_embeddings": (True,),
    },
    _COMMON,
)
_T5_FORMS = ("gated-gelu", "gated-relu", "gated-gelu_new")
_T5 = Table(
    {
        "vocab_size": (SIZE, 32128),
        "d_model": (SIZE, 512),
        "d_kv": (SIZE, 64),
        "d_ff": (SIZE, 2048),
        "num_layers": (SIZE, 6),
        "num_decoder_layers": (optional(SIZE), None),
        "num_heads": (SIZE, 8),
        "relative_attention_num_buckets": (SIZE, 32),
        "relative_attention_max_distance": (SIZE, 128),
        "layer_norm_epsilon": (EPS, 1e-6),
        "feed_forward_proj": (one_of(*_T5_FORMS), REQUIRED),
        "dense_act_fn": (optional(ACTIVATION), None),
        "pad_token_id": (optional(ID), 0),
        "decoder_start_token_id": (optional(ID), 0),
        "tie_word_embeddings": (FLAG, False),
        "scale_decoder_outputs": (one_of(False), None),
    },
    _FIXED | {"is_gated_act": (True,)},
    (*_COMMON, "n_positions", "num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"),
)


def recognises(folder: pathlib.Path) -> bool:
    """Whether a folder holds a BLIP-2 of Hugging Face."""
    path = folder / "config.json"
    return path.is_file() and files.read_object(path).get("model_type") == "blip-2"


def config_of(
    meta: Mapping[str, Any],
    dtypes: Mapping[str, Any] | None = None,
    attention: str = "xla",
    where: str = "config.json",
    **fields: Any,
) -> Blip2Config:
    """A `config.json`, pruned or not -> our config.

    Args:
      meta: the file. where: what errors call it. dtypes: of the computation, by part (`PARTS`).
      attention: of the vision encoder, see `ViTConfig`.
      **fields: of every part: unroll, remat.

    Raises:
      UserError: an entry that is not known, and forms of the architecture that no published BLIP-2 has.
    """
    whole = _WHOLE.read(meta, where)
    vision = _VISION.read(part(meta, "vision_config", where), f"{where}, vision_config")
    qformer = _QFORMER.read(part(meta, "qformer_config", where), f"{where}, qformer_config")
    text = part(meta, "text_config", where)
    kind = text.get("model_type", "opt")
    dtypes = dtypes or {}
    if kind not in ("opt", "t5"):
        raise UserError(f"BLIP-2 on language model {kind!r}: expected opt or t5; take a BLIP-2 of OPT or Flan-T5")
    text = (_OPT if kind == "opt" else _T5).read(text, f"{where}, text_config")
    if kind == "opt" and text["word_embed_proj_dim"] not in (None, text["hidden_size"]):
        raise UserError(
            f"{where}, text_config: word_embed_proj_dim is {text['word_embed_proj_dim']}, but hidden_size is"
            f" {text['hidden_size']}; an OPT with projected embeddings is not computed here"
        )
    # transformers 5 writes that every T5 is tied; what a tied T5 computes otherwise is in scale_decoder_outputs then.
    if kind == "t5" and text["tie_word_embeddings"] and text["scale_decoder_outputs"] is None:
        raise UserError(
            f"{where}, text_config: tie_word_embeddings is True; a T5 whose head is its word embedding is not computed"
            " here: give a BLIP-2 of Flan-T5"
        )
    if kind == "opt":
        lm = OPTConfig(
            vocab=text["vocab_size"], width=text["hidden_size"], depth=text["num_hidden_layers"],
            heads=text["num_attention_heads"], mlp=text["ffn_dim"], positions=text["max_position_embeddings"],
            act=ACTIVATIONS[text["activation_function"]], dtype=dtypes.get("lm"), **fields,
        )  # fmt: skip
        end, image = 2, 50265
    else:
        gate = text["feed_forward_proj"].removeprefix("gated-")
        act = text["dense_act_fn"] or ("gelu_new" if gate == "gelu" else gate)  # transformers reads gated-gelu so
        lm = T5Config(
            vocab=text["vocab_size"], width=text["d_model"], depth=text["num_layers"],
            decoder_depth=text["num_decoder_layers"] or text["num_layers"], heads=text["num_heads"],
            head_dim=text["d_kv"], mlp=text["d_ff"], buckets=text["relative_attention_num_buckets"],
            max_distance=text["relative_attention_max_distance"], act=ACTIVATIONS[act],
            eps=text["layer_norm_epsilon"], start=text["decoder_start_token_id"] or 0, dtype=dtypes.get("lm"), **fields,
        )  # fmt: skip
        end, image = 1, 32100
    vit = ViTConfig(
        image_size=vision["image_size"], patch=vision["patch_size"], width=vision["hidden_size"],
        depth=vision["num_hidden_layers"], heads=vision["num_attention_heads"], mlp=vision["intermediate_size"],
        act=ACTIVATIONS[vision["hidden_act"]], eps=vision["layer_norm_eps"], patch_bias=True, pre_norm=False,
        antialias=False, dtype=dtypes.get("vision"), attention=attention, **fields,
    )  # fmt: skip
    queries = QFormerConfig(
        queries=whole["num_query_tokens"], width=qformer["hidden_size"], depth=qformer["num_hidden_layers"],
        heads=qformer["num_attention_heads"], mlp=qformer["intermediate_size"],
        cross_every=qformer["cross_attention_frequency"], act=ACTIVATIONS[qformer["hidden_act"]],
        eps=qformer["layer_norm_eps"], dtype=dtypes.get("qformer"), **fields,
    )  # fmt: skip
    named = {whole["image_token_index"], whole["image_token_id"]} - {None}
    if len(named) > 1:
        raise UserError(f"{where}: image_token_index and image_token_id are {sorted(named)}; give one of them")
    pad = text["pad_token_id"] if text["pad_token_id"] is not None else int(kind == "opt")
    image = named.pop() if named else min(image, lm.vocab - 1)  # `read` takes the tokenizer's own
    config = Blip2Config(vit, queries, lm, image_token=image, end_token=end, pad_token=pad)
    if vit.image_size % vit.patch:
        raise UserError(f"{where}, vision_config: patch_size {vit.patch} does not divide image_size {vit.image_size}")
    return sizes.check(config, where)


def qformer(prefix: str = r"qformer\.", to: str = "qformer/", cross_every: int = 2) -> list[Rule]:
    """The Q-Former without its queries -> `models.qformer.QFormer`; arguments as `clip_vision`."""
    layer = prefix + r"encoder\.layer\.(?P<layer>\d+)\."
    rules = module(prefix + "layernorm", f"{to}norm", kind="norm")

    def reading(index: int) -> int | None:
        return None if index % cross_every else index // cross_every

    own: dict[str, Any] = {}
    cross: dict[str, Any] = {"layer": reading}
    for name, ours, fields in (
        ("attention", f"{to}blocks/attention", own),
        ("crossattention", f"{to}cross", cross),
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
        ours = f"{to}{stack}/blocks"
        plain: dict[str, Any] = {"bias": False}
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
    dtypes: dict[str, Any] = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(PARTS, dtype)
    if set(dtypes) != set(PARTS):
        raise UserError(f"dtype {dtypes!r}: expected one name, published, or a name for each of {', '.join(PARTS)}")
    return dtypes


def architecture(
    source: str, dtype: Any, attention: str = "xla", **fields: Any
) -> tuple[Blip2, dict[str, Any], Frame] | None:
    """A published BLIP-2 by name or folder, without its weights; see `published.architecture`."""
    if source in BY_ID:
        config = BY_ID[source]
        dtypes = _dtypes(dtype, "t5" if isinstance(config.lm, T5Config) else "opt")
        parts = {name: dataclasses.replace(getattr(config, name), dtype=dtypes[name], **fields) for name in PARTS}
        parts["vision"] = dataclasses.replace(parts["vision"], attention=attention)
        config = dataclasses.replace(config, **parts)
    elif recognises(pathlib.Path(source)):
        path = pathlib.Path(source) / "config.json"
        meta = files.read_object(path)
        kind = part(meta, "text_config", str(path)).get("model_type", "opt")
        dtypes = _dtypes(dtype, kind if kind in ("opt", "t5") else "opt")
        config = config_of(meta, dtypes, attention, str(path), **fields)
    else:
        return None
    return Blip2(config), dtypes | {"projection": dtypes["lm"]}, frame(config)


def read(folder: pathlib.Path, dtype: Any = None, **fields: Any) -> Published:
    """Everything but the weights themselves; see `published.Published`.

    Args:
      dtype: of weights and computation: a name, `published`, or a name for each of `PARTS`.
      **fields: see `config_of`.
    """
    built = architecture(str(folder), dtype, **fields)
    assert built is not None, folder  # `recognises` has been asked
    model, dtypes, around = built
    config = model.config
    where, found = preprocessor(folder)
    mean, std = pixel_statistics(found["image_mean"], found["image_std"], (CLIP_MEAN, CLIP_STD), str(where))
    _same_queries(folder, config.qformer.queries)
    tokenizer = _tokenizer(folder, config, around)
    # Box texts end with `</s>`; for captions the published generation configs stop OPT at a newline.
    end = tokenizer.convert_tokens_to_ids(around.suffix)
    image = tokenizers.token_id(tokenizer, "<image>")
    model = Blip2(dataclasses.replace(config, image_token=image, end_token=end))
    return Published(
        model, files.Tensors(folder), table(model.config), dtypes, tokenizer, around, mean, std, _processor(folder)
    )


def _same_queries(folder: pathlib.Path, queries: int) -> None:
    """Refuses a processor that makes another number of image places than the Q-Former has queries."""
    path = folder / "processor_config.json"
    asked = files.read_object(path).get("num_query_tokens") if path.is_file() else None
    if asked is not None and asked != queries:
        raise UserError(
            f"{path}: num_query_tokens is {files.short(asked)}, but {queries} in config.json; give files of one model"
        )


def _processor(folder: pathlib.Path) -> Any:
    """transformers' image processor, for those who want its pixels; None where the folder has none."""
    from transformers import AutoImageProcessor

    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return None
    try:
        return AutoImageProcessor.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds for a file that is missing or broken
        raise UserError(f"image processor of {folder}: cannot be read ({error}); fetch it again") from error


def _tokenizer(folder: pathlib.Path, config: Blip2Config, around: Frame) -> Any:
    """OPT's or T5's tokenizer, padding on the left, with `<image>` where config.json has it.

    Raises:
      UserError: missing, broken, or not that of the model.
    """
    encoder_decoder = isinstance(config.lm, T5Config)
    vocabulary = tokenizers.SENTENCEPIECE if encoder_decoder else tokenizers.BYTE_LEVEL
    # transformers would take a space away from before a comma, which a box text never has.
    options = {"padding_side": "left", "clean_up_tokenization_spaces": False}
    classes = ("T5Tokenizer",) if encoder_decoder else ("GPT2Tokenizer",)
    tokenizer = tokenizers.read(
        folder, config.lm.vocab, vocabulary, classes=classes, special=(around.suffix,), **options
    )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"tokenizer {folder}: it names no pad_token; give the tokenizer that its model was trained with"
        )
    if tokenizers.token_id(tokenizer, "<image>") is None:  # files from before it was a token
        tokenizer.add_tokens("<image>", special_tokens=True)
        tokenizers.belongs(tokenizer, folder, config.lm.vocab)
    expected = {"pad_token_id": (tokenizer.pad_token, config.pad_token)}
    meta = files.read_object(folder / "config.json")
    for name in ("image_token_index", "image_token_id"):  # null, or left out: the tokenizer's own
        if meta.get(name) is not None:
            expected[name] = ("<image>", meta[name])
    tokenizers.check_ids(tokenizer, folder, expected)
    return tokenizer
