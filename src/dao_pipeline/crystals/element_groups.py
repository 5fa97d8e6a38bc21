"""Groups of elements by name, e.g. ``alkali``, and ``*`` for all that the models know."""

from __future__ import annotations

from difflib import get_close_matches

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from dao_pipeline.crystals.formula import MAX_ATOMIC_NUMBER


def _between(first: str, last: str) -> tuple[str, ...]:
    """Elements by atomic number, both ends included."""
    return SYMBOLS[ATOMIC_NUMBERS[first] : ATOMIC_NUMBERS[last] + 1]


_ALKALI = ("Li", "Na", "K", "Rb", "Cs", "Fr")
_ALKALINE_EARTH = ("Be", "Mg", "Ca", "Sr", "Ba", "Ra")
_3D, _4D, _5D = _between("Sc", "Zn"), _between("Y", "Cd"), _between("Hf", "Hg")
_LANTHANIDES, _ACTINIDES = _between("La", "Lu"), _between("Ac", "Fm")
_POST_TRANSITION = ("Al", "Ga", "In", "Sn", "Tl", "Pb", "Bi")

GROUPS: dict[str, tuple[str, ...]] = {
    "*": SYMBOLS[1 : MAX_ATOMIC_NUMBER + 1],
    "alkali": _ALKALI,
    "alkaline_earth": _ALKALINE_EARTH,
    "transition_metals": (*_3D, *_4D, *_5D),
    "3d": _3D,
    "4d": _4D,
    "5d": _5D,
    "lanthanides": _LANTHANIDES,
    "actinides": _ACTINIDES,
    "rare_earths": ("Sc", "Y", *_LANTHANIDES),
    "post_transition_metals": _POST_TRANSITION,
    "metals": (
        *_ALKALI,
        *_ALKALINE_EARTH,
        *_3D,
        *_4D,
        *_5D,
        *_LANTHANIDES,
        *_ACTINIDES,
        *_POST_TRANSITION,
    ),
    "metalloids": ("B", "Si", "Ge", "As", "Sb", "Te"),
    "pnictogens": ("N", "P", "As", "Sb", "Bi"),
    "chalcogens": ("O", "S", "Se", "Te", "Po"),
    "halogens": ("F", "Cl", "Br", "I", "At"),
    "noble_gases": ("He", "Ne", "Ar", "Kr", "Xe", "Rn"),
}
"""Symbols of each group. Transition metals are groups 3 to 12 without lanthanides and actinides; chalcogens and
pnictogens begin with O and N (IUPAC)."""


def elements_of(name: str) -> tuple[str, ...]:
    """Symbols that an element or the name of a group stands for.

    Raises ValueError for anything else, and for elements that the models do not know.
    """
    if name in GROUPS:
        return GROUPS[name]
    if name in GROUPS["*"]:
        return (name,)
    if name in ATOMIC_NUMBERS:
        raise ValueError(f"{name} is beyond Z = {MAX_ATOMIC_NUMBER}, the models' last element")
    similar = get_close_matches(name, [*GROUPS, *GROUPS["*"]], n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"groups are {', '.join(GROUPS)}"
    raise ValueError(f"{name[:40]!r} is neither an element nor a group of elements; {hint}")
