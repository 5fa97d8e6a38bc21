"""What every part of the configuration has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        """A subsection that is given in part keeps this section's defaults for the rest, not its class's own."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, value in values.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(default, Section) and isinstance(value, dict):
                values[name] = {**default.model_dump(exclude_unset=True), **value}
        return values
