"""Makes lora.npz from live peft: branches on every dense layer of the golden EVA tower, its output and the gradients.

Run `PYTHONPATH=tests python tests/golden/make_lora.py` where torch, transformers and peft are installed. Holds
`a/LAYER/NAME` float32[r, in] and `b/LAYER/NAME` float32[out, r] as peft names and shapes them, `grad_a/...` and
`grad_b/...` of the sum of `in/weight` times the output, `out/hidden`, and `out/merged`, the same after
merge_and_unload. Weights and pixels are those of eva.npz.
"""

from __future__ import annotations

import pathlib

import numpy as np
import peft
import torch
import transformers
from golden.make_golden import SHAPE

RANK, ALPHA = 3, 12.0


def reference(weights: dict[str, np.ndarray], pixels: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """See the module.

    Args:
      weights: of the tower, as transformers names them. pixels: float32[B, 3, H, W].
    """
    model = transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**SHAPE, hidden_act="gelu")).float().eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    options = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=r".*\.(qkv|projection|fc1|fc2)"
    )
    adapted = peft.get_peft_model(model, options)
    generator = torch.Generator().manual_seed(seed)
    arrays, held = {}, {}
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            kind = "a" if ".lora_A." in name else "b"
            layer = name.split("layers.")[1].split(".lora_")[0].replace(".", "/", 1)
            held[f"{kind}/{layer}"] = parameter
    arrays |= {key: value.detach().numpy().copy() for key, value in held.items()}
    hidden = adapted(torch.from_numpy(pixels)).last_hidden_state
    weight = torch.randn(hidden.shape, generator=generator)
    (hidden * weight).sum().backward()
    arrays |= {f"grad_{key}": value.grad.numpy().copy() for key, value in held.items()}
    with torch.no_grad():
        merged = adapted.merge_and_unload()(torch.from_numpy(pixels)).last_hidden_state
    return arrays | {
        "in/weight": weight.numpy(), "in/rank": np.array(RANK), "in/alpha": np.array(ALPHA),
        "out/hidden": hidden.detach().numpy(), "out/merged": merged.numpy(),
    }  # fmt: skip


def main() -> None:
    folder = pathlib.Path(__file__).parent
    with np.load(folder / "eva.npz") as file:
        weights = {key[3:]: file[key] for key in file.files if key.startswith("sd/")}
        pixels = file["in/pixels"]
    np.savez_compressed(folder / "lora.npz", **reference(weights, pixels))
    print((folder / "lora.npz").stat().st_size)


if __name__ == "__main__":
    main()
