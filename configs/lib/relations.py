"""Constraints between config entries: sizes that must divide, data that a run needs, names that must exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.pasted.paste import check_sizes

OWN_GRID = 16  # of the VLMs, where config.grid is 0


def check(config: ConfigDict) -> None:
    """Raises UserError for the first that does not hold."""
    {"pin": pin, "gem": gem, "tiny_clip": tiny_clip, "tiny_vlm": tiny_vlm}.get(config.program, lambda config: None)(
        config
    )


def scenes(where: str, options: Mapping[str, Any], grid: int, image_size: int = 0) -> None:
    """Sizes of pasted scenes.

    Args:
      where: the part of the config. grid, image_size: where the options have none; an image size of 0 is not known.
    """
    grid, image_size = options.get("grid", grid), options.get("image_size", image_size)
    if image_size % grid:
        raise UserError(f"config.{where}: {grid} cells do not divide {image_size} pixels; choose a divisor")
    try:
        check_sizes(options.get("objects", (1, 3)), options.get("smallest", (1,)), options.get("largest"), grid)
    except UserError as error:
        raise UserError(f"config.{where}.{error}") from error


def pin(config: ConfigDict) -> None:
    """A run of PIN."""
    grid = config.grid or OWN_GRID
    scenes("scenes", config.scenes, grid)
    scenes("train_scenes", dict(config.scenes) | dict(config.train_scenes), grid)
    if config.eval.images == 0 and config.eval.source == "scenes":
        raise UserError("config.eval.images 0: expected above 0; only of a published set 0 is all")
    demand(config)


def demand(config: ConfigDict) -> None:
    """Refuses a run of PIN that draws scenes (to train, to evaluate on, for worked examples) of data not given."""
    on_scenes = config.eval.source == "scenes" or config.eval.context
    if config.run != "train" and not (config.run in ("evaluate", "inspect") and on_scenes):
        return
    for entry, what, example in (
        ("cutouts", "cut-outs", "xpaste:pool.json"),
        ("backgrounds", "photographs", "folder:bg20k"),
    ):
        if not config.scenes[entry]:
            raise UserError(
                f"config.scenes.{entry} is empty: the published recipe wants your {what}, such as"
                f" --config.scenes.{entry}={example} (all sources: docs/data.md)"
            )


def gem(config: ConfigDict) -> None:
    """A run of GEM."""
    from gem_jax.attention import ATTENTION_METHODS  # not above: they import JAX
    from gem_jax.refinement import REFINEMENTS

    for entry, names in (("attention", (config.attention,)), ("methods", config.methods)):
        for name in names:
            if name.partition(" ")[0] not in ATTENTION_METHODS:
                raise UserError(f"config.{entry} {name!r}: expected one of {', '.join(ATTENTION_METHODS)}")
    if set(config.parts) - set("qkv") or len(set(config.parts)) < len(config.parts):
        raise UserError(f"config.parts {config.parts!r}: expected one or more of q, k, v, such as qkv")
    if config.refine not in REFINEMENTS:
        raise UserError(f"config.refine {config.refine!r}: expected one of {', '.join(REFINEMENTS[1:])}, or nothing")
    if config.stitch and not config.window:
        raise UserError("config.stitch: there are no windows to share anything; give config.window, such as 224")
    if config.source == "scenes":
        scenes("scenes", config.scenes, config.grid)


def tower(where: str, options: Mapping[str, Any], grid: int = 0) -> None:
    """A transformer's widths, and a picture's sides."""
    if "heads" in options and "head_dim" not in options and options["width"] % options["heads"]:
        raise UserError(f"config.{where}: {options['heads']} heads do not divide the width, {options['width']}")
    if "patch" in options:
        for name, part in (("patch", options["patch"]), ("grid", grid)):
            if options["image_size"] % part:
                raise UserError(f"config.{where}.image_size {options['image_size']}: {name} {part} does not divide it")
        if options.get("stem_width") and options["patch"] % 2:
            raise UserError(f"config.{where}.patch {options['patch']}: a patch in two steps has an even side")


def phases(where: str, config: ConfigDict, given: Any) -> None:
    """Scenes of the phases of a stage."""
    for k, phase in enumerate(given):
        options = {**config.scenes, **phase["scenes"]}
        scenes(f"{where}.{k}.scenes", options, config.grid, config.vision.image_size)
        if options.get("image_size", config.vision.patch) % config.vision.patch:
            raise UserError(
                f"config.{where}.{k}.scenes.image_size {options['image_size']}: patch {config.vision.patch} does not"
                " divide it"
            )


def tiny_clip(config: ConfigDict) -> None:
    """The making of the small CLIP."""
    tower("vision", config.vision, config.grid)
    tower("text", config.text)
    phases("phases", config, config.phases)


def tiny_vlm(config: ConfigDict) -> None:
    """The making of a small VLM."""
    tower("vision", config.vision, config.grid)
    if config.decoder:
        parts, grid = config.projection, config.vision.image_size // config.vision.patch
        if not parts:
            raise UserError("config.projection is empty: config.decoder needs one; see configs/tiny_smolvlm.py")
        if grid % parts.shuffle:
            raise UserError(
                f"config.projection.shuffle {parts.shuffle}: does not divide the {grid} x {grid} patches"
            )  # fmt: skip
    else:
        for name in ("width", "depth", "heads"):
            if name not in config.lm:
                raise UserError(f"config.lm.{name} is missing: expected a whole number from 1 on")
        tower("lm", config.lm)
    if config.qformer:
        tower("qformer", config.qformer)
    for k, fit in enumerate(config.vision_fits):
        phases(f"vision_fits.{k}.phases", config, fit["phases"])
    scenes("language_scenes", {**config.scenes, **config.language_scenes}, config.grid, config.vision.image_size)
