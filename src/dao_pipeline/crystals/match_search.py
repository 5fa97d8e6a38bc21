"""The search of pymatgen's StructureMatcher, without what cannot matter. Nothing that runs on a GPU node imports
this.

Two reduced crystals match if one of many *placements* of the first on the second fits: a choice of lattice vectors
of the first that resemble those of the second, and an atom of the first that is laid on one of the second.
pymatgen tries one after the other, and most fail its first test: every atom must have one of its kind within a
box. Here all placements take that test together, in arrays, with a box wider by more than rounding can come to. So
what is thrown out here fails in pymatgen as well; what is left goes through pymatgen's own functions with bit by
bit the same arguments. The outcome is therefore pymatgen's, displacement included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

_WIDER = 1 + 1e-6
_WIDER_BY = 1e-9
"""The tests in arrays allow so much more than pymatgen, in fractions of a cell. Rounding comes to some 1e-13."""

_FIRST_ATOMS = 2
"""Atoms of the first round of the test; each further round takes twice as many, of the placements still left."""

_EXACT = 1e-5
"""pymatgen ends its search for the smallest displacement below this."""


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
        return float(self.structure.lattice.volume)


def is_match(matcher: StructureMatcher, first: Reduced, second: Reduced) -> bool:
    """What ``matcher.fit`` decides about two reduced crystals: whether any placement fits.

    The matcher must scale volumes, compare elements, and neither build supercells nor allow subsets, as is its
    default. Raises what pymatgen and numpy raise for degenerate cells.
    """
    search = _Search.of(matcher, first, second)
    if search is None:
        return False
    lattice, place, far = search.possible(largest=True)
    # any that fits will do, so their order is free: the likeliest first
    for k in np.argsort(far, kind="stable"):
        distances = search.distances(lattice[k], place[k])
        if distances is not None and max(distances) < matcher.stol:
            return True
    return False


def displacement(matcher: StructureMatcher, first: Reduced, second: Reduced) -> float | None:
    """What ``matcher.get_rms_dist`` finds for two reduced crystals, the smallest root mean square displacement of
    the atoms, in units of (V/n)^(1/3); None where they do not match. See ``is_match``."""
    search = _Search.of(matcher, first, second)
    if search is None:
        return None
    best: float | None = None
    lattice, place, _ = search.possible(largest=False)
    for k in range(len(lattice)):
        distances = search.distances(lattice[k], place[k])
        if distances is None:
            continue
        value = float(np.linalg.norm(distances) / len(distances) ** 0.5)
        if best is None or value < best:
            best = value
            if value < _EXACT and value < matcher.stol:
                break
    return best if best is not None and best < matcher.stol else None


class _Mean(NamedTuple):
    """What pymatgen makes of the mean of two cells: lattice, (n/V)^(1/3), box of the first and of the second
    test."""

    lattice: Lattice
    normalization: float
    box: np.ndarray
    box_lll: np.ndarray


@dataclass
class _Search:
    """Placements of one crystal on another, both scaled to the same volume.

    mappings: (K, 3, 3) angstrom, bases of the first that resemble the lattice of the second. cart: (n, 3)
    angstrom, atoms of the first; frac2: (n, 3), of the second. forbidden: (n, n), atom of the second, atom of the
    first, of unlike elements. anchor: the atom of the second, and anchors: (A,), those of the first that are laid
    on it.
    """

    matcher: StructureMatcher
    mappings: np.ndarray
    cart: np.ndarray
    frac2: np.ndarray
    lattice2: Lattice
    forbidden: np.ndarray
    anchor: int
    anchors: np.ndarray
    _frac: dict[int, tuple[np.ndarray, _Mean]]
    _means: dict[Any, _Mean]

    @classmethod
    def of(cls, matcher: StructureMatcher, first: Reduced, second: Reduced) -> _Search | None:
        """None where there is no placement."""
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
        # one product per atom, as pymatgen's sites do: a product of all atoms may be rounded in another way
        cart = np.array([np.dot(frac, lattice1.matrix) for frac in first.frac])
        anchors = np.flatnonzero(~forbidden[anchor])
        return cls(matcher, mappings, cart, second.frac, lattice2, forbidden, anchor, anchors, {}, {})

    def distances(self, lattice: int, place: int) -> np.ndarray | None:
        """(n,) displacements of the atoms in one placement, in (V/n)^(1/3), by pymatgen's functions; None where it
        fails their first test."""
        if lattice not in self._frac:
            basis = Lattice(self.mappings[lattice])
            frac = basis.get_fractional_coords(self.cart)
            frac -= np.floor(frac)
            self._frac[lattice] = frac, self._mean(basis)
        frac, mean = self._frac[lattice]
        mask = self.forbidden.astype(np.int64)
        moved = self.frac2 + (frac[self.anchors[place]] - self.frac2[self.anchor])
        if not self.matcher._cmp_fstruct(frac, moved, mean.box, mask):
            return None
        found = self.matcher._cart_dists(frac, moved, mean.lattice, mask, mean.normalization, mean.box_lll)
        return np.asarray(found[0])

    def _mean(self, basis: Lattice) -> _Mean:
        """Bases that differ by symmetry have the same lengths and angles, and so the same mean with the second."""
        parameters = basis.parameters
        if parameters not in self._means:
            lattice = Lattice.from_parameters(*(np.array(parameters) + np.array(self.lattice2.parameters)) / 2)
            normalization = (len(self.cart) / lattice.volume) ** (1 / 3)
            box, box_lll = (
                np.array(cell.reciprocal_lattice.abc) * self.matcher.stol / (np.pi * normalization)
                for cell in (lattice, lattice.get_lll_reduced_lattice())
            )
            self._means[parameters] = _Mean(lattice, normalization, box, box_lll)
        return self._means[parameters]

    def possible(self, largest: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Placements that may fit, in pymatgen's order: lattices (P,), places of the atom among the anchors (P,),
        and how far the atoms are (P,), for an order.

        pymatgen's first test: each atom has one of its kind within a box, whose half edges are ``2 r / h`` in
        fractions of the mean cell, with its heights h and r = stol (V/n)^(1/3).

        With ``largest`` the largest displacement decides, and another test is possible. Let pymatgen accept a
        placement with displacements v_i before, and v_i - u after the best translation u, all shorter than r. Then
        |v_i - v_a| < 2 r for all atoms i and the anchor a. So if the anchor of the first was laid on the atom that
        a is assigned to, each atom would have one of its kind in a ball of radius 2 r. If no placement of a
        lattice has that, no placement of this lattice is accepted. A vector shorter than 2 r lies in the box;
        where that is smaller than half of the cell on all sides only one image does, and the ball is tested with
        it.
        """
        with np.errstate(all="ignore"):
            box, metric, radius = _mean_cells(self.mappings, self.lattice2, len(self.cart), self.matcher.stol)
            box = box * _WIDER + _WIDER_BY
            frac1 = self.cart @ np.linalg.inv(self.mappings)
        # nearly flat cells: pymatgen has the word
        box[~np.isfinite(box)] = np.inf
        lattice, place = (array.ravel() for array in np.indices((len(self.mappings), len(self.anchors))))
        shift = frac1[lattice, self.anchors[place]] - self.frac2[self.anchor]
        far = np.zeros(len(lattice))
        done, step, n = 0, _FIRST_ATOMS, len(self.cart)
        while done < n and len(lattice):
            atoms = slice(done, done + step)
            moved = self.frac2[atoms] + shift[:, None]
            difference = moved[:, :, None] - frac1[lattice][:, None]
            difference -= np.rint(difference)
            near = ~(np.abs(difference) > box[lattice, None, None]).any(3) & ~self.forbidden[atoms]
            left = near.any(2).all(1)
            if largest:
                squared = ((difference[left] @ metric[lattice[left], None]) * difference[left]).sum(3)
                squared[:, self.forbidden[atoms]] = np.inf
                far = np.maximum(far[left], squared.min(2).max(1))
            lattice, place, shift = lattice[left], place[left], shift[left]
            done, step = done + step, 2 * step
        if not largest:
            return lattice, place, far
        several_images = np.flatnonzero((box >= 0.5).any(1))
        in_balls = lattice[~(far > (2 * radius[lattice]) ** 2 * _WIDER)]
        left = np.isin(lattice, np.concatenate([several_images, in_balls]))
        return lattice[left], place[left], far[left]


def _mappings(lattice: Lattice, target: Lattice, ltol: float, angle_tol: float) -> np.ndarray:
    """(K, 3, 3) angstrom: bases of ``lattice`` with lengths and angles near the target's, in pymatgen's order.

    The vectors, tests and order are those of ``Lattice.find_all_mappings``, whose loops they replace; of its bases
    only those that span a cell of the same volume count (the determinant is a whole number).
    """
    lengths, (alpha, beta, gamma) = target.lengths, target.angles
    found: Any = lattice.get_points_in_sphere([[0, 0, 0]], [0, 0, 0], max(lengths) * (1 + ltol), zip_results=False)
    frac, distance = np.asarray(found[0]), np.asarray(found[1])
    if not len(frac):
        return np.zeros((0, 3, 3))
    cart = lattice.get_cartesian_coords(frac)
    near = [(distance / length < 1 + ltol) & (distance / length > 1 / (1 + ltol)) for length in lengths]
    vectors = [cart[rows] for rows in near]
    sizes = [np.sum(v**2, axis=-1) ** 0.5 for v in vectors]

    def right_angle(i: int, j: int, wanted: float) -> np.ndarray:
        cosines = np.inner(vectors[i], vectors[j]) / sizes[i][:, None] / sizes[j]
        return np.asarray(np.abs(np.rad2deg(np.arccos(np.clip(cosines, -1, 1))) - wanted) <= angle_tol)

    by_alpha, by_beta = right_angle(1, 2, alpha), right_angle(0, 2, beta)
    a, b = np.nonzero(right_angle(0, 1, gamma))
    pair, c = np.nonzero(by_alpha[b] & by_beta[a])
    a, b = a[pair], b[pair]
    steps = np.stack([frac[near[0]][a], frac[near[1]][b], frac[near[2]][c]], axis=1)
    same_volume = np.abs(np.abs(np.linalg.det(steps)) - 1) <= 0.5
    return np.stack([vectors[0][a], vectors[1][b], vectors[2][c]], axis=1)[same_volume]


def _mean_cells(
    mappings: np.ndarray, lattice2: Lattice, atoms: int, stol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the means of K bases with a lattice: half edges of pymatgen's box (K, 3), in fractions of the cell,
    metric
    (K, 3, 3) in angstrom^2, and r = stol (V/n)^(1/3) (K,) in angstrom.

    The mean cell has the mean lengths and angles. Volume and heights follow from them: V = a b c w with
    ``w^2 = 1 - cos^2 alpha - cos^2 beta - cos^2 gamma + 2 cos alpha cos beta cos gamma``, and h_a = V / (b c sin
    alpha). The box is not finite where the cell is all but flat.
    """
    lengths = np.sqrt((mappings**2).sum(2))
    unit = mappings / lengths[:, :, None]
    cosines = np.stack([(unit[:, i] * unit[:, j]).sum(1) for i, j in ((1, 2), (0, 2), (0, 1))], axis=1)
    angles = (np.arccos(np.clip(cosines, -1, 1)) + np.radians(lattice2.angles)) / 2
    lengths = (lengths + np.array(lattice2.lengths)) / 2
    cosines = np.cos(angles)
    w = np.sqrt(1 - (cosines**2).sum(1) + 2 * cosines.prod(1))
    heights = lengths * w[:, None] / np.sin(angles)
    radius = stol * np.cbrt(lengths.prod(1) * w / atoms)
    heights[~(w > 1e-3)] = 0.0  # w is all rounding, as is pymatgen's own box
    ones = np.ones(len(mappings))
    alpha, beta, gamma = cosines.T
    metric = np.stack([ones, gamma, beta, gamma, ones, alpha, beta, alpha, ones], axis=1).reshape(-1, 3, 3)
    metric *= lengths[:, :, None] * lengths[:, None, :]
    return 2 * radius[:, None] / heights, metric, radius
