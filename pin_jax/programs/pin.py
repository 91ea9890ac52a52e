"""The runs of a PIN config: train, evaluate, predict, inspect, diagnose, export, compile; they write to the workdir."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from pin_jax import adapters, evaluate, fitting, localisation, methods, train
from pin_jax.adapters import INSERT
from pin_jax.models.interface import Inserts
from pin_jax.programs import compile as compiling
from pin_jax.programs import diagnose, inspect
from pin_jax.runtime import entries, files, reporting, sharding
from pin_jax.runtime.files import AnyPath
from pin_jax.scoring import coco_files, figures, photographs
from pin_jax.vlm import VLM
from pin_jax.weights.files import of_project

RUNS = ("train", "evaluate", "predict", "inspect", "diagnose", "export", "describe", "compile")
EXPORTED, RESULTS = "insert.pt", "results.json"
NO_INSERT, SHIPPED = "none", "shipped"  # words of config.insert; anything else is a file


def run(config: ConfigDict, workdir: AnyPath) -> None:
    """Does what config.run names."""
    if config.run not in RUNS:
        raise UserError(f"config.run {config.run!r}: expected one of {', '.join(RUNS)}")
    begin = time.monotonic()
    if config.run == "compile":
        files.make_folder(workdir)
        compiling.run(config, workdir)
        return
    if config.run == "predict":
        _check_predict(config)
    if config.run == "train" and config.get("wandb", False):
        reporting.wandb()  # refused before anything is read
    trains = config.run in ("train", "describe")
    insert = None if trains else find_insert(config, workdir)  # before weights are read
    vlm = open_vlm(config, config.batch_size if trains else 0)
    if config.run == "describe":
        reporting.plan(f"train: {config.method}, in {workdir}", train.describe(config, vlm))
        return
    files.make_folder(workdir)
    if config.run == "predict":
        predict(config, workdir, vlm, insert)
        return
    if config.run in ("inspect", "diagnose"):
        (inspect if config.run == "inspect" else diagnose).run(config, workdir, vlm, insert)
        return
    if config.run == "export":
        export(workdir, vlm, insert)
        return
    fitting.claim(config, workdir, vlm)
    fitting.plan(config, workdir, vlm)
    if config.run == "train":
        fitting.fit(config, workdir, vlm)
        insert = workdir / INSERT
    score(config, workdir, vlm, insert, time.monotonic() - begin)
    sharding.barrier("results")


def open_vlm(config: ConfigDict, batch: int = 0) -> VLM:
    """The VLM of a config on its mesh, its boxes on config.grid.

    Args:
      batch: that the mesh must divide; 0 for any.
    """
    mesh = sharding.make_mesh(config.mesh, 0 if config.get("batch_per_device", 0) else batch)
    config.batch_size = train.global_batch(config, mesh)
    return localisation.read_vlm(config, mesh)


def find_insert(config: ConfigDict, workdir: AnyPath) -> AnyPath | None:
    """The insert of a run that does not train, and says which it is.

    config.insert is a file, `shipped` (the one beside the small VLM) or `none` (the frozen VLM as it is); empty, it is
    the workdir's own. A prediction or a diagnosis in a workdir where nothing was trained takes the shipped one.

    Raises:
      UserError: there is none; what may be given instead.
    """
    own, shipped = workdir / INSERT, of_project(config.vlm) / INSERT
    if config.insert == NO_INSERT:
        reporting.say("insert: none, the frozen VLM as it is")
        return None
    instead = f"give config.insert a file, {NO_INSERT} (the frozen VLM as it is)"
    instead += f" or {SHIPPED} ({shipped})" if shipped.exists() else ""
    why = ""
    if config.insert == SHIPPED:
        path, missing = shipped, f"config.insert={SHIPPED}: none ships with {config.vlm}"
    elif config.insert:
        path = epath.Path(config.insert) if files.is_remote(config.insert) else of_project(config.insert)
        missing = f"config.insert={config.insert}: no such file"
    elif own.exists():
        path, missing, why = own, "", ", of this workdir"
    elif (workdir / "config.json").exists():
        path, missing = own, f"workdir {workdir}: its training has not ended (checkpoints have theirs in inserts/)"
    elif config.run == "diagnose" and not shipped.exists():
        reporting.say(f"insert: none, {config.method} as it starts")
        return None
    elif config.run in ("predict", "diagnose"):
        path, missing = shipped, f"nothing was trained in {workdir}, and no insert ships with {config.vlm}"
        why = f", which ships with the VLM: nothing was trained in {workdir}"
    else:
        path, missing = own, f"workdir {workdir} has no {INSERT}: nothing was trained in it"
    if not path.is_file():
        raise UserError(f"{missing}; {instead}")
    reporting.say(f"insert: {path}{why}")
    return path


def inserts_of(path: AnyPath | None, vlm: VLM, own: str = "") -> tuple[str, Inserts | None]:
    """Name of the method in a file and what it puts into the VLM; `raw` and None without a file.

    Args:
      own: config.method, which alone may name a method that is not built in.
    """
    if path is None:
        return "raw", None
    method, params = adapters.load(path, vlm, own)
    return methods.describe(method)[0], method.inserts(params)


def score(config: ConfigDict, workdir: AnyPath, vlm: VLM, path: AnyPath | None, seconds: float) -> None:
    """Evaluates an insert, prints the table, writes results, predictions and ground truth as JSON, and a picture.

    Args:
      path: of the insert; None evaluates the frozen VLM alone. seconds: that went before, for results.json.
    """
    begin, (name, inserts) = time.monotonic(), inserts_of(path, vlm, config.method)
    rows, test, answers = evaluate.evaluate(config, vlm, inserts, name)
    if jax.process_index() > 0:
        return
    records, real = test.records, test.photographs
    if real is not None:
        what = f"{real.name}: {len(records)} images"
        shown, columns = photographs.with_counts(rows), photographs.COLUMNS
    else:
        what = f"{len(records)} scenes of {config.eval.split} names and backgrounds"
        shown, columns = rows, evaluate.COLUMNS
    title = f"{what}, {config.eval.decoder} decoding"
    reporting.results_table(title, shown, columns)
    files.write_bytes(workdir / "results.md", reporting.markdown_table(title, shown, columns).encode())
    coco_files.write(workdir, records, answers, vlm.codec.image_size)
    drawn = range(min(evaluate.SHOWN, len(records)))
    of = [[k for k, query in enumerate(test.queries) if query.image == i] for i in drawn]
    figures.predictions(
        workdir / "predictions.png",
        [records[i]["image"] for i in drawn],
        [", ".join(records[i]["query_text"]) for i in drawn],
        [[test.queries[k].name for k in ks] for ks in of],
        [[answers[k].box for k in ks] for ks in of],
        [[test.queries[k].box for k in ks] for ks in of],
    )
    extra = {
        "config": json.loads(config.to_json_best_effort()),
        "versions": reporting.versions(),
        "devices": reporting.devices(),
        "command": reporting.command(),
        "frozen": vlm.identity,
        "seconds": {"training": seconds, "evaluation": time.monotonic() - begin},
    }
    files.write_json(workdir / RESULTS, rows | extra | ({} if real is None else real.about(len(records))))
    if path is not None and path == workdir / INSERT:
        adapters.note(path, rows[name])
    reporting.say(f"wrote {workdir / RESULTS}, {workdir / 'predictions.png'}")


def export(workdir: AnyPath, vlm: VLM, path: AnyPath | None) -> None:
    """Writes an insert in the format of PIN's authors into the workdir.

    Raises:
      UserError: there is none, or it is of another method.
    """
    if path is None:
        raise UserError(f"config.run=export: config.insert={NO_INSERT} leaves nothing to export; give an insert's file")
    if jax.process_index() == 0:
        adapters.export(workdir / EXPORTED, *adapters.load(path, vlm))
        reporting.say(f"wrote {workdir / EXPORTED}")


def _check_predict(config: ConfigDict) -> None:
    if not config.image:
        raise UserError("config.image is empty: give a picture, --config.image=photo.jpg")
    if not entries.listed(config.prompts):
        raise UserError("config.prompts is empty: give names, --config.prompts='cat,red apple'")
    open_image(config.image)


def predict(config: ConfigDict, workdir: AnyPath, vlm: VLM, path: AnyPath | None) -> dict[str, Any]:
    """Finds config.prompts in config.image; writes boxes.json (pixels of the photograph) and boxes.png.

    Args:
      path: of the insert; None asks the frozen VLM.
    """
    wanted = entries.listed(config.prompts)
    localisation.check_names(vlm, wanted)  # before an insert is read
    pin = localisation.PIN(vlm, config, *(() if path is None else adapters.load(path, vlm, config.method)))
    photo = open_image(config.image)
    ((*places,),) = pin.locate(photo, wanted)
    found = [
        {"name": at.name, "box": [round(v, 1) for v in at.box], "text": at.text, "parsed": at.parsed, "score": at.score}
        for at in places
    ]
    files.write_json(
        workdir / "boxes.json", {"image": str(config.image), "insert": str(path or NO_INSERT), "boxes": found}
    )
    boxes = [np.array(row["box"]) for row in found]
    figures.predictions(
        workdir / "boxes.png", [np.asarray(photo)], [pathlib.Path(config.image).name], [wanted], [boxes]
    )
    for row in found:
        reporting.say(f"{row['name']}: {row['box']} (x1, y1, x2, y2 in pixels){'' if row['parsed'] else ' UNPARSED'}")
    reporting.say(f"wrote {workdir / 'boxes.json'}, {workdir / 'boxes.png'}")
    return {"boxes": found}
