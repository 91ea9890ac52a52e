"""Set-up of the test suite: full float32 products, and golden files as a fixture."""

import jax
import pytest

from tests.fixtures import golden_files

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def golden():
    """name -> (weights by key, the other arrays by name) of a golden file."""
    return golden_files.load
