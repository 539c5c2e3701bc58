import subprocess
import sys
from pathlib import Path

import pytest

import dovetail

ROOT = Path(__file__).parents[2]


def test_every_export_resolves() -> None:
    for name in dovetail.__all__:
        assert getattr(dovetail, name).__name__ == name
        assert name in dir(dovetail)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dovetail' has no attribute 'estimat'"):
        dovetail.estimat  # noqa: B018


@pytest.mark.parametrize("first", ["from dovetail.estimate import build_report", "import dovetail.estimate", "import dovetail.cli"])
def test_the_function_wins_over_the_module_of_its_name(first: str) -> None:
    code = f"{first}\nfrom dovetail import estimate\nassert callable(estimate), estimate"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
