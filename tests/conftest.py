"""Shared by all tests: no network, one thread, and tiny models that are built once per worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As a batch job sets it in its own process, before its first product of matrices: here other tests come before one.
os.environ.setdefault("MKL_CBWR", "AUTO")
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # an example that takes long is no failure: the machine may be busy
sys.path.insert(0, str(Path(__file__).parent))  # for `builders`: test files are not a package


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
