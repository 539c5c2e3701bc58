"""The learned residual finds a law that it is shown, learns from the fitted half alone, and does no harm where there is no law."""

from dataclasses import replace

import numpy as np
import pytest

from verif.validation import Measurement, Score
from verif.validation.residual import FEWEST, corrected
from verif.validation.score import metrics


def rows(count=400, device="h100-sxm", dtype="bf16", seed=0):
    rng = np.random.default_rng(seed)
    sizes = 2 ** rng.integers(4, 15, (count, 3))
    return [Measurement(device, "gemm", dtype, {"m": int(m), "n": int(n), "k": int(k)}, 1e-4) for m, n, k in sizes]


def score(measured, law):
    """Measurements that lie `law(shape)` times above predictions that follow from the operations."""
    predicted = [1e-6 + m.work[0] / 5e14 for m in measured]
    shown = [replace(m, latency_s=p * law(m.shape)) for m, p in zip(measured, predicted, strict=True)]
    return Score(tuple(shown), tuple(predicted), {})


def held_out(found, values):
    chosen = [i for i, m in enumerate(found.measured) if not m.fitted]
    return metrics(np.array(values)[chosen], np.array([found.measured[i].latency_s for i in chosen]))["mape"]


@pytest.mark.parametrize(
    "law",
    [
        lambda s: 1.2,
        lambda s: (s["m"] / 512) ** 0.1,
        lambda s: 1.1 * (s["n"] / s["k"]) ** -0.05,
        lambda s: 2 ** (0.02 * np.log2(s["m"]) ** 2),
    ],
    ids=["constant", "power", "ratio", "quadratic"],
)
def test_a_law_of_the_sizes_is_found_on_shapes_that_were_not_shown(law):
    found = score(rows(), law)
    assert held_out(found, found.predicted) > 0.05
    assert held_out(found, corrected(found)) < 0.015


def test_only_the_fitted_half_teaches():
    found = score(rows(), lambda s: (s["m"] / 512) ** 0.1)
    other = replace(found, measured=tuple(m if m.fitted else replace(m, latency_s=7 * m.latency_s) for m in found.measured))
    assert corrected(other) == corrected(found)


def test_noise_is_not_learned():
    """Residuals of spread 0.1 without any law: a regression of nine coefficients on some 200 rows may add a few percent of that."""
    rng = np.random.default_rng(1)
    found = score(rows(), lambda s: float(np.exp(rng.normal(0, 0.1))))
    assert held_out(found, corrected(found)) < 1.08 * held_out(found, found.predicted)


def test_a_correction_goes_no_further_than_what_was_seen():
    measured = rows()
    found = score(measured, lambda s: (s["m"] / 512) ** 0.1)
    far = Measurement("h100-sxm", "gemm", "bf16", {"m": 2**30, "n": 64, "k": 64}, 1.0)
    values = corrected(Score((*found.measured, far), (*found.predicted, 1.0), {}))
    seen = [m.latency_s / p for m, p in zip(found.measured, found.predicted, strict=True)]
    assert min(seen) <= values[-1] <= max(seen)


def test_too_few_rows_teach_nothing_and_classes_do_not_teach_each_other():
    few = [m for m in rows(200) if m.fitted][: FEWEST - 1]
    found = score(few, lambda s: 1.5)
    assert corrected(found) == found.predicted
    many = score(rows(), lambda s: 1.5)
    both = Score(many.measured + tuple(replace(m, dtype="fp8") for m in found.measured), many.predicted + found.predicted, {})
    assert corrected(both) == corrected(many) + found.predicted


def test_one_shape_measured_often_is_corrected_by_its_mean():
    """Nothing differs between the rows but the latency: no feature is left."""
    one = next(m for m in rows() if m.fitted)
    latencies = [1e-4 * (1.1 if i % 2 else 1.3) for i in range(40)]
    found = Score(tuple(replace(one, latency_s=t) for t in latencies), (1e-4,) * 40, {})
    assert corrected(found) == pytest.approx([1e-4 * (1.1 * 1.3) ** 0.5] * 40)
