"""The training loop: plain PyTorch, resumable to the bit.

Every random number of step k follows from (seed, k) alone: the order of the crystals from the epoch, noise
and augmentation from the step. So a checkpoint needs no random state, and a run that was killed and resumed
ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import Training
from dao_pipeline.crystals.dataset import CrystalDataset, epoch_batches, size_batches
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.progress import Reporter
from dao_pipeline.training.checkpoint import State, load_checkpoint, save_checkpoint

_log = logging.getLogger("dao_pipeline")

MAX_SKIPPED = 100
"""Steps with a non-finite loss or gradient that are skipped before training gives up."""

RECORDS = 200
"""Lines of the training curve."""


class Objective(Protocol):
    """A loss on one batch."""

    def __call__(self, model: DaoModel, batch: Data, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is what is minimised. Randomness comes from ``generator`` only."""
        ...


def train(
    model: DaoModel,
    objective: Objective,
    crystals: CrystalDataset,
    validation: CrystalDataset | None,
    settings: Training,
    *,
    work: Path,
    identity: str,
    seed: int,
    label: str,
) -> list[dict[str, float | int | str | None]]:
    """Train ``model`` in place (ending with averaged weights) and return its curve, one record per line.

    ``work`` holds the checkpoint; one with another ``identity`` (settings, data, start) is ignored.
    Raises ContinueLater after SIGTERM or SIGUSR1, with the state saved, and UserError when the loss is not
    finite in too many steps.
    """
    if len(crystals) == 0:
        raise UserError(f"{label}: there are no crystals to train on; check the filters of crysdb and finetune.")
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.crysformer.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    state = State(model, optimizer)
    if load_checkpoint(state, work, identity):
        _log.info("%s: continues at step %d", label, state.step)
    every = max(1, settings.steps // RECORDS)
    meter = _Meter()
    batches = _batches(crystals, settings.batch_atoms, seed, state.step)
    with Interruptible() as interrupt, Reporter(label, settings.steps, state.step) as progress:
        while state.step < settings.steps:
            batch = next(batches).to(device)
            generator = torch.Generator(device).manual_seed(_mix(seed, state.step))
            if settings.permute_axes:
                batch = permute_axes(batch, generator)
            rate = learning_rate(settings, state.step)
            parts = objective(model, batch, generator)
            _step(model, optimizer, parts["loss"], rate, settings.clip_norm, state, label)
            state.update_average(min(settings.ema_decay, (1 + state.step) / (10 + state.step)))
            state.step += 1
            meter.add(parts, batch)
            if state.step % every == 0 or state.step == settings.steps:
                state.records.append(meter.record(state.step, rate))
            if (
                validation is not None
                and len(validation)
                and (state.step % settings.validate_every == 0 or state.step == settings.steps)
            ):
                state.records.append(_validate(state, objective, validation, settings.batch_atoms, device))
            if state.step % settings.checkpoint_every == 0 or interrupt.requested:
                save_checkpoint(state, work, identity)
            progress.advance(note=f"loss {meter.last:.4g}")
            if interrupt.requested and state.step < settings.steps:
                raise ContinueLater(f"{label} at step {state.step} of {settings.steps}; state saved in {work}")
    state.swap_average()
    return state.records


def learning_rate(settings: Training, step: int) -> float:
    """Linear warm-up, then cosine from the peak to the final learning rate."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    low, high = settings.final_learning_rate, settings.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))


def permute_axes(batch: Data, generator: torch.Generator) -> Data:
    """Rename a, b, c at random for each crystal: the same crystal, which the model does not know to be one."""
    device = batch.lattice.device
    order = torch.rand(len(batch.lattice), 3, generator=generator, device=device).argsort(1)
    batch.lattice = torch.take_along_dim(batch.lattice, order[:, :, None], 1)
    per_atom = torch.repeat_interleave(order, batch.ptr.diff(), dim=0)
    batch.frac_coords = torch.take_along_dim(batch.frac_coords, per_atom, 1)
    return batch


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % (1 << 62)


def _batches(crystals: CrystalDataset, batch_atoms: int, seed: int, step: int) -> Iterator[Data]:
    """Batches from ``step`` on, epoch after epoch."""
    epoch, done = 0, 0
    while True:
        order = epoch_batches(crystals.sizes, batch_atoms, seed, epoch)
        for indices in order[max(0, step - done) :]:
            yield crystals.select(indices)
        done, epoch = done + len(order), epoch + 1


def _step(
    model: DaoModel,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    rate: float,
    clip_norm: float,
    state: State,
    label: str,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.crysformer.parameters(), clip_norm)
    if not bool(torch.isfinite(norm)):
        state.skipped += 1
        if state.skipped > MAX_SKIPPED:
            raise UserError(
                f"{label}: loss or gradient was not finite in {state.skipped} steps, now at step {state.step}. "
                "Lower learning_rate, or look for outliers in the labels (clip_label)."
            )
        return
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _validate(
    state: State, objective: Objective, validation: CrystalDataset, batch_atoms: int, device: torch.device
) -> dict[str, float | int | str | None]:
    """Averaged weights on fixed noise, so that values of different steps compare."""
    meter = _Meter()
    state.swap_average()
    try:
        with torch.no_grad():
            for number, indices in enumerate(size_batches(validation.sizes, batch_atoms)):
                generator = torch.Generator(device).manual_seed(_mix(0, number))
                batch = validation.select(indices).to(device)
                meter.add(objective(state.model, batch, generator), batch)
    finally:
        state.swap_average()
    return meter.record(state.step, None, split="val")


class _Meter:
    """Means of the losses, weighted by crystals, and throughput since the last record."""

    def __init__(self) -> None:
        self.last = math.nan
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._crystals = self._atoms = 0
        self._since = time.monotonic()

    def add(self, parts: dict[str, Tensor], batch: Data) -> None:
        crystals = len(batch.lattice)
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + value.detach().cpu() * crystals
        self._crystals += crystals
        self._atoms += len(batch.atomic_numbers)

    def record(self, step: int, rate: float | None, split: str = "train") -> dict[str, float | int | str | None]:
        seconds = time.monotonic() - self._since
        record: dict[str, float | int | str | None] = {
            name: float(total) / self._crystals for name, total in self._sums.items()
        }
        record |= {
            "step": step,
            "split": split,
            "learning_rate": rate,
            "seconds": seconds,
            "crystals_per_second": self._crystals / seconds,
            "atoms_per_second": self._atoms / seconds,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        self.last = float(record["loss"] or math.nan)
        self._reset()
        return record
