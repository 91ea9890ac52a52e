"""What the numbers of any config may be, by their names, so that a wrong one is found before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import UserError

ABOVE_ZERO = {
    "steps", "model_steps", "lr", "rates", "batch_size", "batch", "questions_per_image", "text_length", "log_every",
    "save_every", "language_batch", "language_images", "beams", "candidates", "new_tokens", "context_images", "nouns",
    "side", "eval_images",
}  # fmt: skip
NOT_BELOW_ZERO = {
    "seed", "seeds", "context_seed", "cache_images", "images", "workers", "threads", "grid", "context",
}  # fmt: skip
SHARES = {"curriculum", "vary_backgrounds", "vary", "crop", "twins", "absolute_share", "gate"}
NOT_EMPTY = {"seeds", "models"}


def check(config: ConfigDict) -> None:
    """Reads all entries.

    Raises:
      UserError: names the first that cannot be, and what it may be.
    """
    for path, value in _entries(config):
        names = set(path.split("."))
        if names & NOT_EMPTY and value in ("", (), []):
            raise UserError(f"config.{path} is empty: expected at least one")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if names & ABOVE_ZERO and number <= 0:
                raise UserError(f"config.{path} {value}: expected above 0")
            if names & NOT_BELOW_ZERO and number < 0:
                raise UserError(f"config.{path} {value}: expected 0 or above")
            if names & SHARES and not 0 <= number <= 1:
                raise UserError(f"config.{path} {value}: expected a share, from 0 to 1")
    if config.program == "pin":
        _demand(config)
    asked = config.get("eval", {})
    if asked.get("images", 1) == 0 and asked.get("source", "scenes") == "scenes":
        raise UserError("config.eval.images 0: expected above 0; only of a published set 0 is all")


def _demand(config: ConfigDict) -> None:
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


def _entries(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
