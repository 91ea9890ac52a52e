"""LoRA: a low-rank branch beside frozen dense layers, W + (alpha / rank) A B (Hu et al. 2021).

The branch runs beside the layer, so no product A B and no gradient of W's size is formed (`layers.Dense`). For use
without any extra cost it can be added into the weights, and taken out again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from input_pipeline.errors import UserError
from pin_jax.models.interface import Inserts


@dataclasses.dataclass(frozen=True)
class LoraVision:
    """LoRA, by default on every dense layer of every vision block.

    Attributes:
      config: of the VLM it goes into.
      layers: a regular expression for whole paths of dense layers among the parameters, `vision/blocks/qkv` for one;
        a stack of layers has one path, and each of its layers a branch of its own.
      rank, alpha: the branch is scaled by alpha / rank.
      dropout: in training, of the branch's input; see `layers.dropped`.

    Raises:
      UserError: a rank or dropout that cannot be.
    """

    config: Any
    layers: str = "vision/blocks/(qkv|out|fc1|fc2)"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1

    def __post_init__(self):
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"config.method_options of lora_v: rank {self.rank}, dropout {self.dropout}; expected a rank from 1 on,"
                " and a dropout from 0 to below 1"
            )

    def init(self, rng: jax.Array, frozen: Any = None) -> Any:
        """a uniform in +-1/sqrt(in), b zero: at first the branches do nothing.

        Args:
          frozen: the VLM's parameters, or anything of their shapes.

        Raises:
          UserError: no dense layer has such a path.
        """
        leaves: dict[str, Any] = traverse_util.flatten_dict(frozen, sep="/")
        kernels = {
            name.removesuffix("/kernel"): leaf.shape for name, leaf in leaves.items() if name.endswith("/kernel")
        }
        chosen = [name for name in sorted(kernels) if re.fullmatch(self.layers, name)]
        if not chosen:
            raise UserError(
                f"config.method_options.layers {self.layers!r}: no dense layer has such a path; there are "
                + ", ".join(sorted(kernels))
            )
        out = {}
        for name, key in zip(chosen, jax.random.split(rng, len(chosen)), strict=True):
            *stack, fan_in, fan_out = kernels[name]
            bound = 1 / math.sqrt(fan_in)
            out[f"{name}/a"] = jax.random.uniform(key, (*stack, fan_in, self.rank), jnp.float32, -bound, bound)
            out[f"{name}/b"] = jnp.zeros((*stack, self.rank, fan_out), jnp.float32)
        return traverse_util.unflatten_dict(out, sep="/")

    def inserts(self, params: Any, rng: jax.Array | None = None, images: int = 1) -> Inserts:
        """Parameters -> the branches at their dense layers, b scaled; with dropout, a random key for each layer."""
        flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
        out = {}
        for i, name in enumerate(sorted(key.removesuffix("/a") for key in flat if key.endswith("/a"))):
            a, b = flat[f"{name}/a"], flat[f"{name}/b"]
            branch = {"a": a, "b": b * (self.alpha / self.rank)}
            if rng is not None and self.dropout:
                stack = a.shape[:-2]
                branch["key"] = jax.random.split(jax.random.fold_in(rng, i), stack)
                branch["rate"] = jnp.full(stack, self.dropout)
            out[name] = branch
        return Inserts(lora=traverse_util.unflatten_dict(out, sep="/"))


def merge(frozen: Any, inserts: Inserts, sign: int = 1) -> tuple[Any, Inserts]:
    """Adds the low-rank branches into the weights.

    Args:
      frozen: parameters of the VLM; they stay as they are.
      inserts: of any method; without dropout.
      sign: -1 takes the branches out again, up to rounding.

    Returns:
      Parameters that do the same without the branches, and the inserts without them.
    """

    def added(tree: Any, branches: Any) -> Any:
        if "kernel" in tree:
            product = jnp.matmul(branches["a"], branches["b"], precision="highest")
            return {**tree, "kernel": (tree["kernel"] + sign * product).astype(tree["kernel"].dtype)}
        return {**tree, **{name: added(tree[name], inner) for name, inner in branches.items()}}

    return added(frozen, inserts.lora or {}), dataclasses.replace(inserts, lora=None)


def unmerge(frozen: Any, inserts: Inserts) -> Any:
    """Takes branches that were merged out of the weights again; parameters as they were, up to rounding."""
    return merge(frozen, inserts, -1)[0]
