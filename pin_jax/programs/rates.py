"""Which learning rate each method of the table gets: a short run at each of a few, scored on scenes of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from pin_jax.programs import pin
from pin_jax.runtime import reporting
from pin_jax.runtime.files import AnyPath
from pin_jax.weights.files import read_object

Row = tuple[ConfigDict, AnyPath]


def rows(config: ConfigDict, models: Sequence[str], methods: Sequence[str], make: Callable[..., ConfigDict],
         workdir: AnyPath) -> dict[tuple[str, str, float], Row]:  # fmt: skip
    """The runs of a sweep: every method of every model at every rate, all alike; the first seed.

    Args:
      config: of the table, with its `sweep`: rates, steps, images, seed (of the scenes that it is scored on).
      make: a row's config from the table's, the model, the method and the seed.

    Returns:
      (model, method, rate) -> its config and folder, WORKDIR/MODEL/sweep/METHOD_RATE.

    Raises:
      UserError: the sweep would be scored on the table's own scenes.
    """
    found: dict[tuple[str, str, float], Row] = {}
    sweep = config.sweep
    for model in models:
        for method in methods:
            for rate in sweep.rates:
                row = make(config, model, method, int(config.seeds[0]))
                if sweep.seed == row.eval.seed:
                    raise UserError(f"config.sweep.seed {sweep.seed}: these are the table's own scenes; choose another")
                row.lr, row.steps = float(rate), sweep.steps
                row.warmup, row.save_every = min(row.warmup, sweep.steps // 4), sweep.steps
                row.eval.update({"images": sweep.images, "seed": sweep.seed})
                found[model, method, float(rate)] = row, workdir / model / "sweep" / f"{method}_{rate:g}"
    return found


def best(found: dict[tuple[str, str, float], Row]) -> dict[str, dict[str, float]]:
    """Model -> method -> the rate of the highest mIoU, read from the runs' own files; prints them all."""
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for (model, method, rate), (_, folder) in found.items():
        score = read_object(folder / pin.RESULTS)[method]["mIoU"]
        scores.setdefault(model, {}).setdefault(method, {})[f"{rate:g}"] = score
    if jax.process_index() == 0:
        for model, table in scores.items():
            reporting.results_table(f"{model}: mIoU at each learning rate", table, tuple(next(iter(table.values()))))
    return {
        model: {method: float(max(own, key=lambda rate: -1 if own[rate] is None else own[rate]))
                for method, own in table.items()}
        for model, table in scores.items()
    }  # fmt: skip
