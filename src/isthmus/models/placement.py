"""Where a model's weights lie: on one device, or spread over several by accelerate.

1. `map:auto` fills GPUs, then memory, then the disk; `map:` also takes accelerate's other words, or
   a JSON object of devices by module.
2. What accelerate keeps in memory or on the disk is on the device `meta` until its module runs.
3. Whoever reads weights brings them here for as long as it reads, or refuses such a model.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from isthmus.core.errors import ConfigError, ModelError

M = TypeVar("M", bound=nn.Module)

_MAP = "map:"
_WORDS = ("auto", "balanced", "balanced_low_0", "sequential")
_NOT_COMPUTING = {"cpu", "disk"}


@dataclass(frozen=True)
class Placement:
    """Where the weights of a model that is to be loaded go.

    Attributes:
        device: The one device, or where whatever is kept elsewhere is computed.
        device_map: What accelerate is given; None for one device.
    """

    device: torch.device
    device_map: str | dict[str, int | str] | None = None


def find_placement(device: str) -> Placement:
    """Reads a device or a map of devices.

    Args:
        device: `auto` (a CUDA device if there is one), `cpu`, `cuda`, `cuda:1` …, or `map:auto`,
            `map:balanced`, `map:balanced_low_0`, `map:sequential`, `map:{"module": "device", …}`.

    Returns:
        Where weights go.

    Raises:
        ConfigError: If the machine does not have the device, the map cannot be read, or accelerate
            is not installed.
    """
    best = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto":
        return Placement(best)
    if not device.startswith(_MAP):
        return Placement(_device_named(device))
    _require_accelerate()
    given = _read_map(device)
    if isinstance(given, dict):
        _require_devices(given)
        if set(map(str, given.values())) <= _NOT_COMPUTING:
            best = torch.device("cpu")
    return Placement(best, given)


def _require_devices(device_map: Mapping[str, int | str]) -> None:
    """Refuses what accelerate would only find out while it loads, in words of its own."""
    for module, given in device_map.items():
        if given == "disk":
            continue
        try:
            name = f"{_kind_of_numbers()}:{given}" if isinstance(given, int) else given
            found = _device_named(name)
        except ConfigError as error:
            raise ConfigError(f"the map of devices puts {module!r} on {given!r}: {error}") from None
        if found.type == "meta":
            raise ConfigError(
                f"the map of devices puts {module!r} on 'meta', which holds no values: use disk"
            )


def _kind_of_numbers() -> str:
    """Returns the kind of accelerator that a bare number counts."""
    here = torch.accelerator.current_accelerator()
    return "cuda" if here is None else here.type


def _device_named(device: str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:
        said = str(error).partition(". ")[0].rstrip(".")
        raise ConfigError(
            f"no device {device!r} here ({said}): use auto, cpu, cuda or map:auto"
        ) from None
    return found


def _require_accelerate() -> None:
    try:
        import accelerate  # noqa: F401, PLC0415 - only those who ask for it need it
    except ImportError:
        raise ConfigError(
            "a map of devices, but accelerate is not installed: pip install "
            "'isthmus[accelerate]', or name one device"
        ) from None


def _read_map(device: str) -> str | dict[str, int | str]:
    written = device.removeprefix(_MAP)
    if written in _WORDS:
        return written
    try:
        given = json.loads(written)
    except json.JSONDecodeError:
        given = None
    if isinstance(given, dict) and given and all(_is_device(one) for one in given.values()):
        return given
    raise ConfigError(
        f"device {device!r}: expected map: followed by {', '.join(_WORDS)}, or by a JSON object "
        'of devices by module, such as {"model": 0, "lm_head": "cpu"}'
    )


def _is_device(given: object) -> bool:
    return isinstance(given, int | str) and not isinstance(given, bool)


def load_spread(load: Callable[[dict[str, Any]], M], placement: Placement) -> M:
    """Loads a model over several devices; what goes to the disk goes when the model does.

    Args:
        load: Takes further options of `from_pretrained` and returns the model.
        placement: With a map.

    Returns:
        What was loaded.

    Raises:
        ConfigError: If the map parts weights that are one.
    """
    folder = tempfile.mkdtemp(prefix="isthmus-offload-")
    try:
        model = load({"device_map": placement.device_map, "offload_folder": folder})
        _require_twins_together(model)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def _require_twins_together(model: nn.Module) -> None:
    """Refuses what fails in accelerate when the model runs, without a word on why."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, other in tied.items():
        kept = {_is_kept_elsewhere(model, one) for one in (name, other)}
        if len(kept) > 1:
            raise ConfigError(
                f"{name} and {other} are one weight, the map of devices puts them in two places: "
                "give both modules the same device"
            )


def _is_kept_elsewhere(model: nn.Module, name: str) -> bool:
    hook = vars(model.get_submodule(name.rpartition(".")[0])).get("_hf_hook")
    return bool(getattr(hook, "offload", False))


def is_spread(model: nn.Module) -> bool:
    """Says whether accelerate moves inputs or weights of a model while it runs."""
    return any("_hf_hook" in vars(module) for module in model.modules())


def require_one_device(model: nn.Module, what: str) -> None:
    """Refuses a model whose weights are spread over devices or kept elsewhere.

    Args:
        model: The model.
        what: What cannot be done with it, for the message: "bake an edit into".

    Raises:
        ModelError: If it is such a model.
    """
    # A copy of such a model would run the modules that it was copied from.
    if is_spread(model):
        raise ModelError(
            f"cannot {what} {type(model).__name__}: accelerate has spread its weights over "
            "devices; load it with --device cpu or on one GPU"
        )


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module computes, which its weights need not be before it does.

    Args:
        module: Any module with parameters.

    Returns:
        The device that its inputs belong on.
    """
    stored = next(module.parameters()).device
    if stored.type != "meta":
        return stored
    hook = vars(module).get("_hf_hook")
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Brings the weights of one module to the CPU during the block, if they are elsewhere.

    Args:
        module: Its own parameters are meant, not those of modules in it.

    Yields:
        None: Meanwhile no parameter of the module is on `meta`.

    Raises:
        ModelError: If a weight is on `meta` and nobody knows its values.
    """
    if not any(p.is_meta for p in module.parameters(recurse=False)):
        yield
        return
    if "_hf_hook" not in vars(module):
        raise ModelError(
            f"weights of a {type(module).__name__} have no values (they are on the device meta): "
            "load the model from its files"
        )
    from accelerate.utils import align_module_device  # noqa: PLC0415 - as above

    with align_module_device(module, "cpu"):
        yield


def read_weight(model: nn.Module, name: str) -> Tensor:
    """Returns the values of one parameter, wherever they are kept.

    Args:
        model: The model.
        name: Dotted path of the parameter.

    Returns:
        The parameter as it is, or its values on the CPU if it is on `meta`.

    Raises:
        ModelError: If nobody knows its values.
    """
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with weights_at_hand(module):
        return module.get_parameter(own).detach()
