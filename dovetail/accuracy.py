"""`dovetail show weights.safetensors --weights bitmod3`: what number formats do to real weights, or to random ones.

`gaussian:4096x4096`, `student-t:...`, `outliers:...` and `uniform:...` stand for random tensors, the same for the same `--seed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.human import decimal, digits, integer
from dovetail.listing import print_json, table
from workloads.errors import WorkloadError
from workloads.format import Format, parse_format

if TYPE_CHECKING:
    from workloads.quantisers import ErrorReport
    from workloads.weights import WeightFile

SUFFIX = ".safetensors"


def is_random(what: str) -> bool:
    """Whether a name is that of a random tensor."""
    from workloads.quantisers.report import DISTRIBUTIONS

    return what.partition(":")[0] in DISTRIBUTIONS


def show(what: str, names: Sequence[str], patterns: Sequence[str], seed: int | None, as_json: bool) -> None:
    """Prints the tensors of a safetensors file or, given formats, the error of storing them in each; `what` may be a random tensor.

    Raises `WorkloadError` for unknown formats, tensors that a format cannot hold, and files that are not whole.
    """
    formats = _formats(names)
    if is_random(what):
        if patterns:
            raise WorkloadError(f"{what}: a random tensor has no name to match; leave out --tensor")
        if not formats:
            raise WorkloadError(f"{what}: name at least one format with --weights, such as bitmod4 or int4-g128")
        from workloads.quantisers.report import DISTRIBUTIONS, distribution

        tensors: Iterator[tuple[str, Any]] = iter([(what, distribution(what, seed or 0))])
        _errors(tensors, formats, f"{DISTRIBUTIONS[what.partition(':')[0]]}; seed {seed or 0}", as_json)
        return
    if seed is not None:
        raise WorkloadError(f"{what}: --seed is for random tensors such as gaussian:4096x4096")
    from workloads.weights import WeightFile

    file = WeightFile(Path(what))
    if not formats:
        _tensors(file, as_json)
        return
    chosen = list(file.matching(tuple(patterns)))
    if not chosen:
        raise WorkloadError(f"{what}: no weights to quantise (real numbers of two or more dimensions)")
    left = len(file.tensors) - len(chosen)
    note = f"{what}: {len(chosen)} of {len(file.tensors)} tensors"
    note += "; vectors and integers keep their format" if left and not patterns else ""
    _errors(((tensor.name, file.load(tensor.name)) for tensor in chosen), formats, note, as_json)


def _formats(names: Sequence[str]) -> list[Format]:
    """The formats of a repeatable option whose values may be lists with commas; `all` stands for every one that quantises."""
    from workloads.quantisers import quantisable, quantiser

    found = []
    for name in (part for text in names for part in text.split(",")):
        for each in quantisable() if name.strip() == "all" else (name,):
            known = parse_format(each)
            quantiser(known)  # refused here, before any tensor is read
            found.append(known)
    return found


def _errors(tensors: Iterator[tuple[str, Any]], formats: list[Format], note: str, as_json: bool) -> None:
    from workloads.quantisers import report

    rows: list[ErrorReport] = []
    for name, values in tensors:
        for known in formats:
            rows += report(values, known, tensor=name)
    if as_json:
        print_json({"source": note, "rows": [row.to_json() for row in rows]})
        return
    print(f"{note}\n")
    columns = ("tensor", "format", "shape", "SQNR dB", "max error", "cosine", "bits/value", "charged", "size")
    table(
        "",
        columns,
        (
            (
                row.tensor,
                row.format,
                "x".join(map(str, row.shape)),
                "exact" if row.exact else "" if row.sqnr_db is None else f"{row.sqnr_db:.2f}",
                digits(row.max_abs_error),
                "" if row.cosine is None else f"{row.cosine:.6f}",
                f"{row.bits_per_value:.4f}",
                f"{row.charged_bits:.4f}",
                decimal(row.size_bytes + row.once_bytes, "B"),
            )
            for row in rows
        ),
        right=frozenset(columns[3:]),
    )


def _tensors(file: WeightFile, as_json: bool) -> None:
    if as_json:
        rows = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "size_bytes": t.end - t.begin} for t in file.tensors.values()]
        print_json({"tensors": rows})
        return
    table(
        "",
        ("tensor", "type", "shape", "bytes"),
        ((t.name, t.dtype, "x".join(map(str, t.shape)), integer(t.end - t.begin)) for t in file.tensors.values()),
        right=frozenset({"bytes"}),
    )
