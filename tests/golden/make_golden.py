"""Makes the golden files of the vision towers from live torch: tiny random transformers models, every weight perturbed.

Run `python tests/golden/make_golden.py` where torch and transformers are installed. Each file holds `sd/KEY` (weights
as transformers names them), `in/pixels` float32[B, 3, H, W], and `out/hidden` (the tower's last_hidden_state).
CLIP's file also has `out/pooled` (the class token after post_layernorm). `positions.npz` holds a position table and
its resizes.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"image_size": 28, "patch_size": 7, "attn_implementation": "eager"}


def _model(name: str) -> torch.nn.Module:
    if name == "eva":
        return transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**SHAPE, hidden_act="gelu"))
    act = name.removeprefix("clip_")
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SHAPE, hidden_act=act))


NAMES = ("clip_quick_gelu", "clip_gelu", "eva")


def reference(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights, input and outputs of one tiny tower, float32."""
    generator = torch.Generator().manual_seed(seed)
    model = _model(name).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms start at 1 and 0, which hides a swap: move every weight
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.15 + (1.0 if parameter.mean() > 0.9 else 0.0))
        pixels = torch.randn(2, 3, SHAPE["image_size"], SHAPE["image_size"], generator=generator)
        out = model(pixels)
    arrays = {f"sd/{key}": value.numpy() for key, value in model.state_dict().items()}
    arrays |= {"in/pixels": pixels.numpy(), "out/hidden": out.last_hidden_state.numpy()}
    if name.startswith("clip"):
        arrays["out/pooled"] = out.pooler_output.numpy()
    return arrays


def positions(seed: int = 0) -> dict[str, np.ndarray]:
    """A position table float32[17, 8] and its antialiased bicubic resizes, as open_clip and GEM make them."""
    table = torch.randn(17, 8, generator=torch.Generator().manual_seed(seed))
    arrays = {"in/table": table.numpy()}
    body = table[1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    for grid in ((6, 7), (3, 2)):
        out = torch.nn.functional.interpolate(body, grid, mode="bicubic", align_corners=False, antialias=True)
        out = torch.cat([table[:1], out.permute(0, 2, 3, 1).reshape(-1, 8)])
        arrays[f"out/{grid[0]}x{grid[1]}"] = out.numpy()
    return arrays


if __name__ == "__main__":
    for each in (*NAMES, "positions"):
        path = pathlib.Path(__file__).with_name(f"{each}.npz")
        np.savez_compressed(path, **(positions() if each == "positions" else reference(each)))
        print(path.name, path.stat().st_size)
