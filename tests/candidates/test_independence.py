"""The same candidates are the same crystals whatever else is in their batch, shard or campaign.

Noise is the same to the bit (``tests/process/test_noise_stream.py``). What differs between batches is the order in
which matrix products are summed: in double precision crystals agree to 1e-9, and in single precision to 1e-3 of a
cell's edge, because a few hundred roundings of 1e-7 are carried through all steps. The same batches give the same
bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from dao_pipeline.candidates import generate as module
from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.generate import generate_candidates, generate_rows, sample_rows
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.candidates.trajectory import write_trajectories
from dao_pipeline.config import Campaign, Generate
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.model.crysformer import Crysformer, Output
from dao_pipeline.model.dao import DaoModel, save_model
from tests.candidates.test_generate import new_model, rock_salts

KINDS = ("flow", "diffusion")
FORMULAS = ("NaCl", "Sr2Ti2O6", "Fe", "Zn5S4", "Fe2O3", "KBr")
SAMPLES = 3
STEPS = 6
LEVELS = 60


def planned(*formulas: str, samples: int = SAMPLES) -> pa.Table:
    return plan_table([requested(formula, 1) for formula in formulas], samples, 10**9)


ROWS = planned(*FORMULAS)


def model(kind: str, process: str) -> DaoModel:
    """Untrained."""
    return new_model(kind, process, rock_salts(), timesteps=LEVELS).eval()


@pytest.fixture(scope="module", params=KINDS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Untrained models of one process, and a plan."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("dao_g", "dao_p"):
        save_model(model(kind, request.param), folder / kind)
    write_table(ROWS, folder / "plan.parquet", {})
    return request.param, folder


def campaign(process: str, **settings: Any) -> Campaign:
    values = {"guidance_scale": 0, "steps": STEPS} | settings
    return parse_campaign({"name": "test", "process": {"kind": process}, "generate": values}, "test")


def made(models: tuple[str, Path], work: str = "work", **settings: Any) -> pa.Table:
    process, folder = models
    out = folder / f"{work}.parquet"
    arguments = (folder / "plan.parquet", folder / "dao_g", folder / "dao_p", out, folder / "all" / work)
    generate_candidates(campaign(process, **settings), *arguments)
    return read_table(out)


def apart(a: pa.Table, b: pa.Table) -> float:
    """Largest difference of fractional coordinates, on the circle, and of cells relative to their edges."""
    x, y = flatten(a), flatten(b)
    assert a.select(["composition", "sample"]).equals(b.select(["composition", "sample"]))
    coords = np.abs((x.frac - y.frac + 0.5) % 1.0 - 0.5).max()
    cells = np.abs(x.lattice - y.lattice).max((1, 2)) / np.abs(x.lattice).max((1, 2))
    return float(max(coords, cells.max()))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("process", KINDS)
def test_the_batch_does_not_matter(process: str, dtype: torch.dtype, tolerance: float, guided: bool) -> None:
    """Alone, in another order and among others; of several draws the same one is kept."""
    dao_g, dao_p = (model(kind, process).to(dtype) for kind in ("dao_g", "dao_p"))
    shape = {"guidance_scale": 1.0, "guidance": {"draws": 2}} if guided else {"guidance_scale": 0.0}
    settings = Generate.model_validate({"steps": STEPS} | shape)

    def draw(rows: pa.Table, seed: int = 1) -> pa.Table:
        return generate_rows(rows, dao_g, dao_p if guided else None, settings, seed)

    rows = pa.concat_tables([ROWS.slice(0, 4), ROWS.slice(7, 3)])
    together = draw(rows)
    alone = pa.concat_tables([draw(rows.slice(i, 1)) for i in range(rows.num_rows)])
    assert apart(together, alone) < tolerance
    order = np.random.default_rng(0).permutation(rows.num_rows)
    assert apart(together, draw(rows.take(order)).take(np.argsort(order))) < tolerance
    among = draw(pa.concat_tables([planned("LiF", "MgO"), rows])).slice(2 * SAMPLES)
    assert apart(together, among) < tolerance
    assert draw(rows).equals(together)
    assert apart(together, draw(rows, seed=2)) > 0.01


def test_compositions_in_front_change_nothing(models: tuple[str, Path]) -> None:
    """Nor do fewer samples: a campaign keeps what it had when it grows."""
    _, folder = models
    before = made(models)
    try:
        write_table(planned("MgO", *reversed(FORMULAS), samples=2), folder / "plan.parquet", {})
        after = made(models, "grown")
    finally:
        write_table(ROWS, folder / "plan.parquet", {})
    order = [("composition", "ascending"), ("sample", "ascending")]
    before = before.filter(pc.less(before["sample"], 2)).sort_by(order)
    after = after.filter(pc.not_equal(after["composition"], "MgO")).sort_by(order)
    assert before.num_rows == 2 * len(FORMULAS)
    assert before["id"].to_pylist() != after["id"].to_pylist()
    assert apart(before, after) < 1e-3


def full_above(monkeypatch: pytest.MonkeyPatch, atoms: int) -> list[int]:
    """Memory of the network for so many atoms; returns the sizes of its batches, as they come."""
    forward, sizes = Crysformer.forward, []

    def small(self: Crysformer, numbers: torch.Tensor, *more: Any, **others: Any) -> Output:
        if len(numbers) > atoms:
            raise torch.OutOfMemoryError("injected")
        sizes.append(len(numbers))
        return forward(self, numbers, *more, **others)

    monkeypatch.setattr(Crysformer, "forward", small)
    return sizes


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_memory_that_runs_out_changes_nothing(
    models: tuple[str, Path], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(models, guidance_scale=scale)
    assert read_about(models[1] / "work.parquet")["batch_atoms"] == 6000
    sizes = full_above(monkeypatch, 30)
    halved = made(models, f"little-{scale}", guidance_scale=scale)
    assert max(sizes) <= 30
    assert apart(whole, halved) < 1e-3
    assert set(halved["status"].to_pylist()) == {"ok"}
    safe = read_about(models[1] / f"little-{scale}.parquet")["batch_atoms"]
    assert 10 <= safe <= 30
    for file in (models[1] / "all").glob("fits-*.json"):
        file.unlink()


def test_a_crystal_too_large_for_the_memory_does_not_end_the_shard(
    models: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(models)
    full_above(monkeypatch, 9)
    found = made(models, "tiny")
    lost = pc.equal(found["composition"], "Sr2Ti2O6")
    assert set(found.filter(lost)["status"].to_pylist()) == {"out_of_memory"}
    kept = pc.invert(lost)
    assert apart(whole.filter(kept), found.filter(kept)) < 1e-3
    for file in (models[1] / "all").glob("fits-*.json"):
        file.unlink()


def test_a_shard_goes_on_where_it_was(models: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same batches to the bit; and whatever is left when their size has changed."""
    whole = made(models, batch_atoms=20)
    real, calls = generate_rows, []

    def dying(rows: pa.Table, *more: Any) -> pa.Table:
        calls.append(rows.num_rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(rows, *more)

    monkeypatch.setattr(module, "generate_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        made(models, "killed", batch_atoms=20)
    assert made(models, "killed", batch_atoms=20).equals(whole)
    assert sum(calls) == ROWS.num_rows + calls[2]  # nothing twice but for the batch that died
    assert not (models[1] / "all" / "killed").exists()

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        made(models, "killed", batch_atoms=20)
    sizes = full_above(monkeypatch, 12)  # other work has taken memory meanwhile
    found = made(models, "killed", batch_atoms=20)
    assert apart(found, whole) < 1e-3
    assert max(sizes) <= 12
    for file in (models[1] / "all").glob("fits-*.json"):
        file.unlink()


def test_interruption_keeps_what_is_finished(models: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        requested = True

        def __enter__(self) -> Asked:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(module, "Interruptible", Asked)
        with pytest.raises(ContinueLater, match=r"stopped: \d+ candidates are left"):
            made(models, "stopped", batch_atoms=20)
    assert len(list((models[1] / "all" / "stopped").iterdir())) == 1
    assert made(models, "stopped", batch_atoms=20).equals(made(models, batch_atoms=20))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_what_is_not_finite_has_a_status(
    models: tuple[str, Path], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that loses its head over iron alone: iron has no crystals, the others are as they were."""
    whole = made(models, guidance_scale=scale)
    forward = Crysformer.forward

    def sick(self: Crysformer, numbers: torch.Tensor, *more: Any, **others: Any) -> Output:
        out = forward(self, numbers, *more, **others)
        lattice = out.lattice.index_put((more[-1].crystal[numbers == 26],), torch.tensor(torch.nan))
        return out._replace(coords=torch.where((numbers == 26)[:, None], torch.inf, out.coords), lattice=lattice)

    monkeypatch.setattr(Crysformer, "forward", sick)
    found = made(models, "sick", guidance_scale=scale)
    iron = np.array(["Fe" in composition for composition in found["composition"].to_pylist()])
    assert (np.array(found["status"].to_pylist()) == np.where(iron, "not_finite", "ok")).all()
    healthy = pa.array(~iron)
    assert apart(whole.filter(healthy), found.filter(healthy)) < 1e-3


def test_trajectories_end_in_the_candidates(models: tuple[str, Path], tmp_path: Path) -> None:
    """Drawn again on request, in a batch of their own; of several draws the one that was kept."""
    process, folder = models
    settings: dict[str, Any] = {"guidance_scale": 1.0, "guidance": {"draws": 3}}
    arguments = (campaign(process, **settings), folder / "plan.parquet", folder / "dao_g", folder / "dao_p")
    files = write_trajectories(*arguments, ["cand:4:1", "cand:1:0"], tmp_path)
    assert sorted(path.name for path in files) == ["Fe2O3_cand-4-1.xyz", "Sr2Ti2O6_cand-1-0.xyz"]
    whole = made(models, **settings)
    for name, atoms in (("cand:4:1", 5), ("cand:1:0", 10)):
        (file,) = (path for path in files if name.replace(":", "-") in path.name)
        lines = file.read_text().splitlines()
        assert len(lines) == (STEPS + 1) * (atoms + 2)
        levels = [int(line.rpartition("noise_level=")[2]) for line in lines[1 :: atoms + 2]]
        assert levels == [round(LEVELS * (1 - i / STEPS)) for i in range(STEPS + 1)]
        row = whole.filter(pc.equal(whole["id"], name))
        crystal = flatten(row)
        last = lines[-atoms:]
        cell = np.array(lines[-atoms - 1].split('"')[1].split(), dtype=float).reshape(3, 3)
        assert np.abs(cell - crystal.lattice[0]).max() < 1e-3 * np.abs(cell).max()
        coords = np.array([line.split()[1:] for line in last], dtype=float) @ np.linalg.inv(cell)
        assert np.abs((coords - crystal.frac + 0.5) % 1.0 - 0.5).max() < 1e-3
    with pytest.raises(UserError, match=r"no candidate cand:9:0"):
        write_trajectories(*arguments, ["cand:9:0"], tmp_path)
    planned_template = ROWS.set_column(ROWS.schema.get_field_index("origin"), "origin", pa.repeat("template", 18))
    write_table(planned_template, tmp_path / "plan.parquet", {})
    with pytest.raises(UserError, match=r"cand:1:0 are made from templates"):
        write_trajectories(arguments[0], tmp_path / "plan.parquet", *arguments[2:], ["cand:1:0"], tmp_path)
    none = tmp_path / "templates.parquet"
    write_table(ROWS.select(["id"]).slice(0, 0), none, {"covers": [[0, 0]]})
    again = write_trajectories(
        arguments[0], tmp_path / "plan.parquet", *arguments[2:], ["cand:1:0"], tmp_path / "again", none
    )
    assert [path.name for path in again] == ["Sr2Ti2O6_cand-1-0.xyz"]


def test_watching_changes_nothing() -> None:
    dao_g = model("dao_g", "flow")
    settings = Generate(steps=STEPS, guidance_scale=0)
    seen: list[int] = []
    plain = sample_rows(ROWS, dao_g, None, settings, 1)
    watched = sample_rows(ROWS, dao_g, None, settings, 1, lambda draw, level, coords, lattice: seen.append(level))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert len(seen) == STEPS + 1
