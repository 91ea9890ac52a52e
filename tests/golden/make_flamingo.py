"""Makes the golden files of OpenFlamingo's language models, and of an OpenFlamingo on GPT-NeoX, from live torch.

Run `python tests/golden/make_flamingo.py` where torch and transformers are installed. `mpt.npz`, `neox.npz` and
`neox_parallel.npz` hold tiny language models of transformers, every weight perturbed: `sd/KEY`, `in/ids` and `in/mask`
int64[B, T] (left-padded), `out/logits` float32[B, T, V]. `flamingo_neox.npz` holds a whole VLM: CLIP and the language
model are transformers', the Perceiver and the gated layers are written below as OpenFlamingo defines them (that they
compute what OpenFlamingo does is tested against `flamingo_tiny.npz`, which OpenFlamingo itself made).
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers

VOCAB, END, IMAGE, PAD = 48, 45, 46, 47
MODELS = {
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(vocab_size=VOCAB, d_model=24, n_heads=6, n_layers=2, max_seq_len=64)
    ),
    "neox": lambda: transformers.GPTNeoXForCausalLM(neox_config(False, 1.0)),
    "neox_parallel": lambda: transformers.GPTNeoXForCausalLM(neox_config(True, 0.25)),
}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
HEADS, HEAD_DIM, LATENTS, EVERY = 8, 4, 5, 2


def neox_config(parallel: bool, share: float) -> transformers.GPTNeoXConfig:
    """RedPajama's form (parallel False, share 1) or Pythia's, tiny."""
    return transformers.GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        rotary_pct=share, use_parallel_residual=parallel, attn_implementation="eager", max_position_embeddings=64,
    )  # fmt: skip


def perturb(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Moves every weight: norms start at 1 and 0, which hides a swap."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (1.0 if parameter.mean() > 0.9 else 0.0))
    return model.float().eval()


def text(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask int64[3, 9]; the second row has 3 pads on its left, the third one."""
    ids = torch.randint(0, END, (3, 9), generator=generator)
    ids[1, :3] = ids[2, :1] = PAD
    return ids, (ids != PAD).long()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A language model's state dict under its published names, a tied head once."""
    out = {key.replace("lm_head", "embed_out"): value for key, value in model.state_dict().items()}
    if "transformer.wte.weight" in out:
        out.pop("embed_out.weight")
    return out


def language(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A tiny language model: weights, input, logits."""
    generator = torch.Generator().manual_seed(seed)
    model = perturb(MODELS[name](), generator)
    ids, mask = text(generator)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    out = {f"sd/{key}": value for key, value in weights(model).items()}
    out |= {"in/ids": ids, "in/mask": mask, "out/logits": logits}
    return {key: value.numpy() for key, value in out.items()}


# --- OpenFlamingo's own layers, on a dict of tensors under OpenFlamingo's keys ---------------------------------------


def attend(sd: dict, key: str, queries: torch.Tensor, context: torch.Tensor, heads: int, visible=None) -> torch.Tensor:
    """Multi-head attention [B, T, D] x [B, S, C] -> [B, T, D]; a query that sees nothing gets zero."""
    q, kv = F.linear(queries, sd[f"{key}.to_q.weight"]), F.linear(context, sd[f"{key}.to_kv.weight"])
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, -1)))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    weight = scores.softmax(-1)
    if visible is not None:
        weight = weight * visible.any(-1)[:, None, :, None]
    return F.linear((weight @ v).transpose(1, 2).flatten(2), sd[f"{key}.to_out.weight"])


def norm(sd: dict, key: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], sd[f"{key}.weight"], sd[f"{key}.bias"])


def feed_forward(sd: dict, key: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(F.gelu(F.linear(norm(sd, f"{key}.0", x), sd[f"{key}.1.weight"])), sd[f"{key}.3.weight"])


def resample(sd: dict, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """The Perceiver: vision tokens [B, N, D] -> [B, L, D]."""
    x = sd["perceiver.latents"].expand(len(tokens), -1, -1)
    for i in range(sum(key.endswith(".0.norm_media.weight") for key in sd)):
        key = f"perceiver.layers.{i}"
        media, latents = norm(sd, f"{key}.0.norm_media", tokens), norm(sd, f"{key}.0.norm_latents", x)
        x = x + attend(sd, f"{key}.0", latents, torch.cat([media, latents], 1), heads)
        x = x + feed_forward(sd, f"{key}.1", x)
    return norm(sd, "perceiver.norm", x)


def gated(sd: dict, key: str, x: torch.Tensor, media: torch.Tensor, visible: torch.Tensor, heads: int) -> torch.Tensor:
    """A gated cross-attention layer; media [B, I * L, D], visible bool[B, T, I * L]."""
    y = attend(sd, f"{key}.attn", norm(sd, f"{key}.attn.norm", x), media, heads, visible)
    x = x + sd[f"{key}.attn_gate"].tanh() * y
    return x + sd[f"{key}.ff_gate"].tanh() * feed_forward(sd, f"{key}.ff", x)


def run(sd: dict, vision, lm, blocks, prefix: str, every: int, pixels, ids, mask, image: int, heads: int = HEADS):
    """Vision tokens [B, I, N, D], media [B, I, L, D] and logits of a whole OpenFlamingo.

    Args:
      vision, lm: transformers' models. blocks: the language model's layers. prefix: of the gated layers' keys.
      pixels: float[B, I, 3, H, W].
    """
    tokens = vision(pixels.flatten(0, 1)).last_hidden_state[:, 1:]
    media = resample(sd, tokens, heads).unflatten(0, pixels.shape[:2])
    seen = (ids == image).cumsum(1)
    owner = torch.arange(1, media.shape[1] + 1).repeat_interleave(media.shape[2])
    visible = seen[..., None] == owner
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, i=i: (gated(sd, f"{prefix}{i}", args[0], media.flatten(1, 2), visible, heads), *args[1:])
        )
        for i, block in enumerate(blocks)
        if (i + 1) % every == 0
    ]
    logits = lm(ids, attention_mask=mask).logits
    for hook in hooks:
        hook.remove()
    return tokens.unflatten(0, pixels.shape[:2]), media, logits


def own_layers(width: int, gates: list[str], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights of the Perceiver (two layers) and of the gated layers that are named."""
    vision, inner = VISION["hidden_size"], HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"perceiver.latents": (LATENTS, vision), "perceiver.norm": (vision,)}
    for i in range(2):
        layer = f"perceiver.layers.{i}"
        shapes |= {f"{layer}.0.norm_media": (vision,), f"{layer}.0.norm_latents": (vision,), f"{layer}.1.0": (vision,)}
        shapes |= {f"{layer}.0.to_q": (inner, vision), f"{layer}.0.to_kv": (2 * inner, vision)}
        shapes |= {f"{layer}.0.to_out": (vision, inner), f"{layer}.1.1": (4 * vision, vision)}
        shapes |= {f"{layer}.1.3": (vision, 4 * vision)}
    for gate in gates:
        shapes |= {f"{gate}.attn_gate": (1,), f"{gate}.ff_gate": (1,), f"{gate}.attn.norm": (width,)}
        shapes |= {f"{gate}.attn.to_q": (inner, width), f"{gate}.attn.to_kv": (2 * inner, vision)}
        shapes |= {f"{gate}.attn.to_out": (width, inner), f"{gate}.ff.0": (width,)}
        shapes |= {f"{gate}.ff.1": (4 * width, width), f"{gate}.ff.3": (width, 4 * width)}
    sd = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator) * 0.2
        if key.endswith(("latents", "gate")) and "norm" not in key:
            sd[key] = value + (0.5 if "gate" in key else 0.0)
        elif len(shape) == 1:
            sd[f"{key}.weight"], sd[f"{key}.bias"] = value + 1, torch.randn(shape, generator=generator) * 0.2
        else:
            sd[f"{key}.weight"] = value
    return sd


def flamingo_neox(seed: int = 0) -> dict[str, np.ndarray]:
    """An OpenFlamingo-4B in little.

    Row 0 has text, an image, text, another image; row 1 is left-padded with both; row 2 never shows an image.
    """
    generator = torch.Generator().manual_seed(seed)
    lm = perturb(MODELS["neox"](), generator)
    vision = perturb(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)), generator)
    prefix = "lang_encoder.gpt_neox.layers."
    gates = [f"{prefix}{i}.gated_cross_attn_layer" for i in range(EVERY - 1, 4, EVERY)]
    sd = own_layers(32, gates, generator)
    ids, mask = text(generator)
    ids[0, 2] = ids[0, 5] = ids[1, 3] = ids[1, 6] = IMAGE
    pixels = torch.randn(3, 2, 3, 28, 28, generator=generator)
    ours = {key.replace(".gated_cross_attn_layer", ""): value for key, value in sd.items()}
    with torch.no_grad():
        tokens, media, logits = run(ours, vision, lm, lm.gpt_neox.layers, prefix, EVERY, pixels, ids, mask, IMAGE)
    sd |= {f"vision_encoder.{key.removeprefix('vision_model.')}": value for key, value in vision.state_dict().items()}
    sd |= {f"lang_encoder.{key}": value for key, value in weights(lm).items()}
    out = {f"sd/{key}": value for key, value in sd.items()}
    out |= {"in/pixels": pixels, "in/ids": ids, "in/mask": mask}
    out |= {"out/vision": tokens, "out/media": media, "out/logits": logits}
    meta = {"cross_every": EVERY, "heads": HEADS, "head_dim": HEAD_DIM, "image": IMAGE, "end": END, "pad": PAD}
    meta |= {"vision": VISION, "lm": lm.config.to_dict()}
    return {key: value.numpy() for key, value in out.items()} | {"meta": np.array(json.dumps(meta))}


if __name__ == "__main__":
    for each in (*MODELS, "flamingo_neox"):
        path = pathlib.Path(__file__).with_name(f"{each}.npz")
        np.savez_compressed(path, **(flamingo_neox() if each == "flamingo_neox" else language(each)))
        print(path.name, path.stat().st_size)
