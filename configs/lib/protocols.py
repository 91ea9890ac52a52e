"""How the authors of a training-free method evaluate it: windows, prompts, names and thresholds, all set by one choice.

`configs/gem_clip.py:eval=voc,protocol=sclip` is SCLIP as it was published on Pascal VOC. The numbers are those of the
authors' released configurations.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

# Of the sets whose background is found by a threshold of the best phrase's probability.
SCLIP: dict[str, dict[str, Any]] = {
    "voc": {"logit_scale": 65.0, "thresholds": (0.1,), "smallest_area": 0.1},
    "context60": {"logit_scale": 50.0, "thresholds": (0.1,)},
    "coco_object": {"logit_scale": 50.0, "thresholds": (0.1,)},
    "cityscapes": {"shorter": 560},
}
PROXYCLIP: dict[str, dict[str, Any]] = {
    "voc": {"thresholds": (0.2,)},
    "context60": {"thresholds": (0.15,)},
    "coco_object": {"thresholds": (0.25,)},
    "cityscapes": {"window": 224, "shorter": 448},
}
SLIDING: dict[str, Any] = {
    "names": "sclip", "prompt_set": "openai_80", "stride": 112, "shorter": 336, "logit_scale": 40.0,
    "thresholds": (0.0,),
}  # fmt: skip
PROTOCOLS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    # 448 px squashed, one template; the background's threshold is swept, and reported.
    "gem": ({"attention": "gem", "methods": ("clip", "gem"), "size": 448}, {}),
    "sclip": (SLIDING | {"attention": "sclip", "methods": ("sclip",), "window": 224}, SCLIP),
    "proxyclip": (
        SLIDING | {"attention": "proxyclip", "methods": ("proxyclip",), "window": 336, "proxy": "facebook/dino-vitb8"},
        PROXYCLIP,
    ),
}


def follow(config: ConfigDict, name: str) -> None:
    """Sets what a protocol says for the set that the config evaluates on.

    Raises:
      ValueError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol={name}: expected one of {', '.join(PROTOCOLS)}")
    always, by_set = PROTOCOLS[name]
    config.update(always | by_set.get(config.source.partition(":")[0], {}))
