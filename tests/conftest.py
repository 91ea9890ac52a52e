"""Set-up of the test suite: full float32 products, and golden files as dicts of arrays."""

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """name -> (weights by key, the other arrays by name) of a golden file."""

    def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return split(arrays)

    return load


def split(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays of a golden file -> (those below `sd/`, the rest)."""
    weights = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    return weights, {key: value for key, value in arrays.items() if not key.startswith("sd/")}
