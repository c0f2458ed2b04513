"""Is drawing flat from 100 to 10,000 pairs, in seconds and in memory? Do two processes halve it? Are kept pixels kept?

    python scripts/benchmarks/scale.py --data DIR --out runs/benchmarks --json scale.json [KEY=VALUE ...]

Each size is drawn by `synth.draw` in a process of its own, whose peak memory the system reports when it ends. Kept
pixels are checked twice: by the hashes that `synth audit` reads, and against sources drawn anew without a generator.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from common import (
    Row,
    Timing,
    alternate,
    begin,
    code_hash,
    comma,
    only_set,
    open_bench,
    parser,
    ratio_row,
    run_script,
    write,
)

from segtrain.compare.runs import Bench
from synth.core.checks import IGNORE
from synth.core.files import hash_json, write_json
from synth.core.pairs import Pair
from synth.core.rng import one_thread
from synth.core.space import from_channels, to_channels
from synth.draw import draw, verify_shards
from synth.draw.painters import kept_source
from synth.fit import load_generator
from synth.formats import load_pairs, read_shards, write_folder
from synth.generator import Generator

SIZES, QUICK_SIZES = (100, 1000, 10000), (100, 300)
CHECKED = 1000
"""Pairs whose kept pixels are checked: the largest drawn set of no more than these."""

ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
"""--multi_gpu starts two processes, without a GPU too; --cpu starts one, whatever number it is given."""


@dataclass(frozen=True)
class Spec:
    """What a child process draws. Folders as text, for it is handed over as JSON."""

    generator: str
    labelled: str
    out: str
    n: int
    seed: int
    preset: str
    draw: dict


@dataclass(frozen=True)
class Drawn:
    """What one draw took: seconds from the first process's start of drawing to the last one's end, peak memory."""

    seconds: float
    rss_mb: float


def generator_of(spec: Spec) -> Generator:
    """Returns the generator that `spec` draws with."""
    generator = load_generator(spec.generator)
    return generator if spec.preset == "default" else generator.with_sampler(spec.preset)


def work(spec: Spec, report: Path) -> None:
    """Draws in this process (its share of the shards, under accelerate) and reports when it began and ended."""
    generator, labelled = generator_of(spec), load_pairs(spec.labelled)
    state = PartialState(cpu=True)
    state.wait_for_everyone()  # loading is not drawing
    began = time.time()
    draw(generator, labelled, n=spec.n, seed=spec.seed, out=spec.out, config=spec.draw)
    write_json(report.with_suffix(f".{state.process_index}.json"), {"began": began, "ended": time.time()})


def run_child(spec: Spec, folder: Path, *, processes: int = 1) -> Drawn:
    """Returns what drawing `spec` took in a fresh process, or in two; whatever lay in its folder is drawn anew."""
    shutil.rmtree(spec.out, ignore_errors=True)
    for old in folder.glob("report.*"):
        old.unlink()
    write_json(folder / "spec.json", asdict(spec))
    own = [str(Path(__file__).resolve()), "--worker", str(folder / "spec.json")]
    command = [sys.executable, *(ACCELERATE if processes > 1 else ()), *own]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    told = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("report.*.json")]
    assert len(told) == processes, f"{len(told)} of {processes} processes reported"
    kilo = 1024 if sys.platform != "darwin" else 1024**2  # ru_maxrss is in kB, on macOS in bytes
    return Drawn(max(t["ended"] for t in told) - min(t["began"] for t in told), usage.ru_maxrss / kilo)


def measure(spec: Spec, folder: Path) -> Drawn:
    """Returns what drawing `spec` took, from an earlier run if its pairs and its figures still lie in `folder`."""
    done = folder / "drawn.json"
    if not done.exists():
        write_json(done, asdict(run_child(spec, folder)))
    return Drawn(**json.loads(done.read_text(encoding="utf-8")))


def as_shown(generator: Generator, sources: Sequence[Pair], *, batch: int) -> list[Pair]:
    """Returns the sources as `generator` shows what it keeps, in the batches in which they are drawn."""
    found = []
    with one_thread():
        for some in (sources[k:k + batch] for k in range(0, len(sources), batch)):
            pixels = kept_source(generator, np.stack([to_channels(pair.image) for pair in some]))
            found += [replace(pair, image=from_channels(p)) for pair, p in zip(some, pixels, strict=True)]
    return found


def changed_pixels(made: Iterable[Pair], sources: Iterable[Pair]) -> tuple[int, int, int]:
    """Returns how many kept pixels differ from the source of the same candidate, of how many, and of how many pairs.

    The mask is the source's own; a pair whose mask differs counts every pixel that does. Where an object was mirrored
    in at the border, the source shows it and calls it unknown; a generator paints over it, and says background.
    """
    original = {pair.id.partition("-")[2]: pair for pair in sources}
    changed = kept = pairs = 0
    for pair in made:
        source = original[pair.id.partition("-")[2]]
        keep = (source.mask > 0) & (source.mask != IGNORE)
        differs = pair.image[keep] != source.image[keep]
        relabelled = (pair.mask != source.mask) & ~((source.mask == IGNORE) & (pair.mask == 0))
        changed += int((differs.any(-1) if differs.ndim > 1 else differs).sum()) + int(relabelled.sum())
        kept, pairs = kept + int(keep.sum()), pairs + 1
    return changed, kept, pairs


def exactness_rows(spec: Spec, *, size: int) -> list[Row]:
    """Returns kept pixels that changed, and faults of `synth audit`, in the drawn set of `spec`.

    The first row is against the transformed sources themselves, drawn anew without a generator. A generator that sends
    what it keeps through its codec (sampler.texture=codec) changes those; the second row is against what it shows.
    """
    out = Path(spec.out).with_name("sources")
    draw(None, load_pairs(spec.labelled), n=spec.n, seed=spec.seed, out=out, config=spec.draw, size=size)
    made, sources = read_shards(Path(spec.out)), list(read_shards(out))
    shown = as_shown(generator_of(spec), sources, batch=spec.draw["batch_size"])
    rows = []
    for name, originals in (("changed_kept_pixels", sources), ("changed_kept_pixels_as_shown", shown)):
        changed, kept, pairs = changed_pixels(made, originals)
        assert pairs == spec.n, f"{pairs} pairs of {spec.n}"
        rows.append(Row(f"{name}/{spec.n}", changed, unit=f"of {kept:,}"))
    return [*rows,
            Row(f"audit_faults/{spec.n}", len(verify_shards(spec.out)), unit="faults")]


def two_processes_row(spec: Spec, folder: Path, *, rounds: int) -> Row:
    """Returns how much faster two processes are than one, each computing on one thread, run in turn."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    alternate({str(n): lambda _, n=n: seconds[n].append(run_child(spec, folder, processes=n).seconds) for n in seconds},
              rounds=rounds)
    return ratio_row("ratio/two_processes", *(Timing(tuple(seconds[n])) for n in (1, 2)))


def base_spec(bench: Bench, args: argparse.Namespace) -> Spec:
    """Returns what all draws share; the generator is fitted and its labelled pairs are written if need be."""
    label_draw = bench.parts.draws[0]
    bench.generator("inpaint", label_draw)
    labelled = bench.out / "scale" / f"labelled-{hash_json([bench.parts.source, label_draw.labelled])}"
    if not (labelled / "dataset.json").exists():
        half = labelled.with_name(f".{labelled.name}.tmp")
        shutil.rmtree(half, ignore_errors=True)
        write_folder(bench.parts.labelled_of(label_draw), half)
        os.replace(half, labelled)
    settings = {k: v for k, v in bench.settings.draw.items() if k != "supply"}
    return Spec(str(bench.generator_folder("inpaint", label_draw)), str(labelled), "", 0, 0, args.preset, settings)


def main() -> None:
    """Draws every size, checks one of them, compares one process with two, writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", type=comma(int), help=f"pairs to draw, as 100,300; default {SIZES}")
    arguments.add_argument("--preset", default="default", help="the generator's own sampler (default), or fast")
    arguments.add_argument("--rounds", type=int, default=3, help="of one process against two; default 3, quick 1")
    arguments.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = begin(arguments)
    if args.worker:
        work(Spec(**json.loads(args.worker.read_text(encoding="utf-8"))), args.worker.with_name("report"))
        return
    bench = open_bench(only_set(args), args)
    base, rows, sizes = base_spec(bench, args), [], args.sizes or (QUICK_SIZES if args.quick else SIZES)
    home = bench.out.resolve() / "scale" / hash_json([code_hash(), asdict(base)])
    specs = {n: Spec(**{**asdict(base), "n": n, "out": str(home / str(n) / "made")}) for n in sorted(sizes)}
    drawn = {n: measure(spec, home / str(n)) for n, spec in specs.items()}
    rows += [Row(f"s_per_pair/{n}", d.seconds / n, unit="s") for n, d in drawn.items()]
    rows += [Row(f"rss_mb/{n}", d.rss_mb, unit="MB") for n, d in drawn.items()]
    least, most = min(drawn), max(drawn)
    rows += [Row("ratio/s_per_pair_largest_over_smallest", drawn[most].seconds / most / (drawn[least].seconds / least)),
             Row("ratio/rss_largest_over_smallest", drawn[most].rss_mb / drawn[least].rss_mb)]
    rows += exactness_rows(specs[max((n for n in specs if n <= CHECKED), default=least)], size=bench.settings.size)
    n = 32 if args.quick else 128
    pair = Spec(**{**asdict(base), "n": n, "out": str(home / "processes" / "made"),
                   "draw": {**base.draw, "shard_size": n // 8, "batch_size": n // 8}})
    rows.append(two_processes_row(pair, home / "processes", rounds=1 if args.quick else args.rounds))
    write(rows, args, [base.seed, bench.settings.split.seed])


if __name__ == "__main__":
    run_script(main)
