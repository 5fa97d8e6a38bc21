"""DAO-P and DAO-G: Crysformer with its generative process, the unit of its lattices and of its energies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dao_pipeline.config import Backbone, Process
from dao_pipeline.crystals.table import file_hash, replacing, write_text
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.errors import UserError
from dao_pipeline.model.crysformer import Crysformer, Noise, Output
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.prior import LatticePrior, fit_lattice_prior

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"layers": 4, "width": 96, "heads": 4, "frequencies": 32},
    "small": {"layers": 8, "width": 256, "heads": 8, "frequencies": 32},
    "base": {"layers": 12, "width": 384, "heads": 8, "frequencies": 128},
}
"""Backbone sizes; ``base`` is the paper's."""


def backbone_sizes(backbone: Backbone) -> dict[str, Any]:
    """Sizes of a configured backbone, overrides applied."""
    sizes = dict(PRESETS[backbone.preset])
    for name in sizes:
        if (value := getattr(backbone, name)) is not None:
            sizes[name] = value
    return sizes


@dataclass(frozen=True, kw_only=True)
class About:
    """What config.json of a model directory says.

    kind: dao_p or dao_g. energy_label, energy_mean, energy_std: what the energy head predicts, eV/atom;
    after finetune_property the property, in its own unit (``energy.property``).
    element_energies: 101 values by atomic number, eV/atom, whose mean over the atoms is added; empty: none.
    members: hashes of the weights in members/1, members/2, ... of the directory, models that were trained on from
    this one; std_scale: times the standard deviation of all their energies is that of the error.
    elements: atomic numbers seen in training. history: how it was trained, stage by stage.
    template_errors: root mean square error of templates in training, of a fractional coordinate and of an entry of
    the lattice's log metric; None: the model has not learned paths from templates.
    """

    kind: str
    backbone: dict[str, Any]
    process: dict[str, Any]
    energy_label: str | None = None
    energy_mean: float = 0.0
    energy_std: float = 1.0
    element_energies: list[float] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    std_scale: float = 1.0
    elements: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    template_errors: tuple[float, float] | None = None


class DaoModel(nn.Module):
    """A model that takes crystals in angstrom and works in its own units inside.

    ``element_volumes`` (101,), angstrom^3, is fitted on the training crystals; lattices are divided by the
    edge of a cube with the volume expected of the composition (process.lattice_scale) before they meet noise.
    ``schedule``: the generative process. ``prior``: where a flow starts, fitted there too (``fitted``).
    """

    element_volumes: Tensor
    element_energies: Tensor
    schedule: Diffusion | Flow

    def __init__(
        self, about: About, element_volumes: np.ndarray | Tensor, prior: LatticePrior | None = None
    ) -> None:
        super().__init__()
        self.about = about
        backbone, self.process = Backbone.of_model(about.backbone), Process.of_model(about.process)
        volumes = torch.as_tensor(element_volumes, dtype=torch.float32).clone()
        schedule: Diffusion | Flow
        if self.process.kind == "flow":
            schedule = Flow(self.process, prior, about.template_errors)
            noise = Noise(schedule.sigma)
        else:
            schedule = Diffusion(self.process)
            noise = Noise(schedule.sigma, schedule.alpha_bar)
        self.crysformer = Crysformer(
            **backbone_sizes(backbone),
            joint=backbone.edge_norm == "joint",
            distances=backbone.distances,
            element_volumes=volumes if backbone.neighbours == "all" and backbone.distances != "none" else None,
            gated=backbone.residual == "gated",
            noise=noise if backbone.noise_aware else None,
            lattice_output="symmetric" if self.process.kind == "flow" else None,
            energy_head=about.kind == "dao_p",
            template_paths=about.template_errors is not None,
        )
        self.schedule = schedule
        self.register_buffer("element_volumes", volumes)
        energies = torch.tensor(about.element_energies or [0.0] * len(volumes), dtype=torch.float32)
        self.register_buffer("element_energies", energies, persistent=False)

    @classmethod
    def fitted(cls, about: About, crystals: pa.Table) -> DaoModel:
        """A new model with volumes of elements and, for a flow, a prior of lattices fitted on a crystal table."""
        volumes = fit_element_volumes(crystals)
        prior = fit_lattice_prior(crystals, volumes) if Process.of_model(about.process).kind == "flow" else None
        return cls(about, volumes, prior)

    def edge(self, atomic_numbers: Tensor, layout: Layout) -> Tensor:
        """Unit of the process's lattices, (B, 1, 1) in angstrom, in the caller's order of crystals."""
        if self.process.lattice_scale == "none":
            return torch.ones(layout.num_crystals, 1, 1, device=atomic_numbers.device, dtype=self.dtype)
        volumes = layout.sort_atoms(self.element_volumes.to(self.dtype)[atomic_numbers])
        total = torch.cat([block.sum(1) for block in layout.blocks(volumes)])
        return layout.unsort_crystals(total).pow(1 / 3)[:, None, None]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.crysformer.node.weight.dtype

    def forward(
        self,
        atomic_numbers: Tensor,
        frac_coords: Tensor,
        lattice: Tensor,
        ptr: Tensor,
        t: Tensor,
        layout: Layout | None = None,
    ) -> Output:
        """Crysformer's heads on a flat batch; lattice (B, 3, 3) in angstrom, see ``Crysformer.forward``."""
        layout = layout or Layout.from_ptr(ptr)
        return self.crysformer(
            atomic_numbers, frac_coords, lattice / self.edge(atomic_numbers, layout), ptr, t, layout
        )

    def energy(
        self, atomic_numbers: Tensor, frac_coords: Tensor, lattice: Tensor, t: Tensor, layout: Layout
    ) -> Tensor:
        """Energy per atom, (B,) eV/atom, of crystals with lattices in angstrom (paper 3.3)."""
        scaled = lattice / self.edge(atomic_numbers, layout)
        standardised = self.crysformer.energy(atomic_numbers, frac_coords, scaled, t, layout)
        offset = self.about.energy_mean + self.reference(atomic_numbers, layout)
        return standardised * self.about.energy_std + offset

    def reference(self, atomic_numbers: Tensor, layout: Layout) -> Tensor:
        """Part of the energy that the composition alone decides, (B,) eV/atom (``About.element_energies``)."""
        energies = layout.sort_atoms(self.element_energies.to(self.dtype)[atomic_numbers])
        return layout.unsort_crystals(torch.cat([block.mean(1) for block in layout.blocks(energies)]))

    def parameter_count(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def save_model(model: DaoModel, folder: Path) -> None:
    """Write model.safetensors and config.json; the weights' hash stands in the latter.

    Each file is renamed into place, config.json last: a folder with a matching pair is whole.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    weights = folder / "model.safetensors"
    with replacing(weights) as temporary:
        save_file(tensors, temporary)
    note = {**model.about.__dict__, "weights_hash": file_hash(weights), "parameters": model.parameter_count()}
    write_text(folder / "config.json", json.dumps(note, indent=2, default=str) + "\n")


def load_model(folder: Path, device: torch.device | str = "cpu") -> DaoModel:
    """Read a model directory, in evaluation mode.

    Raises UserError for missing, damaged or mismatched files.
    """
    try:
        note = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        expected = note.pop("weights_hash")
        note.pop("parameters", None)
        about = About(**note)
        found = file_hash(folder / "model.safetensors")
        if found != expected:
            raise UserError(
                f"{folder}: model.safetensors (hash {found}) is not the file that config.json describes "
                f"({expected}). Rerun the stage that trained it, or fetch the directory again."
            )
        tensors = load_file(folder / "model.safetensors", device=str(device))
        model = DaoModel(about, tensors["element_volumes"])
        model.load_state_dict(tensors)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a sound model directory ({error}). Rerun its training stage.") from error
    return model.to(device).eval()
