"""Set-up of the test suite: one compilation cache for all its processes, full float32 products, golden files."""

import os
import shutil
import tempfile

# Most of the suite's time is XLA compiling the same small programs in one process after another. Whichever process
# is first leaves them for the others: pytest-xdist's workers and the runs that tests start inherit the environment,
# so this stands before JAX is imported.
SESSION_CACHE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="jax_cache_")
if SESSION_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = SESSION_CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# What is left is the compiler's own optimisation, of programs that run once: without it they compile in three fifths of
# the time. Products of matrices are called, not compiled, and are as fast. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests the
# programs that users run; modules that compute for long are compiled as these are in any case.
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ.setdefault(QUICK, "1")
COMPUTE = ("test_shipped", "test_demo", "test_python_api", "test_recipe", "test_diagnose", "test_photographs")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.fixtures import golden_files  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


# pytest-xdist hands out files in the order of collection (`--no-loadscope-reorder`): a long one that came last would
# leave a worker without work. These folders have the files that start runs or train.
LONGEST_FIRST = ("runtime", "programs", "methods", "small", "decoding", "weights", "models")


def pytest_collection_modifyitems(items):
    folders = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: folders.get(item.path.parent.name, len(folders)))


def pytest_unconfigure():
    if SESSION_CACHE:
        shutil.rmtree(SESSION_CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def optimised(request):
    """Whether this module's programs are optimised; the processes that it starts follow the environment."""
    long = request.module.__name__.rpartition(".")[2].startswith(COMPUTE)
    jax.config.update("jax_disable_most_optimizations", not long and os.environ[QUICK] != "0")


@pytest.fixture(scope="session")
def golden():
    """name -> (weights by key, the other arrays by name) of a golden file."""
    return golden_files.load
