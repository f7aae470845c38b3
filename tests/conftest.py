"""For all tests: no network, one thread, and tiny models that each worker builds once."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A batch job sets this before its first matrix product. Here other tests run before a batch job, so it is set early.
os.environ.setdefault("MKL_CBWR", "AUTO")
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # a slow example is no failure: the machine may be busy
sys.path.insert(0, str(Path(__file__).parent))  # for `builders`, because test files are no package


def pytest_collection_finish():
    """Take the imported libraries out of every later garbage collection: statsmodels starts one in each table."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """One folder per family of tiny causal models: see ``builders.FAMILIES``."""
    from builders import FAMILIES

    root = tmp_path_factory.mktemp("bases")
    made = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family](root / family)
        return made[family]

    return base
