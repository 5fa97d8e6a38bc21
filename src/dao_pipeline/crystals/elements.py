"""Facts about the elements that need no pymatgen; index is the atomic number, index 0 a placeholder."""

from __future__ import annotations


def _numbers(text: str) -> tuple[float, ...]:
    """Index 0 is a placeholder, so that the atomic number is the index."""
    return (0.0, *(float(word) for word in text.split()))


_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb "
    "Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db "
    "Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)

SYMBOLS: tuple[str, ...] = ("", *_SYMBOLS.split())
"""Chemical symbols."""

ATOMIC_NUMBERS: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS) if symbol}
"""Atomic number of each symbol."""

ELECTRONEGATIVITY: tuple[float, ...] = _numbers(
    "2.2 9 0.98 1.57 2.04 2.55 3.04 3.44 3.98 9 0.93 1.31 1.61 1.9 2.19 2.58 3.16 9 0.82 1 1.36 1.54 1.63 "
    "1.66 1.55 1.83 1.88 1.91 1.9 1.65 1.81 2.01 2.18 2.55 2.96 3 0.82 0.95 1.22 1.33 1.6 2.16 1.9 2.2 "
    "2.28 2.2 1.93 1.69 1.78 1.96 2.05 2.1 2.66 2.6 0.79 0.89 1.1 1.12 1.13 1.14 1.13 1.17 1.2 1.2 1.1 "
    "1.22 1.23 1.24 1.25 1.1 1.27 1.3 1.5 2.36 1.9 2.2 2.2 2.28 2.54 2 1.62 2.33 2.02 2 2.2 2.2 0.7 0.9 "
    "1.1 1.3 1.5 1.38 1.36 1.28 1.3 1.3 1.3 1.3 1.3 1.3 1.3 1.3 1.3 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 "
)
"""Pauling electronegativity; 9 where none is defined (it only orders formulas)."""

MENDELEEV: tuple[int, ...] = tuple(
    int(number)
    for number in _numbers(
        "103 1 12 77 86 95 100 101 102 2 11 73 80 85 90 94 99 3 10 16 19 51 54 57 60 61 64 67 72 76 81 84 89 "
        "93 98 4 9 15 25 49 53 56 59 62 65 69 71 75 79 83 88 92 97 5 8 14 33 32 31 30 29 28 18 27 26 24 23 22 "
        "21 17 20 50 52 55 58 63 66 68 70 74 78 82 87 91 96 6 7 13 48 47 46 45 44 43 42 41 40 39 38 37 36 35 "
        "34 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 "
    )
)
"""Mendeleev number (Villars et al.); 0 where none is known."""

COVALENT_RADIUS: tuple[float, ...] = _numbers(
    "0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 "
    "1.7 1.6 1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.2 1.19 1.2 1.2 1.16 2.2 1.95 1.9 1.75 1.64 "
    "1.54 1.47 1.46 1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39 1.4 2.44 2.15 2.07 2.04 2.03 2.01 1.99 "
    "1.98 1.98 1.96 1.94 1.92 1.92 1.89 1.9 1.87 1.87 1.75 1.7 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 "
    "1.46 1.48 1.4 1.5 1.5 2.6 2.21 2.15 2.06 2 1.96 1.9 1.87 1.8 1.69 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 "
    "2 2 2 2 2 "
)
"""Covalent radius in angstrom (Cordero et al. 2008); 1.6 where none is known."""
