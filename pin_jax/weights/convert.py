"""Filling a parameter tree from named tensors by a table of rules; what does not fit is reported all at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange

from input_pipeline.errors import UserError

Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Where the tensors of one pattern go.

    Attributes:
      pattern: regular expression that a whole key must match. The named group `layer` is the place on the leading
        axis of a stacked parameter (`layers.stacked`); the named group `part` is the place of a tensor that is one of
        several fused along the last axis.
      target: path of the parameter, `vision/blocks/qkv/kernel`, in which `\1` or `\g<name>` stand for groups. None:
        the tensor is known, and ignored.
      transform: from the file's array to ours, applied to each tensor on its own.
      parts: the values of `part` in their order in the fused parameter, all of one size.
      layer: from the file's layer number to the place on our leading axis; None where no layer of ours has it.
    """

    pattern: str
    target: str | None
    transform: Transform = np.asarray
    parts: Sequence[str] = ()
    layer: Callable[[int], int | None] = int


def linear(weight: np.ndarray) -> np.ndarray:
    """torch's Linear weight [out, in] -> our kernel [in, out]."""
    return np.asarray(weight).T


def patch(weight: np.ndarray) -> np.ndarray:
    """Patch convolution [D, 3, p, q] -> the dense kernel [(p q 3), D] of `models.vit`."""
    return rearrange(np.asarray(weight), "d c p q -> (p q c) d")


def flat(array: np.ndarray) -> np.ndarray:
    """Drops leading axes of size one: [1, 1, D] -> [D], [1, N, D] -> [N, D], [1] -> []."""
    array = np.asarray(array)
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


def module(pattern: str, target: str, bias: bool = True, kind: str = "linear", **fields: Any) -> list[Rule]:
    """The rules of one submodule: `PATTERN.weight` and, with `bias`, `PATTERN.bias`.

    Args:
      kind: `linear` (a transposed kernel) or `norm` (a scale).
      **fields: of every `Rule`.
    """
    weight, transform = {"linear": ("kernel", linear), "norm": ("scale", np.asarray)}[kind]
    rules = [Rule(rf"{pattern}\.weight", f"{target}/{weight}", transform, **fields)]
    return rules + ([Rule(rf"{pattern}\.bias", f"{target}/bias", **fields)] if bias else [])


class _Filled:
    """One parameter on its way: the array, and which of its slots (layer, part) hold something."""

    def __init__(self, spec: jax.ShapeDtypeStruct):
        self.spec = spec
        self.value: np.ndarray | None = None
        self.layered = False
        self.parts: Sequence[str] = ()
        self.filled: set[tuple[int, int]] = set()

    def fill(self, array: np.ndarray, layer: int | None, part: int | None, parts: Sequence[str]) -> str | None:
        """Puts one tensor into its slot; returns what is wrong with it, or None."""
        shape = self.spec.shape
        self.layered, self.parts = layer is not None, parts
        if layer is not None:
            if not shape or layer >= shape[0]:
                return f"layer {layer} of {shape[0] if shape else 0}"
            shape = shape[1:]
        if part is not None:
            if not shape or shape[-1] % len(parts):
                return f"{len(parts)} fused parts cannot make shape {self.spec.shape}"
            shape = (*shape[:-1], shape[-1] // len(parts))
        if array.shape != shape:
            return f"shape {array.shape}, expected {shape}"
        if self.value is None:
            self.value = np.zeros(self.spec.shape, self.spec.dtype)
        index = (() if layer is None else (layer,)) + (...,)
        if part is not None:
            index += (slice(part * shape[-1], (part + 1) * shape[-1]),)
        slot = (layer or 0, part or 0)
        if slot in self.filled and not np.array_equal(self.value[index], array.astype(self.spec.dtype)):
            return "differs from another tensor of the file that stands for the same parameter"
        self.value[index] = array
        self.filled.add(slot)
        return None

    def missing(self) -> str | None:
        """What is unfilled: the empty string for all of it, None for nothing."""
        if not self.filled:
            return ""
        places = range(self.spec.shape[0]) if self.layered else range(1)
        slots = {(i, j) for i in places for j in range(max(1, len(self.parts)))} - self.filled
        if not slots:
            return None
        names = sorted(f"{i}{'.' + self.parts[j] if self.parts else ''}" for i, j in slots)
        return f" ({'layers ' if self.layered else ''}{', '.join(names)})"


def convert(tensors: Mapping[str, Any], table: Iterable[Rule], skeleton: Any, source: str = "checkpoint") -> Any:
    """Fills a parameter tree from named tensors.

    Args:
      tensors: key -> array (anything numpy reads). The mapping may be lazy: every tensor is read once.
      table: rules; the first whose pattern matches a key decides.
      skeleton: tree of `jax.ShapeDtypeStruct`, `jax.eval_shape` of the module's `init`, its "params".
      source: what the error calls the tensors, a path for instance.

    Returns:
      The skeleton's tree with numpy arrays of its shapes and dtypes; put them on a device before use.

    Raises:
      UserError: lists every key that no rule maps, every parameter left unfilled (whole or in part), every tensor of
        a wrong shape, and tensors that claim one place with different values.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in table]
    leaves, treedef = jax.tree_util.tree_flatten_with_path(skeleton)
    slots = {"/".join(str(k.key) for k in path): _Filled(spec) for path, spec in leaves}
    unmapped, wrong = [], []
    for key in tensors:
        match, rule = next(((m, rule) for regex, rule in rules if (m := regex.fullmatch(key))), (None, None))
        if rule is None:
            unmapped.append(key)
            continue
        if rule.target is None:
            continue
        target, groups = match.expand(rule.target), match.groupdict()
        layer = None if groups.get("layer") is None else rule.layer(int(groups["layer"]))
        if target not in slots or (groups.get("layer") is not None and layer is None):
            unmapped.append(key)
            continue
        part = rule.parts.index(groups["part"]) if rule.parts else None
        problem = slots[target].fill(rule.transform(np.asarray(tensors[key])), layer, part, rule.parts)
        if problem:
            wrong.append(f"{key} -> {target}: {problem}")
    unfilled = [name + gap for name, slot in slots.items() if (gap := slot.missing()) is not None]
    found = ("keys that the model has no place for", unmapped), ("parameters that no key fills", unfilled), (
        "tensors that do not fit", wrong
    )  # fmt: skip
    problems = [f"{len(items)} {what}: {', '.join(items)}" for what, items in found if items]
    if problems:
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}. Choose the config it was made for")
    return jax.tree_util.tree_unflatten(treedef, [slot.value for slot in slots.values()])
