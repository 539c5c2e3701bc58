"""One line of a study: a published value, ours, and whether they agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class StudyRow:
    """`tolerance` is the relative error up to which a row counts as reproduced; None marks a row that is only reported.

    `certainty` says how sure the published value is: `certain` (read in the publication or its released code) or `probable`.
    """

    system: str
    experiment: str
    published: float
    ours: float
    unit: str
    tolerance: float | None
    certainty: Literal["certain", "probable"]
    source: str
    note: str = ""

    @property
    def error(self) -> float:
        """Ours over published, less one."""
        return self.ours / self.published - 1

    @property
    def status(self) -> Literal["reproduced", "not reproduced", "reported"]:
        if self.tolerance is None:
            return "reported"
        return "reproduced" if abs(self.error) <= self.tolerance else "not reproduced"

    def to_json(self) -> dict[str, Any]:
        """The documented keys of `study --json`."""
        return {**asdict(self), "error": self.error, "status": self.status}
