"""Any crystals as CIF files or extended XYZ, with what is known about each inside."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dao_pipeline.candidates.select import Selection, candidates_of, select
from dao_pipeline.crystals.cif import cif_text
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.table import read_about, replacing
from dao_pipeline.errors import UserError

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Time of every file in a zip: the same crystals give the same bytes."""

_XYZ = (".xyz", ".extxyz")


def export(source: Path, chosen: Selection, out: Path) -> int:
    """Write the selected crystals of a campaign's folder or a table; returns how many.

    out: ``.extxyz`` or ``.xyz``: one file, one frame each, facts as keys of the frame. ``.zip``: CIF files in it.
    Anything else: a new folder of CIF files. It appears when it is whole.

    Raises UserError where nothing is selected, or the folder exists already.
    """
    path = candidates_of(source)
    table = select(path, chosen)
    made_by = _provenance(read_about(path))
    crystals = [(crystal, _facts(crystal, made_by)) for crystal in from_table(table)]
    if out.suffix.lower() in _XYZ:
        _write_xyz(crystals, out)
    elif out.suffix.lower() == ".zip":
        with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            _write_cifs(crystals, lambda name, text: _add(archive, name, text))
    else:
        _write_folder(crystals, out)
    return table.num_rows


def _provenance(about: dict[str, Any]) -> dict[str, Any]:
    """What made the table, as facts of each crystal: campaign, code, settings, and hashes of the inputs."""
    inputs = about.get("inputs") or {}
    hashes = {name: value.get("hash") for name, value in inputs.items() if isinstance(value, dict)}
    hashes["settings"] = about.get("settings_hash")
    named = {name: about[name] for name in ("campaign", "code_version") if about.get(name)}
    # with a word in front, for a reader could take 123e45 for a number
    return named | {f"{name}_hash": f"sha256:{value}" for name, value in hashes.items() if value}


def _facts(crystal: Crystal, made_by: dict[str, Any]) -> dict[str, Any]:
    """Everything that is known about a crystal besides its structure."""
    own = {"id": crystal.id, "source": crystal.source, "formula": crystal.formula, **crystal.extra, **made_by}
    return {
        name: value
        for name, value in own.items()
        if value is not None and value != "" and isinstance(value, (str, int, float, bool))
    }


def file_name(facts: dict[str, Any]) -> str:
    """A file name that is safe everywhere: ``SrTiO3_001_cand-0-3.cif`` (composition, rank, id)."""
    parts = [facts.get("composition") or facts["formula"], facts["id"]]
    if "rank" in facts:
        parts.insert(1, f"{facts['rank']:03d}")
    return "_".join(re.sub(r"[^A-Za-z0-9]+", "-", str(part))[:100] for part in parts) + ".cif"


def _write_cifs(crystals: list[tuple[Crystal, dict[str, Any]]], write: Callable[[str, str], None]) -> None:
    taken: set[str] = set()
    for crystal, facts in crystals:
        name = file_name(facts)
        number = 1
        while name in taken:  # ids that differ in signs only
            number += 1
            name = file_name(facts | {"id": f"{facts['id']}-{number}"})
        taken.add(name)
        write(name, cif_text(crystal, f"id {crystal.id}", facts))


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    entry = zipfile.ZipInfo(name, date_time=_LONG_AGO)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, text)


def _write_folder(crystals: list[tuple[Crystal, dict[str, Any]]], out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; remove it, or name another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        _write_cifs(crystals, lambda name, text: _write(temporary / name, text))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_xyz(crystals: list[tuple[Crystal, dict[str, Any]]], out: Path) -> None:
    from ase import Atoms
    from ase.io.extxyz import write_extxyz

    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for crystal, facts in crystals:
            atoms = Atoms(
                symbols=[SYMBOLS[z] for z in crystal.atomic_numbers],
                scaled_positions=crystal.frac_coords,
                cell=crystal.lattice,
                pbc=True,
            )
            atoms.info = {name: _one_line(value) for name, value in facts.items()}
            write_extxyz(stream, [atoms])


def _one_line(value: Any) -> Any:
    """A value for the comment line of extended XYZ; texts that a reader would take for something else, such as
    the formulas InF, NaN and F, are written with all their numbers (In1F1) or in front of a dash."""
    if not isinstance(value, str):
        return value
    text = " ".join(value.split()).replace('"', "'")
    if not _taken_for_a_value(text):
        return text
    try:
        return "".join(f"{symbol}{number}" for symbol, number in parse_formula(text).items())
    except ValueError:
        return f"{text}-"


def _taken_for_a_value(text: str) -> bool:
    if text.lower() in ("t", "f", "true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
