"""From templates to crystals: along the paths that a flow has learned, or through noise that any model knows."""

from __future__ import annotations

import itertools

import torch

from dao_pipeline.model.layout import Layout
from dao_pipeline.process.base import GenerativeProcess
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.log_metric import log_metric, metric_cell
from dao_pipeline.process.noise_stream import NoiseStream
from dao_pipeline.process.sampler import Denoiser, Sampled, Start, reverse_times
from dao_pipeline.process.symmetrize import Symmetrizer


def refine(
    denoise: Denoiser,
    layout: Layout,
    flow: Flow,
    template: Sampled,
    *,
    steps: int,
    symmetry: Symmetrizer | None = None,
) -> Sampled:
    """Follow the learned path from each template to its crystal, with Euler steps from s = 1 to 0.

    ``denoise`` must tell the network that it is on such a path. One step goes at once to where a crystal with such
    a template is expected. With ``symmetry`` only movements that keep the templates' symmetry are made.
    """
    coords, y = template.frac_coords, log_metric(template.lattice)
    for t, then in itertools.pairwise(reverse_times(flow.timesteps, steps)):
        step = (t - then) / flow.timesteps
        level = torch.full((len(y),), t, device=y.device, dtype=torch.int64)
        out_f, out_l = denoise(coords % 1.0, metric_cell(y), level)
        v_f, v_l = flow.template_velocity(out_f, out_l, layout)
        if symmetry is None:
            coords, y = coords - step * v_f, y - step * v_l
        else:
            coords, y = coords - step * symmetry.displacements(v_f), symmetry.log_metrics(y - step * v_l)
    return Sampled(coords % 1.0, metric_cell(y))


def noised(
    process: GenerativeProcess, layout: Layout, template: Sampled, share: float, noise: NoiseStream
) -> Start:
    """Templates at ``share`` of the process's noise levels, at least 2: where ``sample`` may start."""
    level = max(2, round(share * process.timesteps))
    t = torch.full((layout.num_crystals,), level, device=template.lattice.device, dtype=torch.int64)
    drawn = process.draw_for(noise, template.lattice.dtype)
    noisy = process.at_level(template.frac_coords, template.lattice, layout, t, drawn)
    return Start(noisy.frac_coords, noisy.lattice, level)
