"""Tables of OpenFlamingo on MPT: the language model, the Perceiver and the gated layers, in both of their layouts."""

from __future__ import annotations

from pin_jax.weights.clip import clip_vision
from pin_jax.weights.convert import Rule, flat, module


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


def openflamingo(cross_every: int) -> list[Rule]:
    """A whole OpenFlamingo on MPT with a CLIP tower in Hugging Face's layout -> `models.flamingo.Flamingo`.

    The gated layers may come as `lang_encoder.transformer.blocks.N.gated_cross_attn_layer.*`, as the older
    `lang_encoder.gated_cross_attn_layers.N.*`, or as both, which must then be equal. The vision tower's last LayerNorm
    is ignored: OpenFlamingo takes the tokens without it.
    """
    newer = r"lang_encoder\.transformer\.blocks\.(?P<layer>\d+)\.gated_cross_attn_layer\."
    older = r"lang_encoder\.gated_cross_attn_layers\.(?P<layer>\d+)\."
    return [
        *clip_vision(r"vision_encoder\.(?:m\.)?(?:vision_model\.)?", "vision/", post_norm=False),
        *perceiver(),
        *gates(newer, "lm/gates", cross_every),
        *gates(older, "lm/gates", cross_every),
        *mpt(r"lang_encoder\.", "lm/"),
    ]
