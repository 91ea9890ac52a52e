"""PIN in JAX: a small learned map that lets a frozen caption-trained VLM say where things are (CVPR 2024)."""

import importlib

_HOMES = {
    "PIN": "pin_jax.localisation",
    "locate": "pin_jax.localisation",
    "load_vlm": "pin_jax.vlm",
    "load_adapter": "pin_jax.adapters",
    "Found": "pin_jax.scoring.found",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    """What is public, imported when asked for: workers that prepare data import no JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
