"""Splits the file of the GEM authors' own outputs (WalBouss/GEM, open_clip 2.23, tiny random weights) into small ones.

`python tests/golden/split_gem.py gem_tiny.npz` writes gem_weights_{1,2,3}.npz (open_clip's keys below `sd/`),
gem_inputs.npz, gem_features.npz (float32), gem_features_f64.npz and gem_maps.npz. Nothing is left out but pixels of the
enlarged maps: every third row and column is kept.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

STEP = 3


def name(key: str) -> str:
    """The file that an array goes into."""
    if key.startswith("sd/visual.transformer.resblocks."):
        return f"gem_weights_{1 + int(key.split('.')[3]) // 4}"
    if key.startswith("sd/"):
        return "gem_weights_3"
    if "/logits_" in key:
        return "gem_maps"
    if key.startswith(("gelu/", "quickgelu/", "check/", "posemb/")):
        return "gem_features_f64" if "/f64/" in key or key.startswith("posemb/") else "gem_features"
    return "gem_inputs"


def main(path: str) -> None:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    files: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        of = name(key)
        files.setdefault(of, {})[key] = array[..., ::STEP, ::STEP] if of == "gem_maps" else array
    for of, content in files.items():
        target = pathlib.Path(__file__).with_name(f"{of}.npz")
        np.savez_compressed(target, **content)
        print(target.name, target.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1])
