"""Makes the golden files of whole image-text models from live torch: tiny transformers models, every weight perturbed.

Run `python tests/golden/make_image_text.py` where torch and transformers are installed. Each file holds `sd/KEY`
(weights as transformers names them), `config` (its config.json), `in/pixels` float32[B, 3, H, W], `in/ids` int64[C, T],
and `out/image`, `out/text` (embeddings before normalisation) and `out/tokens` (the vision tower's tokens, post-norm).
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch
import transformers

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = SHAPE | {"image_size": 28, "patch_size": 7}
TEXT = SHAPE | {"hidden_size": 24, "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 12}
EAGER = {"attn_implementation": "eager"}


def _clip(act: str):
    text = TEXT | {"hidden_act": act, "bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION | {"hidden_act": act}, projection_dim=16)
    return transformers.CLIPModel(config.__class__(**config.to_dict() | EAGER))


def _siglip():
    text = TEXT | {"hidden_size": 32, "projection_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION, **EAGER))


def _blip():
    special = {"bos_token_id": 38, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0, "projection_dim": 16}
    text = TEXT | special | {"hidden_size": 32, "encoder_hidden_size": 32}
    config = transformers.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=16, **EAGER)
    return transformers.BlipForImageTextRetrieval(config)


MODELS = {
    "model_clip_quick_gelu": lambda: _clip("quick_gelu"),
    "model_clip_gelu": lambda: _clip("gelu"),
    "model_siglip": _siglip,
    "model_blip": _blip,
}


def _ids(name: str, generator: torch.Generator) -> torch.Tensor:
    """Texts of different lengths; CLIP's end with the end token and are padded with it."""
    ids = torch.randint(3, 38, (5, 12), generator=generator)
    for row in range(5):
        end = 4 + 2 * row
        if name.startswith("model_clip"):
            ids[row, end - 1 :] = 39
        elif name == "model_blip":
            ids[row, end:] = 0
    return ids


@torch.no_grad()
def reference(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights, config, inputs and outputs of one tiny model, float32."""
    generator = torch.Generator().manual_seed(seed)
    model = MODELS[name]().float().eval()
    for parameter in model.parameters():  # norms start at 1 and 0, which hides a swap: move every weight
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.15 + (1.0 if parameter.mean() > 0.9 else 0.0))
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    ids = _ids(name, generator)
    tokens = model.vision_model(pixels)[0]
    if name == "model_blip":
        image = model.vision_proj(tokens[:, 0])
        text = model.text_proj(model.text_encoder(input_ids=ids, attention_mask=(ids != 0).long())[0][:, 0])
    elif name == "model_siglip":
        image, text = model.vision_model(pixels).pooler_output, model.text_model(ids).pooler_output
    else:
        image = model.visual_projection(model.vision_model(pixels).pooler_output)
        text = model.text_projection(model.text_model(ids).pooler_output)
        tokens = model.vision_model.post_layernorm(tokens)
    arrays = {f"sd/{key}": value.numpy() for key, value in model.state_dict().items()}
    arrays |= {"in/pixels": pixels.numpy(), "in/ids": ids.numpy(), "out/tokens": tokens.numpy()}
    arrays |= {"out/image": image.numpy(), "out/text": text.numpy()}
    return arrays | {"config": np.array(json.dumps(model.config.to_diff_dict(), default=str))}


if __name__ == "__main__":
    for each in MODELS:
        path = pathlib.Path(__file__).with_name(f"{each}.npz")
        np.savez_compressed(path, **reference(each))
        print(path.name, path.stat().st_size)
