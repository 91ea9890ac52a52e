"""The smallest TPU slice on which each published BLIP-2 trains, found by compiling for one after the other.

  python benchmarks/slices.py --out docs/results/slices.json       # needs libtpu; some minutes a compilation

Prints the table of docs/sharding.md. Each compilation is a run of its own: `--config.run=compile` of main.py, with the
frozen weights split over all chips (`fsdp`), bfloat16, `remat=full`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
MODELS = ("opt-2.7b", "opt-6.7b", "flan-t5-xl")


def compiled(model: str, topology: str, batch: int) -> dict:
    """What the compile run writes, its train step alone."""
    chips = math.prod(int(n) for n in topology.split(":")[1].split("x"))
    with tempfile.TemporaryDirectory() as workdir:
        flags = {"run": "compile", "topology": topology, "batch_size": batch * chips, "mesh.data": 1}
        flags |= {"mesh.fsdp": chips, "compile_steps": "('train',)"}
        command = [sys.executable, "main.py", f"--config=configs/pin_blip2.py:{model}", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in flags.items()]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        return json.loads((pathlib.Path(workdir) / "results.json").read_text("utf-8"))["compile"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--slices", nargs="+", default=("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4"))
    parser.add_argument("--batch", type=int, default=64, help="images a chip")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    out = pathlib.Path(options.out) if options.out else None
    rows = json.loads(out.read_text("utf-8")) if out and out.exists() else {}
    for model in options.models:
        for topology in options.slices:
            key = f"{model} {topology}"
            rows[key] = rows.get(key) or compiled(model, topology, options.batch)
            if out:
                out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
            if rows[key]["fits"]:
                break
    columns = ("model", "slice", "GiB a chip", "fits", "FLOPs a step", "estimated s a step", "compiled in s")
    print("|".join(("", *columns, "")), "|---" * len(columns) + "|", sep="\n")
    for key, row in rows.items():
        cells = [*key.split(), f"{row['hbm_per_device_bytes'] / 2**30:.1f}", "yes" if row["fits"] else "no"]
        cells += [f"{row['flops_per_step']:.2e}", f"{row['estimated_step_seconds']:.2f}"]
        print("|".join(("", *cells, f"{row['compile_seconds']:.0f}", "")))


if __name__ == "__main__":
    main()
