"""The tables of a folder: groups.csv, spacing.csv, weights.csv and domains.csv, a line for each image."""

from __future__ import annotations

import csv
from pathlib import Path

from synth.core.checks import UserError, check_unique
from synth.formats.decode import IMAGE_SUFFIXES

TABLES = ("groups.csv", "spacing.csv", "weights.csv", "domains.csv")


def check_tables(root: Path) -> None:
    """Returns nothing; raises if a table lies in the wrong place, or has a name that is a letter or case off.

    Raises:
        UserError: naming the file: nobody would read it, and each image would be its own patient.
    """
    for folder in (root, root / "images", root / "masks"):
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".csv") if folder.is_dir() else []
        for path in found:
            meant = next((name for name in TABLES if _is_near(path.name.lower(), name)), path.name)
            # Beside the table itself, another of nearly its name is a copy that somebody keeps.
            if meant in TABLES and not (root / meant).is_file():
                raise UserError(str(path), rule=f"it is not read, for the file is called {meant} and lies in {root}",
                                repair="rename or move it" + (
                                    ", or delete it and each image is its own group" if meant == TABLES[0] else ""))


def _is_near(one: str, other: str) -> bool:
    """Returns whether two names are the same but for a letter: left out, put in, another, or in the next place."""
    cut = [{name, *(name[:i] + name[i + 1:] for i in range(len(name)))} for name in (one, other)]
    return bool(cut[0] & cut[1])


def read_table(path: Path, columns: tuple[str, ...], ids: list[str], *,
               is_whole: bool = True) -> dict[str, tuple[str, ...]]:
    """Returns the values of `columns` for each image that the CSV file names; nothing if there is no such file.

    Args:
        is_whole: whether it must name these images, each of them and no others.
    """
    if not path.is_file():
        return {}
    header = ",".join(("name", *columns))
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        if not {"name", *columns} <= set(reader.fieldnames or ()):
            raise UserError(str(path), rule=f"its first line is {header}", repair="add that line")
        rows = [(_stem(row["name"] or ""), tuple((row[c] or "").strip() for c in columns)) for row in reader]
    check_unique([name for name, _ in rows], str(path))
    table = dict(rows)
    unknown, missing = sorted(set(table) - set(ids)), sorted(set(ids) - set(table))
    empty = [name for name, values in rows if not all(values)]
    if not is_whole:
        unknown = missing = []
    for names, rule in ((unknown, f"{path.name} names it, but no such image is there"),
                        (missing, f"the image is not in {path.name}, so its {columns[0]} is unknown"),
                        (empty, f"its {columns[0]} is empty")):
        if names:
            without = " and each image is its own group" if "group" in columns else ""
            raise UserError(f"{path}: {names[0]}", rule=rule,
                            repair=f"make {path.name} list each image once, or delete {path.name}{without}")
    return table


def _stem(name: str) -> str:
    path = Path(name.strip())
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name.strip()
