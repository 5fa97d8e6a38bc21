"""Starting structures of the embedded set: AFLOW prototypes, elemental crystals and substitutions.

Everything here needs pymatgen and ASE, imported where used.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dao_pipeline.crystals.crystal import Crystal, reduced_formula, wrap
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS, SYMBOLS
from dao_pipeline.sources.substitutions import METALS, TABLE

UNKNOWN_TO_CHGNET = {84, 85, 86, 87, 88} | set(range(95, 119))
"""Po, At, Rn, Fr, Ra and what follows Pu have no data in CHGNet's training set."""

MAX_ATOMS = 12

CONTACT_MIN = 0.75
"""Predicted volumes that bring atoms closer than this fraction of the sum of their radii are not believed."""

BUILT: dict[str, tuple[str, tuple[float, ...], str]] = {
    "thcr2si2": ("I4/mmm", (4.0, 4.0, 12.0, 90, 90, 90), "Th 0 0 0; Cr 0 0.5 0.25; Si 0 0 0.36"),
    "k2ptcl6": ("Fm-3m", (9.7, 9.7, 9.7, 90, 90, 90), "K 0.25 0.25 0.25; Pt 0 0 0; Cl 0.24 0 0"),
    "k2ptcl4": ("P4/mmm", (7.0, 7.0, 4.1, 90, 90, 90), "K 0 0.5 0.5; Pt 0 0 0; Cl 0.23 0.23 0"),
    "elpasolite": (
        "Fm-3m",
        (8.1, 8.1, 8.1, 90, 90, 90),
        "K 0.25 0.25 0.25; Na 0.5 0.5 0.5; Al 0 0 0; F 0.22 0 0",
    ),
    "inverse_heusler": (
        "F-43m",
        (6.1, 6.1, 6.1, 90, 90, 90),
        "Hg 0 0 0; Hg 0.25 0.25 0.25; Cu 0.5 0.5 0.5; Ti 0.75 0.75 0.75",
    ),
    "delafossite": ("R-3m", (2.86, 2.86, 16.96, 90, 90, 120), "Cu 0 0 0; Al 0 0 0.5; O 0 0 0.11"),
    "cdcl2": ("R-3m", (3.85, 3.85, 17.46, 90, 90, 120), "Cd 0 0 0; Cl 0 0 0.25"),
    "gete": ("R3m", (4.16, 4.16, 10.67, 90, 90, 120), "Ge 0 0 0.237; Te 0 0 0.763"),
    "gas": ("P6_3/mmc", (3.58, 3.58, 15.5, 90, 90, 120), "Ga 0.3333333 0.6666667 0.17; S 0.3333333 0.6666667 0.6"),
    "cac2": ("I4/mmm", (3.88, 3.88, 6.38, 90, 90, 90), "Ca 0 0 0; C 0 0 0.4"),
    "thsi2": ("I4_1/amd", (4.13, 4.13, 14.35, 90, 90, 90), "Th 0 0 0; Si 0 0 0.4165"),
    "ucl3": (
        "P6_3/m",
        (7.48, 7.48, 4.37, 90, 90, 120),
        "U 0.3333333 0.6666667 0.25; Cl 0.387 0.301 0.25",
    ),
    "la2o3": (
        "P-3m1",
        (3.94, 3.94, 6.13, 90, 90, 120),
        "La 0.3333333 0.6666667 0.245; O 0.3333333 0.6666667 0.645; O 0 0 0",
    ),
    "la2o2s": (
        "P-3m1",
        (4.05, 4.05, 6.94, 90, 90, 120),
        "S 0 0 0; La 0.3333333 0.6666667 0.279; O 0.3333333 0.6666667 0.629",
    ),
    "caal2si2": (
        "P-3m1",
        (4.13, 4.13, 7.14, 90, 90, 120),
        "Ca 0 0 0; Al 0.3333333 0.6666667 0.63; Si 0.3333333 0.6666667 0.27",
    ),
    "tlinse": ("I4/mcm", (8.07, 8.07, 6.85, 90, 90, 90), "Tl 0 0 0.25; In 0 0.5 0.25; Se 0.18 0.68 0"),
    "hexagonal_perovskite": (
        "P6_3/mmc",
        (5.6, 5.6, 4.8, 90, 90, 120),
        "Ba 0.3333333 0.6666667 0.75; Ni 0 0 0; O 0.15 0.3 0.25",
    ),
    "zrnial": (
        "P-62m",
        (6.92, 6.92, 3.47, 90, 90, 120),
        "Zr 0.59 0 0.5; Ni 0 0 0.5; Ni 0.3333333 0.6666667 0; Al 0.25 0 0",
    ),
    "tinisi": (
        "Pnma",
        (6.15, 3.67, 7.02, 90, 90, 90),
        "Ti 0.021 0.25 0.18; Ni 0.142 0.25 0.561; Si 0.765 0.25 0.623",
    ),
    "ceco3b2": (
        "P6/mmm",
        (5.06, 5.06, 3.02, 90, 90, 120),
        "Ce 0 0 0; Co 0.5 0 0.5; B 0.3333333 0.6666667 0",
    ),
    "mo2feb2": ("P4/mbm", (5.78, 5.78, 3.15, 90, 90, 90), "Mo 0.173 0.673 0.5; Fe 0 0 0; B 0.388 0.888 0"),
    "cabe2ge2": (
        "P4/nmm",
        (4.02, 4.02, 9.92, 90, 90, 90),
        "Ca 0 0.5 0.752; Be 0 0 0.5; Be 0 0.5 0.374; Ge 0 0 0; Ge 0 0.5 0.132",
    ),
    "kesterite": (
        "I-4",
        (5.43, 5.43, 10.84, 90, 90, 90),
        "Cu 0 0 0; Cu 0 0.5 0.25; Zn 0 0.5 0.75; Sn 0 0 0.5; S 0.756 0.757 0.872",
    ),
    "scheelite": (
        "I4_1/a",
        (5.24, 5.24, 11.38, 90, 90, 90),
        "Ca 0 0 0.5; W 0 0 0; O 0.2414 0.1507 0.0856",
    ),
    "ullmannite": (
        "P2_13",
        (5.93, 5.93, 5.93, 90, 90, 90),
        "Ni 0.976 0.976 0.976; Sb 0.625 0.625 0.625; S 0.39 0.39 0.39",
    ),
    "tini_martensite": (
        "P2_1/m",
        (2.885, 4.12, 4.622, 90, 96.8, 90),
        "Ti 0.4176 0.25 0.2164; Ni 0.0372 0.25 0.6752",
    ),
    "gebi2te4": ("R-3m", (4.33, 4.33, 41.5, 90, 90, 120), "Ge 0 0 0; Bi 0 0 0.427; Te 0 0 0.136; Te 0 0 0.289"),
}
"""Types that the AFLOW library lacks or has with overlapping atoms.

Space group, cell (angstrom, degrees), sites of the asymmetric unit.
"""


class Start(NamedTuple):
    """A starting structure not made yet, for volumes take time to predict: id, elements, how to make it."""

    id: str
    elements: frozenset[str]
    make: Callable[[], Crystal]


def _crystal(structure: Any, name: str, source: str) -> Crystal:
    """A pymatgen structure as a crystal of the table."""
    return Crystal(
        id=name,
        source=source,
        atomic_numbers=np.array(structure.atomic_numbers),
        frac_coords=wrap(structure.frac_coords),
        lattice=np.array(structure.lattice.matrix),
    )


def _ready(structure: Any, name: str, source: str) -> Iterator[Start]:
    """The start that a finished structure is, unless it is too large or CHGNet does not know it."""
    numbers = np.array(structure.atomic_numbers)
    if len(numbers) <= MAX_ATOMS and not UNKNOWN_TO_CHGNET & set(numbers.tolist()):
        name = f"{name}:{reduced_formula(numbers)}"
        elements = frozenset(SYMBOLS[z] for z in numbers)
        yield Start(name, elements, partial(_crystal, structure, name, source))


def _library() -> list[tuple[str, Any]]:
    """AFLOW prototypes as (tag, structure)."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    return [(entry["tags"]["aflow"], entry["snl"].structure) for entry in AFLOW_PROTOTYPE_LIBRARY]


def aflow() -> Iterator[Start]:
    """The prototype crystals of the AFLOW library with at most 12 atoms in the primitive cell."""
    for tag, structure in _library():
        yield from _ready(structure, f"aflow:{tag}", "embedded/aflow")


def elemental() -> Iterator[Start]:
    """The elemental crystals of ASE's dcdft collection."""
    from ase.collections import dcdft
    from pymatgen.io.ase import AseAtomsAdaptor

    for name in dcdft.names:
        structure = AseAtomsAdaptor.get_structure(dcdft[name]).get_primitive_structure()
        yield from _ready(structure, "dcdft", "embedded/dcdft")


def _prototype(text: str, library: dict[tuple[str, frozenset[Any]], Any]) -> Any:
    """The structure that the first line of a paragraph of the table names."""
    from pymatgen.core import Composition, Lattice, Structure

    if text in BUILT:
        group, cell, sites = BUILT[text]
        rows = [site.split() for site in sites.split(";")]
        coords = [[float(x) for x in row[1:]] for row in rows]
        lattice = Lattice.from_parameters(*cell)
        return Structure.from_spacegroup(group, lattice, [r[0] for r in rows], coords).get_primitive_structure()
    tag, formula, *_ = text.split()
    return library[tag, frozenset(Composition(formula).reduced_composition.items())]


def _filled(prototype: Any, sites: list[str], elements: tuple[str, ...], name: str) -> Crystal:
    """The prototype with other elements, its volume set by data-mined bond lengths or else by radii."""
    from pymatgen.analysis.structure_prediction.volume_predictor import DLSVolumePredictor

    structure = prototype.copy()
    structure.replace_species(dict(zip(sites, elements, strict=True)))
    try:
        volume = float(DLSVolumePredictor().predict(structure))
    except (KeyError, ValueError, RuntimeError):
        volume = float("nan")
    radii = np.array([COVALENT_RADIUS[z] for z in structure.atomic_numbers])
    i, j, _, distance = structure.get_neighbor_list(6.0)
    contact = float((distance / (radii[i] + radii[j])).min())
    plausible = 4.0 < volume / len(structure) < 120.0
    if not (plausible and contact * (volume / structure.volume) ** (1 / 3) > CONTACT_MIN):
        volume = structure.volume / contact**3
    structure.scale_lattice(volume)
    return _crystal(structure, name, "embedded/substitution")


def _cases(text: str) -> list[tuple[str, ...]]:
    """All fillings that the cases of one paragraph allow, in order, without repeats."""
    found: dict[tuple[str, ...], None] = {}
    for case in filter(str.strip, text.replace("\n", " ").split(";")):
        for elements in itertools.product(*(site.split(",") for site in case.split())):
            if len(set(elements)) == len(elements):
                found[elements] = None
    return list(found)


def paragraphs() -> Iterator[tuple[str, str, list[str], list[tuple[str, ...]]]]:
    """Structure types of the table: name, structure, sites, fillings."""
    for name, tag in (("fcc", "A_cF4_225_a Cu"), ("bcc", "A_cI2_229_a W"), ("hcp", "A_hP2_194_c Mg")):
        yield name, tag, [tag.split()[1]], [(element,) for element in METALS.split()]
    heads: dict[str, list[str]] = defaultdict(list)
    head = ""
    for line in filter(None, TABLE.split("\n")):
        if line[0] != " ":
            head = line
        else:
            heads[head].append(line)
    for head, lines in heads.items():
        name, structure, sites = (part.strip() for part in head.split("|"))
        yield name, structure, sites.split(), _cases("; ".join(x.strip().rstrip(";") for x in lines))


def substitutions(per_type: int, keep: set[str], seed: int) -> Iterator[Start]:
    """At most ``per_type`` fillings of each structure type, drawn with ``seed``; ids in ``keep`` always.

    Elements (one site) are all made.
    """
    library = {
        (tag, frozenset(structure.composition.reduced_composition.items())): structure
        for tag, structure in _library()
    }
    for name, text, sites, cases in paragraphs():
        prototype = _prototype(text, library)
        if set(sites) != {str(element) for element in prototype.composition}:
            raise ValueError(f"{name}: sites {sites} are not those of {prototype.formula}")
        counts = [int(prototype.composition[site]) for site in sites]

        def formula(elements: tuple[str, ...], counts: list[int] = counts) -> str:
            cell = [ATOMIC_NUMBERS[e] for e, n in zip(elements, counts, strict=True) for _ in range(n)]
            return reduced_formula(np.array(cell))

        kept = [case for case in cases if f"sub:{name}:{formula(case)}" in keep]
        rest = [case for case in cases if case not in kept]
        if len(sites) > 1:
            # Shuffled per type, so that a larger set contains a smaller one.
            random.Random(f"{seed}:{name}").shuffle(rest)
            rest = rest[: per_type - len(kept)]
        for elements in kept + rest:
            yield Start(
                f"sub:{name}:{formula(elements)}",
                frozenset(elements),
                partial(_filled, prototype, sites, elements, f"sub:{name}:{formula(elements)}"),
            )
