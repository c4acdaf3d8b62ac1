"""Float64, four host devices, warnings as errors, one cache of compiled programs."""

import os
import tempfile
from pathlib import Path

import jax
import pytest

os.environ["OMP_NUM_THREADS"] = "1"
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR",
        str(Path(tempfile.gettempdir()) / "distill_jax_xla"),
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora that stands beside the checkout, if it does."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared corpora are not beside this checkout")
    return SHARED_DATA
