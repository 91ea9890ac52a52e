"""What a training step of each method takes: time, memory and operations, side by side on the same batch.

  python benchmarks/methods.py                                   # the small Flamingo
  python benchmarks/methods.py --model blip2-mid --batch 4 --out docs/results/methods_mid.json     # a 300 M BLIP-2

Every method runs with the encoder inside the step, and those behind it with cached features too, as they are trained.
Methods take turns, round after round, so that a busy machine slows all alike; the median counts. Memory is what XLA
reserves beside inputs and outputs (`temp_size_in_bytes` of the compiled step).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from input_pipeline.text.box_codec import BoxCodec  # noqa: E402
from pin_jax import methods, train  # noqa: E402
from pin_jax.models.blip2 import Blip2  # noqa: E402
from pin_jax.runtime import files, flops, reporting  # noqa: E402
from pin_jax.vlm import VLM, load, skeleton  # noqa: E402
from pin_jax.weights.parameters import count_parameters  # noqa: E402

NAMES = ("pin", "vpt_f", "coop", "vpt_v", "lora_v")
QUESTIONS = 2


def small(folder: str) -> VLM:
    """A small VLM from its folder."""
    return load(folder)


def mid() -> VLM:
    """`benchmarks/pin_step.py`'s BLIP-2 of an OPT-125m under a ViT-B."""
    from benchmarks.pin_step import MID, random_params

    vision = dataclasses.replace(MID.vision, remat="none")
    model = Blip2(dataclasses.replace(MID, vision=vision))
    return VLM(model, random_params(skeleton(model)), None, BoxCodec(224), (0.5,) * 3, (0.5,) * 3, "")


def batch(vlm: VLM, images: int, length: int) -> dict[str, np.ndarray]:
    """One batch of pictures and texts of random words."""
    rng, config = np.random.default_rng(0), vlm.model.config
    front = config.qformer.queries if isinstance(vlm.model, Blip2) else 1
    ids = rng.integers(10, 300, (images, QUESTIONS, front + length), dtype=np.int32)
    ids[..., :front] = config.image_token
    target = np.zeros(ids.shape, np.float32)
    target[..., -11:] = 1  # a box and its end
    size = config.vision.image_size
    return {"image": rng.integers(0, 255, (images, size, size, 3), np.uint8), "ids": ids, "target": target}


def prepare(vlm: VLM, name: str, data: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Compiles a method's step; what is known of it, and a function that runs it once."""
    method = methods.build(name, vlm.model.config)
    tx = train.optimiser(ConfigDict({"schedule": "constant", "lr": 1e-3, "steps": 1}))
    step = train.make_step(vlm, method, tx)
    held = [train.initial(method, tx, 0, vlm.params)]
    begin = time.perf_counter()
    compiled = step.lower(held[0], vlm.params, data).compile()
    row = {
        "parameters": count_parameters(held[0].trainable),
        "temp_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "gflop": flops.count_flops(step, held[0], vlm.params, data) / 1e9,
        "compile_seconds": time.perf_counter() - begin,
    }

    def once() -> None:
        held[0], metrics = compiled(held[0], vlm.params, data)
        jax.block_until_ready(metrics)

    return row, once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/tiny_flamingo", help="a small VLM's folder, or blip2-mid")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=20, help="tokens of a text behind the image's own")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    vlm = mid() if options.model == "blip2-mid" else small(options.model)
    data = jax.device_put(batch(vlm, options.batch, options.length))
    encode = jax.jit(lambda p, x: vlm.model.apply({"params": p}, vlm.pixels(x)[:, None], method="encode")[:, 0])
    cached = {k: v for k, v in data.items() if k != "image"} | {"vision": encode(vlm.params, data["image"])}
    rows, runs = {}, {}
    for name in options.methods.split(","):
        inside = train.in_vision(methods.build(name, vlm.model.config), vlm.params)
        for title, given in ((name, data), (f"{name}, cached", cached)):
            if not (inside and given is cached):
                rows[title], runs[title] = prepare(vlm, name, given)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds + 1):
        for name, once in runs.items():
            begin = time.perf_counter()
            once()
            if i:  # the first round warms up
                taken[name].append(time.perf_counter() - begin)
    for name, row in rows.items():
        row["step_ms"] = 1e3 * float(np.median(taken[name]))
        row["images_a_second"] = options.batch / float(np.median(taken[name]))
    columns = ("parameters", "step_ms", "images_a_second", "temp_mib", "gflop", "compile_seconds")
    reporting.results_table(f"{options.model}, batch {options.batch}", rows, columns)
    if options.out:
        meta = {"date": time.strftime("%Y-%m-%d"), "device": jax.devices()[0].device_kind, "settings": vars(options)}
        files.write_json(pathlib.Path(options.out), {"methods": rows} | meta)


if __name__ == "__main__":
    main()
