"""Where flows start: the prior has the moments of the training crystals, and none of their axes' names."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.compute as pc
import torch

from dao_pipeline.config import Process
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.log_metric import log_metric, pack, unpack
from dao_pipeline.process.prior import RIDGE, fit_lattice_prior
from dao_pipeline.sources.embedded import load
from tests.make import binary


def test_moments_are_those_of_the_crystals() -> None:
    table = load().slice(0, 1500)
    volumes = fit_element_volumes(table)
    prior = fit_lattice_prior(table, volumes)
    flat = flatten(table)
    edges = np.array([volumes[flat.numbers[flat.crystal_of_atom == i]].sum() for i in range(len(flat))]) ** (1 / 3)
    y = log_metric(torch.from_numpy(flat.lattice / edges[:, None, None]))
    covariance = prior.factor @ prior.factor.T
    # trace and squared length do not depend on the order of the axes
    trace = y.diagonal(dim1=1, dim2=2).sum(1)
    ones = pack(torch.eye(3, dtype=torch.float64)[None])[0]
    torch.testing.assert_close(ones @ prior.mean, trace.mean())
    torch.testing.assert_close(ones @ covariance @ ones - 3 * RIDGE**2, trace.var(correction=0))
    second = covariance.trace() - 6 * RIDGE**2 + prior.mean.square().sum()
    torch.testing.assert_close(second, y.square().sum((1, 2)).mean())


def test_axes_have_no_names() -> None:
    table = load().slice(0, 400)
    prior = fit_lattice_prior(table, fit_element_volumes(table))
    covariance = prior.factor @ prior.factor.T
    for order in map(list, itertools.permutations(range(3))):
        basis = torch.stack([pack(unpack(e[None])[:, order][:, :, order])[0] for e in torch.eye(6).double()])
        torch.testing.assert_close(basis.T @ prior.mean, prior.mean)
        torch.testing.assert_close(basis.T @ covariance @ basis, covariance)


def test_cubic_crystals_alone_leave_a_proper_prior() -> None:
    table = to_table([binary(i) for i in range(20)])
    prior = fit_lattice_prior(table, fit_element_volumes(table))
    smallest = torch.linalg.eigvalsh(prior.factor @ prior.factor.T).min()
    torch.testing.assert_close(smallest, torch.tensor(RIDGE**2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_draws_have_the_moments_of_the_prior() -> None:
    table = load().filter(pc.less_equal(load()["num_atoms"], 6)).slice(0, 600)
    prior = fit_lattice_prior(table, fit_element_volumes(table))
    flow = Flow(Process(kind="flow"), prior).double()
    drawn = pack(flow.draw_lattice(200_000, torch.Generator().manual_seed(0), torch.float64))
    std = (prior.factor @ prior.factor.T).diagonal().sqrt()
    assert ((drawn.mean(0) - prior.mean).abs() < 0.01 * std).all()
    torch.testing.assert_close(drawn.std(0), std, rtol=0.01, atol=0)
