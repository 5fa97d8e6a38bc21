import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.config import QE
from dao_pipeline.qe.inputs import (
    Steering,
    input_data,
    kpoint_grid,
    method,
    method_hash,
    settings_hash,
    starting_magnetization,
)
from dao_pipeline.qe.protocols import protocol
from dao_pipeline.qe.pseudopotentials import Pseudopotential
from tests.make import crystal

SILICON = Pseudopotential(Path("Si.UPF"), "Si", "PBE", "NC", False, 4.0, 20.0, 80.0)
IRON = Pseudopotential(Path("Fe.UPF"), "Fe", "PBE", "US", False, 16.0, 50.0, 400.0)
PSEUDOS = {"Si": SILICON, "Fe": IRON}


def cell(symbols):
    return crystal("x", symbols, [[n / len(symbols), 0, 0] for n in range(len(symbols))], 4.0)


def data(symbols, settings=None, steering=None, **values):
    some = settings or QE()
    used = method(some, [PSEUDOS[s] for s in symbols])
    return input_data(cell(symbols), some, used, steering or Steering(), outdir="scratch", **values)


def test_kpoints_are_close_enough():
    assert kpoint_grid(2 * np.pi * np.diag([1.0, 2.0, 40.0]), 0.3) == (4, 2, 1)


def test_thresholds_grow_with_the_cell():
    one, two = data(["Si"]), data(["Si", "Si"])
    assert two["electrons"]["conv_thr"] == 2 * one["electrons"]["conv_thr"]
    assert two["control"]["etot_conv_thr"] == 2 * one["control"]["etot_conv_thr"]
    assert two["control"]["forc_conv_thr"] == one["control"]["forc_conv_thr"]


@pytest.mark.parametrize(
    ("calculation", "sections", "name"),
    [("single_point", set(), "scf"), ("relax", {"ions"}, "relax"), ("vc-relax", {"ions", "cell"}, "vc-relax")],
)
def test_sections_of_a_calculation(calculation, sections, name):
    found = data(["Si"], QE(calculation=calculation))
    assert set(found) - {"control", "system", "electrons"} == sections
    assert found["control"]["calculation"] == name


def test_protocols_rise_in_accuracy():
    fast, balanced, stringent = (protocol(QE(protocol=p)) for p in ("fast", "balanced", "stringent"))
    for name in ("kspacing", "conv_thr", "etot_conv_thr", "forc_conv_thr", "press_conv_thr"):
        assert getattr(fast, name) > getattr(balanced, name) > getattr(stringent, name)
    assert fast.cutoff_factor < balanced.cutoff_factor == 1 < stringent.cutoff_factor


def test_values_of_the_campaign_stand_before_those_of_the_protocol():
    found = method(QE(protocol="fast", kspacing=0.17, smearing="gaussian", degauss=0.005), [SILICON])
    assert (found.kspacing, found.smearing, found.degauss) == (0.17, "gaussian", 0.005)
    assert (found.ecutwfc, found.ecutrho) == (18, 72)
    assert method(QE(ecutwfc=30), [SILICON]).ecutrho == 120  # in the same ratio
    assert method(QE(ecutwfc=30), [SILICON, IRON]).ecutrho == 240
    assert method(QE(ecutwfc=30, ecutrho=200), [SILICON]).ecutrho == 200


def test_spin_where_elements_ask_for_it():
    def start(symbols, settings=None, pseudos=PSEUDOS):
        return starting_magnetization(cell(symbols), settings or QE(), pseudos)

    assert start(["Si"]) is None
    assert "nspin" not in data(["Si"])["system"]
    assert data(["Si", "Fe"])["system"]["nspin"] == 2
    assert start(["Fe", "Si", "Fe"]) == pytest.approx([5 / 16, 0.1 / 4, 5 / 16], abs=1e-4)
    assert start(["Si"], QE(spin=True)) == pytest.approx([0.1 / 4])
    assert start(["Fe"], QE(spin=False)) is None
    assert start(["Fe"], pseudos={"Fe": replace(IRON, electrons=math.nan)}) == [0.5]


def test_steering_changes_no_method():
    steering = Steering(mixing_beta=0.1, diagonalization="cg", nosym=True, cell_factor=3.0, conv_factor=0.01)
    plain, changed = data(["Si"]), data(["Si"], steering=steering)
    assert plain["system"] == {k: v for k, v in changed["system"].items() if k not in ("nosym", "noinv")}
    assert changed["electrons"]["mixing_beta"] == 0.1
    assert changed["electrons"]["conv_thr"] == pytest.approx(0.01 * plain["electrons"]["conv_thr"])
    assert changed["cell"]["cell_factor"] == 3.0


def test_a_restart_and_a_limit_of_time():
    found = data(["Si"], restart=True, max_seconds=100.04)["control"]
    assert (found["restart_mode"], found["max_seconds"]) == ("restart", 100.0)
    assert "max_seconds" not in data(["Si"])["control"]


def test_hashes_tell_what_may_be_compared():
    def of(settings, pseudos=("Si",), version="7.2"):
        used = method(settings, [PSEUDOS[p] for p in pseudos])
        return settings_hash(used, version, dict.fromkeys(pseudos, "sum")), method_hash(used, version)

    plain = of(QE())
    for other in (
        QE(kspacing=0.2),
        QE(ecutwfc=31),
        QE(smearing="gaussian"),
        QE(degauss=0.02),
        QE(spin=True),
        QE(protocol="stringent"),
    ):
        assert not set(of(other)) & set(plain)
    assert not set(of(QE(), version="7.3")) & set(plain)
    # what is relaxed, how it is started and what it converges to are no part of an energy's meaning
    assert of(QE(calculation="relax", launcher="srun", pools=4, top_k=3)) == plain
    # elements differ; with the cut-offs of both, the method is the same
    both = method(QE(), PSEUDOS.values())
    assert method_hash(both, "7.2") == of(QE(), ("Si", "Fe"))[1]
    assert settings_hash(both, "7.2", {"Si": "sum"}) != settings_hash(both, "7.2", {"Fe": "sum"})
