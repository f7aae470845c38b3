"""Requests for the tests of every engine."""

from __future__ import annotations

import pytest
from builders import generator_checkpoint

from pitlm.engines.generators import Improver


@pytest.fixture
def improver(bases, tmp_path):
    return Improver.from_pretrained(generator_checkpoint(bases("words"), tmp_path / "improver", "improver"))
