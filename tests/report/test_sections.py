import json
import math
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pytest

from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.report.candidates import MAX_ROWS, energies_section, made_from, ranked, top_section
from dao_pipeline.report.coverage import candidates_funnel, crystals_funnel, novelty
from dao_pipeline.report.figures import Axis, curves, histogram
from dao_pipeline.report.found import ANY_ONE, comparison, found_section, sign_test
from dao_pipeline.report.results import load_results
from dao_pipeline.report.sections import relaxation
from tests.report.build import build_results, make_campaign


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return load_results(build_results(tmp_path_factory.mktemp("results")))


def test_every_candidate_is_accounted_for(results):
    funnel = candidates_funnel(results.planned, results.screened)
    assert [s.count for s in funnel.steps] == [60, 55, 45, 35, 25]
    assert funnel.adds_up
    assert funnel.steps[1].dropped == (("diverged", 5),)


def test_a_candidate_without_a_row_is_missed(results):
    funnel = candidates_funnel(results.planned, results.screened.iloc[:50])
    assert funnel.steps[0].count == 60
    assert ("without a row in the screened table", 10) in funnel.steps[1].dropped
    assert funnel.adds_up


def test_every_crystal_is_accounted_for(results):
    funnel = crystals_funnel(results)
    assert [s.count for s in funnel.steps] == [46, 45, 41]
    assert funnel.steps[2].dropped == (("duplicate", 3), ("atoms too close", 1))
    assert funnel.adds_up


def test_top_candidates_are_the_best_of_each_composition(results):
    top = top_section(results, make_campaign())
    assert [row.rank for row in top.rows] == [1, 2, 3, 4, 5] * 5
    assert [row.composition for row in top.rows if row.found] == ["Sr1Ti1O3", "Cs1Cl1"]
    energies = [row.energy for row in top.rows[:5]]
    assert energies == sorted(energies)
    assert top.left_out == 0


def test_a_large_campaign_keeps_the_best_of_every_composition():
    n = 3 * MAX_ROWS
    frame = pd.DataFrame(
        {"composition": [f"c{i // 6}" for i in range(n)], "target_id": None, "rank": [i % 6 + 1 for i in range(n)]}
    )
    rows = ranked(frame, 5)
    assert len(rows) == n // 6 * 5
    assert set(rows["rank"]) == {1, 2, 3, 4, 5}


def test_found_or_not_says_who_is_ahead(results):
    found = found_section(results)
    assert found.totals("dao") == (2, 5)
    assert found.totals("substitution") == (4, 5)
    assert "Template substitution is ahead of DAO-G".lower() in found.sentences[0].lower()
    assert "chance alone could make this difference" in found.sentences[0]
    assert "DAO-G is ahead of random generation" in found.sentences[1]


def test_rate_of_any_one_candidate_stands_before_the_ranked_ones(results):
    ours = [rate for rate in found_section(results).rates if rate.method == "dao"]
    assert [(rate.k, rate.order == ANY_ONE) for rate in ours] == [(1, True), (1, False), (ours[-1].k, False)]
    assert ours[0].rate == pytest.approx(0.07)
    assert ours[0].interval == "–"


def test_sign_test_is_exact():
    assert sign_test(0, 0) == 1
    assert sign_test(0, 10) == pytest.approx(2 / 1024)
    assert sign_test(5, 5) == 1


def test_comparison_of_equals(results):
    targets = results.targets.copy()
    targets.loc[targets["method"] == "substitution", "found"] = targets.loc[
        targets["method"] == "dao", "found"
    ].to_list()
    section = found_section(type(results)(**{**vars(results), "targets": targets}))
    assert comparison(section, "dao", "substitution").endswith(": the same ones.")


def test_energy_strips_mark_the_known_crystal(results):
    section = energies_section(results, make_campaign())
    assert len(section.strips) == 5
    assert sum('class="hit"' in figure for _, figure in section.strips) == 2
    drawn = sum(figure.count("<circle") + figure.count('class="hit"') for _, figure in section.strips)
    assert drawn + section.off_scale == 45
    assert section.off_scale == 0


def test_relaxation_adds_up(results):
    section = relaxation(results)
    assert section.total == 30
    assert section.selected == 20
    assert section.accepted + sum(n for _, n in section.kept) == section.selected


def test_axes_are_round_and_hold_their_values():
    for values, log in (([0.03, 7.0], True), ([0.2, 0.9], True), ([-3.2, 5.0], False), ([2.0, 2.0], False)):
        axis = Axis.over(values, log)
        assert all(0 <= axis.place(v) <= 100 for v in values)
        assert 2 <= len(axis.ticks()) <= 6
        assert all(0 <= axis.place(t) <= 100 for t in axis.ticks())
    assert Axis.over([0, 1000], pad=0).ticks() == [0, 200, 400, 600, 800, 1000]


def test_figures_survive_odd_values():
    metrics = pd.DataFrame({"step": [1, 2, 3], "split": ["train"] * 3, "loss": [-1.0, math.nan, math.inf]})
    assert "polyline" in curves(metrics, "<b>")
    assert "<b>" not in curves(metrics, "<b>")
    assert histogram([], "x", "y") == ""
    assert histogram([1.0, 1.0, math.nan], "x", "y").count("<rect") == 1


def test_long_curves_are_thinned():
    metrics = pd.DataFrame({"step": range(100_000), "split": "train", "loss": 1.0})
    assert len(curves(metrics, "long")) < 20_000


def test_folder_must_exist(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_results(tmp_path / "absent")


def test_damaged_table_is_named(tmp_path):
    folder = build_results(tmp_path / "r")
    (folder / "candidates" / "screened.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UserError, match=r"screened\.parquet"):
        load_results(folder)


def test_table_without_its_columns_is_named(tmp_path):
    folder = build_results(tmp_path / "r")
    path = folder / "evaluation" / "summary.parquet"
    write_table(read_table(path).drop_columns(["low"]), path, {})
    with pytest.raises(UserError, match="columns low are missing"):
        load_results(folder)


def test_damaged_json_and_timings_are_named(tmp_path):
    folder = build_results(tmp_path / "r")
    (folder / "timings" / "evaluate.tsv").write_text("not a benchmark\n1\n")
    with pytest.raises(UserError, match=r"evaluate\.tsv"):
        load_results(folder)
    (folder / "timings" / "evaluate.tsv").unlink()
    (folder / "models" / "dao_p" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"config\.json"):
        load_results(folder)


def test_shards_of_a_stage_are_timed_together(results):
    timing = next(t for t in results.timings if t.stage == "generate_candidates")
    assert timing.jobs == 2
    assert timing.seconds == pytest.approx(80.5)
    assert timing.max_rss == pytest.approx(710)


def test_empty_tables_give_no_sections(tmp_path):
    folder = build_results(tmp_path / "r")
    for name in ("candidates/screened", "evaluation/samples", "evaluation/targets", "relaxed/shard-0000"):
        path = folder / f"{name}.parquet"
        write_table(read_table(path).slice(0, 0), path, {})
    write_table(pa.table({"id": pa.array([], pa.string())}), folder / "candidates" / "plan.parquet", {})
    results = load_results(folder)
    assert top_section(results, make_campaign()) is None
    assert found_section(results) is None


def test_hopeless_energies_are_counted_not_drawn(results):
    screened = results.screened.copy()
    screened.loc[screened[screened["rank"] == 5].index[:2], "energy_pred"] = 1e6
    section = energies_section(type(results)(**{**vars(results), "screened": screened}), make_campaign())
    assert section.off_scale == 2


def test_a_substitution_is_never_called_novel(tmp_path):
    """Not in the counts, not in the table, not in the sentence, and nothing that matches one is."""
    plain = load_results(build_results(tmp_path / "plain"))
    steps = {step.name: step.count for step in candidates_funnel(None, plain.screened).steps}
    screened = plain.screened.assign(
        origin="template", template_id="mp-1", structure_type_known=[True] * len(plain.screened)
    )
    funnel = candidates_funnel(None, screened)
    assert funnel.adds_up
    assert steps["Novel"] > 0
    assert {step.name: step.count for step in funnel.steps} == steps | {"Novel": 0}
    reasons = dict(funnel.steps[-1].dropped)
    assert reasons["known structure type with other elements"] == steps["Novel"]
    assert novelty({"novel": True, "structure_type_known": True}) == "known type"
    assert novelty({"novel": True, "structure_type_known": False}) == "yes"
    assert novelty({"novel": True}) == "yes"
    assert novelty({"novel": False, "structure_type_known": True}) == "no"
    assert novelty({"novel": None, "structure_type_known": True}) == ""
    top = top_section(replace(plain, screened=screened), make_campaign())
    assert top.has_templates
    assert {row.made_from for row in top.rows} == {"structure of mp-1"}
    assert "yes" not in {row.novel for row in top.rows}
    assert made_from({"origin": "template_refined", "template_id": "a"}) == "structure of a, refined"
    assert made_from({"origin": "known", "template_id": "a"}) == "known crystal a"
    assert made_from({"origin": None}) == made_from({"origin": "generated"}) == "DAO-G"
