"""What a finished comparison leaves behind for its report: which runs, which pairs, which data, which settings."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from synth.core.checks import UserError
from synth.core.files import write_text
from synth.core.version import VERSION

INDEX = "comparison.json"


@dataclass(frozen=True)
class MadeFacts:
    """Synthetic pairs of one label draw: how many were asked for, kept and rejected, and the reasons.

    Attributes:
        kind: as `Arm.synthetic`. folder: relative to the comparison's. seconds: to draw them.
    """

    kind: str
    draw: int
    folder: str
    asked: int
    kept: int
    rejected: int
    reasons: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class DrawFacts:
    """Which images one label draw labels, of how many groups, and how many it leaves unlabelled."""

    index: int
    labelled: tuple[str, ...]
    n_groups: int
    n_unlabelled: int


@dataclass(frozen=True)
class DataFacts:
    """What was compared on; every size as it was at the working resolution `size`, px; `unit` of distances, px or mm.
    """

    name: str
    modality: str
    where: str
    classes: tuple[str, ...]
    channels: int
    size: int
    n_training: int
    n_training_groups: int
    n_test: int
    n_test_groups: int
    test_groups: tuple[str, ...]
    fingerprint: str
    draws: tuple[DrawFacts, ...]
    unit: str = "px"


@dataclass(frozen=True)
class Tile:
    """One picture of the report: a PNG, relative to the comparison's folder, and what it says below."""

    file: str
    caption: str


@dataclass(frozen=True)
class Row:
    """A row of pictures under one title; `section` is "kept", "rejected" or "test"."""

    section: str
    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Index:
    """Everything from which the report is made again without data or models.

    Attributes:
        scores: files of single runs, relative. pairs: (arm, baseline) of each comparison.
        painter_seconds: training of the generators, all label draws together; 0 if no arm needed one.
        referee_seconds: training of the segmenters that help to choose its pairs, all label draws together.
    """

    baseline: str
    pairs: tuple[tuple[str, str], ...]
    scores: tuple[str, ...]
    made: tuple[MadeFacts, ...]
    painter_seconds: float
    data: DataFacts
    notes: tuple[str, ...]
    gallery: tuple[Row, ...]
    settings: dict[str, JsonValue]
    versions: dict[str, str]
    referee_seconds: float = 0.0


def versions() -> dict[str, str]:
    """Returns the versions that the numbers depend on."""
    names = ("torch", "diffusers", "segmentation-models-pytorch", "monai", "scipy", "numpy")
    own = {"python": platform.python_version(), "pairsmith": VERSION}
    return own | {name: metadata.version(name) for name in names}


def write_index(path: Path, index: Index) -> None:
    """Writes `index` as JSON, atomically."""
    write_text(path, TypeAdapter(Index).dump_json(index, indent=1).decode() + "\n")


def read_index(out: Path) -> Index:
    """Returns what `write_index` wrote into the comparison's folder `out`.

    Raises:
        UserError: if no finished comparison lies there.
    """
    path = Path(out) / INDEX
    if not path.is_file():
        raise UserError(str(out), rule="no finished comparison lies here", repair="run segtrain compare with this out= "
                        "(an interrupted one resumes)")
    return TypeAdapter(Index).validate_json(path.read_bytes())
