"""Paths in the configuration."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dao_pipeline.errors import UserError


def expand_path(text: str) -> Path:
    """A path of the configuration with ``~``, ``$NAME`` and ``${NAME}`` replaced.

    Raises UserError naming an environment variable that is not set.
    """
    expanded = os.path.expandvars(text)
    if missing := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(f"path {text!r}: the environment variable {missing.group(1)} is not set; set it.")
    return Path(expanded).expanduser()
