"""The common form of everything in a device description: immutable, keywords only, no unknown fields."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hw.errors import HardwareError, nearest


class Part(BaseModel):
    """A physical thing with a data sheet. `source` says where its numbers come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    source: str = ""

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise HardwareError(items=mistakes(error, type(self))) from None

    def __str__(self) -> str:
        return repr(self)


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """Every mistake of a description in words: its path, and what was expected and found there."""
    found = []
    for item in error.errors():
        path = ".".join(str(step) for step in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, HardwareError):
            found += [(".".join(p for p in (path, inner) if p), reason) for inner, reason in cause.items]
        else:
            found.append((path, _reason(item, model)))
    return found


def _reason(item: Any, model: type[BaseModel]) -> str:
    match item["type"]:
        case "extra_forbidden":
            return f"unknown field{nearest(str(item['loc'][-1]), model.model_fields)}"
        case "missing":
            return "missing field"
        case _:
            return f"{item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"
