"""Where random numbers begin: every seed follows from the campaign's and from what it is for."""

from __future__ import annotations

import hashlib


def stage_seed(seed: int, stage: str) -> int:
    """Seed of a stage: stages of one campaign do not share random numbers."""
    digest = hashlib.sha256(f"{seed}:{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
