"""All screened shards together: exactly the plan, ranks in chemical systems, what is exported."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.candidates.screened import chemical_system, screen_candidates
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError

FORMULAS = ("NaCl", "Na2Cl", "NaCl2", "ZnS", "SZn2", "MgO")
ENERGIES = (0.3, 0.1, 0.2, None, 0.5, 0.4)
"""Of each composition's best candidate."""


def screened_rows(plan: pa.Table) -> pa.Table:
    """Three candidates per composition: ranks 2, 1, none."""
    rows = []
    for row in plan.to_pylist():
        number, sample = (int(text) for text in row["id"].split(":")[1:])
        energy = ENERGIES[number]
        ranked = energy is not None and sample < 2
        atoms = row["num_atoms"]
        rows.append(
            {name: row[name] for name in ("id", "composition", "formula", "atomic_numbers", "sample", "shard")}
            | {
                "source": "dao_g",
                "frac_coords": [i / atoms / 3 for i in range(3 * atoms)],
                "lattice": [5.0, 0, 0, 0, 5.0, 0, 0, 0, 5.0],
                "status": "ok" if ranked else "atoms_too_close",
                "valid": ranked,
                "unique": ranked or None,
                "novel": ranked or None,
                "spacegroup": 1,
                "rank": 2 - sample if ranked else None,
                "energy_pred": None if energy is None else energy + 0.01 * (1 - sample),
                "origin": "generated",
                "template_id": None,
            }
        )
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, COLUMNS[name].type) for name in rows[0]]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six compositions in three shards."""
    plan = plan_table([requested(formula, 1) for formula in FORMULAS], 3, 2)
    write_table(plan, tmp_path / "plan.parquet", {})
    for shard in range(3):
        rows = plan.filter(pc.field("shard") == shard)
        note = {"symprec": 0.1, "training": None, "settings": {"x": 1}}
        write_table(screened_rows(rows), tmp_path / "screened" / f"shard-{shard:05d}.parquet", note)
    return tmp_path


def gather(folder: Path, **screen: Any) -> list[dict[str, Any]]:
    campaign = Campaign.model_validate({"name": "t", "screen": screen})
    screen_candidates(campaign, folder / "plan.parquet", folder / "screened", folder / "screened.parquet")
    return read_table(folder / "screened.parquet").to_pylist()


def test_passports_of_the_shards_are_joined(folder: Path) -> None:
    passport = {"name": "references.parquet", "model": "dao_p", "levels_of_theory": ["PBE"]}
    rewrite(folder, 0, lambda table: table, hull=passport)
    rewrite(folder, 2, lambda table: table, hull=passport | {"levels_of_theory": ["PBE+U", "PBE"]})
    gather(folder)
    assert read_about(folder / "screened.parquet")["hull"] == passport | {"levels_of_theory": ["PBE", "PBE+U"]}


def test_shards_of_different_hulls_are_not_put_together(folder: Path) -> None:
    passport = {"name": "phases.json", "hash": "aa", "levels_of_theory": ["PBE"]}
    rewrite(folder, 0, lambda table: table, hull=passport)
    rewrite(folder, 2, lambda table: table, hull=passport | {"hash": "bb"})
    with pytest.raises(UserError, match=r"shard-00002.*another hull \(hash\)"):
        gather(folder)


def exported(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "top.zip") as archive:
        return [name.removesuffix(".cif") for name in archive.namelist()]


def rewrite(folder: Path, shard: int, change: Callable[[pa.Table], pa.Table], **about: Any) -> None:
    path = folder / "screened" / f"shard-{shard:05d}.parquet"
    table = change(read_table(path))
    write_table(table, path, read_about(path) | {"rows": table.num_rows} | about)


def test_every_planned_candidate_is_there_once_and_in_order(folder: Path) -> None:
    rows = gather(folder)
    assert [row["id"] for row in rows] == read_table(folder / "plan.parquet")["id"].to_pylist()
    about = read_about(folder / "screened.parquet")
    assert about["screening"] == {"x": 1}
    assert about["symprec"] == 0.1


def test_the_best_of_each_composition_are_ranked_in_their_chemical_system(folder: Path) -> None:
    assert chemical_system("SZn2") == chemical_system("ZnS") == "S-Zn"
    ranks = {row["id"]: row["system_rank"] for row in gather(folder) if row["system_rank"] is not None}
    assert ranks == {"cand:0:1": 3, "cand:1:1": 1, "cand:2:1": 2, "cand:4:1": 1, "cand:5:1": 1}


def test_cells_of_several_sizes_are_one_compound_of_their_system(folder: Path) -> None:
    def same(table: pa.Table) -> pa.Table:
        place = table.column_names.index("formula")
        return table.set_column(place, "formula", pa.array(["SZn"] * table.num_rows))

    before = gather(folder)
    rewrite(folder, 0, same)
    rows = gather(folder)
    best = min((r for r in before if r["shard"] == 0 and r["rank"] == 1), key=lambda r: r["energy_pred"])
    assert [r["id"] for r in rows if r["shard"] == 0 and r["system_rank"] is not None] == [best["id"]]


def test_energies_above_the_hull_take_the_place_of_predicted_ones(folder: Path) -> None:
    hull = {"cand:0:1": 0.0, "cand:1:1": 0.2, "cand:2:1": 0.1}
    for shard in range(3):
        rewrite(
            folder,
            shard,
            lambda t: t.append_column(
                "e_above_hull_pred", pa.array([hull.get(i) for i in t["id"].to_pylist()], pa.float64())
            ),
        )
    ranks = {row["id"]: row["system_rank"] for row in gather(folder) if row["system_rank"] is not None}
    assert ranks == {"cand:0:1": 1, "cand:1:1": 3, "cand:2:1": 2}  # elsewhere it is not known


def test_the_zip_holds_the_best_in_order_and_no_more_than_allowed(folder: Path) -> None:
    gather(folder)
    names = [f"{formula}_{rank:03d}_cand-{c}-{2 - rank}" for c, formula in enumerate(FORMULAS) for rank in (1, 2)]
    names = [name for name in names if not name.startswith("ZnS")]
    assert exported(folder) == names
    gather(folder, top_k=1)
    assert exported(folder) == [name for name in names if "_001_" in name]
    gather(folder, top_files=7)
    assert exported(folder) == [name for name in names if "_001_" in name or name.startswith(("NaCl_", "Na2Cl_"))]
    gather(folder, top_files=3)
    assert exported(folder) == ["Na2Cl_001_cand-1-1", "SZn2_001_cand-4-1", "MgO_001_cand-5-1"]


def test_shards_without_candidates_are_welcome(folder: Path) -> None:
    empty = read_table(folder / "screened" / "shard-00000.parquet").slice(0, 0).select(["id", "composition"])
    note = read_about(folder / "screened" / "shard-00000.parquet")
    write_table(empty, folder / "screened" / "shard-00003.parquet", note | {"rows": 0})
    assert len(gather(folder)) == 18


def test_what_is_not_the_plan_is_refused(folder: Path) -> None:
    foreign = screened_rows(plan_table([requested("NaCl", 1)], 1, numbers=[4]))
    for change, message in (
        (lambda t: t.slice(1), r"shard-00001.parquet: cand:2:0 \(of 1\) is not there"),
        (lambda t: pa.concat_tables([t, foreign]), r"cand:4:0 \(of 1\) is not in the plan of this shard"),
        (lambda t: pa.concat_tables([t, t.slice(2, 1)]), "repeated, or not in the order"),
        (lambda t: t.take([1, 0, *range(2, t.num_rows)]), "repeated, or not in the order"),
    ):
        path = folder / "screened" / "shard-00001.parquet"
        whole = path.read_bytes()
        rewrite(folder, 1, change)
        with pytest.raises(UserError, match=message):
            gather(folder)
        path.write_bytes(whole)
    assert not (folder / "screened.parquet").exists()
    assert not (folder / "top.zip").exists()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_shard_that_is_not_there_is_named(folder: Path, lost: int) -> None:
    (folder / "screened" / f"shard-{lost:05d}.parquet").unlink()
    with pytest.raises(UserError, match=f"the 6 candidates of shard {lost} are not there"):
        gather(folder)


def test_shards_of_an_earlier_plan_are_named(folder: Path) -> None:
    plan = read_table(folder / "plan.parquet")
    write_table(plan.filter(pc.field("shard") < 2), folder / "plan.parquet", {})
    with pytest.raises(UserError, match=r"shard-00002.parquet: this shard is not in the plan"):
        gather(folder)


def test_shards_screened_in_different_ways_are_refused(folder: Path) -> None:
    rewrite(folder, 2, lambda t: t, settings={"x": 2})
    with pytest.raises(UserError, match=r"shard-00002.parquet: was screened with other settings"):
        gather(folder)
