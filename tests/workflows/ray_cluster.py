"""A Ray cluster of this machine: two workers of one thread, in processes of their own."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isthmus.workflows.engines.ray_engine import RayEngine

ROOT = Path(__file__).parents[2]
ENGINE = RayEngine(n_workers=2)


@contextmanager
def small_cluster() -> Iterator[None]:
    """Runs a cluster; its processes find the package, the tests and the cache."""
    # Sockets lie below it, and their paths must be short.
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN_PATH", f"{folder}/token")
        Path(folder, "token").write_text("0" * 32, encoding="utf-8")
        ray = importlib.import_module("ray")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
