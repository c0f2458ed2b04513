"""What all benchmarks share: arguments, data, one fitted generator, alternated timing, rows and their file.

Every script runs on a fresh machine: without --data it takes the slices of the ICBM152 template that scripts/icbm.py
cuts out of nilearn's wheel. Trained things are cached by content in --out; run one script at a time in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

from segtrain.compare.data import Parts
from segtrain.compare.prepare import prepare
from segtrain.compare.runs import Bench
from segtrain.compare.settings import CompareSettings, load_settings
from segtrain.record import versions
from synth.core.checks import UserError
from synth.core.files import claim_folder, hash_json, sha256, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
CONFIG = ROOT / "configs" / "tiny" / "compare.yaml"

QUICK = (
    "draws=1", "resamples=999", "synthetic.n=16", "segment.loop.steps=40", "inpaint.autoencoder.kind=pixels",
    "inpaint.autoencoder.patch=4", "inpaint.denoiser.widths=[32,64]", "inpaint.denoiser.attention=[false,true]",
    "inpaint.denoiser.n_views=1", "inpaint.denoiser.loop.steps=60", "inpaint.sampler.n_steps=10",
    "inpaint.sampler.jump_repeats=1", "translate.translator.widths=[8,16,16]",
    "translate.discriminator.widths=[8,16,16]", "translate.loop.steps=30")
"""Overrides of configs/tiny/compare.yaml under --quick: the same code on budgets that prove wiring and no more."""


@dataclass(frozen=True)
class Row:
    """One figure: `lo` and `hi` bound it where it has an interval, else None."""

    name: str
    value: float
    lo: float | None = None
    hi: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class DataSet:
    """One data set by name, and how the settings of a comparison point at it."""

    name: str
    overrides: tuple[str, ...]


# Arguments ------------------------------------------------------------------------------------------------------------

def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the arguments that all benchmarks share."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, action="append", default=[], metavar="DIR",
                       help="labelled set, split by group; or a folder with labelled/, unlabelled/, test/; repeatable")
    found.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="caches; default runs/benchmarks")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write rows and context there")
    found.add_argument("--quick", action="store_true", help="a few minutes on two cores: smaller, the same code")
    found.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; default all cores")
    found.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings on top of configs/tiny/compare.yaml")
    return found


def comma(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Returns the reader of a list written with commas: unlike one with spaces, it ends before the overrides."""
    def read(text: str) -> list[T]:
        return [kind(part) for part in text.split(",")]

    return read


def begin(arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the parsed arguments, the clock started, threads and logging set."""
    args = arguments.parse_intermixed_args(argv)
    args.started, args.command = time.perf_counter(), shlex.join(["python", *(sys.argv if argv is None else argv)])
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return args


def run_script(main: Callable[[], None]) -> None:
    """Runs `main`; a user's mistake ends it with one line."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


# Data and models ------------------------------------------------------------------------------------------------------

def data_sets(args: argparse.Namespace) -> list[DataSet]:
    """Returns the sets that --data names, else the ICBM slices, which are written into --out."""
    folders = list(args.data)
    if not folders:
        sys.path.insert(0, str(ROOT / "scripts"))
        from icbm import make_icbm

        make_icbm(args.out / "icbm-data")
        folders = [args.out / "icbm-data"]
    return [_data_set(folder) for folder in folders]


def only_set(args: argparse.Namespace) -> DataSet:
    """Returns the one data set of a script whose rows name none.

    Raises:
        UserError: if --data names several.
    """
    found = data_sets(args)
    if len(found) > 1:
        raise UserError(f"--data {found[1].name}", rule="the rows of this script name no data set, so it takes one",
                        repair="run it once for each set, with a --json of its own")
    return found[0]


def _data_set(folder: Path) -> DataSet:
    parts = {name: folder / name for name in ("labelled", "unlabelled", "test")}
    if (folder / "labelled").is_dir() and (folder / "test").is_dir():
        return DataSet(folder.name, tuple(f"data.{k}={json.dumps(str(p))}" for k, p in parts.items() if p.is_dir()))
    return DataSet(folder.name, (f"data.root={json.dumps(str(folder))}",))


def settings_for(data: DataSet, args: argparse.Namespace, overrides: Sequence[str] = ()) -> CompareSettings:
    """Returns a comparison's settings: configs/tiny, then --quick, then `overrides`, then the command line's."""
    quick = QUICK if args.quick else ()
    return load_settings(CONFIG, [*data.overrides, *quick, *overrides, *args.overrides])


def shared_folder(home: Path, name: str, parts: Parts) -> Path:
    """Returns `home`/`name`, claimed for a comparison on `parts`, its cache that of all runs below `home`."""
    out = claim_folder(home / name, kind="compare", identity={"data": parts.source})
    if not (out / "cache").exists():
        (home / "cache").mkdir(parents=True, exist_ok=True)
        (out / "cache").symlink_to(os.path.relpath(home / "cache", out), target_is_directory=True)
    return out


def open_bench(data: DataSet, args: argparse.Namespace, overrides: Sequence[str] = ()) -> Bench:
    """Returns the bench of one data set: its generators and `judge` are fitted on training groups alone, and cached."""
    settings = settings_for(data, args, overrides)
    parts = prepare(settings)
    return Bench(settings, parts, shared_folder(args.out / data.name, "bench", parts))


def code_hash() -> str:
    """Returns 16 hexadecimal digits over the code that paints and scores: cached scores must not outlive it."""
    rooms = [ROOT / "synth" / name for name in ("diffusion", "draw", "gates", "layouts")]
    files = sorted(p for room in (*rooms, Path(__file__).parent) for p in room.rglob("*.py"))
    return sha256(b"".join(p.read_bytes() for p in files))[:16]


def cached(folder: Path, identity: object, make: Callable[[], dict[str, float | None]]) -> dict[str, float | None]:
    """Returns what `make` returns, from a file in `folder` if it was made before for this identity and code."""
    path = folder / f"{hash_json([code_hash(), identity])}.json"
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


# Timing ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Timing:
    """Seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median round."""
        return statistics.median(self.seconds)

    def row(self, name: str, *, per: float = 1.0, unit: str = "s") -> Row:
        """Returns the median of seconds / `per` with the smallest and largest round."""
        return spread_row(name, [s / per for s in self.seconds], unit=unit)


def alternate(calls: Mapping[str, Callable[[int], object]], *, rounds: int) -> dict[str, Timing]:
    """Returns the timings of callables run in turn, `rounds` times each, each called with its round's number.

    Every other round goes backwards, so that a machine that slows down or warms up is not held against one of them.
    On a GPU a callable has to end in something that waits, such as a copy to the CPU.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds):
        for name in list(calls)[::1 if k % 2 == 0 else -1]:
            started = time.perf_counter()
            calls[name](k)
            seconds[name].append(time.perf_counter() - started)
            logging.info("round %d of %d: %s %.2f s", k + 1, rounds, name, seconds[name][-1])
    return {name: Timing(tuple(s)) for name, s in seconds.items()}


def spread_row(name: str, values: Sequence[float], *, unit: str = "") -> Row:
    """Returns the median of `values` with the smallest and the largest."""
    return Row(name, statistics.median(values), min(values), max(values), unit)


def ratio_row(name: str, above: Timing, below: Timing, *, scale: float = 1.0) -> Row:
    """Returns the median over rounds of `scale` * above / below, with the smallest and largest round."""
    return spread_row(name, [scale * a / b for a, b in zip(above.seconds, below.seconds, strict=True)])


# Results --------------------------------------------------------------------------------------------------------------

def _git(*words: str) -> str:
    try:
        found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def commit() -> str:
    """Returns the commit, marked "-dirty" where the working tree differs from it."""
    return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain") else "")


def cpu_name() -> str:
    """Returns the processor's model and number of cores, and the GPU if there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores{gpu}"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def table_of(rows: Sequence[Row]) -> Table:
    """Returns `rows` as a table for the terminal."""
    table = Table()
    for name in ("row", "value", "lo", "hi", "unit"):
        table.add_column(name, justify="left" if name in ("row", "unit") else "right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *("" if v is None else f"{v:.4g}" for v in (row.value, row.lo, row.hi)), row.unit)
    return table


def write(rows: Sequence[Row], args: argparse.Namespace, seeds: Sequence[int]) -> None:
    """Prints `rows` as a table; with --json also writes them with their context, as DESIGN.md §8 says.

    A figure that is not finite (nothing to take a mean of) is null in the file: JSON has no name for it.
    """
    Console(width=120 if not sys.stdout.isatty() else None).print(table_of(rows))
    if args.json is None:
        return
    plain = [{**asdict(row), **{k: _finite(getattr(row, k)) for k in ("value", "lo", "hi")}} for row in rows]
    context = {"commit": commit(), "versions": versions(), "cpu": cpu_name(), "threads": args.threads,
               "seeds": list(seeds), "seconds": round(time.perf_counter() - args.started, 1), "command": args.command}
    write_text(args.json, json.dumps({"rows": plain, "context": context}, indent=1, allow_nan=False) + "\n")
    print(f"{len(rows)} rows in {args.json}")
