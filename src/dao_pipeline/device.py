"""Which device computes."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """The GPU that this process may use if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
