"""What all tests share: this folder and scripts/ on the path, and a small phantom."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "scripts"), str(Path(__file__).parent)]

from phantom import make_phantom  # noqa: E402

from synth.core.pairs import PairSet  # noqa: E402


@pytest.fixture(scope="session")
def phantom_pairs() -> PairSet:
    """Returns 12 grey pairs of 32 x 32 px, three patients, two classes."""
    return make_phantom(12, size=32, n_groups=3, seed=1)
