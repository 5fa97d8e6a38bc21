"""Energy labels: which column the energy model learns, and which crystals can carry a label."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

log = logging.getLogger(__name__)


def energies(table: pa.Table, column: str) -> np.ndarray:
    """An energy column (m,) in eV/atom; NaN where unknown or not finite."""
    values = table[column].cast(pa.float64()).to_numpy().astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def methods(table: pa.Table) -> dict[str, int]:
    """Crystals per level of theory of their energies, ``unknown`` where the source does not say.

    Logs a warning when there are several: their energies are not comparable.
    """
    known = pc.or_(pc.is_valid(table["formation_energy"]), pc.is_valid(table["e_above_hull"]))
    found = Counter(method or "unknown" for method in table.filter(known)["energy_method"].to_pylist())
    if len(found) > 1:
        named = ", ".join(f"{method} ({n})" for method, n in found.most_common())
        log.warning("labels of different levels of theory are mixed: %s", named)
    return dict(found.most_common())
