"""Small crystals and tables for tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.table import write_table
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.noise_stream import Candidates, NoiseStream

METALS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Ti", "Zr", "Fe", "Co", "Ni", "Cu", "Zn", "Al", "Ga", "Sn")
ANIONS = ("O", "S", "Se", "F", "Cl", "Br", "N", "P")


def crystal(
    id: str,  # noqa: A002 - the column's name
    symbols: Sequence[str],
    frac: Sequence[Sequence[float]],
    lattice: Any,
    **extra: Any,
) -> Crystal:
    """A crystal; ``lattice`` is the edge of a cube in angstrom or a 3 x 3 matrix."""
    matrix = np.eye(3) * lattice if np.isscalar(lattice) else np.asarray(lattice, dtype=float)
    facts = {"e_above_hull": 0.01, "formation_energy": -1.0, "energy_method": "PBE"} | extra
    return Crystal(
        id=id,
        source="test",
        atomic_numbers=np.array([ATOMIC_NUMBERS[s] for s in symbols]),
        frac_coords=np.array(frac, dtype=float).reshape(-1, 3),
        lattice=matrix,
        extra=facts,
    )


def binary(index: int, **extra: Any) -> Crystal:
    """The index-th of 128 different AB crystals, of caesium chloride structure, with plausible distances."""
    metal, anion = METALS[index % 16], ANIONS[index // 16]
    near = COVALENT_RADIUS[ATOMIC_NUMBERS[metal]] + COVALENT_RADIUS[ATOMIC_NUMBERS[anion]]
    return crystal(f"t-{index}", [metal, anion], [[0, 0, 0], [0.5, 0.5, 0.5]], 1.2 * near, **extra)


def raw_file(path: Path, crystals: Sequence[Crystal]) -> Path:
    """A crystal table as the download stage writes it."""
    write_table(to_table(crystals), path, {"stage": "download"})
    return path


def random_cells(count: int, seed: int = 0, skew: float = 1.0) -> np.ndarray:
    """(count, 3, 3) right-handed lattices in angstrom, mixed by ``skew`` into needles and plates."""
    rng = np.random.default_rng(seed)
    cells = np.diag([4.0, 5.0, 6.0]) + rng.normal(0, skew, (count, 3, 3))
    cells[np.linalg.det(cells) < 0, 0] *= -1
    return cells[np.abs(np.linalg.det(cells)) > 10]


def random_flat(count: int, seed: int, skew: float) -> FlatCrystals:
    """Crystals of one to five atoms in cells of ``random_cells``."""
    rng = np.random.default_rng(seed)
    lattice = random_cells(count, seed, skew)
    counts = rng.integers(1, 6, len(lattice))
    return FlatCrystals(
        numbers=rng.integers(1, 90, counts.sum()),
        frac=rng.random((counts.sum(), 3)),
        lattice=lattice,
        counts=counts,
    )


def shared_data(name: str) -> Path:
    """A file of real crystals beside the repository, or the test is skipped."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("DAO_SHARED_DATA", default)) / name
    if not path.exists():
        pytest.skip(f"no {name} (set DAO_SHARED_DATA)")
    return path


def noise_of(layout: Layout, seed: int = 0) -> NoiseStream:
    """The noise of so many candidates of one composition."""
    number = layout.num_crystals
    return Candidates.of(seed, ["X"] * number, range(number)).noise(layout)
