"""Device data sheets, one YAML file each."""

from __future__ import annotations

from pathlib import Path

from hw.device import Device
from hw.errors import HardwareError, nearest

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the devices that come with Dovetail."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str | Path) -> Device:
    """The device called `name`, or described by the YAML file at that path.

    Raises `HardwareError` with the nearest name.
    """
    text = str(name)
    if text in names():
        return Device.from_yaml(FOLDER / f"{text}.yaml")
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        if not Path(text).is_file():
            raise HardwareError(f"{text}: no such device file")
        return Device.from_yaml(text)
    raise HardwareError(f"unknown device {text!r}, expected one of {', '.join(names())} or a YAML file{nearest(text, names())}")
