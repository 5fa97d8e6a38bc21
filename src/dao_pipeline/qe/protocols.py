"""Protocols: named sets of accuracy, from ``data/protocols.yaml``, with the values that a campaign gives."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dao_pipeline.config import QE

_FILE = Path(__file__).parent / "data" / "protocols.yaml"


@dataclass(frozen=True)
class Protocol:
    """Values of one protocol; units and reasons stand in ``data/protocols.yaml``."""

    kspacing: float
    cutoff_factor: float
    smearing: str
    degauss: float
    ecutwfc: float
    ecutrho: float
    conv_thr: float
    etot_conv_thr: float
    forc_conv_thr: float
    press_conv_thr: float


@cache
def _stored() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return values


def protocol(settings: QE) -> Protocol:
    """The protocol of a campaign, with k-spacing and smearing as given under ``qe``, where they are.

    Cut-offs of a campaign are not in it: they stand before those of the pseudopotentials (``inputs.method``).
    """
    values = dict(_stored()[settings.protocol])
    for name in ("kspacing", "smearing", "degauss"):
        if (given := getattr(settings, name)) is not None:
            values[name] = given
    return Protocol(**{field.name: values[field.name] for field in fields(Protocol)})


def starting_moments() -> dict[str, float]:
    """Bohr magnetons per atom of the elements that ask for spin polarisation."""
    return {symbol: float(moment) for symbol, moment in _stored()["magnetic"].items()}
