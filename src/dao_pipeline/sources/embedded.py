"""The crystals that ship with the package: small relaxed crystals, their unstable precursors, their energies.

With no network and no key a campaign works on this table (``data.source: embedded``). It is built by
:func:`build`; reading it needs pyarrow alone.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dao_pipeline.crystals.table import read_table

EMBEDDED_PATH = Path(__file__).parent / "data" / "embedded.parquet"
"""The table in the package."""

DEMO_TARGETS: tuple[str, ...] = (
    "sub:perovskite:SrTiO3",
    "sub:rutile:TiO2",
    "sub:alb2:MgB2",
    "sub:half_heusler:TiNiSn",
    "sub:cu3au:Cu3Au",
    "sub:wurtzite:ZnO",
    "sub:thcr2si2:BaFe2As2",
    "sub:chalcopyrite:InCuSe2",
    "sub:corundum:Al2O3",
    "sub:a15:Cr3Si",
)
"""Ids of the ten crystals that the demo looks for: ten structure types, each present with other elements.

Every row of their compositions, precursors and other polymorphs included, is in split ``test``.
"""


def load() -> pa.Table:
    """All rows: relaxed crystals (``precursor_of`` null) and unstable ones (``precursor_of`` their id).

    ``split`` is ``test`` for every row of a target's composition and null for all others.
    """
    return read_table(EMBEDDED_PATH)


def build(out: Path, *, workers: int = 1, work: Path, limit: int | None = None) -> None:
    """Make the table with CHGNet: some 10 minutes on one core. Needs pymatgen, ASE, moyopy and chgnet.

    out: Parquet file to write.
    workers: processes, each with one thread.
    work: directory for finished pieces; a rerun continues from what is there.
    limit: make only the first compounds (targets first) and the elements that they contain.
    """
    from dao_pipeline.sources.embedded_build import build_table

    build_table(out, workers=workers, work=work, limit=limit, targets=DEMO_TARGETS)
