"""Which engine a verb uses: what it was given, as an object."""

from typing import Literal

from isthmus.core.errors import ConfigError
from isthmus.workflows.engines.jobs import Engine
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.engines.ray_engine import RayEngine, require_ray

EngineName = Literal["local", "ray"]


def engine_named(
    engine: str | Engine,
    address: str | None = None,
    n_workers: int | None = None,
    *,
    n_threads: int = 1,
) -> Engine:
    """Returns the engine of a name.

    Args:
        engine: `local` or `ray`, or an engine, which is returned as it is.
        address: Of a Ray cluster.
        n_workers: How many workers of Ray.
        n_threads: Threads of each worker of Ray.

    Returns:
        The engine.

    Raises:
        ConfigError: If there is no such engine, Ray is not installed, or the engine takes neither
            address nor workers.
    """
    if engine == "ray":
        require_ray()
        return RayEngine(address, n_workers, n_threads)
    if address is not None or n_workers is not None:
        raise ConfigError("address and n_workers belong to engine ray: add --engine ray")
    if engine == "local":
        return LocalEngine()
    if isinstance(engine, str):
        raise ConfigError(f"no engine {engine!r}: there are local and ray")
    return engine
