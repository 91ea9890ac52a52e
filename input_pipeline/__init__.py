"""Data: cut-outs pasted on backgrounds, box text, published sets, and the grain pipeline that serves them.

Modules that stood here before they moved into `text/`, `pasted/` and `sets/` are found under their former names too,
with a DeprecationWarning: `from input_pipeline import cutouts`.
"""

import importlib
import warnings

FORMER = {
    "annotated": "sets.reading.annotated",
    "backgrounds": "pasted.backgrounds",
    "boxes": "text.box_codec",
    "captions": "text.captions",
    "coco": "sets.coco",
    "cutouts": "pasted.cutouts",
    "datasets": "sets.registry",
    "label_maps": "sets.reading.label_maps",
    "layout": "sets.reading.layout",
    "looks": "pasted.looks",
    "lvis": "sets.lvis",
    "masks": "sets.reading.masks",
    "names": "sets.names",
    "openimages": "sets.openimages",
    "packed": "pasted.packed",
    "packing": "pasted.packing",
    "paste": "pasted.paste",
    "pickles": "sets.reading.pickles",
    "prompts": "text.prompts",
    "questions": "text.questions",
    "records": "sets.bad_records",
    "refcoco": "sets.refcoco",
    "referrals": "text.referrals",
    "scenes": "pasted.scenes",
    "segmentation_sets": "sets.segmentation",
    "selection": "sets.selection",
    "tfds_source": "sets.tfds",
    "voc": "sets.voc",
    "xpaste": "pasted.xpaste",
}


def __getattr__(name: str):
    """A module by its former name."""
    if name not in FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"input_pipeline.{name} is now input_pipeline.{FORMER[name]}", DeprecationWarning, stacklevel=2)
    return importlib.import_module(f"{__name__}.{FORMER[name]}")
