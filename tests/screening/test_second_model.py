"""A second model's energies: what can be compared, and what resumes. CHGNet itself on two small crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config import Screen
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.errors import UserError
from dao_pipeline.screening import second_model
from dao_pipeline.screening.columns import set_column
from dao_pipeline.screening.second_model import add_second_model, disagreement, evaluate
from tests.make import crystal

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2


def rocksalt(name: str, edge: float, **extra: Any) -> Crystal:
    return crystal(name, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], edge * FCC, **extra)


def table(rows: list[tuple[str, float | None, float | None]]) -> pa.Table:
    """Composition, energy by DAO-P, energy by the second model."""
    made = to_table([rocksalt(f"c{i}", 5.6, composition=name) for i, (name, _, _) in enumerate(rows)])
    made = set_column(made, "energy_pred", [ours for _, ours, _ in rows])
    return set_column(made, "energy_second", [theirs for _, _, theirs in rows])


def test_disagreement_is_about_differences_between_siblings() -> None:
    rows = [("A", 0.1, -3.0), ("A", 0.3, -2.9), ("B", 0.0, -9.0), ("A", None, -2.0), ("A", 0.5, None)]
    found = disagreement(table(rows))
    assert found[:2] == [pytest.approx(-0.05), pytest.approx(0.05)]
    assert found[2:] == [None, None, None]


def test_another_reference_of_either_energy_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [("A" if i % 2 else "B", *rng.normal(size=2).tolist()) for i in range(8)]
    moved = [(name, ours + (2.0 if name == "A" else -1.0), theirs + 5.0) for name, ours, theirs in rows]
    assert np.allclose(disagreement(table(rows)), disagreement(table(moved)))


def ranked() -> pa.Table:
    made = table([("A", 0.1, None), ("A", 0.2, None), ("A", 0.3, None), ("A", None, None)])
    return set_column(made, "rank", [2, 1, 3, None])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids that the second model is asked about; its energies are made up."""
    seen: list[str] = []

    def judge(crystals: list[Crystal], relax_steps: int) -> list[dict[str, Any]]:
        seen.extend(c.id for c in crystals)
        empty = dict.fromkeys(second_model._FOUND)
        return [empty | {"energy_second": -3.0 - 0.1 * relax_steps, "second_status": "ok"} for _ in crystals]

    monkeypatch.setattr(second_model, "_judge", judge)
    monkeypatch.setattr(second_model, "method", lambda: "made up")
    return seen


def settings(**second: Any) -> Screen:
    return Screen.model_validate({"second_model": {"model": "chgnet", **second}})


def test_only_the_best_are_asked_about_and_each_once(asked: list[str], tmp_path: Path) -> None:
    made = add_second_model(ranked(), settings(top_k=2), 1, tmp_path)
    assert sorted(asked) == ["c0", "c1"]
    assert made["energy_second"].to_pylist() == [-3.0, -3.0, None, None]
    assert made["second_status"].to_pylist() == ["ok", "ok", None, None]
    assert made["energy_disagreement"].to_pylist() == [pytest.approx(-0.05), pytest.approx(0.05), None, None]
    again = add_second_model(ranked(), settings(top_k=2), 1, tmp_path)
    assert again.equals(made)
    assert len(asked) == 2
    add_second_model(ranked(), settings(top_k=2, relax_steps=5), 1, tmp_path)
    assert len(asked) == 4
    add_second_model(ranked(), settings(top_k=2), 1, None)
    assert len(asked) == 6


def test_nothing_ranked_is_fine(asked: list[str]) -> None:
    made = add_second_model(set_column(ranked(), "rank", [None] * 4), settings(), 1, None)
    assert made["energy_second"].null_count == 4
    assert not asked


def test_without_chgnet_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_model, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'dao-pipeline\\[chgnet\\]'"):
        evaluate([rocksalt("a", 5.6)], 0, 1, None)


def test_chgnet_judges_and_relaxes(tmp_path: Path) -> None:
    pytest.importorskip("chgnet")
    far = crystal("gas", ["Ar"], [[0, 0, 0]], 30.0)
    found = evaluate([rocksalt("small", 5.2), rocksalt("right", 5.65), far], 30, 1, tmp_path)
    assert found[0]["energy_second"] > found[1]["energy_second"]
    assert [f["second_status"] for f in found] == ["ok", "ok", "no_neighbours"]
    assert found[0]["energy_second_relaxed"] == pytest.approx(found[1]["energy_second_relaxed"], abs=2e-3)
    assert found[0]["energy_second_relaxed"] < found[0]["energy_second"]
    assert found[0]["relaxed_rmse"] == pytest.approx(0, abs=1e-3)
    assert found[2]["energy_second"] is found[2]["relaxed_lattice"] is None
    volume = abs(np.linalg.det(np.reshape(found[0]["relaxed_lattice"], (3, 3))))
    assert volume == pytest.approx(5.65**3 / 4, rel=0.05)
