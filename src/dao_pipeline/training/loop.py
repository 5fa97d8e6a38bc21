"""The training loop: plain PyTorch, on one process or many, resumable to the bit.

Every random number of step k follows from (seed, k) alone: the order of the crystals from the epoch, noise and
augmentation from the step. Every process draws the whole batch of the step, which costs little beside the
network, and computes its share of it. So a checkpoint needs no random state; a run that was killed and resumed
ends with the weights of an undisturbed one; and number of processes and size of the chunks change a step's loss
and gradient by rounding only.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import Training
from dao_pipeline.crystals.dataset import CrystalDataset, epoch_batches, size_batches
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.progress import Reporter
from dao_pipeline.training.checkpoint import State, load_checkpoint, restore_best, save_best, save_checkpoint
from dao_pipeline.training.chunks import chunk_budget, compute_share
from dao_pipeline.training.distributed import Processes
from dao_pipeline.training.gradient import Gradient
from dao_pipeline.training.meter import Meter
from dao_pipeline.training.objective import Objective, total_loss

_log = logging.getLogger("dao_pipeline")

RECORDS = 200
"""Lines of the training curve."""

WARMUP_START = 1e-3
"""Share of the peak learning rate in the first step (paper)."""

VALIDATION_ATOMS = 4096
"""Atoms that share a draw of noise in validation: fixed, so that curves of different settings compare."""

MAX_SUMS = 8
"""Names of an objective at most."""


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
    processes: Processes | None = None,
    chunk_atoms: int | None = None,
) -> State:
    """Train ``model`` in place, ending with the averaged weights that ``settings.keep`` names.

    ``work`` holds the checkpoint; one with another ``identity`` (settings, data, start) is ignored. All processes
    call this with the same arguments, ``work`` on a file system that they share, and all return the same; the
    curve is in ``State.records``. Raises ContinueLater in all of them after any received SIGTERM or SIGUSR1, with
    the state saved, and UserError when the loss is not finite in too many steps or a crystal does not fit into
    memory.
    """
    if len(crystals) == 0:
        raise UserError(f"{label}: there are no crystals to train on; check the filters of crysdb and finetune.")
    processes = processes or Processes(next(model.parameters()).device)
    run = _Run(model, objective, crystals, settings, processes, seed=seed, label=label)
    run.budget = chunk_budget(chunk_atoms, settings.batch_atoms, processes)
    state = run.state
    if load_checkpoint(state, work, identity):
        _log.info("%s: continues at step %d", label, state.step)
    _agree_on_step(state, processes, work)
    every = max(1, settings.steps // RECORDS)
    meter, batches = Meter(), _batches(crystals, settings.batch_atoms, seed, state.step)
    with (
        Interruptible() as interrupt,
        Reporter(label, settings.steps, state.step, quiet=not processes.first) as progress,
    ):
        while state.step < settings.steps:
            stop = run.step(next(batches), meter, interrupt)
            last = state.step == settings.steps
            if state.step % every == 0 or last:
                state.records.append(meter.record(processes, split="train", **run.facts()))
            paused = time.monotonic()
            if validation is not None and len(validation) and (state.step % settings.validate_every == 0 or last):
                loss = run.validate(validation)
                if loss < state.best_loss:
                    state.best_step, state.best_loss = state.step, loss
                    if processes.first:
                        save_best(state, work, identity)
            if processes.first and (state.step % settings.checkpoint_every == 0 or stop):
                save_checkpoint(state, work, identity)
            meter.pause(time.monotonic() - paused)
            progress.advance(note=f"loss {meter.last:.4g}, {meter.rate:.3g} atoms/s")
            if stop and not last:
                processes.wait()  # whoever leaves first ends the others, who may still be writing
                raise ContinueLater(f"{label} at step {state.step} of {settings.steps}; state saved in {work}")
    state.kept_step = state.step
    if settings.keep == "best":
        processes.wait()  # for the first one to have written it
        if restore_best(state, work, identity):
            state.kept_step = state.best_step
        else:
            _log.warning("%s: there was no validation, so the last weights are kept, not the best", label)
    state.swap_average()
    return state


class _Run:
    """One training in one process: what a step and a validation need."""

    def __init__(
        self,
        model: DaoModel,
        objective: Objective,
        crystals: CrystalDataset,
        settings: Training,
        processes: Processes,
        *,
        seed: int,
        label: str,
    ) -> None:
        self.model, self.objective, self.crystals = model, objective, crystals
        self.settings, self.processes, self.seed, self.label = settings, processes, seed, label
        parameters = list(model.crysformer.parameters())
        self.device = parameters[0].device
        adam = torch.optim.AdamW if settings.decoupled_decay else torch.optim.Adam
        self.optimizer = adam(
            parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.gradient = Gradient(parameters, MAX_SUMS + 3)
        self.state = State(model, self.optimizer)
        self.budget = 0
        self._rate = 0.0

    @property
    def chunk_atoms(self) -> int:
        """Atoms of a chunk, after what was learned about memory."""
        return max(1, self.budget >> self.state.halvings)

    def facts(self) -> dict[str, Any]:
        """What the curve says about the state of the run."""
        return {
            "step": self.state.step,
            "learning_rate": self._rate,
            "chunk_atoms": self.chunk_atoms,
            "skipped": self.state.skipped,
        }

    def step(self, indices: np.ndarray, meter: Meter, interrupt: Interruptible) -> bool:
        """One optimiser step on the crystals ``indices``; is any process asked to stop?"""
        state, settings, gradient, sizes = self.state, self.settings, self.gradient, self.crystals.sizes[indices]
        with torch.no_grad():
            batch = self.crystals.select(indices).to(self.device)
            generator = torch.Generator(self.device).manual_seed(_mix(self.seed, state.step))
            if settings.permute_axes:
                batch = permute_axes(batch, generator)
            drawn = self.objective.draw(self.model, batch, generator)
            weights = self.objective.weights(drawn)
        names = list(weights)
        gradient.values.zero_()
        totals, flags = gradient.extra[: len(names)], gradient.extra[MAX_SUMS:]

        def compute(chunk: Data) -> None:
            sums = self._sums(chunk)
            values = torch.stack([sums[name].detach() for name in names]).to(totals.dtype)
            gradient.add(total_loss(sums, weights))
            totals.add_(values)

        failure: UserError | None = None
        ran_out = False
        try:
            ran_out = compute_share(drawn, sizes, self.chunk_atoms, self.processes, compute)
        except UserError as error:
            failure = error
        flags.copy_(torch.tensor([interrupt.requested, ran_out, failure is not None]))
        self.processes.sum(gradient.values)
        norm = gradient.norm()
        # the one place where the host waits for a GPU
        known = torch.cat([gradient.extra, norm[None], torch.stack([weights[n] for n in names]).to(norm)]).tolist()
        sums, (stop, memory, failed, size), counts = (
            known[: len(names)],
            known[MAX_SUMS:][:4],
            known[MAX_SUMS + 4 :],
        )
        if failed:
            raise UserError(f"{self.label}: {failure or 'another process ran out of memory; see its message.'}")
        if memory:
            self._halve()
        self._rate = learning_rate(settings, state.step)
        finite = all(math.isfinite(value) for value in (*sums, size))
        if finite:
            gradient.clip(settings, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate
            self.optimizer.step()
        else:
            self._skip()
        state.update_average(min(settings.ema_decay, (1 + state.step) / (10 + state.step)))
        state.step += 1
        meter.add(
            dict(zip(names, sums, strict=True)) if finite else {},
            dict(zip(names, counts, strict=True)),
            crystals=len(sizes),
            atoms=int(sizes.sum()),
            norm=size if finite else None,
        )
        return bool(stop)

    def validate(self, validation: CrystalDataset) -> float:
        """Loss of the averaged weights on noise that is always the same; it becomes a record of the curve."""
        meter = Meter()
        names: list[str] = []
        totals = torch.zeros(MAX_SUMS + 2, device=self.device, dtype=torch.float64)
        counts = torch.zeros(MAX_SUMS, device=self.device, dtype=torch.float64)

        def compute(chunk: Data) -> None:
            sums = self._sums(chunk)
            totals[: len(names)] += torch.stack([sums[name] for name in names])

        self.state.swap_average()
        failure: UserError | None = None
        try:
            with torch.no_grad():
                for number, indices in enumerate(size_batches(validation.sizes, VALIDATION_ATOMS)):
                    generator = torch.Generator(self.device).manual_seed(_mix(0, number))
                    batch = validation.select(indices).to(self.device)
                    drawn = self.objective.draw(self.model, batch, generator)
                    weights = self.objective.weights(drawn)
                    names = list(weights)
                    counts[: len(names)] += torch.stack([weights[name] for name in names])
                    sizes = validation.sizes[indices]
                    totals[-2] += compute_share(drawn, sizes, self.chunk_atoms, self.processes, compute)
        except UserError as error:
            failure = error
            totals[-1] = 1
        finally:
            self.state.swap_average()
        self.processes.sum(totals)
        *sums, memory, failed = totals.tolist()
        if failed:
            raise UserError(f"{self.label}: {failure or 'another process ran out of memory; see its message.'}")
        if memory:
            self._halve()
        meter.add(
            dict(zip(names, sums, strict=False)),
            dict(zip(names, counts.tolist(), strict=False)),
            crystals=len(validation.sizes),
            atoms=int(validation.sizes.sum()),
        )
        record = meter.record(self.processes, split="val", **{**self.facts(), "learning_rate": None})
        self.state.records.append(record)
        return float(record["loss"])

    def _sums(self, chunk: Data) -> dict[str, Tensor]:
        # what follows the network computes on fp32 targets and stays in fp32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return self.objective.sums(self.model, chunk)

    def _halve(self) -> None:
        before = self.chunk_atoms
        self.state.halvings += 1
        _log.warning(
            "%s: out of memory at step %d: chunks of %d atoms from now on, after %d",
            self.label,
            self.state.step,
            self.chunk_atoms,
            before,
        )

    def _skip(self) -> None:
        state = self.state
        state.skipped += 1
        if state.skipped > self.settings.max_skipped:
            raise UserError(
                f"{self.label}: loss or gradient was not finite in {state.skipped} steps (training.max_skipped is "
                f"{self.settings.max_skipped}), now at step {state.step}. Lower learning_rate, or look for "
                "outliers in the labels (clip_label)."
            )
        _log.warning("%s: loss or gradient is not finite at step %d: skipped", self.label, state.step)


def learning_rate(settings: Training, step: int) -> float:
    """Linear warm-up from a thousandth of the peak, then cosine down to the final learning rate."""
    low, high = settings.final_learning_rate, settings.learning_rate
    if step < settings.warmup_steps:
        return high * (WARMUP_START + (1 - WARMUP_START) * step / settings.warmup_steps)
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))


def permute_axes(batch: Data, generator: torch.Generator) -> Data:
    """Rename a, b, c at random for each crystal: the same crystal, which the model does not know to be one.

    Its template, if it has one, follows.
    """
    device = batch.lattice.device
    order = torch.rand(len(batch.lattice), 3, generator=generator, device=device).argsort(1)
    per_atom = torch.repeat_interleave(order, batch.ptr.diff(), dim=0)
    for coords, lattice in (("frac_coords", "lattice"), ("template_coords", "template_lattice")):
        if lattice in batch:
            batch[lattice] = torch.take_along_dim(batch[lattice], order[:, :, None], 1)
            batch[coords] = torch.take_along_dim(batch[coords], per_atom, 1)
    return batch


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % (1 << 62)


def _batches(crystals: CrystalDataset, batch_atoms: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """Crystals of each batch from ``step`` on, sorted by size, epoch after epoch."""
    epoch, done = 0, 0
    while True:
        order = epoch_batches(crystals.sizes, batch_atoms, seed, epoch)
        yield from order[max(0, step - done) :]
        done, epoch = done + len(order), epoch + 1


def _agree_on_step(state: State, processes: Processes, work: Path) -> None:
    latest = torch.tensor([float(state.step)], device=processes.device)
    processes.maximum(latest)
    if int(latest) != state.step:
        raise UserError(
            f"process {processes.rank} read step {state.step} from {work}, another one step {int(latest)}: all "
            "processes must see the same files. Put the work folder on a shared file system and run again."
        )
