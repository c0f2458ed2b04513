"""images/*.png, masks/*.png and metadata.jsonl, as `datasets.load_dataset("imagefolder")` reads it; and writers."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from synth.core.checks import UserError
from synth.core.files import is_full, read_mark, replace_file, sha256, write_text
from synth.core.pairs import DataInfo, ImageSet, Item, Pair
from synth.formats.decode import encode_png
from synth.formats.folder import SPACING, read_files, spacing_of
from synth.formats.info import write_info
from synth.formats.rows import from_meta, name_in, to_meta, weight_of
from synth.formats.survey import Options, Source
from synth.formats.tables import METADATA, check_no_tables, read_text

log = logging.getLogger(__name__)

ENCODING = "save it as UTF-8, one JSON object per line"
"""What to do with a metadata.jsonl that does not read."""

PIECEWISE = "translated"
"""Kind of a run that writes an imagefolder image by image, its metadata last."""

_HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: [{paths}]
---
"""
"""Tells `datasets` what to open: by their names alone, it takes the mask test_1.png for an image of a test split."""

_NO_PIXELS = np.empty((0, 0), np.uint8)


def imagefolder_sources(root: Path, options: Options) -> list[Source]:
    """Returns the items that `root`/metadata.jsonl lists, in its order.

    Raises:
        UserError: naming the line that is not JSON, lacks a key, or points at no file below `root`; or for a table that
            nobody would read.
    """
    path = root / METADATA
    check_no_tables(root, METADATA)
    sources = []
    text = read_text(path, ENCODING)
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at what JSON takes for a letter
        if line.strip():
            sources.append(_source(root, _parse(line, f"{path}, line {number}"), options, f"{path}, line {number}"))
    return sources


def names_masks(root: Path) -> bool:
    """Returns whether `root`/metadata.jsonl names masks; True where there is none and the folder has another format."""
    path = root / METADATA
    return not path.is_file() or '"mask_file_name"' in read_text(path, ENCODING)


def write_imagefolder(pairs: ImageSet, out: Path, *, card: str = "") -> None:
    """Writes images/, masks/, metadata.jsonl, dataset.json and README.md (with the card, if given): all or nothing.

    Raises:
        UserError: if `out` exists and is not empty, an id cannot be a file name, or the device is full.
    """
    def finish(folder: Path, written: list[Pair]) -> None:
        known = known_of(pairs)
        rows = [_line(pair) | known[pair.id] for pair in written]
        (folder / METADATA).write_text(_lines(rows), encoding="utf-8")
        (folder / "README.md").write_text(_card_of(rows, card or _titled(pairs.info)), encoding="utf-8")

    _write_whole(pairs, Path(out), finish)


def write_folder(pairs: ImageSet, out: Path) -> None:
    """Writes images/, masks/, groups.csv, dataset.json, weights.csv, spacing.csv, domains.csv as known: all or nothing.

    What a drawn pair was made from has no place there: such a set is warned of, for no leak can be seen in it.

    Raises:
        UserError: if `out` exists and is not empty, an id cannot be a file name, or the device is full.
    """
    def finish(folder: Path, written: list[Pair]) -> None:
        _write_table(folder / "groups.csv", {pair.id: {"group": pair.group} for pair in written})
        weights = {i.id: {"weight": i.weight} for i in pairs.items} if pairs.weights else {}
        tables = {"weights.csv": weights, "spacing.csv": _spacings(pairs), "domains.csv": _domains(pairs)}
        for name, table in tables.items():
            if table:
                _write_table(folder / name, table)

    if n_made := sum(item.made is not None for item in pairs.items):
        log.warning("%s: %d of its pairs were drawn, and a plain folder does not say from what: no leak can be seen in "
                    "it. An imagefolder says it", out, n_made)
    _write_whole(pairs, Path(out), finish)


def known_of(pairs: ImageSet) -> dict[str, dict[str, float | str]]:
    """Returns what a row says beside its pair's own metadata, by id: row_mm and column_mm, domain, each where known."""
    tables = _spacings(pairs), _domains(pairs)
    return {name: {key: value for table in tables for key, value in table.get(name, {}).items()} for name in pairs.ids}


def _spacings(pairs: ImageSet) -> dict[str, dict[str, float]]:
    known = {i.id: dict(zip(SPACING, i.spacing, strict=True)) for i in pairs.items if i.spacing is not None}
    if known and len(known) < len(pairs):
        log.warning("spacing is known of %d of %d images only, and is not written", len(known), len(pairs))
        return {}
    return known


def _domains(pairs: ImageSet) -> dict[str, dict[str, str]]:
    return {i.id: {"domain": i.domain} for i in pairs.items if i.domain is not None}


def _write_table(path: Path, rows: Mapping[str, Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ("name", *next(iter(rows.values()))), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"name": name, **row} for name, row in rows.items())


def _write_whole(pairs: ImageSet, out: Path, finish: Callable[[Path, list[Pair]], None]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(str(out), rule="it exists and is not an empty folder", repair="choose another out=")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run that had our process number
    try:
        (temporary / "images").mkdir(parents=True)
        finish(temporary, [_write_pair(pair, temporary) for pair in pairs])
        write_info(temporary, pairs.info)
        if pairs.taught is not None:
            pairs.taught.save(temporary)
        os.replace(temporary, out)
    except OSError as error:
        if is_full(error):
            raise UserError(str(out), rule="no space left on the device; nothing was written",
                            repair="free some space and run the same command again") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_file_name(name: str) -> None:
    """Returns nothing; raises UserError if the id `name` cannot be a file name."""
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|\0'):
        raise UserError(f"id {name!r}", rule="an id becomes a file name",
                        repair="rename it without / \\ : * ? \" < > |")


def put_image(pair: Pair, folder: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Returns path and SHA-256 of the file that the image of `pair` is written to, whole or not at all; and its row.

    For a set too long to be written at once: `finish_imagefolder` then takes the rows.
    """
    name, data = f"images/{pair.id}.png", encode_png(pair.image)
    replace_file(folder / name, lambda temporary: temporary.write_bytes(data))
    return {name: sha256(data)}, _line(dataclasses.replace(pair, mask=None))


def finish_imagefolder(folder: Path, info: DataInfo, rows: Sequence[dict[str, object]]) -> None:
    """Writes dataset.json, README.md and then metadata.jsonl, with which the folder is whole."""
    write_info(folder, info)
    write_text(folder / "README.md", _card_of(rows, _titled(info)))
    write_text(folder / METADATA, _lines(rows))


def check_finished(root: Path) -> None:
    """Returns nothing; raises if `root` holds the images of a run that has not ended, which nobody has listed yet.

    Raises:
        UserError: naming the folder: its images would else be taken for a plain folder's, each a group of its own.
    """
    if read_mark(root).get("kind") == PIECEWISE:
        raise UserError(str(root), rule="not all of its images are written, so there is no metadata.jsonl yet",
                        repair="run the same synth translate again, it resumes")


def _titled(info: DataInfo) -> str:
    return f"# {info.name}\n\nWhat pixels and labels mean stands in dataset.json.\n"


def _card_of(rows: Sequence[dict[str, object]], card: str) -> str:
    if card.startswith("---\n"):
        return card
    has_masks = any("mask_file_name" in row for row in rows)
    return _HEAD.format(paths=", ".join([METADATA, "images/*", *(["masks/*"] if has_masks else [])])) + card


def _lines(rows: Sequence[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_pair(pair: Pair, folder: Path) -> Pair:
    check_file_name(pair.id)
    (folder / "images" / f"{pair.id}.png").write_bytes(encode_png(pair.image))
    if pair.mask is not None:
        (folder / "masks").mkdir(exist_ok=True)
        (folder / "masks" / f"{pair.id}.png").write_bytes(encode_png(pair.mask))
    # What follows needs only the metadata; holding the pixels of a whole set would not be flat in memory.
    return dataclasses.replace(pair, image=_NO_PIXELS, mask=None if pair.mask is None else _NO_PIXELS)


def _line(pair: Pair) -> dict[str, object]:
    files = {"file_name": f"images/{pair.id}.png"}
    if pair.mask is not None:
        files["mask_file_name"] = f"masks/{pair.id}.png"
    return {**files, **to_meta(pair)}


def _parse(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(where, rule=f"not JSON ({error})", repair="write one JSON object per line") from None
    if not isinstance(row, dict):
        raise UserError(where, rule="a line is one JSON object", repair="write one JSON object per line")
    return row


def _source(root: Path, row: dict[str, object], options: Options, where: str) -> Source:
    image = _inside(root, row, "file_name", where)
    mask = _inside(root, row, "mask_file_name", where) if options.labelled else None
    name = name_in(row, "id", image.stem)
    spacing = [row.get(key) for key in SPACING]
    item = Item(name, name_in(row, "group", name), partial(read_files, image, mask, options),
                name_in(row, "origin", "real"), from_meta(row, where), weight=weight_of(row, where),
                spacing=None if spacing == [None, None] else spacing_of(spacing, where),
                domain=None if row.get("domain") is None else str(row["domain"]))
    return Source(item, str(image), str(mask or ""))


def _inside(root: Path, row: dict[str, object], key: str, where: str) -> Path:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(where, rule=f"it has no {key}", repair=f"add {key}, a path relative to metadata.jsonl")
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: {value}", rule=f"{key} stays inside the folder",
                        repair="write a path relative to it")
    # A Mac may have written the accents of the name as letters of their own, here or there.
    forms = [root / path, *(root / unicodedata.normalize(form, value) for form in ("NFC", "NFD"))]
    found = next((p for p in forms if p.is_file()), None)
    if found is None:
        raise UserError(str(root / path), rule=f"{METADATA} names it, but it is missing", repair="add the file")
    return found
