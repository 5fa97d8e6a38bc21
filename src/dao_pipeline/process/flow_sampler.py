"""Sampling by flow matching: a differential equation from noise to crystals, optionally guided by DAO-P."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

from dao_pipeline.model.layout import Layout
from dao_pipeline.process.flow import Flow, displacement_variance
from dao_pipeline.process.guidance import Steering
from dao_pipeline.process.log_metric import log_metric, metric_cell
from dao_pipeline.process.noise_stream import NoiseStream
from dao_pipeline.process.sampler import Denoiser, EnergyGradient, Sampled, Start, Watch, times_from

Method = Literal["euler", "midpoint"]

LARGEST_GAIN = 10.0
"""Bound on s / (1 - s), by which guidance multiplies the energy's gradient in the lattice.

Near pure noise the gradient of the exact E_s vanishes as 1 - s and the product is finite. The gradient of a
network does not vanish, and would be blown up: the bound is active in the noisiest eleventh of the path.
"""


def sample(
    denoise: Denoiser,
    layout: Layout,
    flow: Flow,
    *,
    steps: int,
    noise: NoiseStream,
    method: Method = "euler",
    annealing: float = 0.0,
    guidance: EnergyGradient | None = None,
    guidance_scale: float = 0.0,
    steering: Steering = Steering(),
    start: Start | None = None,
    watch: Watch | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sampled:
    """Draw one crystal for each of the layout's B crystals, from pure noise or from ``start``.

    ``euler`` asks the network once per step. ``midpoint`` asks twice, never at s = 0, and is of second order; it
    needs steps <= T / 2, for there must be a level between two levels. Annealing and guidance are taken from the
    beginning of a step, so with them it is of first order. The noise that a run starts from depends on
    ``noise`` only, so that runs with other steps or methods compare.

    ``annealing`` a multiplies the velocity of the coordinates by 1 + a (1 - s), as CrystalFlow does, which
    settles them sooner; no step goes beyond the crystal that the velocity points at.

    ``guidance`` shifts velocities by the gradient of E_s times ``guidance_scale`` (``_guide``), once per step, as
    ``steering`` shapes it; at scale 0 it is not called, so results equal those without it bit for bit.
    ``watch`` sees the start and the crystals after each step.
    """
    if method == "midpoint" and 2 * steps > flow.timesteps:
        raise ValueError(f"midpoint takes at most {flow.timesteps // 2} steps of {flow.timesteps} levels")
    device = layout.ptr.device
    crystals = layout.num_crystals
    if start is None:
        coords, y = flow.draw_for(noise, dtype)
    else:
        coords, y = start.frac_coords, log_metric(start.lattice)

    def velocity(coords: Tensor, y: Tensor, t: int) -> tuple[Tensor, Tensor]:
        level = torch.full((crystals,), t, device=device, dtype=torch.int64)
        out_f, out_l = denoise(coords % 1.0, metric_cell(y), level)
        return flow.coords_velocity(out_f, layout), flow.lattice_velocity(out_l, y, t / flow.timesteps)

    times = times_from(start, flow.timesteps, steps)
    if watch is not None:
        watch(times[0], coords, metric_cell(y))
    for t, then in itertools.pairwise(times):
        s, step = t / flow.timesteps, (t - then) / flow.timesteps
        move = min(step * (1 + annealing * (1 - s)), s)
        v_f, v_l = velocity(coords, y, t)
        shift_f = shift_l = None
        if guidance is not None and steering.acts(guidance_scale, s):
            shift_f, shift_l = _guide(guidance, flow, layout, coords, y, t, guidance_scale)
            shift_f, shift_l = steering.of_coords(shift_f, v_f, layout), steering.of_lattice(shift_l, v_l)
            v_f, v_l = v_f + shift_f, v_l + shift_l
        if method == "midpoint":
            middle = (t + then) // 2
            share = (t - middle) / (t - then)
            m_f, m_l = velocity(coords - share * move * v_f, y - share * step * v_l, middle)
            if shift_f is not None and shift_l is not None:
                m_f, m_l = m_f + shift_f, m_l + shift_l
            # of second order wherever between the levels the middle lies; both weights are 0 and 1 at one half
            late = 0.5 / share
            v_f, v_l = (1 - late) * v_f + late * m_f, (1 - late) * v_l + late * m_l
        coords, y = (coords - move * v_f) % 1.0, y - step * v_l
        if watch is not None:
            watch(then, coords, metric_cell(y))
    return Sampled(coords, metric_cell(y))


def _guide(
    guidance: EnergyGradient, flow: Flow, layout: Layout, coords: Tensor, y: Tensor, t: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Shifts of both velocities that add -scale * grad E_s to the score of the noisy crystals.

    Lattice: Y_s given Y_0 is normal about (1 - s) Y_0 + s m with covariance s^2 C, so its score is
    -C^-1 (Y_s - m + (1 - s) v) / s and the shift of v is s / (1 - s) C scale grad E_s. Coordinates: F_s given F_0
    scatters about F_0 with variance s^2 V (``displacement_variance``); a normal of that variance has the score
    -v / (s V), and the shift is s V scale grad E_s. The displacements are not normal: that is exact for densities
    and energies that are smooth on the scale of the noise, and an approximation else.
    """
    s = t / flow.timesteps
    level = torch.full((len(y),), t, device=y.device, dtype=torch.int64)
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        lattice = metric_cell(leaf)
        grad_f, grad_l = guidance(coords, lattice.detach(), level)
        (grad_y,) = torch.autograd.grad(lattice, leaf, grad_l)
    grad_y = 0.5 * (grad_y + grad_y.transpose(1, 2))
    gain = min(s / (1 - s), LARGEST_GAIN) if s < 1 else LARGEST_GAIN
    variance = torch.cat([y.new_full((n * count, 1), displacement_variance(n)) for n, count in layout.classes])
    return (
        s * scale * layout.unsort_atoms(variance) * layout.remove_mean(grad_f),
        gain * scale * flow.lattice_covariance(grad_y),
    )
