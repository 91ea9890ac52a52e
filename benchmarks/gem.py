"""Speed of GEM: this project, plain torch on transformers' CLIP, and plain CLIP here; ViT-B/16, random weights.

  python benchmarks/gem.py [--out docs/results/benchmark_gem.json]        # float32 on the CPU
  python benchmarks/gem.py --dtype bfloat16                               # on a GPU, where both sides find one
  python benchmarks/gem.py --torch-python /path/to/python                 # where torch lives in another environment
  python benchmarks/gem.py --every --batches 1                            # every attention beside plain CLIP, no torch

Images a second, from normalised pixels to projected tokens of the GEM stream. The sides take turns, so that a busy
machine slows all of them; the best of the repeats counts. Without torch the torch rows are left out. The proxy of
ProxyCLIP and CorrCLIP is a DINO ViT-B/16 of random weights; CorrCLIP's regions are a hundred squares.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata as versions

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


def torch_gem(size: int, dtype: str) -> Callable[[np.ndarray], Callable[[], object]]:
    """GEM written plainly in torch on transformers' CLIP; images float32[B, 3, H, W] -> a function that runs once."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=size,
        patch_size=16, projection_dim=512,
    )  # fmt: skip
    model = transformers.CLIPVisionModelWithProjection(config).eval().to(device, getattr(torch, dtype))
    tower, heads = model.vision_model, config.num_attention_heads

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def self_self(s, v, beta):
        s = torch.nn.functional.normalize(s, dim=-1)
        return torch.softmax(beta * s @ s.transpose(-1, -2), -1) @ v

    def block(layer, x, z):
        attention, y = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (split(p(y)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        beta = q.shape[-1] ** -0.5 * y.norm(dim=-1).mean(-1)[:, None, None, None]
        out = 0
        for s in (q, k, v):
            out = out + self_self(self_self(s, torch.nn.functional.normalize(s, dim=-1), beta), v, beta)
        z = z + attention.out_proj((out / 3).transpose(1, 2).flatten(2))
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + attention.out_proj(plain.transpose(1, 2).flatten(2))
        return x + layer.mlp(layer.layer_norm2(x)), z

    def gem(pixels):
        x = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers[:6]:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
        z = x
        for layer in tower.encoder.layers[6:]:
            x, z = block(layer, x, z)
        return model.visual_projection(tower.post_layernorm(z))

    def make(images: np.ndarray) -> Callable[[], object]:
        pixels = torch.from_numpy(images).to(device, getattr(torch, dtype))

        def once():
            with torch.inference_mode():
                out = gem(pixels)
            if device == "cuda":
                torch.cuda.synchronize()
            return out

        return once

    return make


def jax_side(size: int, dtype: str, attention: str) -> Callable[[np.ndarray], Callable[[], object]]:
    """The same in this project; with attention `clip`, plain CLIP's tokens."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from gem_jax import tower
    from gem_jax.attention import WITH_PROXY, WITH_REGIONS, method
    from gem_jax.pretrained import ImageText, cast
    from pin_jax.models.clip import BACKBONES, CLIP
    from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViT, ViTConfig
    from pin_jax.weights.dino import Encoder

    config = BACKBONES["ViT-B/16"]
    own = None if dtype == "float32" else dtype
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=size, dtype=own))
    module, stream = CLIP(config), method(attention, config.vision)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros((1, 2), jnp.int32)
    )["params"]
    rng = np.random.default_rng(0)

    def drawn(shapes):
        return cast(
            jax.tree.map(lambda s: np.asarray(0.02 * rng.standard_normal(s.shape), np.float32), shapes), own
        )  # fmt: skip

    params = drawn({key: shapes[key] for key in ("vision", "projection", "logit_scale")})
    model, proxy = ImageText(module, params, None), None
    if attention in WITH_PROXY:
        encoder = ViT(ViTConfig(image_size=224, patch=16, width=768, depth=12, heads=12, mlp=3072, act="gelu", eps=1e-6,
                                patch_bias=True, pre_norm=False, dtype=own))  # fmt: skip
        held = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
        proxy = Encoder(encoder, drawn(held), CLIP_MEAN, CLIP_STD)
    both = {"model": params, "proxy": proxy.params if proxy else {}}

    @jax.jit
    def run(params, pixels, beside):
        return tower.streams(model, proxy, stream, params, pixels, beside).second

    def make(images: np.ndarray) -> Callable[[], object]:
        pixels, beside = jnp.asarray(images.transpose(0, 2, 3, 1), own), tower.Beside()
        if attention in WITH_REGIONS:
            place = np.arange(size // 16) * 10 // (size // 16)
            squares = np.broadcast_to((place[:, None] * 10 + place).reshape(-1), (len(images), (size // 16) ** 2))
            beside = tower.Beside(regions=squares.astype(np.int32), count=128)
        return lambda: jax.block_until_ready(run(both, pixels, beside))

    return make


SIDES = {
    "torch GEM": torch_gem,
    "GEM": lambda size, dtype: jax_side(size, dtype, "gem"),
    "plain CLIP": lambda size, dtype: jax_side(size, dtype, "clip"),
}


EVERY = ("clip", "maskclip", "clip_surgery", "sclip", "clearclip", "naclip", "proxyclip", "corrclip", "gem")


def serve(side: str, size: int, dtype: str, batches: list[int]) -> None:
    """A side in a process of its own: for every line `BATCH` on stdin one timed run, its seconds on stdout."""
    try:
        make = jax_side(size, dtype, side) if side in EVERY else SIDES[side](size, dtype)
    except ImportError as error:
        sys.exit(f"{side}: {error}")
    images = np.random.default_rng(0).standard_normal((max(batches), 3, size, size)).astype(np.float32)
    work = {batch: make(images[:batch]) for batch in batches}
    for once in work.values():
        once()
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        work[int(line)]()
        print(time.perf_counter() - begin, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size, options.dtype, options.batches)
        return
    processes = {}
    for side in EVERY if options.every else SIDES:
        python = options.torch_python if side == "torch GEM" else sys.executable
        command = [python, __file__, "--serve", side, "--size", str(options.size), "--dtype", options.dtype]
        command += ["--batches", *map(str, options.batches)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if process.stdout.readline().strip() == "ready":
            processes[side] = process
        else:
            print(f"{side}: cannot run (see above); left out")
    seconds: dict[str, dict[int, list[float]]] = {side: {batch: [] for batch in options.batches} for side in processes}
    for _ in range(options.repeats):
        for batch in options.batches:
            for side, process in processes.items():  # in turns
                process.stdin.write(f"{batch}\n")
                process.stdin.flush()
                seconds[side][batch].append(float(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    rates = {side: {batch: batch / min(of) for batch, of in by.items()} for side, by in seconds.items()}
    for side, by in rates.items():
        print(f"{side:12s}" + "".join(f"  batch {batch}: {rate:8.3f} images/s" for batch, rate in by.items()))
    ratios = {}
    for batch in options.batches:
        if options.every:
            times = {
                f"time of {side} over clip, batch {batch}": rates["clip"][batch] / rates[side][batch] for side in rates
            }
            ratios |= times
            continue
        if "torch GEM" in rates:
            ratios[f"GEM over torch GEM, batch {batch}"] = rates["GEM"][batch] / rates["torch GEM"][batch]
        ratios[f"time of GEM over plain CLIP, batch {batch}"] = rates["plain CLIP"][batch] / rates["GEM"][batch]
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")
    if options.out:
        what = {"size": options.size, "dtype": options.dtype, "repeats": options.repeats}
        machine = {"processor": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d"),
                   "versions": {name: versions.version(name) for name in ("jax", "jaxlib", "flax")}}  # fmt: skip
        result = {"images_per_second": rates, "ratios": ratios, **what, **machine}
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
