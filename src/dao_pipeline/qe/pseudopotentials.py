"""Pseudopotential files of a folder by element: PBE, scalar-relativistic, told from their headers.

File names are no evidence: the functional, the element and the type are read from the UPF header, versions 1
and 2. Functionals are never mixed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dao_pipeline.crystals.table import file_hash
from dao_pipeline.errors import UserError

_PBE = {"PBE", "SLA PW PBX PBC", "SLA PW PBE PBE"}
_TYPES = ("PAW", "US", "NC", "SL")
"""Types in order of preference, where a folder has several files for one element."""


@dataclass(frozen=True)
class Pseudopotential:
    """One UPF file. ``kind`` is PAW, US (ultrasoft), NC (norm-conserving), SL or 1/r."""

    path: Path
    element: str
    functional: str
    kind: str
    full_relativistic: bool

    @property
    def usable(self) -> bool:
        """PBE, without spin-orbit coupling, and no bare Coulomb potential."""
        return self.functional in _PBE and not self.full_relativistic and self.kind in _TYPES

    @property
    def checksum(self) -> str:
        """Hash of the file."""
        return file_hash(self.path)


def read_header(path: Path) -> Pseudopotential | None:
    """What a UPF file says about itself; None for files that are no UPF."""
    text = path.read_bytes()[:200_000].decode("utf-8", errors="replace")
    start = text.find("<PP_HEADER")
    if start < 0:
        return None
    header = text[start : start + 4_000]
    if (end := re.search(r"/>|</PP_HEADER>", header)) is not None:
        header = header[: end.end()]
    if 'element="' in header:
        values = {name.lower(): value.strip() for name, value in re.findall(r'(\w+)\s*=\s*"([^"]*)"', header)}
        element, functional, kind = values["element"], values.get("functional", ""), values.get("pseudo_type", "")
        full = values.get("has_so", "").lower() in (".true.", "true", "t")
        coulomb = values.get("is_coulomb", "").lower() in (".true.", "true", "t")
        if values.get("is_paw", "").lower() in (".true.", "true", "t"):
            kind = "PAW"
        kind = "1/r" if coulomb else kind
    else:  # version 1: a value per line, followed by its name
        lines = [line.strip() for line in header.splitlines()]
        element = _labelled(lines, "Element")
        kind = _labelled(lines, r"(?:NC|US|Ultrasoft|Norm).*|.*Pseudopotential.*")[:3].strip()
        functional = _labelled(lines, "Exchange-Correlation functional")
        full = "fully-relativistic" in text[:start].lower()
    words = functional.upper().split()
    # Version 1 repeats the short name after the four parts: SLA PW PBX PBC PBE.
    functional = " ".join(words[:4] if len(words) == 5 else words)
    kind = "US" if kind.upper() in ("US", "USPP") else kind.upper()
    return Pseudopotential(path, element.strip(), functional, kind, full)


def _labelled(lines: list[str], label: str) -> str:
    """The value before ``label`` on its line; '' if there is no such line."""
    for line in lines:
        if found := re.fullmatch(rf"(\S.*?)\s+(?:{label})", line):
            return found.group(1)
    return ""


def find_pseudopotentials(folder: Path, elements: Iterable[str]) -> dict[str, Pseudopotential]:
    """One PBE pseudopotential per element.

    Where a folder has several, PAW goes before ultrasoft before norm-conserving, then the last by name (the
    newest version). Raises UserError for a folder that is not there and naming the elements without a file.
    """
    if not folder.is_dir():
        raise UserError(f"qe.pseudo_dir: {folder}: no such folder. Give one with PBE pseudopotentials (UPF).")
    found: dict[str, list[Pseudopotential]] = defaultdict(list)
    others: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() == ".upf" and (header := read_header(path)) is not None:
            if header.usable:
                found[header.element].append(header)
            else:
                others[header.element].add(path.name)
    missing = [element for element in elements if element not in found]
    if missing:
        unfit = {element: ", ".join(sorted(others[element])) for element in missing if others.get(element)}
        remark = "".join(f" ({names}: not PBE, or with spin-orbit coupling.)" for names in unfit.values())
        raise UserError(
            f"qe.pseudo_dir: {folder} has no PBE pseudopotential for {', '.join(missing)}.{remark} Add UPF files, "
            "e.g. from SSSP (materialscloud.org/sssp) or PseudoDojo (pseudo-dojo.org), PBE, scalar-relativistic."
        )
    return {
        element: min(reversed(found[element]), key=lambda p: _TYPES.index(p.kind))
        for element in dict.fromkeys(elements)
    }
