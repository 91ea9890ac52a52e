"""Evaluation during training: every config.eval_every steps, on scenes of its own; the best insert is kept."""

from __future__ import annotations

import json
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from pin_jax import adapters, evaluate
from pin_jax.runtime import reporting
from pin_jax.runtime.files import AnyPath
from pin_jax.vlm import VLM

BEST = "best.safetensors"
LOGGED = ("mIoU", "P@0.5", "unparsed")
OTHER_SCENES = 1  # added to the seed of the evaluation: what is chosen here is tested on others


class Validation:
    """Scores what is being trained, and keeps the best in `best.safetensors`, whose card has its step and scores.

    Pasted scenes are others than those of the evaluation at the end; of a published set they are the first
    config.eval_subset images, which the evaluation has too.

    Args:
      config: of the run. workdir: where the best goes; one that is there already has to be beaten.
    """

    def __init__(self, config: ConfigDict, workdir: AnyPath, vlm: VLM):
        options = config.copy_and_resolve_references()
        options.eval.update({"images": config.eval_subset, "seed": config.eval.seed + OTHER_SCENES})
        self._config, self._vlm, self._path = config, vlm, epath.Path(workdir) / BEST
        self._test = evaluate.Evaluation(options, vlm)
        card = self._path.with_suffix(".json")
        self._best = json.loads(card.read_text())["results"] if self._path.exists() and card.exists() else None

    def __call__(self, step: int, method: Any, params: Any) -> dict[str, float]:
        """Scores of a step, `eval_mIoU` and so on; all processes take part.

        Args:
          params: the method's, on the host.
        """
        scores = self._test.score_answers(self._test.answers(method.inserts(params)))
        mean = scores["mIoU"]
        if self._best is None or mean > self._best["mIoU"]:
            self._best = {"step": step, **scores}
            if jax.process_index() == 0:
                adapters.save(self._path, params, self._config, self._vlm)
                adapters.note(self._path, self._best)
        reporting.say(
            f"step {step}: mIoU {mean:.3f} on {len(self._test.queries)} queries; the best so far is"
            f" {self._best['mIoU']:.3f}, of step {self._best['step']} ({self._path})"
        )
        return {f"eval_{name}": float(scores[name]) for name in LOGGED}
