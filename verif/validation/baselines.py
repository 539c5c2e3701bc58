"""Simpler models for comparison: rooflines with no, with usual and with fitted constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.device import Device
from verif.validation.hygiene import peaks
from verif.validation.measurement import Measurement

BASELINES = ("naive roofline", "0.8 / 0.8 / 3 us roofline", "three-parameter fit")

MOST_FITTED = 800
"""Rows that the three parameters are fitted on, at most: evenly spaced among those of the fitted half."""


def fit(label: str, measured: Sequence[Measurement], device: Device) -> np.ndarray[Any, Any]:
    """Seconds that a baseline predicts for measurements of one operator and data type on one device.

    The three parameters - shares of the peaks and a fixed time - minimise the mean relative error on the shapes of the fitted half.
    """
    rate, bandwidth, _ = peaks(device, measured[0].dtype)
    work = np.array([m.work for m in measured], dtype=float)
    compute = work[:, 0] / rate if rate else np.zeros(len(work))
    memory = work[:, 1] / bandwidth
    host = np.array([m.host_s if m.clock == "host" else 0.0 for m in measured])
    if label == BASELINES[0]:
        return np.asarray(np.maximum(compute, memory) + host)
    if label == BASELINES[1]:
        return np.asarray(np.maximum(compute / 0.8, memory / 0.8) + 3e-6 + host)
    latency = np.array([m.latency_s for m in measured])
    usable = np.flatnonzero([m.fitted for m in measured])
    if len(usable) < 3:
        usable = np.arange(len(measured))
    usable = usable[:: len(usable) // MOST_FITTED + 1]
    c, b, t, h = compute[usable], memory[usable], latency[usable], host[usable]
    best = (0.8, 0.8, 3e-6)
    span = 0.7
    for _ in range(5):  # a grid around the best so far, ever finer
        shares = [np.clip(x * np.linspace(1 - span, 1 + span, 9), 0.02, 1.0) for x in best[:2]]
        fixed = best[2] * np.linspace(max(0.0, 1 - 1.4 * span), 1 + 1.4 * span, 9)
        grid = np.array(np.meshgrid(*shares, fixed, indexing="ij")).reshape(3, -1)
        guess = np.maximum(c / grid[0][:, None], b / grid[1][:, None]) + grid[2][:, None] + h
        index = int(np.abs(guess / t - 1).mean(axis=1).argmin())
        best = (float(grid[0][index]), float(grid[1][index]), float(grid[2][index]))
        span *= 0.6
    return np.asarray(np.maximum(compute / best[0], memory / best[1]) + best[2] + host)
