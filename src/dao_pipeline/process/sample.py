"""Sampling as a campaign's settings ask for it, whatever the process of the generator."""

from __future__ import annotations

from dao_pipeline.config import Generate
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout
from dao_pipeline.process import flow_sampler, sampler
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.guidance import Steering
from dao_pipeline.process.noise_stream import NoiseStream
from dao_pipeline.process.sampler import Denoiser, EnergyGradient, Sampled, Start, Watch


def sampled_by(
    generator: DaoModel,
    settings: Generate,
    denoise: Denoiser,
    layout: Layout,
    noise: NoiseStream,
    *,
    guidance: EnergyGradient | None = None,
    guidance_scale: float = 0.0,
    steering: Steering = Steering(),
    start: Start | None = None,
    watch: Watch | None = None,
) -> Sampled:
    """One crystal for each of the layout's, by the sampler of the generator's process, in its unit of lattices.

    The arguments are those of the samplers. Raises ValueError for settings that the process does not have.
    """
    how = settings.sampling(generator.process)
    if isinstance(generator.schedule, Flow):
        return flow_sampler.sample(
            denoise,
            layout,
            generator.schedule,
            steps=how.steps,
            noise=noise,
            method="midpoint" if how.method == "midpoint" else "euler",
            annealing=how.annealing or 0.0,
            guidance=guidance,
            guidance_scale=guidance_scale,
            steering=steering,
            start=start,
            watch=watch,
            dtype=generator.dtype,
        )
    return sampler.sample(
        denoise,
        layout,
        generator.schedule,
        steps=how.steps,
        noise=noise,
        corrector=how.method == "predictor-corrector",
        step_size=settings.step_size,
        guidance=guidance,
        guidance_scale=guidance_scale,
        steering=steering,
        bound=generator.process.lattice_scale != "none",  # it is in units of the expected edge
        start=start,
        watch=watch,
        dtype=generator.dtype,
    )
