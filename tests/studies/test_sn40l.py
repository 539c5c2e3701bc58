"""The study of SN40L: switching by pencil, orderings of fusion, and reasons where it falls short."""

from __future__ import annotations

import pytest

from studies import sn40l


def test_a_switch_is_the_expert_over_the_link() -> None:
    for link, capacity, published in sn40l.PATHS.values():
        ours = sn40l.switch_ms(link, capacity)
        assert ours == pytest.approx(sn40l.EXPERT_BYTES / link.bandwidth * 1e3)
        assert ours == pytest.approx(published, rel=0.05)


def test_a_larger_fast_memory_switches_less_often() -> None:
    """Uniform choice: what is resident is hit, so the share is 1 - resident / experts."""
    for capacity in (100 * sn40l.EXPERT_BYTES, 38 * sn40l.EXPERT_BYTES):
        resident = capacity // sn40l.EXPERT_BYTES - 1  # beside the router
        assert sn40l.switches(capacity) == pytest.approx(1 - resident / sn40l.EXPERTS, abs=0.03)


def test_fusion_raises_operations_per_byte_in_the_published_order() -> None:
    """Unfused, four operators read and write the data once each; fused with what follows, each hand-over saves a write and a read."""
    none, part, full = (sn40l.intensity(division) for division in sn40l.DIVISIONS.values())
    assert none < part < full
    assert part / none == pytest.approx(2, rel=0.01)  # 8 passes over the data, then 4
    assert full / none == pytest.approx(4, rel=0.01)  # then 2


def test_fusion_pays_in_time_and_kernels() -> None:
    gain, kernels = sn40l.fusion_gain("decode", length=256, model="opt-1.3b")
    assert gain > 1
    assert kernels > 5


@pytest.mark.slow
def test_rows_that_are_not_reproduced_say_why() -> None:
    rows = sn40l.rows()
    assert [row.status for row in rows].count("reproduced") >= 6
    assert all(row.status == "reproduced" or len(row.note) > 50 for row in rows)
