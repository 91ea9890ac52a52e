"""GEM and its peers: zero-shot localisation from a frozen image-text model."""

from gem_jax.gem import GEM

__all__ = ["GEM"]
