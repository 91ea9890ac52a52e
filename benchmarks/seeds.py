"""Trains the insert with three seeds on the small VLM and prints the spread.

  python benchmarks/seeds.py [--workdir runs/seeds] [--out docs/results/pin_tiny_seeds.json]
  python benchmarks/seeds.py --config configs/pin_blip2.py --workdir runs/seeds_blip2

Each run is `main.py --config=CONFIG --config.seed=S`; one that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
SCORES = ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "asked_iou", "other_iou", "unparsed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/pin_flamingo.py:tiny")
    parser.add_argument("--workdir", default="runs/seeds")
    parser.add_argument("--out", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, overrides = parser.parse_known_args()
    rows = {}
    for seed in options.seeds:
        workdir = pathlib.Path(options.workdir).absolute() / f"seed_{seed}"
        command = [sys.executable, "main.py", f"--config={options.config}", f"--workdir={workdir}"]
        if not (workdir / "results.json").exists():
            subprocess.run([*command, f"--config.seed={seed}", *overrides], cwd=ROOT, check=True)
        rows[seed] = json.loads((workdir / "results.json").read_text("utf-8"))
    first = next(iter(rows.values()))
    table = {name: {key: first[name][key] for key in SCORES} for name in ("raw", "random", "constant")}
    for seed, row in rows.items():
        table[f"pin, seed {seed}"] = {key: row["pin"][key] for key in SCORES}
    for kind, of in (("mean", statistics.mean), ("std", statistics.pstdev)):
        table[f"pin, {kind}"] = {key: of([row["pin"][key] for row in rows.values()]) for key in SCORES}
    print(f"{'':16s}" + "".join(f"{key:>10s}" for key in SCORES))
    for name, scores in table.items():
        print(f"{name:16s}" + "".join(f"{value:10.3f}" for value in scores.values()))
    if options.out:
        meta = {"date": time.strftime("%Y-%m-%d"), "devices": first["devices"], "frozen": first["frozen"]}
        pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(options.out).write_text(json.dumps({"table": table, **meta}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
