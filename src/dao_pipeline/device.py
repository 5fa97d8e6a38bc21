"""Which device computes, and what it says when its memory is full."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """The GPU that this process may use if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What the device is called, e.g. ``NVIDIA A100-SXM4-40GB``; ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on a GPU or on the CPU?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # PyTorch's CPU allocator has no exception of its own
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
