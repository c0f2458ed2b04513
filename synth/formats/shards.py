"""Parquet shards: data/<split>-00000-of-00008.parquet, byte for byte the same for the same pairs."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synth.core.checks import UserError
from synth.core.files import replace_file, sha256, write_text
from synth.core.pairs import DataInfo, Item, Pair, PairSet
from synth.core.taught import Taught
from synth.formats.decode import decode_image, decode_mask, encode_png
from synth.formats.info import read_declared, write_info
from synth.formats.rows import META, from_meta, name_in, to_meta, weight_of
from synth.formats.survey import Options, Source, survey

ROWS_PER_GROUP = 64
"""Rows that one read brings into memory."""


def shard_name(split: str, index: int, n_shards: int) -> str:
    """Returns the path of one shard inside its data set: 'data/train-00000-of-00008.parquet'."""
    return f"data/{split}-{index:05d}-of-{n_shards:05d}.parquet"


def write_shard(pairs: Sequence[Pair], path: Path) -> str:
    """Returns the SHA-256 of the parquet file written, whole or not at all; the same pairs give the same bytes.

    A shard may be empty, but `datasets` opens no split whose shards are all empty: do not write such a split.
    """
    path = Path(path)
    buffer = io.BytesIO()
    table = pa.Table.from_pylist([_to_row(pair) for pair in pairs], schema=_schema())
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        if len(pairs):  # `datasets` opens a shard without row groups, but not one with an empty row group
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    replace_file(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))
    return sha256(buffer.getbuffer())


def read_shards(folder: Path, split: str = "train") -> PairSet:
    """Returns the pairs of a split, read when asked for, a few row groups in memory at a time.

    What pixels and labels mean comes from dataset.json; where it is silent, every pair is read once to find out.

    Raises:
        UserError: if a shard is missing or does not open.
    """
    folder, options = Path(folder), Options(labelled=True)
    sources = shard_sources(folder, options, split=split)
    declared = read_declared(folder)
    known = (declared.classes, declared.channels, declared.bit_depth, declared.intensity_range)
    info = survey(sources, declared, options, where=str(folder)) if None in known else DataInfo(
        *known, modality=declared.modality, name=declared.name or "unnamed")
    return PairSet([source.item for source in sources], info, where=str(folder), taught=Taught.load(folder))


def shard_sources(folder: Path, options: Options, *, split: str) -> list[Source]:
    """Returns the items of a split, in order of shard and row; images are not read yet."""
    sources = []
    for path in shard_files(folder, split):
        sources += _file_sources(path, options, split=split, n_before=len(sources))
    return sources


def shard_files(folder: Path, split: str) -> list[Path]:
    """Returns the shards of a split in order.

    Raises:
        UserError: if there are none, or if one is missing.
    """
    pattern = re.compile(rf"{re.escape(split)}-(\d{{5}})-of-(\d{{5}})\S*\.parquet")
    found = [(m, p) for p in sorted((folder / "data").glob("*.parquet")) if (m := pattern.fullmatch(p.name))]
    if not found:
        there = sorted({p.name.split("-")[0] for p in (folder / "data").glob("*-of-*.parquet")})
        raise UserError(str(folder), rule=f"no shard of the split {split!r}",
                        repair=f"choose one of the splits {there}" if there else "draw the data set first")
    have, n_shards = {int(m[1]) for m, _ in found}, int(found[0][0][2])
    missing = sorted(set(range(n_shards)) - have)
    if missing or len(found) != n_shards:
        raise UserError(str(folder), rule=f"{len(found)} shards where {n_shards} belong" + (
            f", {shard_name(split, missing[0], n_shards)} is missing" if missing else ""),
            repair="run the command that wrote them again, it resumes")
    return [path for _, path in found]


def write_dataset_files(out: Path, info: DataInfo, card: str) -> None:
    """Writes dataset.json and README.md (the data set card) into `out`."""
    write_info(Path(out), info)
    write_text(Path(out) / "README.md", card)


@functools.cache
def _schema() -> pa.Schema:
    # Imported here: `datasets` takes a second to import and reading needs none of it.
    from datasets import Features, Image, List, Value
    texts, many = Value("string"), List(Value("string"))
    columns = {"image": Image(), "mask": Image(), **{name: texts for name in META}}
    return Features({**columns, "parents": many, "parent_groups": many, "seed": Value("int64"),
                     "weight": Value("float64")}).arrow_schema


def _to_row(pair: Pair) -> dict[str, object]:
    def png(pixels: np.ndarray | None) -> dict[str, object] | None:
        return None if pixels is None else {"bytes": encode_png(pixels), "path": f"{pair.id}.png"}

    return {"image": png(pair.image), "mask": png(pair.mask), **to_meta(pair)}


def _file_sources(path: Path, options: Options, *, split: str, n_before: int) -> list[Source]:
    shard = _open_shard(path)
    names = set(shard.schema_arrow.names)
    needed = {"image", "mask"} if options.labelled else {"image"}
    if not needed <= names:
        raise UserError(str(path), rule=f"it has no column {sorted(needed - names)}",
                        repair="name the columns image and mask, both of the type datasets.Image")
    metas = shard.read(columns=[n for n in META if n in names]).to_pylist() or [{}] * shard.metadata.num_rows
    stamp, sources = path.stat().st_mtime_ns, []
    sizes = [shard.metadata.row_group(g).num_rows for g in range(shard.metadata.num_row_groups)]
    places = [_Place(str(path), stamp, group, row) for group, size in enumerate(sizes) for row in range(size)]
    for meta, place in zip(metas, places, strict=True):
        name = name_in(meta, "id", f"{split}-{n_before + len(sources):06d}")
        where = f"{path}: {name}"
        item = Item(name, name_in(meta, "group", name), functools.partial(_read_row, place, options),
                    name_in(meta, "origin", "real"), from_meta(meta, where), weight=weight_of(meta, where))
        sources.append(Source(item, f"{path}, image of {name}", f"{path}, mask of {name}"))
    return sources


@dataclass(frozen=True)
class _Place:
    path: str
    stamp: int
    row_group: int
    row: int


def _open_shard(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(str(path), rule=f"it does not open as parquet ({str(error).splitlines()[0]})",
                        repair="delete it and run the command that wrote it again") from None


@functools.lru_cache(maxsize=4)
def _row_group(path: str, stamp: int, row_group: int) -> pa.Table:
    # `stamp` (time of the last change) is part of the key, so that a file written anew is read anew.
    shard = _open_shard(Path(path))
    columns = [name for name in ("image", "mask") if name in shard.schema_arrow.names]
    try:
        return shard.read_row_group(row_group, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(path, rule=f"its rows do not read ({str(error).splitlines()[0]})",
                        repair="delete it and run the command that wrote it again") from None


def _read_row(place: _Place, options: Options) -> tuple[np.ndarray, np.ndarray | None]:
    table = _row_group(place.path, place.stamp, place.row_group)
    name = f"{place.path}, row {place.row} of row group {place.row_group}"
    image = decode_image(_cell(table, "image", place.row, name), f"{name}, image", channels=options.channels)
    if not options.labelled:
        return image, None
    return image, decode_mask(_cell(table, "mask", place.row, name), f"{name}, mask", mask_map=options.mask_map)


def _cell(table: pa.Table, column: str, row: int, name: str) -> bytes:
    cell = table.column(column)[row].as_py()
    if not isinstance(cell, dict) or cell.get("bytes") is None:
        raise UserError(name, rule=f"it holds no {column}", repair="embed the file's bytes in the shard")
    return cell["bytes"]
