"""Filling a parameter tree from named tensors by a table of rules; all mismatches are reported at once."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from input_pipeline.errors import UserError
from pin_jax.weights.parameters import unusable

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
    """One parameter on its way: the array, and which of its slots (layer, part) hold something.

    With a sharding the array is made on the devices, and each tensor is written into its place there.
    """

    def __init__(self, spec: jax.ShapeDtypeStruct, sharding: NamedSharding | None = None):
        self.spec, self.sharding = spec, sharding
        self.value: Any = None
        self.layered = False
        self.parts: Sequence[str] = ()
        self.filled: dict[tuple[int, int], str] = {}  # by which key

    def problem(self, array: np.ndarray, layer: int | None, part: int | None, parts: Sequence[str]) -> str | None:
        """What keeps a tensor from its slot, or None."""
        shape = self.spec.shape
        if layer is not None:
            if not shape or layer >= shape[0]:
                return f"layer {layer} of {shape[0] if shape else 0}"
            shape = shape[1:]
        if part is not None:
            if not shape or shape[-1] % len(parts):
                return f"{len(parts)} fused parts cannot make shape {self.spec.shape}"
            shape = (*shape[:-1], shape[-1] // len(parts))
        return None if array.shape == shape else f"shape {array.shape}, expected {shape}"

    def fill(self, array: np.ndarray, layer: int | None, part: int | None, parts: Sequence[str]) -> None:
        """Puts one tensor, in which there is no problem, into its slot."""
        self.layered, self.parts = layer is not None, parts
        array = array.astype(self.spec.dtype)
        if layer is not None:
            array = array[None]
        start = [0] * array.ndim
        if layer is not None:
            start[0] = layer
        if part is not None:
            start[-1] = part * array.shape[-1]
        if self.sharding is None:
            if self.value is None:
                self.value = np.zeros(self.spec.shape, self.spec.dtype)
            self.value[tuple(slice(s, s + n) for s, n in zip(start, array.shape, strict=True))] = array
        elif array.shape == self.spec.shape:
            self.value = _put(array, self.sharding)
        else:
            if self.value is None:
                self.value = _zeros(self.spec.shape, np.dtype(self.spec.dtype), self.sharding)()
            axes = [*self.sharding.spec, *[None] * array.ndim][: array.ndim]
            # An axis that is written in pieces is not split in the piece.
            whole = [None if n < m else axis for axis, n, m in zip(axes, array.shape, self.spec.shape, strict=True)]
            piece = _put(array, NamedSharding(self.sharding.mesh, PartitionSpec(*whole)))
            self.value = _write(self.value, piece, tuple(start), out=self.sharding)

    def missing(self) -> str | None:
        """What is unfilled: the empty string for all of it, None for nothing."""
        if not self.filled:
            return ""
        places = range(self.spec.shape[0]) if self.layered else range(1)
        slots = {(i, j) for i in places for j in range(max(1, len(self.parts)))} - self.filled.keys()
        if not slots:
            return None
        names = sorted(f"{i}{'.' + self.parts[j] if self.parts else ''}" for i, j in slots)
        return f" ({'layers ' if self.layered else ''}{', '.join(names)})"


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array, the same on every process, as a global one; each device gets its shard alone."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.lru_cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, out: NamedSharding):
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=out)


@functools.lru_cache
def _writer(out: NamedSharding):
    return jax.jit(jax.lax.dynamic_update_slice, donate_argnums=0, out_shardings=out)


def _write(whole: jax.Array, piece: jax.Array, start: tuple[int, ...], out: NamedSharding) -> jax.Array:
    """Writes a piece in place: the old array is donated."""
    return _writer(out)(whole, piece, start)


def _cut(name: str) -> str:
    """A name as an error quotes it: some files have names of thousands of letters."""
    return name if len(name) <= 300 else f"{name[:300]}..."


def convert(
    tensors: Mapping[str, Any],
    table: Iterable[Rule],
    skeleton: Any,
    source: str = "checkpoint",
    shardings: Any = None,
    record: Callable[[str, np.ndarray], None] = lambda place, array: None,
) -> Any:
    """Fills a parameter tree from named tensors.

    Args:
      tensors: key -> array (anything numpy reads). The mapping may be lazy: every tensor is read once, but for those
        that stand for one parameter, of which the first is read again.
      table: rules; the first whose pattern matches a key decides.
      skeleton: tree of `jax.ShapeDtypeStruct`, `jax.eval_shape` of the module's `init`, its "params".
      source: what the error calls the tensors, a path for instance.
      shardings: tree of `NamedSharding`. Each tensor then goes to its devices as soon as it is read, so that the host
        never holds more than one.
      record: called with the place and the values of every tensor, as the file has them.

    Returns:
      The skeleton's tree with arrays of its shapes and dtypes: numpy arrays, to be put on a device before use, or
      global arrays of the shardings.

    Raises:
      UserError: lists every key that no rule maps, every parameter left unfilled (whole or in part), every tensor of
        a wrong shape or without numbers in it (`unusable`), and tensors that claim one place with different values.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in table]
    leaves, treedef = jax.tree_util.tree_flatten_with_path(skeleton)
    where = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    slots = {
        "/".join(str(k.key) for k in path): _Filled(spec, sharding)
        for (path, spec), sharding in zip(leaves, where, strict=True)
    }
    unmapped, wrong = [], []

    def find(key: str) -> tuple[re.Match | None, Rule | None]:
        return next(((m, rule) for regex, rule in rules if (m := regex.fullmatch(key))), (None, None))

    for key in tensors:
        match, rule = find(key)
        if match is None or rule is None:
            unmapped.append(key)
            continue
        if rule.target is None:
            continue
        target, groups = match.expand(rule.target), match.groupdict()
        number = groups.get("layer")
        layer = rule.layer(int(number)) if number is not None and len(number) < 10 else None
        if target not in slots or (number is not None and layer is None):
            unmapped.append(key)
            continue
        part = rule.parts.index(groups["part"]) if rule.parts else None
        slot, place = slots[target], (layer or 0, part or 0)
        stored = np.asarray(tensors[key])
        array, problem = stored, unusable(stored) or None
        if problem is None:
            try:
                array = rule.transform(stored)
            except (ValueError, RuntimeError):  # einops has its own kind of it
                problem = f"shape {stored.shape}, which has another number of axes than expected"
        problem = problem or slot.problem(array, layer, part, rule.parts)
        if problem is None and place in slot.filled:
            first = slot.filled[place]
            dtype = slot.spec.dtype
            other_rule = find(first)[1] or rule
            other = other_rule.transform(np.asarray(tensors[first]))
            if not np.array_equal(other.astype(dtype), array.astype(dtype)):
                problem = "differs from another tensor of the file that stands for the same parameter"
        elif problem is None:
            record(f"{target} {place}", stored)
            slot.fill(array, layer, part, rule.parts)
            slot.filled[place] = key
        if problem:
            wrong.append(f"{key} -> {target}: {problem}")
    unfilled = [name + gap for name, slot in slots.items() if (gap := slot.missing()) is not None]
    found = ("keys that the model has no place for", unmapped), ("parameters that no key fills", unfilled), (
        "tensors that do not fit", wrong
    )  # fmt: skip
    problems = [f"{len(items)} {what}: {', '.join(map(_cut, items))}" for what, items in found if items]
    if problems:
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}. Choose the config it was made for")
    return jax.tree_util.tree_unflatten(treedef, [slot.value for slot in slots.values()])
