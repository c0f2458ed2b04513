"""The tables of a folder: groups.csv, spacing.csv, weights.csv and domains.csv, a line for each image."""

from __future__ import annotations

import csv
import io
import logging
import unicodedata
from pathlib import Path

from synth.core.checks import UserError
from synth.formats.decode import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

TABLES = ("groups.csv", "spacing.csv", "weights.csv", "domains.csv")


METADATA = "metadata.jsonl"
"""What says in the place of all tables, of each image, a JSON object a line."""
STRANGE = "metadata.csv"
"""An imagefolder's table as a CSV file, and the name of what some archives deliver beside their images."""


def check_no_tables(root: Path, reader: str) -> None:
    """Returns nothing; raises if a table lies beside `reader`, the files that are read in its place.

    Raises:
        UserError: naming the file: nobody would read it, and each image could be its own patient.
    """
    for name in TABLES:
        if (root / name).is_file():
            raise UserError(str(root / name), rule=f"it is not read beside {reader}",
                            repair=f"say in {reader} what it says, or delete it")


def check_tables(root: Path) -> None:
    """Returns nothing; raises if a table lies in the wrong place, or has a name that is a letter or case off.

    A `metadata.csv` is warned of where no groups.csv says what it may be there to say.

    Raises:
        UserError: naming the file: nobody would read it, and each image would be its own patient.
    """
    for path in (root / "images" / METADATA, root / "masks" / METADATA):
        if path.is_file():
            raise UserError(str(path), rule=f"it is not read, for the file lies in {root}", repair="move it, and write "
                            "its file names relative to that folder")
    for path in (root / STRANGE, root / "images" / STRANGE):
        if path.is_file() and not (root / TABLES[0]).is_file():
            log.warning("%s: not read; which images are of one patient is said by groups.csv (name,group) or %s", path,
                        METADATA)
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
        ids: of the images, in the `same_form`. is_whole: whether it must name these images, each of them and no others.
    """
    if not path.is_file():
        return {}
    rows = _rows(path, columns)
    seen: set[str] = set()
    for name, _ in rows:
        if name in seen:
            raise UserError(f"{path}: {name}", rule="two lines name this image", repair="delete one of them")
        seen.add(name)
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


def same_form(name: str) -> str:
    """Returns `name` with accents as one letter each: a Mac may write them as two, which look the same."""
    return unicodedata.normalize("NFC", name)


def read_text(path: Path, repair: str) -> str:
    """Returns the text of a UTF-8 file, without the mark that some programs begin it with.

    Raises:
        UserError: with this repair, if it is of another encoding.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        line = _first_line(data.decode("utf-16" if wide else "cp1252", errors="replace"))
        raise UserError(str(path), rule=f"it is text of another encoding than UTF-8{' (UTF-16)' if wide else ''}; "
                        f"its first line reads {line}", repair=repair)
    return text


def _first_line(text: str) -> str:
    return repr(next(iter(text.splitlines()), "")[:80])


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns name and values of each line of a table but the first, and but those whose cells are all empty."""
    header = ",".join(("name", *columns))
    repair = f"save it as comma-separated UTF-8 with the first line {header}"
    text = same_form(read_text(path, repair))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if not {"name", *columns} <= set(reader.fieldnames or ()):
            raise UserError(str(path), rule=f"its first line is {_first_line(text)}, not {header}", repair=repair)
        rows = [row for row in reader if any("".join(cell or ()).strip() for cell in row.values())]
    except csv.Error as error:
        raise UserError(str(path), rule=f"it is not comma-separated ({error})", repair=repair) from None
    return [(_stem(row["name"] or ""), tuple((row[c] or "").strip() for c in columns)) for row in rows]


def _stem(name: str) -> str:
    path = Path(name.strip())
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name.strip()
