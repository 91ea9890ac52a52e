"""The run of configs/prepare.py: packs cut-outs and backgrounds into the workdir, for `packed:WORKDIR/...`."""

from __future__ import annotations

import pathlib
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.pasted import backgrounds, cutouts, packing
from input_pipeline.pasted.packed import Pack
from input_pipeline.sets.bad_records import BadRecordLog
from pin_jax.runtime import files, reporting
from pin_jax.runtime.processes import launch


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Packs what the config names; what is there already, from the same source, is left.

    Raises:
      UserError: nothing is named, another source's pack is in the workdir, or a bad file with on_bad_record=refuse.
    """
    if not config.cutouts and not config.backgrounds:
        raise UserError("config.cutouts and config.backgrounds are empty; give one: --config.backgrounds=folder:bg20k")
    launch.alone("preparing data")
    files.needs_local(workdir, "preparing data")
    files.make_folder(workdir)
    bad_records = BadRecordLog(config.on_bad_record, reporting.say)
    done: dict[str, Any] = {}
    if config.backgrounds:
        side = config.background_side or config.side
        done["backgrounds"] = _pack(
            packing.pack_backgrounds, config.backgrounds, workdir / "backgrounds", side, bad_records, config.threads,
            lambda: len(backgrounds.load(config.backgrounds)),
        )  # fmt: skip
    if config.cutouts:
        done["cutouts"] = _pack(
            packing.pack_cutouts, config.cutouts, workdir / "cutouts", config.side, bad_records, config.threads,
            lambda: len(cutouts.load(config.cutouts, "all", config.exclude)), exclude=tuple(config.exclude),
        )  # fmt: skip
    for kind, count in done.items():
        reporting.say(f"{count:,} {kind}: --config.scenes.{kind}=packed:{workdir / kind}")
    if config.tfds:
        for kind in done:
            reporting.say(f"tfds:{packing.as_tfds(workdir / kind, workdir / f'tfds_{kind}')}")
    if bad_records.counts:
        reporting.say(f"left out: {bad_records.report()}")
    files.write_json(workdir / "prepared.json", {**done, "bad_records": bad_records.summary()})


def _pack(
    pack: Any,
    spec: str,
    folder: pathlib.Path,
    side: int,
    bad_records: BadRecordLog,
    threads: int,
    count: Any,
    **options: Any,
) -> int:
    if folder.exists():
        try:
            index = Pack(folder, folder.name).index
        except UserError as error:
            raise UserError(f"{folder}: there, but no pack ({error}); choose another --workdir") from error
        there = index.get("source"), index.get("side"), tuple(index.get("exclude", ()))
        if there != (spec, side, tuple(options.get("exclude", ()))):
            raise UserError(
                f"{folder}: packed from {there[0]} at {there[1]} px without {there[2]}, not {spec} at {side}; choose"
                " another --workdir"
            )
        return index["count"]
    with reporting.progress(f"packing {spec}", count(), "picture") as advance:
        return pack(spec, folder, side, bad_records, threads=threads, progress=advance, **options)
