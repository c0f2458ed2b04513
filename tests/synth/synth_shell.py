"""The command `synth` as the tests call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from synth.cli import app
from synth.core.shell import run

CONFIGS = Path(__file__).parents[2] / "configs"


def synth_cli(*words: object) -> int:
    """Returns the exit code of `synth WORDS`, run in this process."""
    with pytest.raises(SystemExit) as stopped:
        run(lambda: app([str(w) for w in words]))
    return int(stopped.value.code or 0)


def mistake(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Returns the one line on stderr of a command that a user got wrong."""
    capsys.readouterr()
    assert synth_cli(*words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Repair: " in said[0]
    return said[0]
