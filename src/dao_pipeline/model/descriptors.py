"""Element descriptors: 92 zeros and ones per element, binned chemical facts (CGCNN's recipe, paper 1.2).

Each string below has one character per element, Z = 1 to 100, read in base 36; '-' means unknown. They were
binned from the periodic table of pymatgen 2026.10 and the covalent radii of ASE 3.29.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_DESCRIPTORS = 92

_BINNED: tuple[tuple[str, int, str], ...] = (
    (
        "group",
        18,
        "0h01cdefgh01cdefgh0123456789abcdefgh0123456789abcdefgh012222222222222223456789abcdefgh01222222222222",
    ),
    (
        "period",
        8,
        "0011111111222222223333333333333333334444444444444444445555555555555555555555555555555566666666666666",
    ),
    (
        "electronegativity",
        10,
        "4-1345789-1233457-0122333334333445770122343454433444660111111111122221222534455435444401122222222222",
    ),
    (
        "covalent radius",
        10,
        "0043222111654333337666555444444444448776655555555555559887777777777777766655544455555598887777667777",
    ),
    (
        "valence electrons",
        12,
        "0101234567012345670123456789ab2345670123456789ab2345670123456789abbbbb23456789ab2345670123456789abbb",
    ),
    (
        "first ionisation energy",
        10,
        "6914457689132455670223333333342355660222333334342344560121112222222222133334444523344501122222222222",
    ),
    (
        "electron affinity",
        10,
        "5353464692535657925444553456634657925445555665635667935455444444444464444546677345568354555453441245",
    ),
    (
        "block",
        4,
        "0100111111001111110022222222221111110022222222221111110033333333333333222222222211111100333333333333",
    ),
    (
        "molar volume",
        10,
        "354000453464334455864322211112344456875432222234445567975555556555555654322222344555-8-755433355446-",
    ),
)
"""(fact, number of bins, bin of each element)."""


def element_descriptors() -> Tensor:
    """The frozen table, (101, 92) float32 of zeros and ones; row 0 is a placeholder of zeros."""
    table = torch.zeros(101, NUM_DESCRIPTORS)
    offset = 0
    for _, bins, codes in _BINNED:
        for z, code in enumerate(codes, start=1):
            if code != "-":
                table[z, offset + int(code, 36)] = 1.0
        offset += bins
    return table
