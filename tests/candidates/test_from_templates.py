"""Candidates from templates and from nothing, in one shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dao_pipeline.candidates import generate as module
from dao_pipeline.candidates.compositions import Requested
from dao_pipeline.candidates.gather import gather_shard
from dao_pipeline.candidates.generate import generate_candidates
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Generate, Screen, Templates
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import save_model
from dao_pipeline.screening.geometry import check_geometry
from dao_pipeline.screening.groups import group_by_energy
from dao_pipeline.screening.origin import known_types
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.propose import proposal_table
from tests.candidates.test_generate import new_model, rock_salts

SAMPLES, TEMPLATES = 4, 2
STRUCTURE = ("id", "frac_coords", "lattice")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models, a plan with and one without templates, and the templates, of which one row lacks."""
    folder = tmp_path_factory.mktemp("templates")
    table = rock_salts()
    for process in ("flow", "diffusion"):
        save_model(new_model("dao_g", process, table), folder / f"g-{process}")
        save_model(new_model("dao_p", process, table), folder / f"p-{process}")
    asked = [Requested(r["formula"], r["formula"], r["atomic_numbers"]) for r in table.slice(0, 3).to_pylist()]
    write_table(plan_table(asked, SAMPLES, template_share=TEMPLATES / SAMPLES), folder / "plan.parquet", {})
    write_table(plan_table(asked, SAMPLES), folder / "free.parquet", {})
    index = TemplateIndex.build(table, Templates(distance="mendeleev"))
    rows = read_table(folder / "plan.parquet").filter(pc.field("origin") == "template")
    first = pc.equal(rows["composition"], rows["composition"][0])
    proposed = pa.concat_tables(
        [
            proposal_table(index, rows.filter(first), "none"),
            proposal_table(index, rows.filter(pc.invert(first)), "composition"),
        ]
    )
    assert set(proposed["origin"].to_pylist()) == {"known", "template"}
    assert proposed.num_rows < rows.num_rows
    write_table(proposed, folder / "templates.parquet", {})
    return folder


def make(
    folder: Path,
    process: str = "flow",
    plan: str = "plan",
    templates: bool = True,
    work: str = "work",
    **more: Any,
) -> pa.Table:
    values = {"process": {"kind": process}, "generate": {"guidance_scale": 0, "steps": 10} | more}
    if more.get("template_refinement") == "path":
        values["generator"] = {"template_paths": 0.5}
    generate_candidates(
        parse_campaign({"name": "test"} | values, "test"),
        folder / f"{plan}.parquet",
        folder / f"g-{process}",
        folder / f"p-{process}",
        folder / "out.parquet",
        folder / work,
        folder / "templates.parquet" if templates else None,
    )
    return read_table(folder / "out.parquet")


def same(a: pa.Table, b: pa.Table) -> bool:
    return a.select(STRUCTURE).equals(b.select(STRUCTURE))


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_without_templates_generation_is_the_same_to_the_bit(folder: Path, process: str) -> None:
    """A plan with share 0, one whose templates were not found, and a table of templates that has no row."""
    free = make(folder, process, "free", templates=False)
    assert same(make(folder, process, "plan", templates=False), free)
    assert set(free["origin"].to_pylist()) == {"generated"}
    assert free["template_id"].null_count == free.num_rows
    kept = read_table(folder / "templates.parquet")
    write_table(kept.slice(0, 0), folder / "templates.parquet", {})
    try:
        assert same(make(folder, process, "plan"), free)
    finally:
        write_table(kept, folder / "templates.parquet", {})


def test_templates_are_candidates_as_they_are(folder: Path) -> None:
    proposed = read_table(folder / "templates.parquet")
    made = make(folder)
    assert made["id"].to_pylist() == read_table(folder / "plan.parquet")["id"].to_pylist()
    own = made.filter(pc.is_in(made["id"], value_set=proposed["id"].combine_chunks()))
    assert own["origin"].to_pylist() == proposed["origin"].to_pylist()
    assert own["template_id"].to_pylist() == proposed["template_id"].to_pylist()
    assert own["template_distance"].to_pylist() == proposed["template_distance"].to_pylist()
    assert set(own["source"].to_pylist()) <= {"template", "known"}
    a, b = flatten(own), flatten(proposed)
    assert np.allclose(a.frac, b.frac)
    assert np.allclose(volumes(a.lattice), volumes(b.lattice))
    others = made.filter(pc.invert(pc.is_in(made["id"], value_set=proposed["id"].combine_chunks())))
    assert set(others["origin"].to_pylist()) == {"generated"}
    assert others.num_rows == made.num_rows - proposed.num_rows


def test_without_a_generator_what_has_no_template_has_no_crystal(folder: Path) -> None:
    """Every row of the plan stays, with the reason, through gathering and the checks of the screening."""
    plan, proposed = read_table(folder / "plan.parquet"), read_table(folder / "templates.parquet")
    settings = {"generator": {"enabled": False}, "generate": {"template_share": 1, "samples": SAMPLES}}
    generate_candidates(
        parse_campaign({"name": "test"} | settings, "test"),
        folder / "plan.parquet",
        None,
        None,
        folder / "alone" / "shard-00000-000.parquet",
        folder / "work",
        folder / "templates.parquet",
    )
    made = read_table(folder / "alone" / "shard-00000-000.parquet")
    has = np.asarray(pc.is_in(made["id"], value_set=proposed["id"].combine_chunks()))
    assert same(made.filter(pa.array(has)), make(folder).filter(pa.array(has)))
    missing = made.filter(pa.array(~has))
    assert missing.num_rows == plan.num_rows - proposed.num_rows
    assert set(missing["status"].to_pylist()) == {"no_template"}
    assert missing["origin"].null_count == missing["lattice"].null_count == missing.num_rows
    assert read_about(folder / "alone" / "shard-00000-000.parquet")["training"] == {}
    checked = check_geometry(gather_shard(plan, [folder / "alone" / "shard-00000-000.parquet"]), Screen())
    assert checked["id"].to_pylist() == plan["id"].to_pylist()
    assert np.array_equal(np.asarray(checked["status"]) == "no_template", ~has)
    assert np.array_equal(np.asarray(checked["valid"]), has)


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_noised_templates_are_denoised_and_known_crystals_stay(folder: Path, process: str) -> None:
    plain, refined = make(folder, process), make(folder, process, template_refinement="noise", template_noise=0.3)
    assert same(make(folder, process, template_refinement="noise", template_noise=0.3), refined)
    pairs = zip(plain.to_pylist(), refined.to_pylist(), strict=True)
    for before, after in pairs:
        if before["origin"] == "template":
            assert after["origin"] == "template_refined"
            assert after["template_id"] == before["template_id"]
            assert after["frac_coords"] != before["frac_coords"]
        else:
            assert after["origin"] == before["origin"]
            assert after["frac_coords"] == before["frac_coords"]


def test_paths_must_have_been_learned(folder: Path) -> None:
    with pytest.raises(UserError, match="this generator has not learned paths from templates"):
        make(folder, template_refinement="path")
    with pytest.raises(UserError, match="needs a generator that has learned paths"):
        parse_campaign({"name": "x", "generate": {"template_refinement": "path"}}, "x")


def test_an_interrupted_shard_keeps_its_templates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(folder, batch_atoms=10)
    real = module.template_rows
    monkeypatch.setattr(module, "template_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(folder, batch_atoms=10, work="cut")
    finished = set((folder / "cut").iterdir())
    assert finished
    assert all(path.name.startswith("batch-") for path in finished)
    monkeypatch.setattr(module, "template_rows", real)
    monkeypatch.setattr(module, "generate_rows", lambda *_: 1 / 0)
    assert same(make(folder, batch_atoms=10, work="cut"), whole)


def test_shares_are_rounded_down() -> None:
    assert [Generate(samples=20, template_share=share).templates for share in (0, 0.01, 0.5, 0.55, 1)] == [
        0,
        0,
        10,
        11,
        20,
    ]
    assert Generate(samples=10, template_share=0.7).templates == 7


def test_structure_types_are_known_where_a_template_is_in_the_group() -> None:
    rows = [
        ("A", "template", 0),
        ("A", "generated", 0),
        ("A", "generated", 1),
        ("A", "generated", None),
        ("B", "generated", 0),
        ("C", "known", None),
    ]
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(("composition", "origin", "group"))})
    assert known_types(table) == [True, True, False, None, None, True]
    assert known_types(table.drop_columns(["origin"])) == [None] * 6


def test_known_crystals_lead() -> None:
    assert group_by_energy([0.1, 0.5, 0.2], lambda i, j: False, [False, True, False]) == [[1], [0], [2]]
