"""The study of InstInfer: volumes by pencil, and reasons where it falls short."""

from __future__ import annotations

import pytest

from studies import instinfer


def test_published_volumes_are_per_layer() -> None:
    """64 sequences x 1024 tokens x 2 x 5120 fp16 numbers."""
    assert 64 * 1024 * instinfer.layer_token_bytes() == 1_342_177_280
    assert instinfer.kept() == pytest.approx(0.527, abs=0.001)


@pytest.mark.slow
def test_rows_that_are_not_reproduced_say_why() -> None:
    rows = instinfer.rows()
    assert [row.status for row in rows].count("reproduced") >= 3
    assert all(row.status == "reproduced" or len(row.note) > 50 for row in rows)
    assert all(row.source for row in rows)
