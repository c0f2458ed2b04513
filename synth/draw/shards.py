"""Cuts the work into shards of fixed composition; ranks take shards by index, without collectives."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synth.core.checks import IGNORE
from synth.core.files import sha256, write_json
from synth.core.pairs import Arrays, Pair, Provenance
from synth.core.space import from_channels, pixels_to_unit
from synth.draw.painters import Painted, Painter
from synth.draw.sources import Sources
from synth.formats import shard_name, write_shard
from synth.gates import Gates, Verdict, run_gates

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How many pairs, in which shards and batches, and when a shard gives up (candidates per wanted pair)."""

    n: int
    shard_size: int
    batch_size: int
    max_tries: int

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.n // self.shard_size)

    def quota(self, shard: int) -> int:
        """Returns the kept pairs that shard number `shard` must hold."""
        return min(self.shard_size, self.n - shard * self.shard_size)


@dataclass(frozen=True)
class Origin:
    """What stands in the provenance of every pair of a run; `prefix` begins their ids."""

    labelled: Arrays
    generator: str
    settings: str
    prefix: str


def kept_hash(image: np.ndarray, mask: np.ndarray) -> str:
    """Returns the SHA-256 of the pixels (H, W[, C]) under the foreground of mask (H, W): they must never change."""
    return sha256(np.ascontiguousarray(image[(mask > 0) & (mask != IGNORE)]).tobytes())


def _pairs(sources: Sources, painted: Painted, labels: np.ndarray, verdicts: list[Verdict],
           origin: Origin) -> Iterator[Pair]:
    groups, names = origin.labelled.groups, origin.labelled.ids
    for i, row in enumerate(sources.rows):
        parents, parent_groups = [names[row]], [groups[row]]
        if painted.others[i] is not None:
            parents.append(painted.others[i][0])
            parent_groups.append(painted.others[i][1])
        image, mask = from_channels(painted.pixels[i]), labels[i].astype(np.uint8)
        made = Provenance(
            parents=tuple(parents), parent_groups=tuple(dict.fromkeys(parent_groups)), seed=sources.seeds[i],
            generator=origin.generator, layout=sources.layouts[i], settings=origin.settings,
            kept_sha256=kept_hash(image, mask), scores=verdicts[i].scores,
            verdict="kept" if verdicts[i].kept else "rejected", reason=verdicts[i].reason)
        yield Pair(f"{origin.prefix}-{sources.keys[i]}", groups[row], image, mask, "synthetic", made)


def _judge(painted: Painted, gates: Gates | None, origin: Origin) -> tuple[np.ndarray, list[Verdict]]:
    if gates is None:
        return painted.labels, [Verdict({}, kept=True, reason="")] * len(painted.labels)
    unit = pixels_to_unit(painted.pixels, origin.labelled.info.intensity_range)
    labels, verdicts = run_gates(unit, torch.from_numpy(painted.labels.astype(np.int64)), gates)
    return labels.numpy(), verdicts


def draw_shard(shard: int, plan: Plan, *, transform: Callable[[list[str]], Sources], painter: Painter,
               gates: Gates | None, origin: Origin) -> tuple[list[Pair], list[Pair]]:
    """Returns the kept and the rejected pairs of one shard; candidates after the quota is full are not recorded."""
    kept: list[Pair] = []
    rejected: list[Pair] = []
    quota, drawn = plan.quota(shard), 0
    while len(kept) < quota and drawn < plan.max_tries * quota:
        sources = transform([f"{shard:05d}-{drawn + k:05d}" for k in range(plan.batch_size)])
        drawn += plan.batch_size
        painted = painter(sources)
        labels, verdicts = _judge(painted, gates, origin)
        for pair in _pairs(sources, painted, labels, verdicts, origin):
            if len(kept) < quota:
                (kept if pair.made.verdict == "kept" else rejected).append(pair)
    return kept, rejected


def ledger_path(out: Path, shard: int) -> Path:
    """Returns the file that notes a finished shard."""
    return out / "ledger" / f"{shard:05d}.json"


def shard_is_whole(out: Path, shard: int) -> bool:
    """Returns whether the shard is in the ledger and its files still have the noted hashes."""
    path = ledger_path(out, shard)
    if not path.exists():
        return False
    entry = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in entry["files"].items():
        try:
            if sha256((out / name).read_bytes()) != digest:
                return False
        except FileNotFoundError:  # an empty split is removed at the end, perhaps by another process just now
            if not (name.startswith("data/rejected") and entry["n_rejected"] == 0):
                return False
    return True


def write_shards(out: Path, plan: Plan, draw_one: Callable[[int], tuple[list[Pair], list[Pair]]]) -> None:
    """Draws what is missing of this process's shards (index modulo number of processes)."""
    rank, n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for shard in range(rank, plan.n_shards, n_ranks):
        if shard_is_whole(out, shard):
            continue
        kept, rejected = draw_one(shard)
        files = {}
        for split, pairs in (("train", kept), ("rejected", rejected)):
            name = shard_name(split, shard, plan.n_shards)
            files[name] = write_shard(pairs, out / name)
        # The ledger comes last: a shard that is noted is whole.
        write_json(ledger_path(out, shard), {"files": files, "n_kept": len(kept), "n_rejected": len(rejected)})
        log.info("shard %d of %d: %d kept, %d rejected", shard + 1, plan.n_shards, len(kept), len(rejected))
