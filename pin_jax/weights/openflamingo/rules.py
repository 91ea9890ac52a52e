"""Tables of OpenFlamingo: its language models, the Perceiver and the gated layers, in both of their layouts."""

from __future__ import annotations

import functools

import numpy as np
from einops import rearrange

from pin_jax.models.language.gpt_neox import GPTNeoXConfig
from pin_jax.models.language.mpt import MPT_7B, MPTConfig
from pin_jax.weights.clip import clip_vision, open_clip_vision
from pin_jax.weights.convert import Rule, flat, linear, module


def mpt(prefix: str = "", to: str = "") -> list[Rule]:
    """MPT -> embedding, norm and stacked `models.mpt.MPTBlock`s: MPT-7B's names and MPT-1B's (mosaic_gpt) alike.

    Args:
      prefix: regular expression in front of every key; must hold no group.
      to: path of the decoder in the parameter tree, with a closing `/`.
    """
    layer, blocks = prefix + r"transformer\.blocks\.(?P<layer>\d+)\.(?:decoder_layer\.)?", f"{to}blocks"
    return [
        Rule(prefix + r"transformer\.wte\.weight", f"{to}embedding"),
        Rule(prefix + r"lm_head\.weight", f"{to}embedding"),  # tied; `convert` checks that it is equal
        *module(prefix + r"transformer\.(?:norm_f|ln_f)", f"{to}norm", bias=False, kind="norm"),
        *module(layer + r"(?:norm|ln)_([12])", rf"{blocks}/norm_\2", bias=False, kind="norm"),
        *module(layer + r"attn\.Wqkv", f"{blocks}/qkv", bias=False),
        *module(layer + r"attn\.([qk])_ln", rf"{blocks}/\2_norm", bias=False, kind="norm"),
        *module(layer + r"attn\.out_proj", f"{blocks}/out", bias=False),
        *module(layer + r"(?:ffn\.|mlp\.mlp_)(up|down)(?:_proj)?", rf"{blocks}/\2", bias=False),
    ]


def by_part(array: np.ndarray, heads: int) -> np.ndarray:
    """GPT-NeoX's fused q, k, v, head by head on the first axis [(H 3 d), ...] -> all of q, all of k, all of v."""
    return rearrange(np.asarray(array), "(h t d) ... -> (t h d) ...", h=heads, t=3)


def gpt_neox(heads: int, prefix: str = "", to: str = "") -> list[Rule]:
    """GPT-NeoX -> embedding, norm, head and stacked `models.gpt_neox.GPTNeoXBlock`s.

    Args:
      heads: of the attention; its fused weights lie head by head. Other arguments as `mpt`.
    """
    layer, blocks = prefix + r"gpt_neox\.layers\.(?P<layer>\d+)\.(?:decoder_layer\.)?", f"{to}blocks"
    qkv = layer + r"attention\.query_key_value"
    fused = functools.partial(by_part, heads=heads)
    return [
        Rule(prefix + r"gpt_neox\.embed_in\.weight", f"{to}embedding"),
        Rule(prefix + r"(?:embed_out|lm_head)\.weight", f"{to}head/kernel", linear),
        *module(prefix + r"gpt_neox\.final_layer_norm", f"{to}norm", kind="norm"),
        *module(layer + "input_layernorm", f"{blocks}/norm_1", kind="norm"),
        *module(layer + "post_attention_layernorm", f"{blocks}/norm_2", kind="norm"),
        Rule(qkv + r"\.weight", f"{blocks}/qkv/kernel", lambda w: linear(fused(w))),
        Rule(qkv + r"\.bias", f"{blocks}/qkv/bias", fused),
        *module(layer + r"attention\.dense", f"{blocks}/out"),
        *module(layer + r"mlp\.dense_h_to_4h", f"{blocks}/up"),
        *module(layer + r"mlp\.dense_4h_to_h", f"{blocks}/down"),
        # Buffers that older files hold: the causal mask, and the speeds of the rotation.
        Rule(layer + r"attention\.(?:bias|masked_bias|rotary_emb\.inv_freq)", None),
        Rule(prefix + r"gpt_neox\.rotary_emb\.inv_freq", None),
    ]


def perceiver(prefix: str = r"perceiver\.", to: str = "perceiver/") -> list[Rule]:
    """The resampler -> `models.perceiver.Perceiver`; arguments as `mpt`."""
    layer, layers = prefix + r"layers\.(?P<layer>\d+)\.", f"{to}layers"
    return [
        Rule(prefix + "latents", f"{to}latents"),
        *module(layer + r"0\.norm_(media|latents)", rf"{layers}/norm_\2", kind="norm"),
        *module(layer + r"0\.to_(q|kv|out)", rf"{layers}/\2", bias=False),
        *module(layer + r"1\.0", f"{layers}/norm_mlp", kind="norm"),
        *module(layer + r"1\.1", f"{layers}/fc1", bias=False),
        *module(layer + r"1\.3", f"{layers}/fc2", bias=False),
        *module(prefix + "norm", f"{to}norm", kind="norm"),
    ]


def gates(prefix: str, to: str, cross_every: int) -> list[Rule]:
    """Gated cross-attention -> stacked `models.flamingo.GatedCrossAttention`.

    Args:
      prefix: regular expression up to and with the layer's number and dot, in the group `layer`.
      to: path of the gated layers in the parameter tree, without a closing `/`.
      cross_every: they stand before language block i when (i + 1) % cross_every == 0.
    """

    def place(block: int) -> int | None:
        return None if (block + 1) % cross_every else (block + 1) // cross_every - 1

    return [
        Rule(prefix + "attn_gate", f"{to}/attn_gate", flat, layer=place),
        Rule(prefix + "ff_gate", f"{to}/mlp_gate", flat, layer=place),
        *module(prefix + r"attn\.norm", f"{to}/norm", kind="norm", layer=place),
        *module(prefix + r"attn\.to_(q|kv|out)", rf"{to}/\2", bias=False, layer=place),
        *module(prefix + r"ff\.0", f"{to}/norm_mlp", kind="norm", layer=place),
        *module(prefix + r"ff\.1", f"{to}/fc1", bias=False, layer=place),
        *module(prefix + r"ff\.3", f"{to}/fc2", bias=False, layer=place),
    ]


def openflamingo(cross_every: int, lm: MPTConfig | GPTNeoXConfig = MPT_7B) -> list[Rule]:
    """A whole OpenFlamingo with a CLIP tower in Hugging Face's or open_clip's layout -> `models.flamingo.Flamingo`.

    The gated layers may come inside the language model's (`...blocks.N.gated_cross_attn_layer.*`), as the older
    `lang_encoder.gated_cross_attn_layers.N.*`, or as both, which must then be equal. The vision tower's last LayerNorm
    is ignored: OpenFlamingo takes the tokens without it.

    Args:
      cross_every: see `FlamingoConfig`.
      lm: which language model it is.
    """
    newer = r"lang_encoder\.(?:transformer\.blocks|gpt_neox\.layers)\.(?P<layer>\d+)\.gated_cross_attn_layer\."
    older = r"lang_encoder\.gated_cross_attn_layers\.(?P<layer>\d+)\."
    neox = isinstance(lm, GPTNeoXConfig)
    return [
        *clip_vision(r"vision_encoder\.(?:m\.)?(?:vision_model\.)?", "vision/", post_norm=False),
        *open_clip_vision(r"vision_encoder\.", "vision/", post_norm=False),
        *perceiver(),
        *gates(newer, "lm/gates", cross_every),
        *gates(older, "lm/gates", cross_every),
        *(gpt_neox(lm.heads, r"lang_encoder\.", "lm/") if neox else mpt(r"lang_encoder\.", "lm/")),
    ]
