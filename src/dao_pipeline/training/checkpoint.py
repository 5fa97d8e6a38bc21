"""What a training run needs to continue: weights, their average, Adam's moments, step and curve.

One safetensors file, written to a temporary name and renamed; nothing is unpickled when it is read. The one
before is kept, and used when the newest cannot be read.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dao_pipeline.crystals.table import replacing
from dao_pipeline.model.dao import DaoModel

_log = logging.getLogger("dao_pipeline")

NAME, PREVIOUS = "checkpoint.safetensors", "previous.safetensors"


class State:
    """A training run at one moment. ``average`` is the exponential moving average of the weights."""

    def __init__(self, model: DaoModel, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights: dict[str, Tensor] = dict(model.crysformer.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        self.step = 0
        self.skipped = 0
        self.records: list[dict[str, Any]] = []

    def update_average(self, decay: float) -> None:
        """average <- decay average + (1 - decay) weights."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)

    def swap_average(self) -> None:
        """Exchange weights and their average, in place; calling it twice changes nothing."""
        with torch.no_grad():
            for name, value in self.weights.items():
                kept = value.detach().clone()
                value.copy_(self.average[name])
                self.average[name].copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        found = {f"weights/{name}": value.detach() for name, value in self.weights.items()}
        found |= {f"average/{name}": value for name, value in self.average.items()}
        for name, value in self.weights.items():
            for key, moment in self.optimizer.state.get(value, {}).items():
                found[f"adam/{key}/{name}"] = moment
        return {name: value.contiguous().cpu() for name, value in found.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over ``tensors``. Raises KeyError or RuntimeError if they are not of this model."""
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(tensors[f"weights/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
                moments = {key: tensors.get(f"adam/{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if all(moment is not None for moment in moments.values()):
                    device = value.device
                    self.optimizer.state[value] = {k: m.to(device) for k, m in moments.items() if m is not None}


def save_checkpoint(state: State, work: Path, identity: str) -> None:
    """Write the state to ``work``, keeping the checkpoint before it."""
    note = {"identity": identity, "step": state.step, "skipped": state.skipped, "records": state.records}
    path = work / NAME
    with replacing(path) as temporary:
        save_file(state.tensors(), temporary, metadata={"state": json.dumps(note)})
        if path.exists():
            path.replace(work / PREVIOUS)


def load_checkpoint(state: State, work: Path, identity: str) -> bool:
    """Continue from ``work`` if it holds a sound checkpoint of the same run; says in the log why not."""
    for path in (work / NAME, work / PREVIOUS):
        if not path.exists():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads(file.metadata()["state"])
                if note["identity"] != identity:
                    _log.info("%s belongs to a run with other settings or data; not used", path)
                    continue
                state.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            _log.warning("%s cannot be read (%s); trying the one before it", path, error)
            continue
        state.step, state.skipped, state.records = note["step"], note["skipped"], note["records"]
        return True
    return False
