"""Pseudopotentials by element: of a table (SSSP, PseudoDojo), or of a folder by the headers of its files.

File names are no evidence: functional, element and type are read from the UPF header, versions 1 and 2.
Functionals are never mixed. Light enough to be asked when a campaign is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dao_pipeline.config import QE, expand_path
from dao_pipeline.crystals.table import file_hash
from dao_pipeline.errors import UserError

WHERE = "SSSP (materialscloud.org/sssp) or PseudoDojo (pseudo-dojo.org)"
"""Where files come from."""

FUNCTIONALS = {
    "PBE": {"PBE", "SLA PW PBX PBC", "SLA PW PBE PBE"},
    "PBEsol": {"PBESOL", "SLA PW PSX PSC"},
    "LDA": {"PZ", "LDA", "PW", "SLA PZ NOGX NOGC", "SLA PW NOGX NOGC"},
}
"""Names of functionals in UPF headers, by ``qe.functional``."""

_TYPES = ("PAW", "US", "NC", "SL")
"""Types in order of preference, where a folder has several files for one element."""

_DENSITY = {"PAW": 8.0, "US": 8.0}
"""Cut-off of the density over that of the waves where only the latter is suggested: augmentation charges are
sharper than products of waves, for which 4 is exact."""

_HARTREE = 2.0
"""Ry."""


@dataclass(frozen=True)
class Pseudopotential:
    """One UPF file.

    kind: PAW, US (ultrasoft), NC (norm-conserving), SL or 1/r.
    electrons: valence electrons.
    ecutwfc, ecutrho: suggested cut-offs in Ry; None where nobody suggests any.
    """

    path: Path
    element: str
    functional: str
    kind: str
    full_relativistic: bool
    electrons: float = math.nan
    ecutwfc: float | None = None
    ecutrho: float | None = None

    @property
    def checksum(self) -> str:
        """Hash of the file."""
        return file_hash(self.path)

    def unfit(self, functional: str) -> str:
        """Why it cannot be used with ``functional``; '' if it can."""
        if self.full_relativistic:
            return "it is fully relativistic, for spin-orbit coupling"
        if self.kind not in _TYPES:
            return "it is a bare Coulomb potential"
        if self.functional not in FUNCTIONALS[functional]:
            known = (name for name, words in FUNCTIONALS.items() if self.functional in words)
            return f"its functional is {next(known, self.functional or 'not stated')}"
        return ""


def read_header(path: Path) -> Pseudopotential | None:
    """What a UPF file says about itself; None for files that are no UPF."""
    with path.open("rb") as stream:
        text = stream.read(200_000).decode("utf-8", errors="replace")
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
        electrons = _number(values.get("z_valence", ""))
        cutoffs = [_number(values.get(name, "")) for name in ("wfc_cutoff", "rho_cutoff")]
    else:  # version 1: a value per line, followed by its name
        lines = [line.strip() for line in header.splitlines()]
        element = _labelled(lines, "Element")
        kind = _labelled(lines, r"(?:NC|US|Ultrasoft|Norm).*|.*Pseudopotential.*")[:3].strip()
        functional = _labelled(lines, "Exchange-Correlation functional")
        full = "fully-relativistic" in text[:start].lower()
        electrons = _number(_labelled(lines, "Z valence"))
        pair = _labelled(lines, "Suggested cutoff for wfc and rho").split()
        cutoffs = [_number(word) for word in pair] if len(pair) == 2 else [math.nan, math.nan]
    words = functional.upper().replace("-", " ").replace("+", " ").split()
    # Version 1 repeats the short name after the four parts: SLA PW PBX PBC PBE.
    functional = " ".join(words[:4] if len(words) == 5 else words)
    kind = "US" if kind.upper() in ("US", "USPP") else kind.upper()
    wave, density = (value if value > 0 else None for value in cutoffs)
    return Pseudopotential(path, element.strip(), functional, kind, full, electrons, wave, density)


def _labelled(lines: list[str], label: str) -> str:
    """The value before ``label`` on its line; '' if there is no such line."""
    for line in lines:
        if found := re.fullmatch(rf"(\S.*?)\s+(?:{label})", line):
            return found.group(1)
    return ""


def _number(text: str) -> float:
    """A number as Fortran writes it; NaN for anything else."""
    try:
        return float(text.lower().replace("d", "e"))
    except ValueError:
        return math.nan


def pseudopotentials_of(settings: QE, elements: Iterable[str]) -> dict[str, Pseudopotential]:
    """Pseudopotentials of some elements, of the folder and table of a campaign.

    Raises UserError as ``find_pseudopotentials`` does, and where the campaign names no folder.
    """
    if settings.pseudo_dir is None:
        raise UserError("qe.pseudo_dir: not given. Name a folder with pseudopotentials (UPF).")
    table = None if settings.pseudo_table is None else expand_path(settings.pseudo_table)
    return find_pseudopotentials(expand_path(settings.pseudo_dir), elements, settings.functional, table)


def find_pseudopotentials(
    folder: Path, elements: Iterable[str], functional: str = "PBE", table: Path | None = None
) -> dict[str, Pseudopotential]:
    """One pseudopotential of ``functional`` per element: of ``table``, if given, or else of the headers.

    Where a folder without a table has several, PAW goes before ultrasoft before norm-conserving, then the last
    by name (the newest version). Raises one UserError with all that is wrong: folder or table unreadable, element
    without a file, wrong checksum, another functional or element than stated.
    """
    if not folder.is_dir():
        raise UserError(
            f"qe.pseudo_dir: {folder}: no such folder. Give one with {functional} pseudopotentials (UPF), e.g. "
            f"from {WHERE}."
        )
    wanted = list(dict.fromkeys(elements))
    found, problems = (
        _of_headers(folder, wanted, functional) if table is None else _of_table(folder, wanted, functional, table)
    )
    if problems:
        raise UserError("\n".join(problems))
    return found


_Found = tuple[dict[str, Pseudopotential], list[str]]


def _of_headers(folder: Path, elements: list[str], functional: str) -> _Found:
    fit: dict[str, list[Pseudopotential]] = defaultdict(list)
    unfit: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() == ".upf" and (header := read_header(path)) is not None:
            if why := header.unfit(functional):
                unfit[header.element].append(f"{path.name}: {why}")
            else:
                fit[header.element].append(header)
    missing = [element for element in elements if element not in fit]
    if missing:
        others = [text for element in missing for text in unfit[element]]
        remark = f" ({'; '.join(others)}.)" if others else ""
        return {}, [
            f"qe.pseudo_dir: {folder} has no {functional} pseudopotential for {', '.join(missing)}.{remark} Add "
            f"UPF files, e.g. from {WHERE}, {functional}, scalar-relativistic."
        ]
    return {e: min(reversed(fit[e]), key=lambda p: _TYPES.index(p.kind)) for e in elements}, []


@dataclass(frozen=True)
class _Entry:
    """What a table says of one element; ``names``: of its file, the likeliest first."""

    names: tuple[str, ...]
    md5: str | None
    ecutwfc: float | None
    ecutrho: float | None


def _of_table(folder: Path, elements: list[str], functional: str, table: Path) -> _Found:
    entries = read_table(table)
    found: dict[str, Pseudopotential] = {}
    problems = []
    for element in elements:
        problem, pseudo = _entry(folder, element, functional, entries.get(element))
        if pseudo is None:
            problems.append(f"qe.pseudo_table = {table}: {element}: {problem}")
        else:
            found[element] = pseudo
    return found, problems


def _entry(
    folder: Path, element: str, functional: str, entry: _Entry | None
) -> tuple[str, Pseudopotential | None]:
    """The file of one element, or what is wrong with it."""
    if entry is None:
        return f"not in the table; name another table, e.g. of {WHERE}, or leave the element out.", None
    path = next((folder / name for name in entry.names if (folder / name).is_file()), None)
    if path is None:
        return f"{entry.names[0]} is not in {folder}; get it from where the table is from ({WHERE}).", None
    if entry.md5 and (md5 := hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()) != entry.md5:
        return (
            f"{path} has the checksum {md5}, not {entry.md5}: it is another version or damaged; get it anew from "
            f"where the table is from ({WHERE}).",
            None,
        )
    header = read_header(path)
    if header is None or header.element != element:
        what = "no UPF file" if header is None else f"for {header.element}"
        return f"{path} is {what}; get the right file from {WHERE}.", None
    if why := header.unfit(functional):
        return f"{path} does not fit qe.functional = {functional}: {why}; get a file of it from {WHERE}.", None
    wave = entry.ecutwfc or header.ecutwfc
    return "", replace(header, ecutwfc=wave, ecutrho=entry.ecutrho or header.ecutrho)


def read_table(path: Path) -> dict[str, _Entry]:
    """Entries of a table by element, cut-offs in Ry.

    Read are SSSP's JSON (``{"Si": {"filename", "md5", "cutoff_wfc", "cutoff_rho"}}``, Ry) and PseudoDojo's: a
    folder with one ``.djrepo`` file per element, or these in one JSON by element (``{"Si": {"basename", "md5_upf",
    "hints": {"normal": {"ecut"}}}}``, hartree). Raises UserError for anything else.
    """
    try:
        if path.is_dir():
            texts = {
                file.stem.partition("-")[0]: file.read_text("utf-8") for file in sorted(path.glob("*.djrepo"))
            }
            values: Any = {element: json.loads(text) for element, text in texts.items()}
        else:
            values = json.loads(path.read_text(encoding="utf-8"))
        entries = {str(element): _parsed(str(element), entry) for element, entry in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"qe.pseudo_table = {path}: no table of pseudopotentials ({type(error).__name__}: {error}). Give the "
            "JSON file of SSSP, or the .djrepo files of PseudoDojo."
        ) from None
    if not entries:
        raise UserError(f"qe.pseudo_table = {path}: no entries. Give the JSON file of SSSP or PseudoDojo.")
    return entries


def _parsed(element: str, values: dict[str, Any]) -> _Entry:
    if "hints" in values:
        wave = _HARTREE * float(values["hints"]["normal"]["ecut"])
        stem = Path(str(values.get("basename") or element)).stem
        names = tuple(f"{name}.{suffix}" for name in dict.fromkeys((stem, element)) for suffix in ("upf", "UPF"))
        if values.get("filename"):
            names = (str(values["filename"]), *names)
        return _Entry(names, values.get("md5_upf"), wave, 4 * wave)
    waves, density = float(values["cutoff_wfc"]), float(values["cutoff_rho"])
    return _Entry((str(values["filename"]),), values.get("md5"), waves, density)


def cutoffs(
    pseudos: Iterable[Pseudopotential], factor: float, otherwise: tuple[float, float]
) -> tuple[float, float]:
    """Cut-offs of waves and density in whole Ry: the largest that any of ``pseudos`` asks for, times ``factor``.

    otherwise: where a file suggests none.
    """
    asked = []
    for pseudo in pseudos:
        if pseudo.ecutwfc is None:
            asked.append(otherwise)
        else:
            wave = factor * pseudo.ecutwfc
            density = pseudo.ecutrho or _DENSITY.get(pseudo.kind, 4.0) * pseudo.ecutwfc
            asked.append((wave, max(factor * density, 4 * wave)))
    waves, density = math.ceil(max(w for w, _ in asked)), math.ceil(max(d for _, d in asked))
    return float(waves), float(max(density, 4 * waves))
