"""`fit` and `load_generator`: the one place that turns a kind or a folder into an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.pairs import ImageSet, PairSet
from synth.diffusion.fit import fit_inpaint, load_pipeline
from synth.diffusion.settings import InpaintSettings
from synth.generator import Generator

ENGINES: dict[str, Callable[[Path], Generator]] = {"InpaintPipeline": load_pipeline}
"""How to load a pipeline, by the class name that its model_index.json carries."""


def fit(config: str | Path | dict | InpaintSettings, labelled: PairSet, unlabelled: ImageSet | None = None, *,
        out: str | Path, overrides: Sequence[str] = ()) -> Generator:
    """Returns a generator fitted on images of the training split, saved in `out` as a diffusers pipeline folder.

    Running again resumes; a finished folder is loaded at once. Works under `accelerate launch`.

    Raises:
        UserError: for unknown settings, sets that do not fit together, or an `out` that holds another run.
    """
    return fit_inpaint(load_config(InpaintSettings, config, overrides), labelled, unlabelled, Path(out))


def load_generator(folder: str | Path) -> Generator:
    """Returns the generator saved in `folder`.

    Raises:
        UserError: if there is none.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise UserError(str(folder), rule="no finished generator here (no model_index.json)",
                        repair="run synth fit until it ends; it resumes")
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if name not in ENGINES:
        raise UserError(str(index), rule=f"{name!r} is none of our generators", repair=f"one of {sorted(ENGINES)}")
    return ENGINES[name](Path(folder))
