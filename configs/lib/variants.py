"""What may stand behind a config's colon: its own variants and `name=value` choices, in any order, between commas.

`configs/pin_flamingo.py:tiny,eval=pvoc` is the variant `tiny` with the choice `eval`. A choice is a function that
changes the config; a config file names those that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ml_collections import ConfigDict

Choice = Callable[[ConfigDict, str], None]


def parse(
    given: str, file: str, variants: Collection[str], choices: Mapping[str, Choice]
) -> tuple[str, dict[str, str]]:
    """`tiny,eval=pvoc` -> ("tiny", {"eval": "pvoc"}).

    Args:
      given: what stood behind the colon. file: for the error.
      variants: names, or names and a line of help each; the first is the default. choices: those that the file knows.

    Raises:
      ValueError: a variant or choice that the file does not know, or one given twice.
    """
    chosen, values = "", {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, is_choice, value = part.partition("=")
        if not is_choice:
            if part not in variants or chosen:
                expected = ", ".join(v or "none" for v in variants)
                twice = f", beside {chosen!r}" if chosen else ""
                raise ValueError(f"{file} has no variant {part!r}{twice}; expected one of {expected}{_said(choices)}")
            chosen = part
        elif name not in choices or not value or name in values:
            raise ValueError(f"{file}: {part!r} is no choice{_said(choices)}, each once")
        else:
            values[name] = value
    return chosen or next(iter(variants)), values


def apply(config: ConfigDict, values: Mapping[str, str], choices: Mapping[str, Choice]) -> ConfigDict:
    """The config after its choices, in the order of `choices`: some change what others have set."""
    for name, choice in choices.items():
        if name in values:
            choice(config, values[name])
    return config


def _said(choices: Mapping[str, Choice]) -> str:
    return f"; or {', '.join(f'{name}=...' for name in choices)}" if choices else ""


# --- evaluation on photographs ----------------------------------------------------------------------------------------


def data(config: ConfigDict) -> None:
    """The entries of a config that can read published sets."""
    config.data_dir = ""  # folder of the set that is evaluated (docs/data.md)
    config.on_bad_record = "skip"  # what happens to a broken image or annotation: skip (and count), refuse


def select(config: ConfigDict) -> None:
    """Which objects are asked for: the paper's rule (`input_pipeline/sets/selection.py`)."""
    config.select = ConfigDict(
        {
            "max_annotations": 3,
            "difficult": True,
            "crowd": True,
            "one_per_class": False,
            "synonyms": False,
            "names": "published",
        }
    )
    config.split_by = ""  # RefCOCO's split file: unc, google, umd; empty for the usual one


def evaluate_boxes(config: ConfigDict, source: str) -> None:
    """`eval=pvoc`: evaluate on a set of boxes, all of it."""
    config.run = "evaluate"
    config.eval.source = source
    config.eval.images = 0
    if source.startswith("refcoco"):
        config.eval.select.max_annotations = 0


def evaluate_maps(config: ConfigDict, source: str) -> None:
    """`eval=voc`: GEM, and plain CLIP beside it, on a set of labels, points or boxes."""
    config.run = "evaluate"
    config.source = source
    config.methods = ("clip", "gem")
    if source.startswith("refcoco"):
        config.select.max_annotations = 0
