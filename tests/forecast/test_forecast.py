"""Plans: numbers that add up, measured throughput, and what is infeasible and why."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from dao_pipeline.candidates import asked
from dao_pipeline.cli import app
from dao_pipeline.config import Campaign
from dao_pipeline.config.read import load_campaign, parse_campaign
from dao_pipeline.config.write import write_resolved
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.table import write_table
from dao_pipeline.forecast.forecast import Forecast, dft_hours, forecast
from dao_pipeline.forecast.rates import Rate, known_rates, read_timings, shipped, together
from dao_pipeline.forecast.text import print_forecast
from dao_pipeline.forecast.work import amounts, sizes
from dao_pipeline.workflow_support import RULES, stage_files, stage_jobs
from tests.make import binary

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = ("binaries", "chalcogenides", "superconductors")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    asked._in_memory.clear()
    yield
    asked._in_memory.clear()


def campaign(**sections: Any) -> Campaign:
    generate = {"compositions": [{"formula": "MgO"}, {"formula": "TiO2"}], "unit_atoms": 6, "samples": 10}
    return parse_campaign({"name": "x"} | {"generate": generate} | sections, "x.yaml")


def planned(given: Campaign) -> Forecast:
    return forecast(given, "x.yaml", Path("results"))


def test_numbers_add_up() -> None:
    given = campaign()
    found = planned(given)
    assert found.sound
    assert found.compositions == 5  # Mg1O1 to Mg3O3, TiO2 and Ti2O4
    assert found.candidates == 50
    assert found.atoms == {"min": 2, "mean": pytest.approx(21 / 5), "max": 6}
    assert found.jobs == sum(stage.jobs for stage in found.stages)
    assert [s.stage for s in found.stages] == [rule for rule in RULES if stage_files(given, rule)]
    assert all(stage.jobs == stage_jobs(given, stage.stage) for stage in found.stages)
    hours = sum(stage.hours or 0 for stage in found.stages)
    assert found.cpu_hours == pytest.approx(hours)
    assert found.gpu_hours == 0
    assert set(found.not_measured) == {stage.stage for stage in found.stages if stage.hours is None}
    calls = given.generate.sampling(given.process).network_calls
    of = {stage.stage: stage.work for stage in found.stages}
    assert of["generate_candidates"] == 21 * (10 - given.generate.templates) * calls
    assert of["screen_candidates"] == 50
    training = given.finetune.training
    assert of["finetune_generator"] == training.steps * training.batch_atoms


def test_twice_the_samples_take_twice_the_work_and_disk() -> None:
    values = campaign().generate.model_dump()
    one, two = (planned(campaign(generate=values | {"samples": n})) for n in (200, 400))
    for name in ("generate_candidates", "screen_candidates"):
        work = [next(s.work for s in found.stages if s.stage == name) for found in (one, two)]
        assert work[1] == 2 * (work[0] or 0)
    assert two.disk_bytes == pytest.approx(2 * one.disk_bytes, rel=0.1)


def test_disk_is_an_upper_bound_of_what_tables_take(tmp_path: Path) -> None:
    given = campaign(generate={"compositions": [{"formula": "MgO", "formula_units": 1}], "samples": 128})
    crystals = [binary(i) for i in range(128)]
    write_table(to_table(crystals), tmp_path / "generated.parquet", {})
    assert (tmp_path / "generated.parquet").stat().st_size < planned(given).disk_bytes


# Throughput


def finished(name: str, seconds: dict[str, float], **sections: Any) -> Campaign:
    """A campaign under results/ whose jobs took so long."""
    given = campaign(name=name, **sections)
    folder = Path("results", name)
    write_resolved(given, folder / "config.yaml")
    (folder / "timings").mkdir(parents=True)
    for job, took in seconds.items():
        row = f"s\tcpu_time\n{2 * took}\t{took}\n"
        (folder / "timings" / f"{job}.tsv").write_text(row)
    return given


def test_throughput_is_that_of_campaigns_that_have_run() -> None:
    tiny = {"energy_model": {"backbone": {"preset": "tiny"}}}
    small = tiny | {"name": "a"}
    done = finished("a", {"train_energy_model": 100}, **{k: v for k, v in small.items() if k != "name"})
    training = done.energy_model.training
    rate = known_rates(Path("results"))["train_energy_model", "tiny", "cpu"]
    assert rate == Rate(training.steps * training.batch_atoms, 100, 1, "a")
    longer = campaign(energy_model={"backbone": {"preset": "tiny"}, "training": {"steps": 2 * training.steps}})
    stage = next(s for s in planned(longer).stages if s.stage == "train_energy_model")
    assert stage.measured == "a"
    assert stage.hours == pytest.approx(200 / 3600)


def test_other_networks_and_devices_are_not_compared() -> None:
    finished("a", {"train_energy_model": 100}, energy_model={"backbone": {"preset": "base"}})
    rates = known_rates(Path("results"))
    assert ("train_energy_model", "base", "cpu") in rates
    for other in (
        {"energy_model": {"backbone": {"preset": "base", "layers": 3}}},
        {"energy_model": {"backbone": {"preset": "base"}}, "compute": {"training": {"gpus": 2}}},
    ):
        found = planned(campaign(**other))
        stage = next(s for s in found.stages if s.stage == "train_energy_model")
        assert stage.hours is None
        assert "train_energy_model" in found.not_measured


def test_a_gpu_counts_by_the_clock() -> None:
    gpus = {"training": {"gpus": 2, "threads": 1}}
    finished("a", {"train_energy_model": 500}, compute=gpus)
    rate = known_rates(Path("results"))["train_energy_model", "small", "gpu"]
    training = campaign().energy_model.training
    took = 2 * 1000  # 1,000 s on each
    assert (rate.work, rate.seconds) == (training.steps * training.batch_atoms, took)
    found = planned(campaign(compute=gpus))
    assert found.gpu_hours > 0


def test_of_shards_those_that_have_run_count() -> None:
    values = {"compositions": [{"formula": "MgO"}], "unit_atoms": 2, "samples": 100, "template_share": 0}
    cut = finished("a", {}, generate=values)
    jobs = stage_jobs(cut, "generate_candidates")
    (Path("results/a/timings") / "generate_candidates-0000.tsv").write_text("s\tcpu_time\n9\t50\n")
    plan = Path("results/a/candidates/plan.parquet")
    rows = pa.table({"num_atoms": pa.array([2] * 100, pa.int16()), "sample": pa.array(range(100), pa.int32())})
    write_table(rows, plan, {})
    rate = known_rates(Path("results"))["generate_candidates", "small", "cpu"]
    calls = cut.generate.sampling(cut.process).network_calls
    assert rate == Rate(100 * 2 * calls / jobs, 50, 1, "a")


def test_campaigns_count_by_their_work_and_short_jobs_by_their_number() -> None:
    assert together([Rate(100, 10, 1, "a"), Rate(900, 60, 2, "b")]) == Rate(1000, 70, 3, "a, b")
    assert Rate(1000, 70, 3, "").hours(36_000, 5) == pytest.approx(0.7)
    assert Rate(1000, 2, 2, "").hours(36_000, 5) == pytest.approx(5 / 3600)


def test_jobs_that_are_done_are_not_counted_again() -> None:
    given = campaign()
    before = planned(given)
    for stage in ("download", "train_energy_model"):
        for file in stage_files(given, stage):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            if not file.endswith(".parquet"):
                Path(file).touch()
            else:
                write_table(to_table([binary(0)]), Path(file), {})
    after = planned(given)
    done = {stage.stage: stage.done for stage in after.stages if stage.done}
    assert done == {"download": 1, "train_energy_model": 1}
    assert after.cpu_hours <= before.cpu_hours


def test_timings_of_shards_and_damaged_numbers(tmp_path: Path) -> None:
    for name, row in (("a-0001", "1.5\t2.5"), ("a-0002-003", "2\t-"), ("b", "NA\t1")):
        (tmp_path / f"{name}.tsv").write_text(f"s\tcpu_time\n{row}\n")
    assert read_timings(tmp_path) == {
        "a": [{"s": 1.5, "cpu_time": 2.5}, {"s": 2.0, "cpu_time": 0.0}],
        "b": [{"s": 0.0, "cpu_time": 1.0}],
    }


def test_shipped_numbers_name_their_hardware_and_fit_the_examples() -> None:
    assert shipped()["hardware"]
    assert shipped()["campaigns"]
    given = load_campaign(REPOSITORY / "config" / "campaigns" / "binaries.yaml")
    found = forecast(given, "binaries", Path("results"))
    assert set(found.not_measured) <= {"screen_candidates"}
    assert 0.01 < found.cpu_hours < 2


# What is infeasible


def test_infeasible_formulas_are_listed_with_their_reason(tmp_path: Path) -> None:
    Path("a.txt").write_text("RnF2\nMg30Al30O30\nMgO\n")
    generate = {
        "files": ["a.txt"],
        "substitutions": {"of": ["MgO"], "replace": {"Mg": ["O", "Al"]}, "charge_neutral": True},
        "unit_atoms": 2,
    }
    found = planned(campaign(generate=generate))
    assert found.sound
    assert found.compositions == 1
    assert found.reasons == {"too_many_atoms": 1, "elements_become_one": 1, "not_neutral": 1, "unseen_element": 1}
    by_name = {one.composition: one.reason for one in found.infeasible}
    assert by_name["Mg30Al30O30"] == "too_many_atoms 90, generate.max_atoms is 60"
    assert by_name["RnF2"] == "no crystal of the source contains Rn"
    output = io.StringIO()
    print_forecast(found, Console(file=output, width=200))
    assert "Not predicted: 1 that have an element that no crystal to learn from contains" in output.getvalue()


def test_crysdb_decides_where_it_is_there() -> None:
    write_table(to_table([binary(0)]), Path("results/x/crysdb/train.parquet"), {"stage": "build_crysdb"})
    generate = {"systems": {"of": ["alkali-O"]}, "unit_atoms": 3}
    found = planned(campaign(generate=generate))
    assert found.compositions == 1  # Li2O, the only one of Li and O
    assert found.reasons["unseen_element"] == 4
    assert {one.reason for one in found.infeasible} >= {"no training crystal contains Na"}


def test_a_campaign_that_cannot_start_ends_with_one(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for generate, message in (
        ({"compositions": [{"formula": "RnF2"}]}, "contains Rn"),
        ({"files": ["nowhere.txt"]}, "nowhere.txt: no such file"),
        ({"systems": {"of": ["He-Ne"]}}, "no composition is left"),
    ):
        path.write_text(yaml.safe_dump({"name": "x", "generate": generate}))
        run = CliRunner().invoke(app, ["plan", str(path)])
        assert run.exit_code == 1, run.output
        assert message in " ".join(run.output.split())
    path.write_text("name: x\ngenerate: {sample: 3}\n")
    assert CliRunner().invoke(app, ["plan", str(path)]).exit_code == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_plan(name: str) -> None:
    path = REPOSITORY / "config" / "campaigns" / f"{name}.yaml"
    run = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["sound"]
    assert found["infeasible"] == []
    assert 15 <= found["compositions"] <= 60
    assert found["candidates"] == found["compositions"] * load_campaign(path).generate.samples
    assert found["jobs"] == sum(stage["jobs"] for stage in found["stages"])
    assert not Path("results").exists()  # nothing is written


def test_of_the_test_split_bounds_are_named() -> None:
    found = planned(parse_campaign({"name": "x", "data": {"source": "embedded"}}, "x"))
    assert found.compositions == 10
    assert any("test_split.limit" in bound for bound in found.bounds)


def test_ten_million_candidates_are_planned_in_seconds() -> None:
    elements = ["Li", "Na", "K", "Rb", "Cs", "Mg", "Ca", "Sr", "Ba", "Al", "Ga", "In", "Ti", "Zr", "Fe", "Co"]
    systems = {"of": [[elements, elements, ["S", "Se", "Te", "O"]]], "max_coefficient": 9, "charge_neutral": False}
    given = campaign(generate={"systems": systems, "unit_atoms": 12, "samples": 100})
    start = time.process_time()
    found = planned(given)
    took = time.process_time() - start
    assert found.candidates > 10_000_000
    assert took < 5
    tally = Counter({stage.stage: stage.jobs for stage in found.stages})
    assert tally["generate_candidates"] == stage_jobs(given, "generate_candidates") > 1_000


def test_sizes_come_from_tables_where_they_are_there() -> None:
    given = campaign()
    folder = Path("results/x")
    write_table(to_table([binary(i) for i in range(7)]), folder / "raw" / "crystals.parquet", {})
    write_table(to_table([binary(i) for i in range(4)]), folder / "crysdb" / "train.parquet", {})
    size = sizes(given, folder, (3, 12.0))
    assert (size.compositions, size.atoms, size.crystals, size.training, size.bounds) == (3, 12.0, 7, 4, ())
    assert amounts(given, size)["relax_dataset"].value == 4 * given.relax.steps
    empty = sizes(given, Path("results/none"), (3, 12.0))
    assert empty.training == empty.crystals == 4019
    assert empty.bounds


def test_dft_is_priced_by_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    priced: list[int] = []

    def cost(settings: Any, cells: list[dict[str, int]]) -> float:
        assert settings.budget_core_hours is None
        priced.append(len(cells))
        return 2.0 * len(cells)

    monkeypatch.setattr("dao_pipeline.qe.cost.expected_core_hours", cost)
    given = campaign(qe={"enabled": True})
    names = [f"Mg{n}O" for n in range(1, 6)]
    assert dft_hours(given, names) == 10
    monkeypatch.setattr("dao_pipeline.forecast.forecast._PRICED", 2)
    assert dft_hours(given, names) == 10  # two stand for five
    assert priced == [5, 2]
    assert dft_hours(campaign(qe={"enabled": True, "budget_core_hours": 3}), names) == 3
    stage = next(s for s in planned(given).stages if s.stage == "validate_qe")
    assert (stage.jobs, stage.work, stage.hours) == (5, 5, 10)
    assert "cost" in stage.measured
