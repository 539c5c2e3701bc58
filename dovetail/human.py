"""Numbers as people read them: three significant digits, the unit that fits, capacities in binary units."""

from __future__ import annotations

_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi")
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"), (1e-12, "ps"), (1e-15, "fs"))
_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"), (1e-12, "pJ"))


def digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers from 1000 on are grouped.

    >>> digits(11.943), digits(0.5), digits(1234567)
    ('11.9', '0.5', '1 234 567')
    """
    size = abs(value)
    if size >= 999.5:
        return integer(round(value))
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    if 0 < size < 0.995:
        return f"{value:.3g}" if size >= 1e-4 else f"{value:.2e}"
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def integer(value: int) -> str:
    """Digits in groups of three.

    >>> integer(11943210)
    '11 943 210'
    """
    return f"{value:,}".replace(",", " ")


def percent(fraction: float) -> str:
    """A share of one.

    >>> percent(0.934), percent(0.0042), percent(0.00001), percent(0), percent(1)
    ('93 %', '0.4 %', '<0.1 %', '0 %', '100 %')
    """
    value = 100 * fraction
    if value == 0:
        return "0 %"
    if value < 0.1:
        return "<0.1 %"
    if value < 9.95 or 99 < value < 100:
        rounded = min(f"{value:.1f}", "99.9", key=float) if value < 100 else f"{value:.1f}"
        return f"{rounded} %".replace(".0 %", " %")
    return f"{value:.0f} %"


def decimal(value: float, unit: str) -> str:
    """With a decimal prefix: traffic, bandwidth, FLOPs, rates.

    >>> decimal(2.039e12, "B/s"), decimal(13_476_839_424, "B"), decimal(999.9e9, "FLOP")
    ('2.04 TB/s', '13.5 GB', '1 TFLOP')
    """
    return _prefixed(value, unit, 1000, _DECIMAL)


def capacity(size_bytes: float) -> str:
    """With a binary prefix: what a memory holds.

    >>> capacity(80 * 2**30), capacity(1536)
    ('80 GiB', '1.5 KiB')
    """
    return _prefixed(size_bytes, "B", 1024, _BINARY)


def _prefixed(value: float, unit: str, step: int, prefixes: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value /= step
        power += 1
    return f"{digits(value)} {prefixes[power]}{unit}"


def seconds(value: float) -> str:
    """A time in seconds.

    >>> seconds(0.0119), seconds(2.5e-6), seconds(0), seconds(0.9999e-3)
    ('11.9 ms', '2.5 us', '0 s', '1 ms')
    """
    return _scaled(value, _SECONDS)


def joules(value: float) -> str:
    """An energy in joules.

    >>> joules(0.523)
    '523 mJ'
    """
    return _scaled(value, _JOULES)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    if value == 0:
        return f"0 {units[0][1]}"
    for factor, unit in units:
        if abs(value) >= 0.9995 * factor:
            return f"{digits(value / factor)} {unit}"
    factor, unit = units[-1]
    return f"{digits(value / factor)} {unit}"


def ratio(value: float) -> str:
    """How many times.

    >>> ratio(1.0851)
    '1.09x'
    """
    return f"{value:.2f}x" if value < 9.995 else f"{digits(value)}x"
