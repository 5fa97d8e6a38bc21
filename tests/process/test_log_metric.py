"""Cells in the logarithm of the metric: nothing is lost, nothing depends on how the cell is turned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dao_pipeline.process.log_metric import log_metric, metric_cell, pack, unpack
from tests.make import random_cells


@pytest.fixture(scope="module")
def cells() -> torch.Tensor:
    return torch.from_numpy(random_cells(60, seed=4, skew=1.5))


def test_round_trip(cells: torch.Tensor) -> None:
    back = metric_cell(log_metric(cells))
    torch.testing.assert_close(back, back.transpose(1, 2), rtol=1e-9, atol=1e-9)
    # the same lengths and angles: the same Gram matrix
    torch.testing.assert_close(back @ back, cells @ cells.transpose(1, 2), rtol=1e-9, atol=1e-9)
    assert (torch.linalg.det(back) > 0).all()
    torch.testing.assert_close(torch.linalg.det(back), torch.linalg.det(cells).abs(), rtol=1e-9, atol=0)


def test_single_precision(cells: torch.Tensor) -> None:
    exact, single = log_metric(cells), log_metric(cells.float())
    assert single.dtype == torch.float32
    assert (single.double() - exact).abs().max() < 1e-5


def test_does_not_turn_with_the_cell(cells: torch.Tensor) -> None:
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    torch.testing.assert_close(log_metric(cells @ turn), log_metric(cells), rtol=1e-9, atol=1e-9)


def test_renaming_axes_permutes_the_matrix(cells: torch.Tensor) -> None:
    order = [2, 0, 1]
    torch.testing.assert_close(log_metric(cells[:, order]), log_metric(cells)[:, order][:, :, order])


def test_scaling_adds_to_the_diagonal(cells: torch.Tensor) -> None:
    moved = log_metric(cells) + math.log(1.7) * torch.eye(3, dtype=cells.dtype)
    torch.testing.assert_close(log_metric(1.7 * cells), moved)


def test_vectors_have_the_length_of_matrices(cells: torch.Tensor) -> None:
    y = log_metric(cells)
    torch.testing.assert_close(unpack(pack(y)), y)
    torch.testing.assert_close(pack(y).square().sum(1), y.square().sum((1, 2)))


@pytest.mark.parametrize("spread", [0.0, 0.1], ids=["cubic", "tetragonal"])
def test_gradients_at_degenerate_cells(spread: float) -> None:
    """Of the trace of exp(Y): exp(Y) itself, also where eigenvalues coincide."""
    y = torch.diag(torch.tensor([0.2, 0.2, 0.2 + spread], dtype=torch.float64))[None].requires_grad_()
    cell = metric_cell(y)
    (gradient,) = torch.autograd.grad(cell.diagonal(dim1=1, dim2=2).sum(), y)
    torch.testing.assert_close(gradient, cell.detach())


def test_flat_cells_stay_finite() -> None:
    flat = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])[None]
    assert torch.isfinite(log_metric(flat)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_cells_that_are_not_finite_leave_the_others_alone(cells: torch.Tensor, bad: float) -> None:
    """Eigenvalues of such a matrix would be an error for the whole batch."""
    damaged = cells.clone()
    damaged[1, 2, 0] = bad
    found, healthy = log_metric(damaged), torch.arange(len(cells)) != 1
    assert torch.equal(found[healthy], log_metric(cells)[healthy])
    assert found[1].isnan().all()
