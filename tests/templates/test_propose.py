"""Templates for planned candidates: which rows get one, in which order of atoms, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dao_pipeline.candidates.compositions import Requested, requested
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Templates
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import shortest_distances
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.templates.build import index_templates
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.propose import proposal_table, propose_templates
from tests.templates.test_index import caesium_chloride, perovskite, rock_salt

KNOWN: list[Crystal] = [
    *(perovskite(f"p{i}", a, b, "O") for i, (a, b) in enumerate([("Ca", "Ti"), ("Ba", "Ti"), ("Ba", "Zr")])),
    rock_salt("r0", "Na", "Cl"),
    rock_salt("r1", "K", "Br"),
    caesium_chloride("c0", "Cs", "Cl"),
]


@pytest.fixture(scope="module")
def index() -> TemplateIndex:
    return TemplateIndex.build(to_table(KNOWN), Templates(distance="mendeleev"))


def plan(*asked: Requested, samples: int = 4, share: float = 0.75) -> pa.Table:
    return plan_table(list(asked), samples, template_share=share)


def origins(table: pa.Table) -> list[str]:
    return table["origin"].to_pylist()


def test_the_plan_says_what_is_to_come_from_templates() -> None:
    rows = plan(requested("SrTiO3", 1), requested("LiF", 1))
    assert origins(rows) == (["generated"] + ["template"] * 3) * 2
    assert set(origins(plan(requested("LiF", 1), share=0.0))) == {"generated"}


def test_rows_get_the_template_of_their_number_in_the_plans_order_of_atoms(index: TemplateIndex) -> None:
    rows = plan(requested("O3TiSr", 1), requested("LiF", 1))  # oxygen first, as no template has it
    wanted = rows.filter(pc.equal(rows["origin"], "template"))
    found = proposal_table(index, wanted, "composition")
    asked = dict(zip(rows["id"].to_pylist(), rows["atomic_numbers"].to_pylist(), strict=True))
    names = found["id"].to_pylist()
    assert "cand:0:1" in names
    assert "cand:1:1" in names
    assert "cand:1:2" in names  # rock salt and caesium chloride
    for row in found.to_pylist():
        assert row["atomic_numbers"] == asked[row["id"]]
        assert row["template_id"] in {c.id for c in KNOWN}
        assert row["origin"] == "template"
        assert row["template_distance"] > 0
    assert (shortest_distances(flatten(found)) > 1.2).all()
    half = proposal_table(index, wanted.slice(2), "composition")
    assert half.equals(found.filter(pc.is_in(found["id"], value_set=wanted.slice(2)["id"].combine_chunks())))


def test_a_composition_without_templates_has_no_rows(index: TemplateIndex) -> None:
    found = proposal_table(index, plan(requested("Fe7O11", 1)), "composition")
    assert found.num_rows == 0
    assert proposal_table(index, plan(), "none").num_rows == 0


def test_known_crystals_come_first_but_never_for_targets(tmp_path: Path) -> None:
    folder = tmp_path / "crysdb"
    precursor = rock_salt("unstable", "Li", "F", precursor_of="r0")
    write_table(to_table([*KNOWN, precursor]), folder / "train.parquet", {"stage": "build_crysdb"})
    campaign = parse_campaign({"name": "x", "generate": {"template_share": 0.5, "samples": 4}}, "x")
    index_templates(campaign, folder, tmp_path / "index")
    assert "unstable" not in read_table(tmp_path / "index" / "templates.parquet")["id"].to_pylist()
    rows = plan(requested("BaTiO3", 1), requested("TiBaO3", 1, target_id="t"), share=0.5)
    write_table(rows, tmp_path / "plan.parquet", {})
    propose_templates(campaign, tmp_path / "plan.parquet", tmp_path / "index", tmp_path / "out.parquet")
    found = {row["id"]: row for row in read_table(tmp_path / "out.parquet").to_pylist()}
    own = found["cand:0:1"]
    assert (own["origin"], own["template_id"], own["template_distance"]) == ("known", "p1", 0)
    assert np.allclose(np.reshape(own["lattice"], (3, 3)), KNOWN[1].lattice)
    others = [row for name, row in found.items() if name != "cand:0:1"]
    assert {row["origin"] for row in others} == {"template"}
    assert "p1" not in {row["template_id"] for name, row in found.items() if name.startswith("cand:1")}
