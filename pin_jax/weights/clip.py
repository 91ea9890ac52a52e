"""Tables of the vision towers: CLIP in Hugging Face's and open_clip's layouts, BLIP-2's EVA (transformers 5 names)."""

from __future__ import annotations

from pin_jax.weights.convert import Rule, flat, linear, module, patch

PREFIX = r"(?:vision_model\.)?"  # transformers 5 leaves it out when a CLIPVisionModel is saved alone
_LAYER = r"encoder\.layers\.(?P<layer>\d+)\."


def _blocks(prefix: str, to: str) -> list[Rule]:
    layer, blocks = prefix + _LAYER, f"{to}blocks"
    return [
        *module(layer + "layer_norm1", f"{blocks}/norm_1", kind="norm"),
        *module(layer + "layer_norm2", f"{blocks}/norm_2", kind="norm"),
        *module(layer + r"mlp\.(fc[12])", rf"{blocks}/\2"),
    ]


def clip_vision(prefix: str = PREFIX, to: str = "", post_norm: bool = True) -> list[Rule]:
    """CLIP's vision tower in Hugging Face's layout -> `models.vit.ViT`.

    Args:
      prefix: regular expression in front of every key; must hold no group.
      to: path of the ViT in the parameter tree, with a closing `/`.
      post_norm: load the last LayerNorm; False ignores it, for a tower whose tokens are taken without (OpenFlamingo).
    """
    layer = prefix + _LAYER
    norm = module(prefix + "post_layernorm", f"{to}post_norm", kind="norm")
    return [
        Rule(prefix + r"embeddings\.position_ids", None),  # a buffer, 0 ... N - 1, that older files hold
        Rule(prefix + r"embeddings\.class_embedding", f"{to}class_token", flat),
        Rule(prefix + r"embeddings\.patch_embedding\.weight", f"{to}patch/kernel", patch),
        Rule(prefix + r"embeddings\.position_embedding\.weight", f"{to}positions"),
        *module(prefix + "pre_layrnorm", f"{to}pre_norm", kind="norm"),  # sic
        *module(layer + r"self_attn\.(?P<part>[qkv])_proj", f"{to}blocks/qkv", parts="qkv"),
        *module(layer + r"self_attn\.out_proj", f"{to}blocks/out"),
        *_blocks(prefix, to),
        *(norm if post_norm else [Rule(rule.pattern, None) for rule in norm]),
    ]


def open_clip_vision(prefix: str = r"visual\.", to: str = "", post_norm: bool = True) -> list[Rule]:
    """CLIP's vision tower in open_clip's layout (fused qkv) -> `models.vit.ViT`; see `clip_vision`."""
    layer, blocks = prefix + r"transformer\.resblocks\.(?P<layer>\d+)\.", f"{to}blocks"
    norm = module(prefix + "ln_post", f"{to}post_norm", kind="norm")
    return [
        Rule(prefix + "class_embedding", f"{to}class_token", flat),
        Rule(prefix + r"conv1\.weight", f"{to}patch/kernel", patch),
        Rule(prefix + "positional_embedding", f"{to}positions"),
        *module(prefix + "ln_pre", f"{to}pre_norm", kind="norm"),
        *module(layer + r"ln_([12])", rf"{blocks}/norm_\2", kind="norm"),
        Rule(layer + r"attn\.in_proj_weight", f"{blocks}/qkv/kernel", linear),
        Rule(layer + r"attn\.in_proj_bias", f"{blocks}/qkv/bias"),
        *module(layer + r"attn\.out_proj", f"{blocks}/out"),
        *module(layer + r"mlp\.c_fc", f"{blocks}/fc1"),
        *module(layer + r"mlp\.c_proj", f"{blocks}/fc2"),
        *(norm if post_norm else [Rule(rule.pattern, None) for rule in norm]),
        Rule(prefix + "proj", None),  # into the space that images and texts share
    ]


def eva_vision(prefix: str = PREFIX, to: str = "") -> list[Rule]:
    """EVA's vision tower in BLIP-2's Hugging Face layout (fused qkv) -> `models.vit.ViT`; see `clip_vision`."""
    layer = prefix + _LAYER
    return [
        Rule(prefix + r"embeddings\.class_embedding", f"{to}class_token", flat),
        Rule(prefix + r"embeddings\.position_embedding", f"{to}positions", flat),
        Rule(prefix + r"embeddings\.patch_embedding\.weight", f"{to}patch/kernel", patch),
        Rule(prefix + r"embeddings\.patch_embedding\.bias", f"{to}patch/bias"),
        *module(layer + r"self_attn\.qkv", f"{to}blocks/qkv"),
        *module(layer + r"self_attn\.projection", f"{to}blocks/out"),
        *_blocks(prefix, to),
        *module(prefix + "post_layernorm", f"{to}post_norm", kind="norm"),
    ]
