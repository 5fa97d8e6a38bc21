from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dao_pipeline.config import Dedup, Matcher
from dao_pipeline.crysdb.duplicates import find_duplicates
from dao_pipeline.crysdb.fingerprint import NEIGHBOURS, RADIUS, fingerprints
from dao_pipeline.crysdb.store import Store, StoreWriter
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.flat import FlatCrystals, flatten, formulas
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.crystals.matching import Sameness
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.sources.files import read_crystals
from tests.crysdb.test_build import ALL, build, ids, reasons
from tests.make import binary, crystal, random_flat, shared_data

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2


def plain_fingerprint(flat: FlatCrystals, row: int) -> np.ndarray:
    """Average minimum distances, straight from their definition, over far more images than needed."""
    atoms = slice(flat.ptr[row], flat.ptr[row + 1])
    lattice, frac = flat.lattice[row], flat.frac[atoms]
    unit = np.cbrt(abs(np.linalg.det(lattice)) / len(frac))
    shifts = np.array(list(product(range(-6, 7), repeat=3)))
    found = []
    for i in range(len(frac)):
        offsets = (frac[None] - frac[i] + shifts[:, None]).reshape(-1, 3)
        distances = np.sort(np.linalg.norm(offsets @ lattice, axis=1))[1 : NEIGHBOURS + 1] / unit
        found.append(np.minimum(distances, RADIUS))
    return np.mean(found, axis=0)


def test_fingerprints_are_average_minimum_distances() -> None:
    flat, failures = niggli_reduce(random_flat(60, 3, 1.0))
    assert not failures
    expected = [plain_fingerprint(flat, row) for row in range(len(flat))]
    np.testing.assert_allclose(fingerprints(flat), expected, atol=1e-5)


def test_fingerprints_do_not_depend_on_the_cell() -> None:
    cell = np.diag([2, 1, 3]) @ np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]])
    small = crystal("s", ["Na", "Cl"], [[0, 0, 0], [0.4, 0.5, 0.6]], 5.6 * FCC)
    shifts = np.array(list(product(range(-9, 10), repeat=3)))
    frac = ((small.frac_coords[:, None] + shifts) @ np.linalg.inv(cell)).reshape(-1, 3)
    symbols = np.repeat(["Na", "Cl"], len(shifts))
    inside = ((frac > -1e-9) & (frac < 1 - 1e-9)).all(1)
    large = crystal("l", symbols[inside].tolist(), (frac[inside] + 0.21) % 1, cell @ small.lattice)
    assert large.num_atoms == 12
    flat, _ = niggli_reduce(flatten(to_table([small, large])))
    one, two = fingerprints(flat)
    np.testing.assert_allclose(one, two, atol=1e-5)


def stored(folder: Path, flat: FlatCrystals) -> Path:
    writer = StoreWriter(folder)
    for part in np.array_split(np.arange(len(flat)), 3):
        writer.append(flat.select(np.isin(np.arange(len(flat)), part)))
    return writer.close().folder


def test_a_store_gives_back_what_was_put_in(tmp_path: Path) -> None:
    flat = random_flat(50, 1, 1.0)
    store = Store(stored(tmp_path / "store", flat))
    rows = np.random.default_rng(0).permutation(len(flat))[:30]
    taken = store.take(rows)
    assert taken.counts.tolist() == flat.counts[rows].tolist()
    np.testing.assert_array_equal(taken.lattice, flat.lattice[rows])
    atoms = np.concatenate([np.arange(flat.ptr[r], flat.ptr[r + 1]) for r in rows])
    np.testing.assert_array_equal(taken.frac, flat.frac[atoms])
    np.testing.assert_array_equal(taken.numbers, flat.numbers[atoms])
    assert len(store.take(rows[:0])) == 0
    assert len(StoreWriter(tmp_path / "none").close()) == 0


def asked(flat: FlatCrystals, folder: Path, **settings: Any) -> np.ndarray:
    """Copies among the crystals of ``flat``, the first the best."""
    n = len(flat)
    formula = np.unique(formulas(flat), return_inverse=True)[1]
    no = np.zeros(n, dtype=bool)
    volume = volumes(flat.lattice) / flat.counts
    chosen = Dedup(**settings)
    return find_duplicates(
        stored(folder, flat), np.arange(n), formula, volume, np.arange(n), no, no, chosen, workers=1
    )


def real(name: str, rows: slice) -> FlatCrystals:
    table = read_crystals(shared_data(name)).table
    flat, failures = niggli_reduce(flatten(table.slice(rows.start, rows.stop - rows.start)))
    return flat.select(~np.isin(np.arange(len(flat)), list(failures)))


def test_real_polymorphs_are_grouped_as_the_matcher_alone_would(tmp_path: Path) -> None:
    """Carbon: one formula, so that buckets by formula divide nothing; most crystals are there several times."""
    flat = real("carbon24/val.parquet", slice(0, 60))
    same = Sameness(Matcher(ltol=0.2, stol=0.3, angle_tol=5))
    volume = volumes(flat.lattice) / flat.counts
    atoms = [slice(a, b) for a, b in zip(flat.ptr[:-1], flat.ptr[1:], strict=True)]
    reduced = [
        same.reduce(Crystal(id="", atomic_numbers=flat.numbers[s], frac_coords=flat.frac[s], lattice=cell))
        for s, cell in zip(atoms, flat.lattice, strict=True)
    ]
    kept: list[int] = []
    expected = np.zeros(len(flat), dtype=bool)
    for i in range(len(flat)):
        close = [j for j in kept if max(volume[i], volume[j]) <= 1.1 * min(volume[i], volume[j])]
        expected[i] = any(same(reduced[i], reduced[j]) for j in close)
        if not expected[i]:
            kept.append(i)
    found = asked(flat, tmp_path / "store")
    assert 5 < expected.sum() < 50
    np.testing.assert_array_equal(found >= 0, expected)
    assert (found[found[found >= 0]] == -1).all()  # a copy is of one that is kept


def test_perturbed_and_recut_real_crystals_are_found(tmp_path: Path) -> None:
    flat = real("mp20/val.parquet", slice(0, 150))
    rng = np.random.default_rng(0)
    change = np.array([[1, 1, 0], [0, 1, 0], [-1, 0, 1]])
    frac = (flat.frac + 0.3) @ np.linalg.inv(change) + rng.normal(0, 0.002, flat.frac.shape)
    again, _ = niggli_reduce(replace(flat, frac=frac, lattice=change @ flat.lattice * 1.01))
    both = FlatCrystals(
        numbers=np.concatenate([flat.numbers, again.numbers]),
        frac=np.concatenate([flat.frac, again.frac]),
        lattice=np.concatenate([flat.lattice, again.lattice]),
        counts=np.concatenate([flat.counts, again.counts]),
    )
    found = asked(both, tmp_path / "structure")
    n = len(flat)
    own = found[n:] == np.arange(n)
    matched = found[n:] >= 0
    assert matched.mean() > 0.98
    assert own.mean() > 0.95  # the others are copies of a copy of it
    assert (asked(both, tmp_path / "exact", mode="exact")[n:] == -1).all()
    assert (asked(both, tmp_path / "off", mode="off") == -1).all()
    assert (asked(both, tmp_path / "volume", max_volume_difference=0.02)[n:] == -1).mean() > 0.9


def test_processes_give_the_same_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = real("carbon24/val.parquet", slice(60, 120))
    alone = asked(flat, tmp_path / "a", max_volume_difference=0.001)
    monkeypatch.setattr("dao_pipeline.crysdb.duplicates._CRYSTALS_AT_ONCE", 5)
    np.testing.assert_array_equal(asked(flat, tmp_path / "b", max_volume_difference=0.001), alone)


def test_precursors_are_no_copies_of_their_relaxed_crystals(tmp_path: Path) -> None:
    def near(index: int, name: str, scale: float) -> Crystal:
        relaxed = binary(index)
        return replace(
            relaxed,
            id=name,
            lattice=relaxed.lattice * scale,
            extra=relaxed.extra | {"precursor_of": relaxed.id, "e_above_hull": 0.2},
        )

    crystals = [*ALL, near(5, "u-5", 1.01), near(6, "u-6", 1.0), near(7, "u-7", 1.01), near(7, "v-7", 1.01)]
    rows = build(tmp_path, crystals, crysdb={"val_fraction": 0, "test_fraction": 0})
    assert reasons(rows) == {"u-6": "duplicate", "v-7": "duplicate"}
    links = {row["id"]: row["precursor_of"] for row in rows["train"] if row["precursor_of"]}
    assert links == {"u-5": "t-5", "u-7": "t-7"}


def test_which_copy_is_kept(tmp_path: Path) -> None:
    def copy(index: int, name: str, **extra: Any) -> Crystal:
        return replace(binary(index, **extra), id=name, source=extra.pop("source", "test"))

    crystals = [
        *ALL,
        replace(binary(0, e_above_hull=0.5), id="a", source="trusted"),
        copy(1, "b", e_above_hull=0.5, split="val"),
        copy(2, "c", e_above_hull=0.001),
        copy(3, "d", e_above_hull=0.9),
        replace(binary(4), id="e", source="nobody"),
    ]
    settings = {"dedup": {"prefer": ["trusted", "test"]}}
    rows = build(tmp_path, crystals, crysdb=settings)
    gone = {row["id"]: row["detail"].removeprefix("same crystal as ") for row in rows["rejected"]}
    assert gone == {"t-0": "a", "t-1": "b", "t-2": "c", "d": "t-3", "e": "t-4"}
    assert "b" in ids(rows["val"])


def test_copies_within_and_across_sources_are_counted(tmp_path: Path) -> None:
    from dao_pipeline.crystals.table import read_about

    other = [replace(binary(i), id=f"z-{i}", source="other") for i in range(5)]
    more = [replace(binary(i), id=f"zz-{i}", source="test") for i in range(3)]
    build(tmp_path, [*ALL, *other, *more])
    coverage = read_about(tmp_path / "crysdb" / "test.parquet")["coverage"]
    assert coverage["other"]["duplicates_across"] == 5
    assert coverage["test"]["duplicates_within"] == 3
    assert "duplicates_within" not in coverage["other"]
