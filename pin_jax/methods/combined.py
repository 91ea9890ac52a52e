"""Combined methods: each has its own parameters, and their inserts are merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from input_pipeline.errors import UserError
from pin_jax.models.interface import Inserts


@dataclasses.dataclass(frozen=True)
class Combined:
    """Methods under their names. Maps on the vision output add up; tokens stand side by side, in the methods' order."""

    parts: Mapping[str, Any]

    def init(self, rng: jax.Array, frozen: Any = None) -> Any:
        """Parameters of each method under its name."""
        keys = jax.random.split(rng, len(self.parts))
        return {name: part.init(key, frozen) for (name, part), key in zip(self.parts.items(), keys, strict=True)}

    def inserts(self, params: Any, rng: jax.Array | None = None, images: int = 1) -> Inserts:
        """See `pin_jax.methods`."""
        found = Inserts()
        for i, (name, part) in enumerate(self.parts.items()):
            key = None if rng is None else jax.random.fold_in(rng, i)
            found = join(found, part.inserts(params[name], key, images))
        return found


def join(a: Inserts, b: Inserts) -> Inserts:
    """What two methods put in, together.

    Raises:
      UserError: both have a branch at the same dense layer.
    """
    joined = {}
    for field in ("vision_input", "vision_output", "fusion_input", "text", "lora"):
        x, y = getattr(a, field), getattr(b, field)
        if x is None or y is None:
            joined[field] = y if x is None else x
        elif field == "vision_output":
            joined[field] = x + y
        elif field == "lora":
            joined[field] = _union(x, y)
        else:  # one of them may have tokens of its own for each image
            images = max((z.shape[:-2] for z in (x, y)), key=len)
            x, y = (jnp.broadcast_to(z, (*images, *z.shape[-2:])) for z in (x, y))
            joined[field] = jnp.concatenate([x, y], -2)
    return Inserts(**joined)


def _union(x: dict, y: dict) -> dict:
    """Branches of both, flat by the paths of their dense layers in between."""
    x, y = (traverse_util.flatten_dict(tree, sep="/") for tree in (x, y))
    twice = sorted({name.rpartition("/")[0] for name in x.keys() & y.keys()})
    if twice:
        raise UserError(
            f"two methods have a low-rank branch at {', '.join(twice)}; choose other config.method_options.layers"
        )
    return traverse_util.unflatten_dict(x | y, sep="/")
