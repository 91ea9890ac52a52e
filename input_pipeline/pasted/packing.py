"""Writes packed cut-outs and backgrounds: resized once, so that training never decodes a photograph of 4000 pixels."""

from __future__ import annotations

import collections
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from input_pipeline.errors import UserError, reason, remedy
from input_pipeline.pasted import backgrounds, cutouts
from input_pipeline.pasted.packed import INDEX, VERSION, Pack, PackedCutouts, levels
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading import tfds_folder

SHARD = 5000  # records a file


def _ahead(make: Callable[[int], Any], count: int, threads: int) -> Iterator[Any]:
    """make(0), make(1), ... in order, some of them at work at the same time."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for k in range(count):
            waiting.append(pool.submit(make, k))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write(folder: pathlib.Path, rows: Iterable[tuple[bytes, dict[str, Any]] | None], about: dict[str, Any]) -> int:
    """Writes records and the index of what stands beside each; the folder appears when it is whole."""
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        columns: dict[str, list] = collections.defaultdict(list)
        count = 0
        writer: Any = None
        for row in rows:
            if row is None:
                continue
            if count % SHARD == 0:
                if writer:
                    writer.close()
                # Pixels as they are, each record for itself: the fastest to read at random.
                writer = ArrayRecordWriter(
                    str(partial / f"data-{count // SHARD:05d}.array_record"), "group_size:1,uncompressed"
                )
            writer.write(row[0])
            for key, value in row[1].items():
                columns[key].append(value)
            count += 1
        if writer:
            writer.close()
        (partial / INDEX).write_text(json.dumps({"version": VERSION, **about, "count": count, **columns}), "utf-8")
        partial.rename(folder)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: cannot be written ({reason(error)}); {remedy(error)}") from error
    return count


def _splits(load: Callable[[str], list]) -> dict[Any, str]:
    """What a source holds -> its split: `train`, `held_out`, or `rest` where it is in neither."""
    out = {}
    for split in ("held_out", "train"):
        try:
            out |= {item: split for item in load(split)}
        except UserError:  # that split is empty
            continue
    return out


def pack_backgrounds(
    spec: str, folder: pathlib.Path, side: int, bad_records: BadRecordLog, threads: int = 2, progress=lambda done: None
) -> int:
    """Packs the backgrounds that a spec names, each squashed to side x side (PIN, section 4).

    Returns:
      How many there are; those that cannot be read go to the bad_records.
    """
    source = backgrounds.load(spec, "all")
    split_of = _splits(lambda split: backgrounds.load(spec, split).paths)

    def make(k: int) -> tuple[bytes, dict[str, Any]] | UserError:
        try:
            picture = source.original(k).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
        except UserError as error:
            return error
        return picture.tobytes(), {"splits": split_of.get(source.paths[k], "rest")}

    about = {"kind": "backgrounds", "source": spec, "side": side}
    return _write(folder, _told(_ahead(make, len(source), threads), bad_records, progress), about)


def pack_cutouts(
    spec: str,
    folder: pathlib.Path,
    side: int,
    bad_records: BadRecordLog,
    exclude: Iterable[str] = (),
    threads: int = 2,
    progress=lambda done: None,
) -> int:
    """Packs the cut-outs that a spec names, trimmed, the longer side at most `side`.

    Returns:
      How many there are; those that cannot be read go to the bad_records.
    """
    source = cutouts.load(spec, "all", exclude)
    if not isinstance(source, cutouts.Cutouts):
        raise UserError(f"cut-outs {spec}: they are packed already; give the source that they were packed from")
    source.max_side = side
    split_of = _splits(lambda split: cutouts.load(spec, split, exclude).names)
    names = source.names

    def make(k: int) -> tuple[bytes, dict[str, Any]] | UserError:
        try:
            whole = source.original(k).convert("RGBa")
        except UserError as error:
            return error
        sizes = levels(whole.width, whole.height)
        parts = [whole if size == whole.size else whole.resize(size, Image.Resampling.BOX) for size in sizes]
        about = {"names": names[k], "sizes": list(whole.size), "splits": split_of.get(names[k], "rest")}
        return b"".join(part.tobytes() for part in parts), about

    about = {"kind": "cutouts", "source": spec, "side": side, "exclude": list(exclude)}
    return _write(folder, _told(_ahead(make, len(source), threads), bad_records, progress), about)


def _told(rows: Iterable[Any], bad_records: BadRecordLog, progress: Callable[[int], None]) -> Iterator[Any]:
    for done, row in enumerate(rows, 1):
        if isinstance(row, UserError):
            bad_records.add(row)
        else:
            yield row
        progress(done)


def as_tfds(pack: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes a pack as a set of tensorflow-datasets, for `tfds.builder_from_directory` and `tfds:FOLDER`.

    Records have `image`, and of cut-outs (RGBA) `name` and `label`; splits are those of the pack.

    Returns:
      The folder that the set stands in.

    Raises:
      UserError: it cannot be written.
    """
    import tensorflow_datasets as tfds

    kind = pack.name
    index = Pack(pack, kind).index
    features: dict[str, Any] = {"image": tfds.features.Image(shape=(None, None, 3 if kind == "backgrounds" else 4))}
    if kind == "cutouts":
        labels = tfds.features.ClassLabel(names=sorted(set(index["names"])))
        features |= {"name": tfds.features.Text(), "label": labels}

    def rows(split: str) -> Iterator[dict[str, Any]]:
        own = [k for k, given in enumerate(index["splits"]) if given == split]
        if kind == "backgrounds":
            source = backgrounds.load(f"packed:{pack}", "all")
            for k in own:
                yield {"image": tfds_folder.png(source.photo(k))}
            return
        cut = PackedCutouts(pack)
        for k in own:
            name, picture = cut[k]
            yield {"image": tfds_folder.png(picture), "name": name, "label": labels.str2int(name)}

    splits = {split: rows(split) for split in sorted(set(index["splits"]))}
    about = f"{kind} packed from {index.get('source', 'unknown')}"
    tfds_folder.write(folder, f"pasted_{kind}", tfds.features.FeaturesDict(features), splits, about)
    return folder / tfds_folder.VERSION
