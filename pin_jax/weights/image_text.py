"""Tables of whole image-text models: CLIP in Hugging Face's and open_clip's layout, SigLIP, BLIP's retrieval model."""

from __future__ import annotations

from pin_jax.weights.clip import clip_vision, eva_vision
from pin_jax.weights.convert import Rule, flat, linear, module, patch

_LAYER = r"encoder\.layers\.(?P<layer>\d+)\."


def _hf_text(prefix: str = r"text_model\.", to: str = "text/") -> list[Rule]:
    """The text tower of CLIP and SigLIP in Hugging Face's layout -> `pin_jax.models.clip.TextTower`."""
    layer, blocks = prefix + _LAYER, f"{to}blocks"
    return [
        Rule(prefix + r"embeddings\.position_ids", None),  # a buffer that older files hold
        Rule(prefix + r"embeddings\.token_embedding\.weight", f"{to}embedding"),
        Rule(prefix + r"embeddings\.position_embedding\.weight", f"{to}positions"),
        *module(layer + r"self_attn\.(?P<part>[qkv])_proj", f"{blocks}/qkv", parts="qkv"),
        *module(layer + r"self_attn\.out_proj", f"{blocks}/out"),
        *module(layer + r"layer_norm([12])", rf"{blocks}/norm_\2", kind="norm"),
        *module(layer + r"mlp\.(fc[12])", rf"{blocks}/\2"),
        *module(prefix + "final_layer_norm", f"{to}norm", kind="norm"),
    ]


def hf_clip() -> list[Rule]:
    """transformers' CLIPModel -> `pin_jax.models.clip.CLIP`."""
    return [
        *clip_vision(r"vision_model\.", "vision/"),
        *_hf_text(),
        *module("visual_projection", "projection", bias=False),
        *module("text_projection", "text_projection", bias=False),
        Rule("logit_scale", "logit_scale", flat),
    ]


def hf_siglip() -> list[Rule]:
    """transformers' SiglipModel -> `pin_jax.models.clip.CLIP` with the `map` head."""
    head = r"vision_model\.head\."
    vision = [rule for rule in clip_vision(r"vision_model\.", "vision/") if "class_" not in rule.pattern]
    return [
        *vision,
        Rule(r"vision_model\.embeddings\.patch_embedding\.bias", "vision/patch/bias"),
        Rule(head + "probe", "head/probe", flat),
        Rule(head + r"attention\.in_proj_weight", "head/qkv", linear),
        Rule(head + r"attention\.in_proj_bias", "head/qkv_bias"),
        *module(head + r"attention\.out_proj", "head/out"),
        *module(head + "layernorm", "head/norm", kind="norm"),
        *module(head + r"mlp\.(fc[12])", r"head/\1"),
        *_hf_text(),
        *module(r"text_model\.head", "text_projection"),
        Rule("logit_(scale|bias)", r"logit_\1", flat),
    ]


def _open_clip_blocks(prefix: str, to: str) -> list[Rule]:
    layer, blocks = prefix + r"transformer\.resblocks\.(?P<layer>\d+)\.", f"{to}blocks"
    return [
        *module(layer + r"ln_([12])", rf"{blocks}/norm_\2", kind="norm"),
        Rule(layer + r"attn\.in_proj_weight", f"{blocks}/qkv/kernel", linear),
        Rule(layer + r"attn\.in_proj_bias", f"{blocks}/qkv/bias"),
        *module(layer + r"attn\.out_proj", f"{blocks}/out"),
        *module(layer + r"mlp\.c_fc", f"{blocks}/fc1"),
        *module(layer + r"mlp\.c_proj", f"{blocks}/fc2"),
    ]


def open_clip() -> list[Rule]:
    """open_clip's CLIP, its text tower at the root or below `text.` -> `pin_jax.models.clip.CLIP`."""
    image, text = r"visual\.", r"(?:text\.)?"
    return [
        Rule(image + "class_embedding", "vision/class_token"),
        Rule(image + "positional_embedding", "vision/positions"),
        Rule(image + r"conv1\.weight", "vision/patch/kernel", patch),
        Rule(image + "proj", "projection/kernel"),  # stored [in, out], as ours
        *module(image + "ln_pre", "vision/pre_norm", kind="norm"),
        *module(image + "ln_post", "vision/post_norm", kind="norm"),
        *_open_clip_blocks(image, "vision/"),
        Rule(text + "attn_mask", None),  # a buffer that older files hold
        Rule(text + "positional_embedding", "text/positions"),
        Rule(text + r"token_embedding\.weight", "text/embedding"),
        Rule(text + "text_projection", "text_projection/kernel"),
        *module(text + "ln_final", "text/norm", kind="norm"),
        *_open_clip_blocks(text, "text/"),
        Rule("logit_scale", "logit_scale", flat),
        # OpenAI's own archives hold their sizes as numbers.
        Rule("input_resolution|context_length|vocab_size", None),
    ]


def hf_blip() -> list[Rule]:
    """transformers' BlipForImageTextRetrieval -> `pin_jax.models.blip.BLIP`.

    Its matching head and the cross-attention that only this head uses are known and left out.
    """
    text, layer = r"text_encoder\.", r"text_encoder\.encoder\.layer\.(?P<layer>\d+)\."
    parts = ("query", "key", "value")
    return [
        *eva_vision(r"vision_model\.", "vision/"),  # BLIP's ViT has EVA's layout
        Rule(text + r"embeddings\.position_ids", None),
        Rule(text + r"embeddings\.word_embeddings\.weight", "text/embedding"),
        Rule(text + r"embeddings\.position_embeddings\.weight", "text/positions"),
        *module(text + r"embeddings\.LayerNorm", "text/norm", kind="norm"),
        *module(layer + r"attention\.self\.(?P<part>query|key|value)", "text/blocks/qkv", parts=parts),
        *module(layer + r"attention\.output\.dense", "text/blocks/out"),
        *module(layer + r"attention\.output\.LayerNorm", "text/blocks/norm_1", kind="norm"),
        *module(layer + r"intermediate\.dense", "text/blocks/fc1"),
        *module(layer + r"output\.dense", "text/blocks/fc2"),
        *module(layer + r"output\.LayerNorm", "text/blocks/norm_2", kind="norm"),
        Rule(layer + r"crossattention\..*", None),
        Rule(r"(?:itm_head|vision_model\.pooler)\..*", None),
        *module("vision_proj", "projection"),
        *module("text_proj", "text_projection"),
    ]
