"""PIN in JAX: a small learned map that lets a frozen caption-trained VLM say where things are (CVPR 2024)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors
    from pin_jax.adapters import load_adapter
    from pin_jax.localisation import PIN, locate
    from pin_jax.scoring.found import Found
    from pin_jax.vlm import load_vlm

__all__ = ["PIN", "Found", "load_adapter", "load_vlm", "locate"]
_HOMES = {
    "PIN": "localisation", "locate": "localisation", "load_vlm": "vlm", "load_adapter": "adapters",
    "Found": "scoring.found",
}  # fmt: skip


def __getattr__(name: str):
    """What is public, imported when asked for: workers that prepare data import no JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pin_jax.{_HOMES[name]}"), name)
