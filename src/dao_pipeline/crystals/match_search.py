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

from dao_pipeline.crystals.elements import SYMBOLS

_WIDER = 1 + 1e-6
_WIDER_BY = 1e-9
"""The tests in arrays allow so much more than pymatgen, in fractions of a cell. Rounding comes to some 1e-13."""

_FIRST_ATOMS = 2
"""Atoms of the first round of the test; each further round takes twice as many, of the placements still left."""

_AT_ONCE = 40_000
"""Pairs of atoms, over all placements, up to which there is but one round."""

_EXACT = 1e-5
"""pymatgen ends its search for the smallest displacement below this."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """A crystal in the primitive, Niggli-reduced cell that the matcher compares, and what it asks of each anew.

    numbers: (n,) atomic numbers. frac: (n, 3) fractional coordinates. matrix: (3, 3) angstrom, vectors as rows.
    """

    numbers: np.ndarray
    frac: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, structure: Structure) -> Reduced:
        """A structure that is reduced already."""
        numbers = np.array([site.specie.Z for site in structure], dtype=np.int64)
        return cls(numbers, np.array(structure.frac_coords), np.array(structure.lattice.matrix))

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def structure(self) -> Structure:
        """The same for pymatgen."""
        return Structure(Lattice(self.matrix), [SYMBOLS[z] for z in self.numbers.tolist()], self.frac)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """Sorted atomic numbers: crystals with different ones have no placement."""
        return tuple(sorted(self.numbers.tolist()))

    @cached_property
    def volume(self) -> float:
        """Of the cell, angstrom^3."""
        return float(Lattice(self.matrix).volume)

    @cached_property
    def unit(self) -> _Cell:
        """The cell scaled to volume 1."""
        return _Cell.of(self.matrix / np.cbrt(self.volume))

    def shell(self, radius: float) -> _Shell:
        """Lattice vectors of ``unit`` up to ``radius``, and perhaps some more."""
        kept: _Shell | None = self.__dict__.get("_shell")
        if kept is None or kept.radius < radius:
            kept = _Shell.of(Lattice(self.unit.matrix), 1.2 * radius)
            self.__dict__["_shell"] = kept
        return kept


class _Cell(NamedTuple):
    """A basis (3, 3), its lengths (3,) and angles (3,) in degrees: alpha, beta, gamma."""

    matrix: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> _Cell:
        lengths = np.sqrt((matrix**2).sum(1))
        cosines = (matrix[[1, 0, 0]] * matrix[[2, 2, 1]]).sum(1) / (lengths[[1, 0, 0]] * lengths[[2, 2, 1]])
        return cls(matrix, lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1))))


class _Shell(NamedTuple):
    """Lattice vectors up to a radius: whole-numbered (N, 3), Cartesian (N, 3), lengths (N,)."""

    radius: float
    steps: np.ndarray
    cart: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(cls, lattice: Lattice, radius: float) -> _Shell:
        found: Any = lattice.get_points_in_sphere([[0, 0, 0]], [0, 0, 0], radius, zip_results=False)
        if not len(found[0]):
            return cls(radius, np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
        return cls(radius, found[0], lattice.get_cartesian_coords(found[0]), found[1])


def is_match(matcher: StructureMatcher, first: Reduced, second: Reduced) -> bool:
    """What ``matcher.fit`` decides about two reduced crystals: whether any placement fits.

    The matcher must scale volumes, compare elements, and neither build supercells nor allow subsets, as is its
    default. Raises what pymatgen and numpy raise for degenerate cells.
    """
    if first.kinds != second.kinds or _hopeless(matcher, first, second):
        return False
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


def _hopeless(matcher: StructureMatcher, first: Reduced, second: Reduced) -> bool:
    """Whether no placement can be accepted, as far as arrays show that are kept with the crystals.

    All of pymatgen's tests are about ratios of lengths, and the two cells are scaled to one volume first. So the
    tests can be made in cells of volume 1, which need not be made for each pair. Everything is a little wider
    here.
    """
    target = second.unit
    shell = first.shell(float(target.lengths.max()) * (1 + matcher.ltol) * _WIDER)
    steps, mappings = _mappings(shell, target, matcher.ltol + 1e-6, matcher.angle_tol + 1e-6)
    if not len(steps):
        return True
    atoms = _Atoms.of(first, second)
    frac1 = first.frac @ np.linalg.inv(steps)
    lattice, _, _ = _possible(mappings, frac1, second.frac, target, atoms, matcher.stol, largest=True)
    return not len(lattice)


class _Atoms(NamedTuple):
    """Which atoms may be laid on each other.

    forbidden: (n, n), atom of the second, atom of the first, of unlike elements. anchor: the atom of the second,
    and anchors: (A,), those of the first that are laid on it.
    """

    forbidden: np.ndarray
    anchor: int
    anchors: np.ndarray

    @classmethod
    def of(cls, first: Reduced, second: Reduced) -> _Atoms:
        forbidden = second.numbers[:, None] != first.numbers[None, :]
        # the rarest element gives the fewest pairs of atoms to lay on each other
        anchor = int(np.argmax(forbidden.sum(1)))
        return cls(forbidden, anchor, np.flatnonzero(~forbidden[anchor]))


class _Mean(NamedTuple):
    """What pymatgen makes of the mean of two cells: lattice, (n/V)^(1/3), box of the first and of the second
    test."""

    lattice: Lattice
    normalization: float
    box: np.ndarray
    box_lll: np.ndarray


@dataclass
class _Search:
    """Placements of one crystal on another, both scaled to the same volume as pymatgen does.

    mappings: (K, 3, 3) angstrom, bases of the first that resemble the lattice of the second. cart: (n, 3)
    angstrom, atoms of the first; frac2: (n, 3), of the second.
    """

    matcher: StructureMatcher
    mappings: np.ndarray
    cart: np.ndarray
    frac2: np.ndarray
    lattice2: Lattice
    atoms: _Atoms
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
        target = _Cell(lattice2.matrix, np.array(lattice2.lengths), np.array(lattice2.angles))
        shell = _Shell.of(lattice1, max(lattice2.lengths) * (1 + matcher.ltol))
        _, mappings = _mappings(shell, target, matcher.ltol, matcher.angle_tol)
        if not len(mappings):
            return None
        # one product per atom, as pymatgen's sites do: a product of all atoms may be rounded in another way
        cart = np.array([np.dot(frac, lattice1.matrix) for frac in first.frac])
        return cls(matcher, mappings, cart, second.frac, lattice2, _Atoms.of(first, second), {}, {})

    def distances(self, lattice: int, place: int) -> np.ndarray | None:
        """(n,) displacements of the atoms in one placement, in (V/n)^(1/3), by pymatgen's functions; None where it
        fails their first test."""
        if lattice not in self._frac:
            basis = Lattice(self.mappings[lattice])
            frac = basis.get_fractional_coords(self.cart)
            frac -= np.floor(frac)
            self._frac[lattice] = frac, self._mean(basis)
        frac, mean = self._frac[lattice]
        mask = self.atoms.forbidden.astype(np.int64)
        moved = self.frac2 + (frac[self.atoms.anchors[place]] - self.frac2[self.atoms.anchor])
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
        """See ``_possible``; in pymatgen's order."""
        with np.errstate(all="ignore"):
            frac1 = self.cart @ np.linalg.inv(self.mappings)
        target = _Cell(self.lattice2.matrix, np.array(self.lattice2.lengths), np.array(self.lattice2.angles))
        return _possible(self.mappings, frac1, self.frac2, target, self.atoms, self.matcher.stol, largest)


def _possible(
    mappings: np.ndarray,
    frac1: np.ndarray,
    frac2: np.ndarray,
    target: _Cell,
    atoms: _Atoms,
    stol: float,
    largest: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Placements that may fit: lattices (P,), places of the atom among the anchors (P,), and how far the atoms are
    (P,), squared, for an order.

    mappings: (K, 3, 3), bases of the first crystal. frac1: (K, n, 3), its atoms in them. frac2: (n, 3), of the
    second, in its cell, the target.

    pymatgen's first test: each atom has one of its kind within a box, whose half edges are ``2 r / h`` in
    fractions of the mean cell, with its heights h and r = stol (V/n)^(1/3).

    With ``largest`` the largest displacement decides, and another test is possible. Let pymatgen accept a
    placement with displacements v_i before, and v_i - u after the best translation u, all shorter than r. Then
    |v_i - v_a| < 2 r for all atoms i and the anchor a. So if the anchor of the first was laid on the atom that a
    is assigned to, each atom would have one of its kind in a ball of radius 2 r. If no placement of a lattice has
    that, no placement of this lattice is accepted. A vector shorter than 2 r lies in the box; where that is
    smaller than half of the cell on all sides only one image does, and the ball is tested with it.
    """
    with np.errstate(all="ignore"):
        box, metric, radius = _mean_cells(mappings, target, len(frac2), stol)
        box = box * _WIDER + _WIDER_BY
    box[~np.isfinite(box)] = np.inf  # nearly flat cells: pymatgen has the word
    lattice, place = (array.ravel() for array in np.indices((len(mappings), len(atoms.anchors))))
    shift = frac1[lattice, atoms.anchors[place]] - frac2[atoms.anchor]
    far = np.zeros(len(lattice))
    n = len(frac2)
    done, step = 0, n if len(lattice) * n * n <= _AT_ONCE else _FIRST_ATOMS
    while done < n and len(lattice):
        some = slice(done, done + step)
        moved = frac2[some] + shift[:, None]
        difference = moved[:, :, None] - frac1[lattice][:, None]
        difference -= np.rint(difference)
        near = ~(np.abs(difference) > box[lattice, None, None]).any(3) & ~atoms.forbidden[some]
        left = near.any(2).all(1)
        lattice, place, shift = lattice[left], place[left], shift[left]
        if largest and len(lattice):
            difference = difference[left]
            squared = ((difference @ metric[lattice, None]) * difference).sum(3)
            squared[:, atoms.forbidden[some]] = np.inf
            far = np.maximum(far[left], squared.min(2).max(1))
        done, step = done + step, 2 * step
    if not largest or not len(lattice):
        return lattice, place, far
    several_images = np.flatnonzero((box >= 0.5).any(1))
    in_balls = lattice[~(far > (2 * radius[lattice]) ** 2 * _WIDER)]
    left = np.isin(lattice, np.concatenate([several_images, in_balls]))
    return lattice[left], place[left], far[left]


def _mappings(shell: _Shell, target: _Cell, ltol: float, angle_tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Bases of a lattice with lengths and angles near the target's, in pymatgen's order: in whole numbers (K, 3,
    3), and as vectors (K, 3, 3). The shell must reach (1 + ltol) times the longest edge of the target.

    The vectors, tests and order are those of ``Lattice.find_all_mappings``, whose loops they replace; of its bases
    only those that span a cell of the same volume count (the determinant is a whole number).
    """
    ratio = shell.distance / target.lengths[:, None]
    near = [np.flatnonzero(rows) for rows in (ratio < 1 + ltol) & (ratio > 1 / (1 + ltol))]
    vectors = [shell.cart[rows] for rows in near]
    sizes = [np.sum(v**2, axis=-1) ** 0.5 for v in vectors]

    def right_angle(i: int, j: int, wanted: float) -> np.ndarray:
        cosines = np.inner(vectors[i], vectors[j]) / sizes[i][:, None] / sizes[j]
        np.clip(cosines, -1, 1, out=cosines)
        return np.asarray(np.abs(np.rad2deg(np.arccos(cosines)) - wanted) <= angle_tol)

    # most pairs of different crystals end at one of these
    none = np.zeros((0, 3, 3))
    if not all(map(len, near)):
        return none, none
    alpha, beta, gamma = target.angles.tolist()
    a, b = np.nonzero(right_angle(0, 1, gamma))
    if not len(a):
        return none, none
    pair, c = np.nonzero(right_angle(1, 2, alpha)[b] & right_angle(0, 2, beta)[a])
    if not len(c):
        return none, none
    rows = np.stack([near[0][a[pair]], near[1][b[pair]], near[2][c]], axis=1)
    steps = shell.steps[rows]
    same_volume = np.abs(np.abs(np.linalg.det(steps)) - 1) <= 0.5
    return steps[same_volume], shell.cart[rows[same_volume]]


def _mean_cells(
    mappings: np.ndarray, target: _Cell, atoms: int, stol: float
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
    angles = (np.arccos(np.clip(cosines, -1, 1)) + np.radians(target.angles)) / 2
    lengths = (lengths + target.lengths) / 2
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
