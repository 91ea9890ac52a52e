"""Inspects a trained method: what its insert has learned, and where its errors lie (`config.run=inspect`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pin_jax import adapters, evaluate, methods
from pin_jax.models.interface import Inserts
from pin_jax.runtime import files, reporting
from pin_jax.runtime.files import AnyPath
from pin_jax.scoring import figures, inspection
from pin_jax.vlm import VLM


def run(config: ConfigDict, workdir: AnyPath, vlm: VLM, path: AnyPath | None) -> dict[str, Any]:
    """Asks about the evaluation scenes with an adapter; writes inspection.json and inspection.png.

    Args:
      path: of the adapter; None asks the frozen VLM.
    """
    name, inserts = "raw", Inserts()
    if path is not None:
        method, params = adapters.load(path, vlm, config.method)
        name, inserts = methods.describe(method)[0], method.inserts(params)
    test = evaluate.Evaluation(config, vlm)
    answers = test.answers(inserts, f"asking with {name}")
    found = {"method": name, "adapter": str(path or "none")}
    found |= {"errors": inspection.errors(test.queries, np.stack([a.box for a in answers]), vlm.codec.image_size)}
    maps = None
    if inserts.vision_output is not None:
        psi = np.asarray(inserts.vision_output)
        maps, shares = inspection.components(psi)
        found["insert"] = {
            "explained": shares.tolist(),
            "norm": float(np.linalg.norm(psi, axis=1).mean()),  # of one token's part
            "token_norm": test.token_norm(inserts),  # of the vision tokens that it is added to
        }
    files.write_json(workdir / "inspection.json", found)
    figures.inspection(workdir / "inspection.png", name, found, maps)
    reporting.say(f"wrote {workdir / 'inspection.json'}, {workdir / 'inspection.png'}")
    return found
