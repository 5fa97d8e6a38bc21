"""Running on a Slurm cluster: what its site is like, and whether all is in place there."""
