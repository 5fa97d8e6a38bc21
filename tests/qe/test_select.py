import numpy as np
import pytest

from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.table import write_table
from dao_pipeline.errors import UserError
from dao_pipeline.qe.select import affordable, chosen, information, named_candidates
from tests.qe.make import quick, silicon


@pytest.fixture
def screened(tmp_path):
    rows = [
        silicon("b2", composition="B", rank=2),
        silicon("b1", composition="B", rank=1),
        silicon("b?", composition="B", rank=None),
        silicon("a3", composition="A", rank=3),
        silicon("a1", composition="A", rank=1, target_id="t"),
    ]
    write_table(to_table(rows), tmp_path / "screened.parquet", {})
    return tmp_path / "screened.parquet"


def ids(table):
    return table["id"].to_pylist()


def test_in_order_of_composition_and_rank(screened):
    assert ids(chosen(screened, quick(top_k=2))) == ["b1", "b2", "a1"]


def test_named_ones_come_as_named(screened, tmp_path):
    assert ids(chosen(screened, quick(candidates=["a3", "b?"]))) == ["a3", "b?"]
    (tmp_path / "ids.txt").write_text("# the odd ones\nb?\n\na1  # the best\n")
    named = quick(candidates=str(tmp_path / "ids.txt"))
    assert named_candidates(named) == ["b?", "a1"]
    assert ids(chosen(screened, named)) == ["b?", "a1"]


@pytest.mark.parametrize(("text", "problem"), [("a\nb\na\n", "a stands there twice"), ("# none\n", "no ids")])
def test_lists_that_are_no_use(tmp_path, text, problem):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        named_candidates(quick(candidates=str(tmp_path / "ids.txt")))
    with pytest.raises(UserError, match="not readable"):
        named_candidates(quick(candidates=str(tmp_path / "absent.txt")))


def test_ids_that_are_not_there_are_named(screened):
    with pytest.raises(UserError, match=r"qe\.candidates: x9, x8: not among the candidates"):
        chosen(screened, quick(candidates=["a1", "x9", "x8"]))


def table(*rows):
    return to_table(
        [
            silicon(f"c{n}", composition=c, rank=rank, energy_pred=e, energy_std_pred=s)
            for n, (c, rank, e, s) in enumerate(rows)
        ]
    )


ROWS = table(
    ("A", 1, -1.00, 0.02),
    ("A", 2, -0.99, 0.02),  # could well be the ground state
    ("A", 3, -0.50, 0.02),  # never
    ("B", 1, -2.00, 0.02),
    ("B", 2, -1.60, 0.02),
)


def test_what_is_certain_tells_nothing():
    bits = information(ROWS)
    assert bits[0] == bits[1] > 0.9
    assert max(bits[2:]) < 1e-6
    assert information(table(("A", 1, -1.0, 0.02))) == [1.0]
    assert information(table(("A", 1, None, None), ("A", 2, -1.0, None)))[0] == 1.0
    wide = information(table(("A", 1, -1.0, None), ("A", 2, -0.8, None)))
    assert 0 < wide[0] == wide[1] < 1


def test_the_hull_decides_where_it_is_known():
    rows = [silicon(f"h{n}", e_above_hull=d, energy_std_pred=0.02) for n, d in enumerate([0.0, 0.03, 0.5, -0.5])]
    bits = information(to_table(rows))
    assert bits[0] == pytest.approx(1.0)
    assert 0.1 < bits[1] < 0.5
    assert max(bits[2:]) < 1e-6


def test_a_budget_by_rank_serves_every_composition_first():
    hour = [3600.0] * 5
    assert affordable(ROWS, hour, quick(budget_core_hours=2.5)) == [True, False, False, True, False]
    assert affordable(ROWS, hour, quick(budget_core_hours=3.0)) == [True, True, False, True, False]
    assert all(affordable(ROWS, hour, quick()))
    # one that is too dear does not stop the others
    assert affordable(ROWS, [9e9, 1.0, 1.0, 1.0, 1.0], quick(budget_core_hours=1.0)) == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_an_informative_budget_asks_what_is_open_and_cheap():
    settings = quick(select="informative", budget_core_hours=2.0)
    assert affordable(ROWS, [3600.0] * 5, settings) == [True, True, False, False, False]
    dear = np.array([7200.0, 3600.0, 1.0, 1.0, 1.0])
    assert affordable(ROWS, dear, quick(select="informative", budget_core_hours=1.1))[:2] == [False, True]
