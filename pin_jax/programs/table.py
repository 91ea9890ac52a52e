"""The PIN table: every method on every model with the same data, budget and seeds, beside the paper's figures.

Each row is a run of its own, a train run like any other, in WORKDIR/MODEL/seed_S/METHOD; what has its results.json is
not run again, and is refused if its budget was another. Rows without parameters are in WORKDIR/MODEL/seed_S/frozen.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from configs.lib import catalogue, schema
from input_pipeline.errors import UserError
from pin_jax import evaluate, train
from pin_jax.programs import pin, rates
from pin_jax.runtime import files, reporting, sharding
from pin_jax.runtime.entries import listed, refuse_another
from pin_jax.runtime.files import AnyPath
from pin_jax.runtime.processes import workdirs
from pin_jax.scoring import figures
from pin_jax.weights.files import read_object

FROZEN = "frozen"
SCORES = ("mIoU", "mIoU_M", "mIoU_L")
ORDER = (
    "raw", "random", "constant", "2_context", "5_context", "10_context", "coop", "vpt_f", "vpt_v", "lora_v", "pin",
)  # fmt: skip
# PIN's own figures on VOC2007 test: mIoU, mIoU_M, mIoU_L.
PAPER = {
    "flamingo": {
        "raw": (0.0, 0.0, 0.0), "random": (0.22, 0.10, 0.33),
        "2_context": (0.19, 0.08, 0.30), "5_context": (0.19, 0.07, 0.31), "10_context": (0.20, 0.06, 0.32),
        "coop": (0.28, 0.11, 0.43), "vpt_f": (0.32, 0.14, 0.50), "vpt_v": (0.42, 0.21, 0.61),
        "lora_v": (0.44, 0.26, 0.62), "pin": (0.45, 0.27, 0.62),
    },
    "blip2": {"vpt_f": (0.37, 0.16, 0.56), "vpt_v": (0.31, 0.13, 0.47), "pin": (0.44, 0.24, 0.63)},
}  # fmt: skip


def model_config(source: str) -> ConfigDict:
    """The config of a file and a variant, `configs/pin_flamingo.py:tiny`.

    Raises:
      UserError: there is no such file or variant.
    """
    path, _, variant = source.partition(":")
    try:
        return catalogue.get_config(path, variant)
    except (OSError, ValueError, AttributeError, TypeError, KeyError, SyntaxError) as error:
        raise UserError(f"config.configs {source}: {error}; expected FILE.py:VARIANT") from error


def row_config(config: ConfigDict, model: str, method: str, seed: int) -> ConfigDict:
    """The config of one row."""
    if model not in config.configs:
        raise UserError(f"config.models {model!r}: expected some of {', '.join(config.configs)}")
    source = config.configs[model]
    if method:
        source += f"{',' if ':' in source else ':'}method={method}"
    row = model_config(source)
    if row.get("program") != "pin":
        raise UserError(f"config.configs {config.configs[model]}: is no config of PIN; give one such as"
                        " configs/pin_flamingo.py:tiny")  # fmt: skip
    row.update({key: config[key] for key in ("steps", "cache_images", "lr") if config[key] is not None})
    row.steps = config.model_steps.get(model, row.steps)
    row.seed, row.lr = seed, config.rates.get(method, config.model_rates.get(model, row.lr))
    row.warmup = min(row.get("warmup", 0), row.steps // 4)
    row.save_every = min(row.save_every, max(1, row.steps // 4))
    row.scenes.update({key: value for key, value in config.scenes.items() if value})
    row.eval.update({"images": config.eval_images, "context": ()})
    if not method:  # the seed draws the worked examples
        row.eval.update({"context": tuple(config.context), "context_seed": seed})
    for key in config.overrides:
        if key not in row:
            raise UserError(f"config.overrides {key!r}: the config of {model} has no such entry")
    row.update(config.overrides)
    return row


def frozen_rows(row: ConfigDict, folder: AnyPath) -> None:
    """The rows without parameters."""
    begin = time.monotonic()
    rows, *_ = evaluate.evaluate(row, pin.open_vlm(row), None)
    if jax.process_index() == 0:
        extra = {"config": json.loads(row.to_json_best_effort()), "seconds": {"evaluation": time.monotonic() - begin}}
        files.make_folder(folder)
        files.write_json(folder / pin.RESULTS, rows | extra)


def has_run(row: ConfigDict, folder: AnyPath) -> bool:
    """Whether a folder has a row's results.

    Raises:
      UserError: they are of another budget, or of other questions.
    """
    path = folder / pin.RESULTS
    if not path.exists():
        return False

    def entries(config: dict[str, Any]) -> dict[str, Any]:
        frozen = folder.name == FROZEN
        chosen = {key: config.get(key) for key in ("vlm", "scenes")} if frozen else train.training_entries(config)
        return chosen | {f"eval.{key}": value for key, value in config.get("eval", {}).items()}

    theirs = read_object(path).get("config", {})
    refuse_another(folder, entries(theirs), entries(json.loads(row.to_json_best_effort())))
    return True


def refuse_other_weights(folder: AnyPath, weights: dict[AnyPath, Any]) -> None:
    """Refuses a row that was trained on other frozen weights than the rows of its model before it.

    Args:
      weights: model's folder -> hash of the frozen weights; what is not there yet is added.

    Raises:
      UserError: they are others.
    """
    if folder.name != FROZEN:
        frozen = read_object(folder / "insert.json").get("frozen")
        first = weights.setdefault(folder.parent.parent, frozen)
        refuse_another(folder, {"frozen": frozen}, {"frozen": first})


def run(config: ConfigDict, workdir: AnyPath) -> None:
    """Runs what is missing, and writes the table.

    Raises:
      UserError: an unknown model or method; whatever a row's run raises.
    """
    seeds, models, methods = [int(seed) for seed in config.seeds], listed(config.models), listed(config.methods)
    wanted = [(model, seed, method) for seed in seeds for model in models for method in ("", *methods)]

    def table_rows(chosen: dict[str, dict[str, float]]) -> list[rates.Row]:
        found = []
        for model, seed, method in wanted:
            row = row_config(config, model, method, seed)
            row.lr = chosen.get(model, {}).get(method, row.lr)
            found.append((row, workdir / model / f"seed_{seed}" / (method or FROZEN)))
        return found

    chosen: dict[str, dict[str, float]] = {}
    if config.sweep.rates:
        for row, _ in table_rows({}):  # a typo in the table is found before the sweep
            schema.check(row)
        tried = rates.rows(config, models, methods, row_config, workdir)
        run_rows(list(tried.values()), workdir)
        chosen = rates.best(tried)
    run_rows(table_rows(chosen), workdir)
    if jax.process_index() == 0:
        write(config, workdir, gather(workdir, models, seeds, methods))
    sharding.barrier("table")


def run_rows(rows: Sequence[rates.Row], workdir: AnyPath) -> None:
    """Runs those of the rows that have no results yet; all are checked before any runs."""
    weights: dict[AnyPath, Any] = {}
    for row, folder in rows:
        schema.check(row)
        if has_run(row, folder):
            refuse_other_weights(folder, weights)
    for number, (row, folder) in enumerate(rows, 1):
        if sharding.on_every_process(has_run(row, folder)):
            continue
        reporting.say(f"row {number} of {len(rows)}: {folder.relative_to(workdir)}")
        with workdirs.claimed(folder):
            if folder.name == FROZEN:
                frozen_rows(row, folder)
            else:
                row.cache_folder = str(workdir / "cache")  # one bank serves all methods that act at the same side
                pin.run(row, folder)
        sharding.barrier("row")  # the others read what the first has written
        refuse_other_weights(folder, weights)
        jax.clear_caches()


def gather(workdir: AnyPath, models: list[str], seeds: list[int], methods: list[str]) -> dict[str, Any]:
    """Means over seeds, from the rows' own files.

    Returns:
      {model: {row: {"mIoU", "mIoU_M", "mIoU_L", "std", "unparsed", "parameters", "lr", "seconds"}}}; std is that of the
      mIoU over seeds (of the population); lr is None where nothing is trained; seconds are of training and evaluation,
      of all frozen rows together for each.
    """
    table = {}
    for model in models:
        found: dict[str, list[dict]] = {}
        for seed in seeds:
            folder = workdir / model / f"seed_{seed}"
            frozen = read_object(folder / FROZEN / pin.RESULTS)
            for name in frozen.keys() - {"config", "seconds"}:
                row = frozen[name] | {"parameters": 0, "seconds": frozen["seconds"]["evaluation"]}
                found.setdefault(name, []).append(row)
            for method in methods:
                results = read_object(folder / method / pin.RESULTS)
                card = read_object(folder / method / "insert.json")
                seconds = sum(results["seconds"].values())
                row = results[method] | {"parameters": card["parameters"], "seconds": seconds}
                row["lr"] = results["config"]["lr"]
                found.setdefault(method, []).append(row)
        order = [name for name in ORDER if name in found] + [name for name in methods if name not in ORDER]
        table[model] = {name: _mean(found[name]) for name in order}
    return table


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(key: str) -> float | None:
        values = [row[key] for row in rows]
        return None if None in values else statistics.fmean(values)

    return {
        **{key: mean(key) for key in SCORES},
        "std": None if mean("mIoU") is None else statistics.pstdev(row["mIoU"] for row in rows),
        "unparsed": mean("unparsed"),
        "parameters": rows[0]["parameters"],
        "lr": rows[0].get("lr"),
        "seconds": mean("seconds"),
    }


def write(config: ConfigDict, workdir: AnyPath, table: dict[str, Any]) -> None:
    """Prints the table, and writes it as JSON, as Markdown beside the paper's figures, and as a bar chart.

    JSON: {model: {"about": how its rows were made, "rows": as `gather` has them}}. Where config.out names a table
    that is there, its other models stay in it.
    """
    out = epath.Path(config.out) if config.out else workdir / "table"
    files.make_folder(out.parent)
    for model, rows in table.items():
        reporting.results_table(model, rows, (*SCORES, "std", "unparsed", "parameters", "seconds"))
    path = out.with_suffix(".json")
    kept = read_object(path) if config.out and path.exists() else {}
    whole = kept | {model: {"about": about(config, model), "rows": rows} for model, rows in table.items()}
    files.write_json(path, whole)
    files.write_bytes(out.with_suffix(".md"), markdown(whole).encode())
    bars: Any = {
        model: {name: (row["mIoU"] or 0, row["std"] or 0) for name, row in own["rows"].items()}
        for model, own in whole.items()
    }
    figures.bars(out.with_suffix(".png"), bars)
    reporting.say(f"wrote {', '.join(str(out.with_suffix(end)) for end in ('.json', '.md', '.png'))}")


def about(config: ConfigDict, model: str) -> str:
    """How the rows of a model were made."""
    said = f"learning rate {config.model_rates.get(model, config.lr):g}"
    if config.sweep.rates:
        tried = ", ".join(f"{rate:g}" for rate in config.sweep.rates)
        said = (
            f"learning rates as in the column lr, of {tried} the best after {config.sweep.steps:,} steps of seed"
            f" {config.seeds[0]} on {config.sweep.images} other images"
        )
    elif config.rates:
        said += "".join(f", {rate:g} for {name}" for name, rate in config.rates.items())
    seeds, steps = ", ".join(str(seed) for seed in config.seeds), config.model_steps.get(model, config.steps)
    return (
        f"Seeds {seeds}; {steps:,} steps a method; {said}; {config.eval_images} images asked about."
        f" {time.strftime('%Y-%m-%d')}, {reporting.devices()}, {platform.machine()}."
    )


def markdown(table: dict[str, Any]) -> str:
    """The table beside the paper's, with how it was made."""

    def cell(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    lines = ["Paper: PVOC, other models and data; its figures stand here for their order."]
    for model, own in table.items():
        paper = PAPER.get(model, {})
        head = (*SCORES, "std", "unparsed", "parameters", "lr", "seconds", "paper mIoU / M / L")
        lines += ["", f"**{model}**", "", own["about"], ""]
        lines += [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
        for name, row in own["rows"].items():
            cells = [cell(row[key]) for key in (*SCORES, "std", "unparsed")]
            cells += [f"{row['parameters']:,}", cell(row["lr"], "g"), cell(row["seconds"], ",.0f")]
            cells.append(" / ".join(f"{value:.2f}" for value in paper[name]) if name in paper else "-")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
