"""The noise: lattice diffusion, wrapped normal, samplers and guidance."""
