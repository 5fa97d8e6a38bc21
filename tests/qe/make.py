"""Silicon, its pseudopotentials, and quick settings, for tests of Quantum ESPRESSO."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dao_pipeline.config import QE
from dao_pipeline.crystals.crystal import Crystal

PSEUDOS = Path("/usr/share/espresso/pseudo")
OUTPUTS = Path(__file__).parent / "outputs"
FCC = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
needs_pw = pytest.mark.skipif(
    shutil.which("pw.x") is None or not PSEUDOS.is_dir(),
    reason="pw.x and its pseudopotentials are absent: apt-get install quantum-espresso quantum-espresso-data",
)


def silicon(
    id: str = "cand:0:0",  # noqa: A002 - the column's name
    edge: float = 5.43,
    z: int = 14,
    shift: float = 0.0,
    **extra: Any,
) -> Crystal:
    """Two atoms of an element in diamond's cell; ``shift`` displaces one without any symmetry."""
    place = np.array([0.25, 0.25, 0.25]) + shift * np.array([1.0, 0.5, -0.7])
    return Crystal(
        id=id,
        source="dao_g",
        atomic_numbers=np.array([z, z]),
        frac_coords=np.array([np.zeros(3), place]),
        lattice=edge / 2 * FCC,
        extra={"composition": "Si2", "target_id": None, "rank": 1, "energy_pred": 0.1, **extra},
    )


def quick(**values: Any) -> QE:
    """Settings with which silicon takes about a second."""
    few = {
        "pseudo_dir": str(PSEUDOS),
        "ecutwfc": 16,
        "ecutrho": 64,
        "kspacing": 1.0,
        "calculation": "single_point",
    }
    return QE(**{"enabled": True, **few, **values})


def recorded(name: str) -> str:
    """An output of pw.x that is kept beside the tests."""
    return gzip.decompress((OUTPUTS / f"{name}.pwo.gz").read_bytes()).decode()
