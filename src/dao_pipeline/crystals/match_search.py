"""The search of pymatgen's StructureMatcher, without what cannot matter. Nothing that runs on a GPU node imports this.

Two reduced crystals match if one of many *placements* of the first on the second fits: a choice of lattice vectors of
the first that resemble those of the second, and of an atom that is laid on an atom of the second. pymatgen tries one
after the other, and most fail its first test: every atom must have one of its kind within a box. Here all placements
take that test together, in arrays, with a box wider by more than rounding can come to. So what is thrown out here
fails in pymatgen as well; what is left, in pymatgen's order, goes through pymatgen's own functions with bit by bit
the same arguments. The outcome is therefore pymatgen's, displacement included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

_WIDER = 1 + 1e-6
_WIDER_BY = 1e-9
"""The boxes of the test in arrays, against pymatgen's: fractions of a cell. Rounding comes to some 1e-13."""

_FIRST_ATOMS = 2
"""Atoms of the first round of the test; each further round takes twice as many, of the placements still left."""


@dataclass(frozen=True)
class Reduced:
    """A crystal in the primitive, Niggli-reduced cell that the matcher compares, and what it asks of each anew."""

    structure: Structure

    def __len__(self) -> int:
        return len(self.structure)

    @cached_property
    def numbers(self) -> np.ndarray:
        """(n,) atomic numbers."""
        return np.array([site.specie.Z for site in self.structure], dtype=np.int64)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """Sorted atomic numbers: crystals with different ones have no placement."""
        return tuple(sorted(self.numbers.tolist()))

    @cached_property
    def frac(self) -> np.ndarray:
        """(n, 3) fractional coordinates."""
        return np.array(self.structure.frac_coords)

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 3) angstrom, lattice vectors as rows."""
        return np.array(self.structure.lattice.matrix)

    @cached_property
    def volume(self) -> float:
        """Of the cell, angstrom^3."""
        return self.structure.lattice.volume


class Placed(NamedTuple):
    """A placement that fits: the largest (or root mean square) displacement and all of them, in (V/n)^(1/3)."""

    value: float
    distances: np.ndarray


def find_match(
    matcher: StructureMatcher, first: Reduced, second: Reduced, use_rms: bool, any_will_do: bool
) -> Placed | None:
    """What ``matcher._match`` finds for two reduced crystals; None where they do not match.

    use_rms, any_will_do: as ``get_rms_dist`` (True, False) and ``fit`` (False, True) ask for it. The matcher must
    scale volumes, compare elements, and neither build supercells nor allow subsets, as is its default.
    """
    # pymatgen: without as many atoms of each element on both sides there is no assignment of the atoms
    if first.kinds != second.kinds:
        return None
    ratio = (second.volume / first.volume) ** (1 / 6)
    lattice1, lattice2 = Lattice(first.matrix * ratio), Lattice(second.matrix / ratio)
    mappings = _mappings(lattice1, lattice2, matcher.ltol, matcher.angle_tol)
    if not len(mappings):
        return None
    forbidden = second.numbers[:, None] != first.numbers[None, :]
    # the rarest element gives the fewest pairs of atoms to lay on each other
    anchor = int(np.argmax(forbidden.sum(1)))
    anchors = np.flatnonzero(~forbidden[anchor])
    # one product per atom, as pymatgen's sites do: a product of all atoms may be rounded in another way
    cart = np.array([np.dot(frac, lattice1.matrix) for frac in first.frac])
    possible = _possible(mappings, cart, second.frac, lattice2, forbidden, anchor, anchors, matcher.stol)
    mask = forbidden.astype(np.int64)
    best: Placed | None = None
    for number, place in _by_lattice(possible):
        lattice = Lattice(mappings[number])
        frac = lattice.get_fractional_coords(cart)
        frac -= np.floor(frac)
        mean = Lattice.from_parameters(*(np.array(lattice.parameters) + np.array(lattice2.parameters)) / 2)
        normalization = (len(frac) / mean.volume) ** (1 / 3)
        box = np.array(mean.reciprocal_lattice.abc) * matcher.stol / (np.pi * normalization)
        for atom in anchors[place]:
            moved = second.frac + (frac[atom] - second.frac[anchor])
            if not matcher._cmp_fstruct(frac, moved, box, mask):
                continue
            lll = np.array(mean.get_lll_reduced_lattice().reciprocal_lattice.abc)
            lll_box = lll * matcher.stol / (np.pi * normalization)
            distances, _, _ = matcher._cart_dists(frac, moved, mean, mask, normalization, lll_box)
            value = np.linalg.norm(distances) / len(distances) ** 0.5 if use_rms else max(distances)
            if best is None or value < best.value:
                best = Placed(float(value), distances)
                if (any_will_do or value < 1e-5) and value < matcher.stol:
                    return best
    return best if best is not None and best.value < matcher.stol else None


def _by_lattice(possible: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers of the lattices with a placement left, and which anchors (A,) bool, in order."""
    for number in np.flatnonzero(possible.any(1)).tolist():
        yield number, possible[number]


def _mappings(lattice: Lattice, target: Lattice, ltol: float, angle_tol: float) -> np.ndarray:
    """(K, 3, 3) angstrom: bases of ``lattice`` with lengths and angles near the target's, in pymatgen's order.

    The vectors, tests and order are those of ``Lattice.find_all_mappings``, whose loops they replace; of its bases
    only those that span a cell of the same volume count (the determinant is a whole number).
    """
    lengths, (alpha, beta, gamma) = target.lengths, target.angles
    found = lattice.get_points_in_sphere([[0, 0, 0]], [0, 0, 0], max(lengths) * (1 + ltol), zip_results=False)
    frac, distance = np.asarray(found[0]), np.asarray(found[1])
    if not len(frac):
        return np.zeros((0, 3, 3))
    cart = lattice.get_cartesian_coords(frac)
    near = [(distance / length < 1 + ltol) & (distance / length > 1 / (1 + ltol)) for length in lengths]
    vectors = [cart[rows] for rows in near]
    sizes = [np.sum(v**2, axis=-1) ** 0.5 for v in vectors]

    def right_angle(i: int, j: int, wanted: float) -> np.ndarray:
        cosines = np.inner(vectors[i], vectors[j]) / sizes[i][:, None] / sizes[j]
        return np.abs(np.rad2deg(np.arccos(np.clip(cosines, -1, 1))) - wanted) <= angle_tol

    by_alpha, by_beta = right_angle(1, 2, alpha), right_angle(0, 2, beta)
    a, b = np.nonzero(right_angle(0, 1, gamma))
    pair, c = np.nonzero(by_alpha[b] & by_beta[a])
    a, b = a[pair], b[pair]
    steps = np.stack([frac[near[0]][a], frac[near[1]][b], frac[near[2]][c]], axis=1)
    same_volume = np.abs(np.abs(np.linalg.det(steps)) - 1) <= 0.5
    return np.stack([vectors[0][a], vectors[1][b], vectors[2][c]], axis=1)[same_volume]


def _possible(
    mappings: np.ndarray,
    cart: np.ndarray,
    frac2: np.ndarray,
    lattice2: Lattice,
    forbidden: np.ndarray,
    anchor: int,
    anchors: np.ndarray,
    stol: float,
) -> np.ndarray:
    """(K, A) bool: placements in which every atom may have one of its kind within the box.

    mappings: (K, 3, 3). cart, frac2: (n, 3). forbidden: (n, n), atom of the second, atom of the first. anchor: of the
    second; anchors: (A,), of the first.

    pymatgen's box has half the edges ``2 stol (V/n)^(1/3) / h`` in fractions of the mean cell, of volume V and
    heights h. It is computed here from the cell's parameters, and made wider (``_WIDER``). Where that fails, for cells
    that are all but flat, every placement is possible and pymatgen has the word.
    """
    with np.errstate(all="ignore"):
        box = _boxes(mappings, lattice2, len(cart), stol) * _WIDER + _WIDER_BY
        frac1 = cart @ np.linalg.inv(mappings)
    box[~np.isfinite(box)] = np.inf
    frac1[~np.isfinite(frac1)] = 0.0
    lattice, place = (array.ravel() for array in np.indices((len(mappings), len(anchors))))
    shift = frac1[lattice, anchors[place]] - frac2[anchor]
    done, step, n = 0, _FIRST_ATOMS, len(frac2)
    while done < n and len(lattice):
        atoms = slice(done, done + step)
        near = np.ones((len(lattice), len(frac2[atoms]), n), dtype=bool)
        for axis in range(3):
            moved = frac2[atoms, axis] + shift[:, axis, None]
            difference = moved[:, :, None] - frac1[lattice, None, :, axis]
            difference -= np.rint(difference)
            near &= np.abs(difference) <= box[lattice, axis, None, None]
        near &= ~forbidden[atoms]
        left = near.any(2).all(1)
        lattice, place, shift = lattice[left], place[left], shift[left]
        done, step = done + step, 2 * step
    result = np.zeros((len(mappings), len(anchors)), dtype=bool)
    result[lattice, place] = True
    return result


def _boxes(mappings: np.ndarray, lattice2: Lattice, atoms: int, stol: float) -> np.ndarray:
    """(K, 3) half the edges of pymatgen's box around an atom, in fractions of the mean of the two cells.

    The mean cell has the mean lengths and angles. Heights and volume follow from them: V = a b c w with
    ``w^2 = 1 - cos^2 alpha - cos^2 beta - cos^2 gamma + 2 cos alpha cos beta cos gamma``, and h_a = V / (b c sin
    alpha).
    """
    lengths = np.sqrt((mappings**2).sum(2))
    unit = mappings / lengths[:, :, None]
    cosines = np.stack([(unit[:, i] * unit[:, j]).sum(1) for i, j in ((1, 2), (0, 2), (0, 1))], axis=1)
    angles = (np.arccos(np.clip(cosines, -1, 1)) + np.radians(lattice2.angles)) / 2
    lengths = (lengths + np.array(lattice2.lengths)) / 2
    cosines = np.cos(angles)
    w = np.sqrt(1 - (cosines**2).sum(1) + 2 * cosines.prod(1))
    heights = lengths * w[:, None] / np.sin(angles)
    free_length = np.cbrt(lengths.prod(1) * w / atoms)
    # nearly flat: w is all rounding, as is pymatgen's own box
    heights[~(w > 1e-3)] = 0.0
    return 2 * stol * free_length[:, None] / heights
