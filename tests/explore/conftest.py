from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.explore.cases import SPEC


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mappings are cached in a folder of the test run, here and in the processes that it starts."""
    before = os.environ.get("DOVETAIL_CACHE")
    os.environ["DOVETAIL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["DOVETAIL_CACHE"]
    else:
        os.environ["DOVETAIL_CACHE"] = before


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path
