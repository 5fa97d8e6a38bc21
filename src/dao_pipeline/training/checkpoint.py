"""What a training run needs to continue: weights, their average, Adam's moments, step and curve.

One safetensors file, written to a temporary name and renamed; nothing is unpickled when it is read. The one
before is kept, and used when the newest cannot be read. The averaged weights of the best validation have a file
of their own, which says itself of which step they are and how good.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dao_pipeline.crystals.table import replacing
from dao_pipeline.model.dao import DaoModel

_log = logging.getLogger("dao_pipeline")

NAME, PREVIOUS, BEST = "checkpoint.safetensors", "previous.safetensors", "best.safetensors"
_UNREADABLE = (SafetensorError, OSError, KeyError, RuntimeError, ValueError, TypeError)


class State:
    """A training run at one moment. ``average`` is the exponential moving average of the weights.

    skipped: steps without an update. halvings: how often memory ran out, and the chunks were halved.
    best_step, best_loss: the validation with the smallest loss so far; step 0 if there was none.
    kept_step: step of the weights that the training ended with.
    """

    def __init__(self, model: DaoModel, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights: dict[str, Tensor] = dict(model.crysformer.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        self.step = self.skipped = self.halvings = 0
        self.best_step, self.best_loss, self.kept_step = 0, math.inf, 0
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
        """Take over ``tensors``. Raises KeyError or RuntimeError, changing nothing, if not of this model."""
        for name, value in self.weights.items():
            for kind in ("weights", "average"):
                if tensors[f"{kind}/{name}"].shape != value.shape:
                    raise RuntimeError(f"{kind}/{name} has another shape")
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
    note = {"identity": identity, "step": state.step, "skipped": state.skipped, "halvings": state.halvings}
    path = work / NAME
    with replacing(path) as temporary:
        save_file(state.tensors(), temporary, metadata={"state": json.dumps({**note, "records": state.records})})
        if path.exists():
            path.replace(work / PREVIOUS)


def load_checkpoint(state: State, work: Path, identity: str) -> bool:
    """Continue from ``work`` if it holds a sound checkpoint of the same run; says in the log why not."""
    for path in (work / NAME, work / PREVIOUS):
        if (found := _read(path, identity, "trying the one before it")) is None:
            continue
        note, tensors = found
        try:
            state.restore(tensors)
        except (KeyError, RuntimeError) as error:
            _log.warning("%s is not of this model (%s); trying the one before it", path, error)
            continue
        state.step, state.skipped, state.halvings = note["step"], note["skipped"], note["halvings"]
        state.records = note["records"]
        _load_best_note(state, work, identity)
        return True
    return False


def save_best(state: State, work: Path, identity: str) -> None:
    """Write the averaged weights, which are the best so far."""
    note = {"identity": identity, "step": state.best_step, "loss": state.best_loss}
    with replacing(work / BEST) as temporary:
        tensors = {name: value.contiguous().cpu() for name, value in state.average.items()}
        save_file(tensors, temporary, metadata={"state": json.dumps(note)})


def restore_best(state: State, work: Path, identity: str) -> bool:
    """Take over the best averaged weights, in place of the last; False if there was no validation."""
    if (found := _read(work / BEST, identity, "keeping the last weights")) is None:
        return False
    with torch.no_grad():
        for name, value in state.average.items():
            value.copy_(found[1][name])
    return True


def _load_best_note(state: State, work: Path, identity: str) -> None:
    if (found := _read(work / BEST, identity, "the best validation is sought anew")) is not None:
        state.best_step, state.best_loss = found[0]["step"], found[0]["loss"]


def _read(path: Path, identity: str, otherwise: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Note and tensors of a file, or None, said in the log: not there, not whole, or of another run."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["state"])
            if note["identity"] != identity:
                _log.info("%s belongs to a run with other settings or data; not used", path)
                return None
            return note, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except _UNREADABLE as error:
        _log.warning("%s cannot be read (%s); %s", path, error, otherwise)
        return None
