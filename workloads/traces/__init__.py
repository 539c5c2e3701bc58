"""Traces shipped with the package, so that the default examples and serving need neither torch nor transformers.

`python -m workloads.traces` traces them again after a change of the tracer; a test compares them with fresh ones.
"""

SHIPPED = (
    # model, phase, batch, length
    ("llama-2-7b", "prefill", 1, 2048),
    ("llama-2-7b", "decode", 1, 2048),
    ("llama-3-70b", "decode", 1, 2048),
    ("mixtral-8x7b", "decode", 1, 2048),
    ("opt-6.7b", "decode", 1, 2048),
    ("opt-66b", "decode", 1, 2048),
)
