"""dataset.json: what a set's pixels and labels mean, as declared by a person or by us."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synth.core.checks import IGNORE, UserError
from synth.core.files import write_json
from synth.core.pairs import DataInfo

INFO_FILE = "dataset.json"
VERSION = 1


class Declared(BaseModel):
    """What dataset.json says; None where it says nothing and the files decide. Other keys are left to people."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=IGNORE)] | None = None
    channels: Literal[1, 3] | None = None
    bit_depth: Literal[8, 16] | None = None
    intensity_range: tuple[float, float] | None = None
    modality: str = "unknown"
    name: str | None = None
    ignore_index: Literal[255] = IGNORE
    version: Literal[1] = VERSION


def read_declared(folder: Path) -> Declared:
    """Returns what `folder`/dataset.json declares; an empty declaration if there is none.

    Raises:
        UserError: if it is not JSON, or a key of ours holds a value that we cannot honour.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        return Declared()
    try:
        declared = Declared.model_validate(json.loads(path.read_text(encoding="utf-8-sig")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(path), rule=f"not JSON ({error})", repair="mend the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key or 'the file'}", rule=f"{first['msg']} (got {str(first.get('input'))[:60]})",
                        repair="mend this key, or delete it and the files decide") from None
    _check_range(declared, path)
    return declared


def _check_range(declared: Declared, path: Path) -> None:
    low, high = declared.intensity_range or (0.0, 1.0)
    if not -math.inf < low < high < math.inf:
        raise UserError(f"{path}: intensity_range", rule="low is below high and both are numbers, this is "
                        f"{declared.intensity_range}", repair="write [low, high]")
    if declared.classes and len(set(declared.classes)) < len(declared.classes):
        raise UserError(f"{path}: classes", rule="two classes share a name", repair="give each class its own name")


def merge_like(declared: Declared, like: DataInfo | None, *, where: str, labelled: bool) -> Declared:
    """Returns `declared` with the classes and the intensity range of the set that this one goes with.

    Raises:
        UserError: if a labelled set declares other classes than `like`.
    """
    if like is None:
        return declared
    if labelled and declared.classes and declared.classes != like.classes:
        raise UserError(where, rule=f"its classes are {list(declared.classes)}, but the set it goes with has "
                        f"{list(like.classes)}", repair="make the classes in both dataset.json agree")
    return declared.model_copy(update={"classes": like.classes, "intensity_range": like.intensity_range})


def write_info(folder: Path, info: DataInfo) -> None:
    """Writes `info` as `folder`/dataset.json, atomically."""
    write_json(folder / INFO_FILE, dataclasses.asdict(info))
