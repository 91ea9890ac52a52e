"""Data parallelism on JAX's own runtime: a batch is split over all devices, parameters are the same on each."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError


def data_mesh(batch_size: int) -> Mesh:
    """One axis, `data`, over every device of every process.

    Raises:
      UserError: the devices do not divide the batch.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(
            f"config.batch_size {batch_size} is not a multiple of the {devices} devices; choose one that is"
        )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A host-local tree, the same on every process, as global arrays that stand on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def split(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's records as its part of a global batch."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}
