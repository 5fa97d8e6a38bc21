"""Checks of what screening needs from outside: a second model, and phases for a hull."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec

from dao_pipeline.config import Campaign, expand_path
from dao_pipeline.errors import UserError


def screen_problems(campaign: Campaign) -> Iterator[str]:
    """What is wrong with screen.second_model and screen.hull, in words, each with its remedy."""
    screen = campaign.screen
    if screen.second_model.model == "chgnet" and find_spec("chgnet") is None:
        yield (
            "screen.second_model.model = chgnet: CHGNet is not installed; pip install 'dao-pipeline[chgnet]', or "
            "set it to none."
        )
    named = screen.hull.entries
    if named is None:
        return
    if screen.hull.model == "dao_p" and _label(campaign) not in ("formation_energy", None):
        yield (
            f"screen.hull.entries = {named}: DAO-P learns {_label(campaign)} here, and a hull takes formation "
            "energies; set energy_model.label: formation_energy, or screen.hull.model: chgnet, or "
            "screen.hull.entries: null."
        )
    if named == "crysdb":
        if screen.hull.energies == "given":
            yield (
                "screen.hull.energies = given: the energies of CrysDB are its sources', not those of the model "
                "that judges the candidates; set screen.hull.energies: model."
            )
        return
    try:
        path = expand_path(named)
    except UserError as error:
        yield f"screen.hull.entries = {named}: {str(error).partition(': ')[2] or error}"
        return
    if not path.exists():
        yield f"screen.hull.entries = {named}: {path} does not exist; correct the path."


def _label(campaign: Campaign) -> str | None:
    """What DAO-P predicts in this campaign; None where that is not to be seen."""
    if campaign.energy_model.pretrained is None:
        return campaign.energy_model.label
    try:
        config = expand_path(campaign.energy_model.pretrained) / "config.json"
        return str(json.loads(config.read_text(encoding="utf-8"))["energy_label"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None  # a problem of energy_model.pretrained, named there
