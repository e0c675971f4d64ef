"""What every worker does alike: reads a model and prompts, answers requests, times itself.

It runs in the environments of other libraries: it imports PyTorch, transformers and safetensors.
"""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

Prompts = list[list[int]]
"""Token ids, text after text."""

Inputs = dict[str, Tensor]
"""What a model of transformers is called with: `input_ids` and `attention_mask`."""


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake
    """The library does not offer what is asked for; says why."""


class Library(Protocol):
    """One way of capturing and steering.

    Attributes:
        packages: Distributions whose versions are reported.
        capture_call: What is called to capture, in words.
        steer_call: What is called to steer, in words.
    """

    packages: Sequence[str]
    capture_call: str
    steer_call: str

    def load(self, folder: Path) -> None:
        """Reads the model."""

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Tensor]:
        """Returns what a block makes of every batch, padded on the right, prompts in order."""

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Returns greedy new tokens of one batch with a vector added to a block's output."""


@dataclass(frozen=True)
class Setting:
    """What is captured and steered.

    Attributes:
        corpora: Prompts to capture, by name.
        batch_size: Prompts that are captured at once.
        steered: Prompts to continue, equally long.
        n_new: Tokens to add to each of them.
        layer: Where they are steered.
        vector: By what.
    """

    corpora: dict[str, Prompts]
    batch_size: int
    steered: Prompts
    n_new: int
    layer: int
    vector: Tensor


def read_setting(folder: Path) -> Setting:
    """Reads `setting.json` and `vector.safetensors`."""
    fields = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    vector = load_file(folder / "vector.safetensors")["vector"]
    return Setting(vector=vector, **fields)


def read_model(folder: Path) -> Any:
    """Reads the model with transformers, in float32 and ready to be run."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()


def padded(prompts: Prompts, batch_size: int) -> list[Inputs]:
    """Cuts prompts into batches in their order, each padded on the right to its longest."""
    batches = []
    for first in range(0, len(prompts), batch_size):
        rows = prompts[first : first + batch_size]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, prompt in enumerate(rows):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = 1
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def generated(output: Any, prompts: Prompts) -> list[list[int]]:
    """Returns what follows prompts of one length."""
    ids: list[list[int]] = output[:, len(prompts[0]) :].tolist()
    return ids


def tokens_of(found: Sequence[Tensor], prompts: Prompts, batch_size: int) -> Tensor:
    """Leaves padding out: one row per token, prompts in order."""
    rows = []
    for first, batch in zip(range(0, len(prompts), batch_size), found, strict=True):
        for prompt, row in zip(prompts[first : first + batch_size], batch, strict=True):
            rows.append(row[: len(prompt)])
    return torch.cat(rows).detach().float().contiguous()


class Service:
    """Answers the requests of one comparison with one library."""

    def __init__(self, library: Library, *, no_gradients: bool = True) -> None:
        self.library = library
        self.no_gradients = no_gradients
        self.setting: Setting | None = None

    def prepare(self, folder: str, threads: int) -> dict[str, Any]:
        """Reads setting and model; returns versions and calls."""
        torch.set_num_threads(threads)
        self.setting = read_setting(Path(folder))
        self.library.load(Path(folder) / "model")
        packages = ("torch", "transformers", *self.library.packages)
        return {
            "versions": {name: version(name) for name in packages},
            "capture_call": self.library.capture_call,
            "steer_call": self.library.steer_call,
        }

    def capture(self, corpus: str, layer: int, keep: str | None = None) -> dict[str, Any]:
        """Captures a corpus at a layer; writes the values if told where."""
        setting = self._setting()
        prompts, batch_size = setting.corpora[corpus], setting.batch_size
        found, cost = timed(
            lambda: self.library.capture(prompts, batch_size, layer), self._context()
        )
        if keep is not None:
            in_order = getattr(self.library, "in_order", tokens_of)
            save_file({"values": in_order(found, prompts, batch_size)}, keep)
        return cost

    def steer(self, keep: str | None = None) -> dict[str, Any]:
        """Continues the steered prompts; writes the tokens if told where."""
        setting = self._setting()
        found, cost = timed(
            lambda: self.library.steer(
                setting.steered, setting.layer, setting.vector, setting.n_new
            ),
            self._context(),
        )
        if keep is not None:
            save_file({"tokens": torch.tensor(found)}, keep)
        return cost

    def _context(self) -> AbstractContextManager[Any]:
        return torch.no_grad() if self.no_gradients else nullcontext()

    def _setting(self) -> Setting:
        if self.setting is None:
            raise Refusal("nothing is prepared: send prepare first")
        return self.setting


def timed(
    work: Callable[[], Any], context: AbstractContextManager[Any]
) -> tuple[Any, dict[str, float]]:
    """Runs work once, the garbage collector held off, and returns its result and its seconds."""
    gc.collect()
    gc.disable()
    try:
        wall, processor = time.perf_counter(), time.process_time()
        with context:
            found = work()
        cost = {
            "processor": time.process_time() - processor,
            "wall": time.perf_counter() - wall,
        }
    finally:
        gc.enable()
    return found, cost


def serve(library: Library, *, no_gradients: bool = True) -> None:
    """Answers one JSON request a line until the input ends.

    A request is `{"verb": "capture", ...arguments}`; an answer is `{"ok": true, ...}`, or
    `{"ok": false, "reason": ...}` with the last line of the error.

    Args:
        library: What answers.
        no_gradients: Whether its calls are made without recording gradients.
    """
    # Libraries print what they like; only answers reach the caller.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    service = Service(library, no_gradients=no_gradients)
    for line in sys.stdin:
        _answer(service, json.loads(line), answers)


def _answer(service: Service, request: dict[str, Any], answers: TextIO) -> None:
    verb = request.pop("verb")
    try:
        answer = {"ok": True, **getattr(service, verb)(**request)}
    except Refusal as refusal:
        answer = {"ok": False, "reason": str(refusal)}
    except BaseException as error:  # noqa: BLE001 - another library may raise anything
        traceback.print_exc()
        last = (str(error).strip().splitlines() or [""])[-1]
        answer = {"ok": False, "reason": f"{type(error).__name__}: {last}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
