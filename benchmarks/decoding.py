"""How well and how fast each decoder finds boxes: text against grid, the likeliest box against the expected IoU.

  python benchmarks/decoding.py [--vlm assets/tiny_flamingo] [--out docs/results/decoding_tiny.json]

The scenes are those of the evaluation: names and backgrounds that neither insert nor VLM has seen. Times are of
decoding alone, vision features at hand: the best pass of some, the decoders in turns. Questions a second are by the
clock; CPU milliseconds a question are fairer where the machine is busy with other work. 3 beams over text, as
published, are the peer. `score` is the mean of what the decoder itself says of its boxes: their probability, or their
expected IoU.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import sys
import time

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs import pin_flamingo  # noqa: E402
from pin_jax import adapters, evaluate  # noqa: E402
from pin_jax.decoding import grid  # noqa: E402
from pin_jax.runtime import reporting  # noqa: E402
from pin_jax.scoring import (
    metrics,  # noqa: E402
    queries,  # noqa: E402
)
from pin_jax.vlm import load  # noqa: E402

DECODERS = {
    "greedy": {"decoder": "greedy"},
    "3 beams": {"decoder": "beam"},
    "grid greedy": {"decoder": "grid_greedy"},
    "grid, 3 beams": {"decoder": "grid_beam"},
    "expected IoU, 4": {"decoder": "expected_iou", "candidates": 4},
    "expected IoU, 16": {"decoder": "expected_iou"},
}
PEER = "3 beams"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", default="assets/tiny_flamingo")
    parser.add_argument("--insert", default="", help="the one in the VLM's folder by default")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    config = pin_flamingo.get_config("tiny")
    config.eval.images = options.images
    vlm = load(options.vlm)
    insert = pathlib.Path(options.insert or f"{options.vlm}/insert.safetensors")
    method, params = adapters.load(insert, vlm)
    inserts = method.inserts(params)
    records = evaluate.scenes(config, vlm)
    vision = evaluate.encode(vlm, [record["image"] for record in records])
    asked = queries.of_records(records)
    where = [(q.image, q.name) for q in asked]
    true, others = np.stack([q.box for q in asked]), [q.others for q in asked]

    def answer(name: str, questions: list) -> list[queries.Answer]:
        settings = ConfigDict({**config.eval.to_dict(), **DECODERS[name]})
        return evaluate.locate(vlm, vision, questions, inserts, settings, name)

    reporting.console.quiet = True
    seconds, cpu = dict.fromkeys(DECODERS, np.inf), dict.fromkeys(DECODERS, np.inf)
    rows = {}
    for name in DECODERS:
        answer(name, where[:1])  # compiles
    for _ in range(options.repeats):
        for name in DECODERS:
            begin, busy = time.perf_counter(), time.process_time()
            answers = answer(name, where)
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
            cpu[name] = min(cpu[name], time.process_time() - busy)
            boxes, parsed = np.stack([a.box for a in answers]), np.array([a.parsed for a in answers])
            score = metrics.summary(boxes, true, others, parsed, vlm.codec.image_size)
            rows[name] = {key: score[key] for key in ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "unparsed", "queries")}
            if DECODERS[name]["decoder"] in grid.DECODERS:
                rows[name]["score"] = float(np.mean([a.score for a in answers]))
    for name, row in rows.items():
        row["questions_per_second"] = len(asked) / seconds[name]
        row["cpu_ms_per_question"] = 1000 * cpu[name] / len(asked)
        row["speed_against_3_beams"] = seconds[PEER] / seconds[name]
    reporting.console.quiet = False
    columns = ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "unparsed", "score")
    columns += ("questions_per_second", "cpu_ms_per_question", "speed_against_3_beams")
    reporting.results_table(f"{len(asked)} questions about {len(records)} held-out scenes", rows, columns)
    if options.out:
        extra = {
            "frozen": vlm.identity,
            "machine": {"processor": platform.processor() or platform.machine(), "devices": reporting.devices()},
            "date": time.strftime("%Y-%m-%d"),
        }
        pathlib.Path(options.out).write_text(json.dumps({"decoders": rows, **extra}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
