"""The programs of a GEM config: predict (heat maps of one's own pictures) and evaluate (every method on a source)."""

from __future__ import annotations

import itertools
import json
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gem_jax import heatmaps, pretrained
from gem_jax.attention import ATTENTION_METHODS
from gem_jax.evaluation import boxes, figures, loop, points, segmentation, sources
from gem_jax.gem import GEM, picture
from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.pasted import cutouts
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text.box_codec import BoxCodec, iou
from pin_jax.runtime import files, reporting, sharding
from pin_jax.runtime.entries import listed
from pin_jax.scoring import metrics, photographs

RUNS = ("predict", "evaluate")
SETTINGS = ("depth", "iterations", "temperature", "parts", "merge", "refine")  # of a method, entries of the config
SHOWN = 1024  # pixels of the longer side of a picture in a figure
COLUMNS = ("mIoU", "mIoU_bg", "threshold", "p-mIoU", "box mIoU")


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Does what config.run names."""
    if config.run not in RUNS:
        raise UserError(f"config.run {config.run!r}: expected one of {', '.join(RUNS)}")
    dtypes = {"float32": None, "bfloat16": "bfloat16"}
    if config.dtype not in dtypes:
        raise UserError(f"config.dtype {config.dtype!r}: expected one of {', '.join(dtypes)}")
    prompts, photos = _asked(config) if config.run == "predict" else ([], [])
    model = pretrained.load(config.model, dtypes[config.dtype], config.activation or None)
    files.make_folder(workdir)
    if config.run == "predict":
        predict(config, workdir, build(config, model), photos, prompts)
    else:
        evaluate(config, workdir, model)


def build(config: ConfigDict, model: pretrained.ImageText, method: str = "") -> GEM:
    """GEM on a model, as a config says, or with a method in its place: `clearclip`, `gem temperature=10 depth=4`.

    Raises:
      UserError: an unknown method or setting.
    """
    size = config.size or model.config.vision.image_size
    attention, *given = (method or config.attention).split()
    settings = {key: config[key] for key in SETTINGS}
    for setting in given:
        key, _, value = setting.partition("=")
        try:
            settings[key] = type(settings[key])(value)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"config.methods {method!r}: setting {setting!r}; expected {', '.join(f'{k}=...' for k in SETTINGS)}"
            ) from error
    return GEM(
        model, settings["depth"], settings["iterations"], settings["temperature"] or None, attention, settings["parts"],
        size=tuple(size) if isinstance(size, tuple | list) else size,
        templates=config.prompt_set or tuple(config.templates), batch_size=config.batch_size, proxy=config.proxy,
        regions=config.regions, merge=settings["merge"], refine=settings["refine"],
    )  # fmt: skip


def _codec(config: ConfigDict, model: pretrained.ImageText) -> BoxCodec:
    """The grid that scenes are laid out on."""
    try:
        return BoxCodec(model.config.vision.image_size, config.grid)
    except ValueError as error:
        raise UserError(f"config.grid: {error}") from error


def _windows(config: ConfigDict) -> dict[str, Any]:
    return {"window": config.window, "stride": config.stride, "shorter": config.shorter, "stitch": config.stitch}


# --- one's own pictures -----------------------------------------------------------------------------------------------


def _asked(config: ConfigDict) -> tuple[list[str], list[pathlib.Path]]:
    """Prompts and pictures that can be read; a bad one among others is told and left out."""
    given = [path.strip() for path in config.image.split(",") if path.strip()]
    if not given:
        raise UserError("config.image is empty: give a picture, --config.image=photo.jpg (several: a comma between)")
    prompts = listed(config.prompts)
    if not prompts:
        raise UserError("config.prompts is empty: give names, --config.prompts='cat,remote control'")
    readable, errors = [], []
    for path in given:
        try:
            open_image(path)
            readable.append(pathlib.Path(path))
        except UserError as error:
            errors.append(error)
    if not readable:
        raise errors[0]
    for error in errors:
        reporting.say(f"left out: {error}")
    return prompts, readable


def predict(
    config: ConfigDict, workdir: pathlib.Path, gem: GEM, photos: list[pathlib.Path], prompts: list[str]
) -> dict[str, Any]:
    """Heat maps and a segmentation of each picture as PNG, and boxes.json (pixels of the photograph)."""
    found, stems = {}, unique_stems(photos)
    for path, stem in list(stems.items())[jax.process_index() :: jax.process_count()]:
        photo = picture(path)
        maps = gem.large_maps(path, prompts, **_windows(config))  # a folder of masks knows it by its name
        places = gem.found(maps, prompts, config.box_threshold)
        edges = np.array([at.box for at in places])
        # Figures are small: of a large photograph they need neither its pixels nor maps of its size.
        shrink = min(1, SHOWN / max(photo.size))
        shown = photo if shrink == 1 else photo.resize([max(1, round(side * shrink)) for side in photo.size])
        small = np.asarray(maps.at((shown.height, shown.width)))
        figures.heat_maps(np.asarray(shown), prompts, heatmaps.minmax(small), edges * shrink).save(
            workdir / f"{stem}_heat.png"
        )
        best, top = segmentation.probabilities(small, scale(gem.model))
        best = np.where(top < config.background_threshold, len(prompts), best)
        figures.segmentation(np.asarray(shown), best, prompts).save(workdir / f"{stem}_segmentation.png")
        found[str(path)] = [{"name": at.name, "box": [round(v, 1) for v in at.box], "score": at.score} for at in places]
        reporting.say(f"wrote {workdir / stem}_heat.png and _segmentation.png")
    found = dict(sharding.gather_parts(list(found.items()), jax.process_index()))
    about = {"model": config.model, "attention": config.attention, "boxes": found}
    about["files"] = {str(path): stem for path, stem in stems.items()}
    if jax.process_index() == 0:
        files.write_json(workdir / "boxes.json", about)
    return found


def unique_stems(paths: Iterable[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Path -> what its outputs are called: its stem, or for a stem that is taken `STEM_2`, `STEM_3`, ..."""
    out: dict[pathlib.Path, str] = {}
    taken = set()
    for path in dict.fromkeys(paths):
        names = itertools.chain([path.stem], (f"{path.stem}_{k}" for k in itertools.count(2)))
        out[path] = next(name for name in names if name.casefold() not in taken)
        taken.add(out[path].casefold())  # some file systems do not tell A from a
    return out


def scale(model: pretrained.ImageText) -> float:
    """The scale of a model's cosines before its softmax: as learned, at most 100; 100 where it has none."""
    learned = model.params.get("logit_scale")
    return 100.0 if learned is None else float(min(np.exp(np.float64(learned)), 100.0))


# --- evaluation -------------------------------------------------------------------------------------------------------


def scenes(config: ConfigDict, model: pretrained.ImageText, seed: int) -> sources.NamedScenes:
    """Pasted scenes of one seed; `config.eval.nouns` of the names are drawn for it."""
    options = dict(config.scenes)
    nouns = sorted(set(cutouts.load(options["cutouts"], options["split"]).names))
    chosen = set(np.random.default_rng(seed).permutation(nouns)[: config.eval.nouns].tolist())
    codec = _codec(config, model)
    exclude = tuple(name for name in nouns if name not in chosen)
    form = scene_config(options, codec, exclude=exclude, with_masks=True)
    return sources.NamedScenes(Scenes(form, config.eval.seed + seed, config.eval.images))


def _score(
    config: ConfigDict, gem: GEM, source: Any, progress: Any, workdir: pathlib.Path, name: str
) -> dict[str, Any]:
    """Whatever the source has a truth for; boxes of photographs are also written, as PIN's are."""
    kind = "scenes" if config.source == "scenes" else source.kind
    wanted: list[Any] = []  # each a loop.Evaluator
    if kind in ("scenes", "labels"):
        said = (None, ()) if kind == "scenes" else (source.phrases, source.background)
        thresholds, sharpness = config.thresholds or segmentation.THRESHOLDS, config.logit_scale or scale(gem.model)
        wanted.append(
            segmentation.Segmentation(source.classes, sharpness, thresholds, *said, config.smallest_area)
        )  # fmt: skip
    if kind in ("scenes", "points"):
        wanted.append(points.Points(config.point_threshold))
    if kind in ("scenes", "boxes"):
        wanted.append(boxes.Boxes(config.box_threshold))
    scores = loop.evaluate(gem, source, wanted, progress, **_windows(config))
    if kind == "boxes" and jax.process_index() == 0:
        wanted[0].write(workdir, f"_{name}")
    return scores


def _sources(config: ConfigDict, model: pretrained.ImageText) -> dict[str, Any]:
    if config.source == "scenes":
        return {str(seed): scenes(config, model, seed) for seed in config.eval.seeds}
    return {config.source: sources.open_source(config, reporting.say, model.names)}


def evaluate(config: ConfigDict, workdir: pathlib.Path, model: pretrained.ImageText) -> dict[str, Any]:
    """Every method of config.methods on every seed or folder; prints and saves the table, and for scenes a picture."""
    begin = time.monotonic()
    for name in config.methods:
        if name.partition(" ")[0] not in ATTENTION_METHODS:
            raise UserError(f"config.methods: {name!r}; expected some of {', '.join(ATTENTION_METHODS)}")
    given = _sources(config, model)
    gems = {name: build(config, model, name) for name in config.methods}
    rows: dict[str, dict[str, dict]] = {name: {} for name in gems}
    total = sum(map(len, given.values())) * len(gems)
    with reporting.progress("evaluation", total, "image") as advance:
        done = 0
        for key, source in given.items():
            for name, gem in gems.items():
                rows[name][key] = _score(config, gem, source, lambda n, done=done: advance(done + n), workdir, name)
                done += len(source)
                advance(done)
    table = {name: summary(list(by_seed.values())) for name, by_seed in rows.items()}
    if config.source != "scenes":  # what is bad in the parts of the other processes
        bad_records = given[config.source].bad_records
        bad_records.take(dict(sharding.gather_parts(list(bad_records.lines.items()), jax.process_index())))
    if jax.process_index() != 0:
        return {"table": table, "seeds": rows}
    if config.source == "scenes":
        table["constant box"] = {"box mIoU": _constant(config, model, given)}
        image = side_by_side(gems, given)
        image.save(workdir / "methods.png")
    title = f"{config.source}: {' + '.join(str(len(s)) for s in given.values())} images, mean (and spread) over seeds"
    reporting.results_table(title, {name: _printed(row) for name, row in table.items()}, COLUMNS)
    found = {name: row[config.source]["box"] for name, row in rows.items() if "box" in row.get(config.source, {})}
    if found:
        title = f"{config.source}: boxes by size"
        reporting.results_table(title, photographs.with_counts(found), photographs.COLUMNS)
    result = {
        "table": table, "seeds": rows, "config": json.loads(config.to_json_best_effort()),
        "versions": reporting.versions(), "devices": reporting.devices(),
        "command": reporting.command(), "seconds": time.monotonic() - begin,
    }  # fmt: skip
    if config.source != "scenes":
        result["bad_records"] = given[config.source].bad_records.summary()
    files.write_json(workdir / "results.json", result)
    reporting.say(f"wrote {workdir / 'results.json'}" + (", methods.png" if config.source == "scenes" else ""))
    return result


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every score over seeds, and its standard deviation as `SCORE_std` where there are several."""
    out = {}
    for key in COLUMNS:
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            out[key] = float(np.mean(values))
            if len(values) > 1:
                out[f"{key}_std"] = float(np.std(values))
    return out


def _printed(row: dict[str, float]) -> dict[str, str | None]:
    spread = {key: f" ({row[f'{key}_std']:.3f})" if f"{key}_std" in row else "" for key in COLUMNS}
    return {key: f"{row[key]:.3f}{spread[key]}" if key in row else None for key in COLUMNS}


def _constant(config: ConfigDict, model: pretrained.ImageText, given: dict[str, Any]) -> float:
    """Mean IoU of the one best box for each seed's scenes: what can be had without looking."""
    codec = _codec(config, model)
    scores = []
    for source in given.values():
        true = np.concatenate([source.scenes.describe(i)["boxes"] for i in range(len(source))])
        scores.append(iou(true, metrics.constant_box(true, codec)).mean())
    return float(np.mean(scores))


def side_by_side(gems: dict[str, GEM], given: dict[str, Any], count: int = 6) -> figures.Sheet:
    """One column a method: the first objects of the first scenes of the first source."""
    records = [record for _, record in zip(range(count), next(iter(given.values())), strict=False)]
    asked = [(record["image"], record["names"][0]) for record in records]
    heat = {
        name: [heatmaps.minmax(gem.maps(image, [prompt]))[0] for image, prompt in asked] for name, gem in gems.items()
    }
    return figures.side_by_side([image for image, _ in asked], [prompt for _, prompt in asked], heat)
