"""Sharding rules: batches by rows, frozen weights by their paths, the insert replicated on every device.

Axes of the mesh: `data` and `fsdp` split the rows, `fsdp` splits the frozen weights too and gathers each layer when it
runs, `tensor` splits the layers themselves. A rule is a regular expression, found in a parameter's path, and the mesh
axes of its last dimensions; the first that matches decides, and what no rule names stands replicated on every device.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError
from pin_jax.models.layers import ROWS

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, Sequence[str | None]]]
# Into the hidden width of a layer, out of it, and tables by token.
RULES: Rules = (
    (r"(q|k|v|qkv|kv|fc1|wi_0|wi_1|up|head|projection)/kernel$", ("fsdp", "tensor")),
    (r"(out|fc2|wo|down)/kernel$", ("tensor", "fsdp")),
    (r"lm/embedding$", ("tensor", "fsdp")),
)


def rules(first: Rules = ()) -> Rules:
    """The default rules, with others before them."""
    return (*((pattern, tuple(axes)) for pattern, axes in first), *RULES)


def make_mesh(
    sizes: Mapping[str, int] | None = None, batch_size: int = 0, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of the axes `AXES`.

    Args:
      sizes: of the axes; one may be -1, for all devices that the others leave. By default all go to `data`.
      batch_size: global, to be split over the mesh; 0 is not checked.
      devices: all of every process by default.

    Raises:
      UserError: an unknown axis, sizes that do not make the number of devices, a batch that they do not divide, or
        devices of several TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(AXES, 1) | ({"data": -1} if sizes is None else dict(sizes))
    wrong = [f"{k}={v}" for k, v in sizes.items() if k not in AXES or not isinstance(v, int) or v == 0 or v < -1]
    if wrong or list(sizes.values()).count(-1) > 1:
        raise UserError(
            f"config.mesh {sizes}: expected sizes of {', '.join(AXES)}, at most one of them -1 (the devices left)"
        )
    known = math.prod(v for v in sizes.values() if v > 0)
    if -1 in sizes.values() and len(devices) % known == 0:
        sizes = {k: len(devices) // known if v == -1 else v for k, v in sizes.items()}
    shape = tuple(sizes[axis] for axis in AXES)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"config.mesh {sizes} does not make {len(devices)} devices; choose sizes whose product is {len(devices)}"
        )
    ways = shape[0] * shape[1]
    if batch_size % ways:
        raise UserError(
            f"config.batch_size {batch_size} is not a multiple of the {ways} devices that share it (data x fsdp);"
            " choose one that is"
        )
    slices = {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}
    if len(slices) > 1:
        raise UserError(f"devices of {len(slices)} TPU slices, whose links differ in speed; run on one slice")
    # jax.make_mesh is the same, but only on v5e splits a side of a slice where the axes ask for it (fsdp=2 of v6e:4x8).
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(skeleton: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Where each parameter stands.

    Args:
      skeleton: tree of anything with a shape.

    Returns:
      The same tree of `NamedSharding`.

    Raises:
      UserError: lists every dimension that the mesh does not divide, and rules of unknown axes.
    """
    compiled = [(re.compile(pattern), tuple(axes)) for pattern, axes in rules]
    unknown = {axis for _, axes in compiled for axis in axes if axis is not None} - set(mesh.axis_names)
    if unknown:
        raise UserError(f"config.rules name axes {', '.join(sorted(unknown))}; the mesh has {', '.join(AXES)}")
    problems = []

    def place(path, leaf) -> NamedSharding:
        name = "/".join(str(k.key) for k in path)
        axes = next((axes for regex, axes in compiled if regex.search(name)), ())
        first = len(leaf.shape) - len(axes)
        if first < 0:
            problems.append(f"{name} has {len(leaf.shape)} dimensions, its rule {len(axes)}")
            return NamedSharding(mesh, PartitionSpec())
        for i, axis in enumerate(axes, first):
            if axis is not None and leaf.shape[i] % mesh.shape[axis]:
                problems.append(f"{name} {tuple(leaf.shape)}: {leaf.shape[i]} by {axis}={mesh.shape[axis]}")
        return NamedSharding(mesh, PartitionSpec(*[None] * first, *axes))

    tree = jax.tree_util.tree_map_with_path(place, skeleton)
    if problems:
        raise UserError(f"config.mesh does not divide the frozen weights: {'; '.join(problems)}; choose smaller axes")
    return tree


def bytes_per_device(skeleton: Any, places: Any) -> int:
    """Bytes that the parameters take on each device."""
    return sum(
        math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x, s in zip(jax.tree.leaves(skeleton), jax.tree.leaves(places), strict=True)
    )


def put(tree: Any, places: Any) -> Any:
    """A tree, the same on every process, as global arrays; what already stands in its place is left there."""

    def put_leaf(x: Any, where: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding == where:
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(put_leaf, tree, places)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """A host-local tree, the same on every process, as global arrays that stand on every device."""
    if mesh is None:
        return tree
    where = NamedSharding(mesh, PartitionSpec())
    return put(tree, jax.tree.map(lambda _: where, tree))


def by_rows(mesh: Mesh) -> NamedSharding:
    """How a batch stands: its rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_ways(mesh: Mesh | None) -> int:
    """Over how many devices the rows of a batch are split; devices along `tensor` share theirs."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def local_ways(mesh: Mesh | None) -> int:
    """The same, of this process's part of a batch."""
    return 1 if mesh is None else row_ways(mesh) // process_part(mesh)[1]


def from_local_rows(batch: Any, mesh: Mesh | None) -> Any:
    """A tree of this process's rows, its part of a global batch by `process_part`, as global arrays."""
    if mesh is None:
        return batch
    _, count = process_part(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(by_rows(mesh), rows, (len(rows) * count, *rows.shape[1:])),
        batch,
    )


def local_rows(batch: Any, mesh: Mesh | None) -> Any:
    """A tree of global arrays as this process's rows of them: what `from_local_rows` was given. All processes ask."""
    if mesh is None or jax.process_count() == 1:
        return jax.tree.map(np.asarray, batch)

    def of_array(array: jax.Array) -> np.ndarray:
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return jax.tree.map(of_array, _split_by_rows(mesh)(batch))


@functools.cache
def _split_by_rows(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=by_rows(mesh))


def share(total: int, mesh: Mesh | None) -> range:
    """Which of so many things this process does: a stretch of them. Processes that share rows do the same ones."""
    index, count = (0, 1) if mesh is None else process_part(mesh)
    return range(total * index // count, total * (index + 1) // count)


def gather(items: Sequence[Any], mesh: Mesh | None) -> list[Any]:
    """What every process has of some things that were shared by `share`, in their order, on every process.

    All processes must ask. Anything that pickle takes.
    """
    return list(items) if mesh is None else gather_parts(items, process_part(mesh)[0])


def gather_parts(items: Sequence[Any], part: int) -> list[Any]:
    """The same where every process says which part it has; of several with the same part one counts."""
    if jax.process_count() == 1:
        return list(items)
    data = np.frombuffer(pickle.dumps(list(items)), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([part, len(data)], np.int32))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes[:, 1].max() - len(data))))
    parts = {int(part): row[:size].tobytes() for (part, size), row in zip(sizes, rows, strict=True)}
    return [item for part in sorted(parts) for item in pickle.loads(parts[part])]


def largest(value: int) -> int:
    """The largest of a number over all processes; all of them must ask."""
    return value if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(value)).max())


def process_part(mesh: Mesh | None) -> tuple[int, int]:
    """(index, count): which part of a batch this process reads; processes that share rows read the same one.

    Raises:
      UserError: processes share a part of their rows only.
    """
    if mesh is None:
        return 0, 1
    owners: dict[int, set[int]] = {}
    places = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    for row, devices in enumerate(places):
        for device in devices:
            owners.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in owners.values()})
    if len(parts) * len(parts[0]) != len(places) or any(len(p) != len(parts[0]) for p in parts):
        raise UserError(f"config.mesh {dict(mesh.shape)}: processes share rows in part; change tensor")
    return parts.index(tuple(sorted(owners[jax.process_index()]))), len(parts)


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """A context in which models keep their activations split over the mesh (`layers.by_rows`)."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def shard_rows(array: np.ndarray, mesh: Mesh | None) -> jax.Array | np.ndarray:
    """A host array, the same on every process, by rows; rows of zeros behind them where the mesh does not divide them.

    No device does the work of another: a batch that is not split would be computed on every one.
    """
    if mesh is None:
        return array
    short = -len(array) % row_ways(mesh)
    padded = np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1)) if short else array
    return put(padded, by_rows(mesh))


def fetch(array: jax.Array) -> np.ndarray:
    """A global array as a host array, on every process."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        assert isinstance(array.sharding, NamedSharding)  # all that this project makes
        array = _replicated(array.sharding.mesh)(array)
    return np.asarray(array)


@functools.cache
def _replicated(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, PartitionSpec()))


def on_every_process(here: bool) -> bool:
    """Whether something holds on every process; all of them must ask."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array([here])).all())


def barrier(name: str) -> None:
    """Waits until every process has come by: what the first has written before it, the others may read after it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def process_index() -> int:
    """Of this process; does not wake the devices of a process that is alone."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def least(here: int) -> int:
    """The least of a number over all processes; all of them must ask."""
    if jax.process_count() == 1:
        return here
    return int(multihost_utils.process_allgather(np.array([here], np.int32)).min())
