"""CLIP and SigLIP under GEM's own name; they stand with the other published architectures."""

from pin_jax.models.clip import BACKBONES, CLIP, CLIPConfig, TextConfig

__all__ = ["BACKBONES", "CLIP", "CLIPConfig", "TextConfig"]
