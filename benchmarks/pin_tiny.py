"""Where the time goes on the small model: data, vision features, train step, decoding.

  python benchmarks/pin_tiny.py [--out docs/results/benchmark_tiny.json]

The peers stand in the same run: the data pipeline against the recipe written with PIL alone, the train step with cached
features against the same step with the encoder in it, beams against greedy.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs import pin_flamingo  # noqa: E402
from input_pipeline.loader import batches  # noqa: E402
from input_pipeline.pasted import paste  # noqa: E402
from input_pipeline.pasted.scenes import Scenes, scene_config  # noqa: E402
from input_pipeline.text.questions import BoxQuestions  # noqa: E402
from pin_jax import train  # noqa: E402
from pin_jax.decoding import search as decode  # noqa: E402
from pin_jax.methods import METHODS  # noqa: E402
from pin_jax.models.interface import Inserts  # noqa: E402
from pin_jax.runtime import reporting  # noqa: E402
from pin_jax.vlm import load  # noqa: E402


def rate(work: Callable[[], object], items: int, repeats: int = 5) -> float:
    """Items per second: the best of some repeats, after one to warm up."""
    jax.block_until_ready(work())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - begin)
    return items / min(seconds)


def plain_pil(scenes: Scenes, index: int) -> np.ndarray:
    """One scene by the same recipe with nothing kept in memory: every file opened, trimmed and resized anew."""
    config = scenes.config
    rng = np.random.default_rng([scenes.seed, index])
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    sprites = []
    for i in rng.choice(len(scenes.cutouts), count, replace=False):
        image = Image.open(scenes.cutouts.entries[i][1]).convert("RGBA")
        sprites.append(image.crop(image.getchannel("A").getbbox()))
    boxes = paste.layout(rng, [s.width / s.height for s in sprites], config.grid, config.smallest)
    photo = Image.open(scenes.backgrounds.paths[int(rng.integers(len(scenes.backgrounds)))]).convert("RGB")
    return paste.compose(photo.resize((config.image_size,) * 2), sprites, boxes, config.codec.cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", default="assets/tiny_flamingo")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    config = pin_flamingo.get_config("tiny")
    vlm = load(options.vlm)
    size = config.batch_size
    scenes = Scenes(scene_config(config.scenes, vlm.codec), 0, 100_000)
    questions = BoxQuestions(vlm.tokenizer, vlm.codec, config.questions_per_image, config.text_length)
    iterator = batches(scenes, [questions], size, shuffle=False)
    records = [scenes[i] for i in range(size)]
    rng = np.random.default_rng(0)
    rows = {
        "scenes, plain PIL, one thread": rate(lambda: [plain_pil(scenes, i) for i in range(32)], 32, 3),
        "scenes, this project, one thread": rate(lambda: [scenes[i] for i in range(256)], 256),
        "texts of box questions, one thread": rate(lambda: [questions.random_map(r, rng) for r in records], size),
        "data pipeline, two threads": rate(lambda: [next(iterator) for _ in range(16)], 16 * size),
    }
    method = METHODS["pin"](vlm.model.config)
    tx = train.optimiser(config)
    step = train.make_step(vlm, method, tx)
    batch = next(iterator)
    images = batch.pop("image")
    rows["vision encoder, forward"] = rate(lambda: vlm.encode(images), size)
    with_image = {**batch, "image": images}
    cached = {**batch, "vision": np.asarray(vlm.encode(images))}

    def stepping(batch):
        params = method.init(jax.random.key(0))
        box = [train.State(jax.numpy.zeros((), jax.numpy.int32), params, tx.init(params))]

        def work():
            for _ in range(10):
                box[0], metrics = step(box[0], vlm.params, batch)
            return metrics

        return work

    rows["train step, features cached"] = rate(stepping(cached), 10 * size)
    rows["train step, encoder inside"] = rate(stepping(with_image), 10 * size)
    asked = [(i, "In the image is a cat located at") for i in range(size)]
    ids, mask = vlm.tokenize(["<image>" + text for _, text in asked])
    inserts: Inserts = method.inserts(method.init(jax.random.key(0)))
    for name, search, extra in (("greedy", decode.greedy, {}), ("3 beams", decode.beam, {"beams": 3})):
        rows[f"decoding, {name}, up to 12 tokens"] = rate(
            lambda search=search, extra=extra: search(
                vlm.model, vlm.params, cached["vision"][:, None], ids, mask, inserts, 12, vlm.suppressed, **extra
            ),
            size,
        )
    for name, value in rows.items():
        print(f"{name:40s} {value:10,.0f} a second")
    if options.out:
        machine = {"processor": platform.processor() or platform.machine(), "devices": reporting.devices()}
        text = json.dumps({"per_second": rows, "machine": machine, "date": time.strftime("%Y-%m-%d")}, indent=1)
        pathlib.Path(options.out).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
