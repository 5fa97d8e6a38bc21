"""What two processes do together in the tests of them: ``torchrun -m tests.training.worker FOLDER PART...``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import EnergyModel
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.process.objective import GeneratorObjective
from dao_pipeline.training.distributed import Processes, join_processes
from dao_pipeline.training.objective import Objective
from tests.training.common import SETTINGS, Disturbed, SmallMemory, run, with_settings


class BrokenOnce(GeneratorObjective):
    """Its loss is infinite in the first training step of the process that has it."""

    broken = False

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        sums = super().sums(model, batch)
        if torch.is_grad_enabled() and not self.broken:
            self.broken = True
            sums["loss_coords"] = sums["loss_coords"] * float("inf")
        return sums


def write(
    folder: Path,
    name: str,
    processes: Processes,
    objective: Objective | None = None,
    work: str | None = None,
    kind: str = "dao_g",
) -> None:
    """Train, and leave weights and curve of this process."""
    settings = with_settings(keep="best") if kind == "dao_p" else SETTINGS
    if kind == "dao_p":
        objective = EnergyObjective(EnergyModel())
    try:
        weights, state = run(folder / (work or name), objective, settings, kind=kind, processes=processes)
        facts = {"records": state.records, "skipped": state.skipped, "step": state.step}
    except UserError as error:
        weights, facts = {}, {"error": str(error)}
    except ContinueLater as request:
        weights, facts = {}, {"stopped": str(request)}
    save_file(weights, folder / f"{name}-{processes.rank}.safetensors", metadata={"facts": json.dumps(facts)})


def together(folder: Path) -> None:
    """Everything that both processes survive."""
    with join_processes() as processes:
        second = processes.rank == 1
        write(folder, "plain", processes)
        write(folder, "energy", processes, kind="dao_p")
        write(folder, "broken", processes, BrokenOnce() if second else None)
        small = SmallMemory(9, torch.OutOfMemoryError("injected"))
        write(folder, "memory", processes, small if second else None)
        none = SmallMemory(0, torch.OutOfMemoryError("injected"))
        write(folder, "no_memory", processes, none if second else None)
        request = Disturbed(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        write(folder, "stopped", processes, request if second else None)
        write(folder, "stopped_resumed", processes, work="stopped")
        # one process starts, two go on
        write(folder, "grown", processes)


def killed(folder: Path, at: int) -> None:
    """The last process, which may be the only one, dies in step ``at``."""
    with join_processes() as processes:
        die = Disturbed(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        write(folder, "killed", processes, die if processes.rank == processes.count - 1 else None)


def resumed(folder: Path) -> None:
    """What was killed goes on."""
    with join_processes() as processes:
        write(folder, "killed", processes)


def alone(folder: Path) -> None:
    """What was killed goes on, and the same undisturbed, in one process."""
    resumed(folder)
    with join_processes() as processes:
        write(folder, "whole", processes)


if __name__ == "__main__":
    part = {"together": together, "killed": killed, "resumed": resumed, "alone": alone}[sys.argv[2]]
    part(Path(sys.argv[1]), *map(int, sys.argv[3:]))
