"""The user's key of the Materials Project: where it is looked for. It is never written anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from dao_pipeline.errors import UserError

KEY_LENGTH = 32
"""Characters of a key of the present API; those of the old one were shorter."""

_VARIABLES = ("MP_API_KEY", "PMG_MAPI_KEY", "MAPI_KEY")

HOW_TO = (
    "set the environment variable MP_API_KEY, or PMG_MAPI_KEY in ~/.config/.pmgrc.yaml, to the key of your "
    "Materials Project account (it is never stored)"
)


def materials_project_key() -> str:
    """The key from MP_API_KEY, else from pymatgen's settings (environment or file); empty when there is none.

    Light enough for the Snakefile: pymatgen itself is not imported.

    Raises UserError when pymatgen's settings cannot be read, and when the key has not the form of one.
    """
    key = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    key = (key or str(_pymatgen_settings().get("PMG_MAPI_KEY") or "")).strip()
    if key and len(key) != KEY_LENGTH:
        raise UserError(f"the key of the Materials Project has {len(key)} characters, not {KEY_LENGTH}; {HOW_TO}.")
    return key


def _pymatgen_settings() -> dict[str, Any]:
    """pymatgen's settings file, found as pymatgen finds it."""
    given = os.environ.get("PMG_CONFIG_FILE")
    home = Path.home()
    for path in (Path(given) if given else home / ".config" / ".pmgrc.yaml", home / ".pmgrc.yaml"):
        if path.is_file():
            try:
                settings = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                # the parser's own message quotes the file, which holds the key
                raise UserError(f"{path}: pymatgen's settings cannot be read as YAML; mend the file.") from None
            return settings if isinstance(settings, dict) else {}
    return {}
