"""CONTRIBUTING's walk from a paper to a method, followed to the letter: one class, one YAML file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pydantic import Field
from scenes import run

from segtrain.method import load_method
from segtrain.scene import Scene
from segtrain.targets import TARGETS, Target, from_prob
from synth.core.config import Settings

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """Returns the page's only code block in `language`."""
    found, = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


def test_the_walk_ends_with_a_method_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The names that segtrain/targets/filters.py imports.
    names = {"Settings": Settings, "Field": Field, "Target": Target, "Scene": Scene, "__name__": __name__}
    exec(block("python"), names)
    monkeypatch.setitem(TARGETS, "margin", names["Margin"])
    (tmp_path / "margin_match.yaml").write_text(block("yaml"))
    method = load_method(tmp_path / "margin_match.yaml")
    assert method.views[0].target[1].args == {"least": 0.6}
    _, logs = run(method, 2)
    assert all(0 <= float(line["kept"]) <= 1 and torch.isfinite(line["loss"]) for line in logs)
    prob = torch.tensor([[0.9, 0.1], [0.7, 0.3]]).T[None, :, None]
    assert names["Margin"](least=0.6)(from_prob(prob), None).valid.flatten().tolist() == [True, False]
