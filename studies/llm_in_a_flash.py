"""LLM in a flash (Alizadeh et al., 2023): reading OPT-6.7B from the SSD of a notebook, token by token.

Each row of their table is a volume read at the rate that its request size reaches. The volumes follow from the model and
the paper's sparsity; nothing is fitted.
"""

from __future__ import annotations

from hw.flash import flash
from studies.row import StudyRow

SOURCE = "Alizadeh et al., LLM in a flash: Efficient Large Language Model Inference with Limited Memory, 2023"

PARAMETERS = 6.7e9
BYTES = 2  # BF16
WIDTH = 4096
FFN_SHARE = 0.6462  # of the weights: 2 x 32 layers x 4096 x 16384 of 6.65e9 parameters
RESIDENT_SHARE = 0.5  # "half of the model fits into memory"
ACTIVE_SHARE = 0.10  # of the FFN, what the predictor asks for per token (ReLU sparsity with the predictor's false positives)
NEW_SHARE = 0.024  # of the FFN, what a window of five tokens does not hold yet

# (experiment, milliseconds published, bytes read, bytes per request, linear reads)
_MODEL = PARAMETERS * BYTES
_FFN = _MODEL * FFN_SHARE
_NEURON = WIDTH * BYTES  # one row or column of an FFN matrix: 8 KiB
TABLE = (
    ("whole model", 2196.0, _MODEL, 1 << 20, True),
    ("half of the model resident", 1090.0, _MODEL * (1 - RESIDENT_SHARE), 1 << 20, True),
    ("+ predictor", 738.0, _FFN * ACTIVE_SHARE, _NEURON, False),
    ("+ window of five tokens", 164.0, _FFN * NEW_SHARE, _NEURON, False),
    ("+ row-column bundling", 87.0, _FFN * NEW_SHARE, 4 * _NEURON, False),
)


def rows() -> list[StudyRow]:
    """The five rows of the table of flash latencies per token."""
    ssd = flash("m1-max-ssd")
    found = []
    for experiment, published, volume, request, linear in TABLE:
        ours = ssd.transfer_fs(round(volume), request, sequential=linear) * 1e-12
        bundled = experiment.startswith("+ row-column")
        found.append(
            StudyRow(
                system="llm-in-a-flash",
                experiment=f"OPT-6.7B, {experiment}: I/O per token",
                published=published,
                ours=ours,
                unit="ms",
                tolerance=0.10,
                certainty="probable",
                source=SOURCE,
                note="bundles are read at the measured rate of 32 KiB chunks" if bundled else "",
            )
        )
    return found
