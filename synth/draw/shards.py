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
from synth.draw.supply import Supply, choose_pairs, score_supply
from synth.formats import shard_name, write_shard
from synth.gates import Gates, Verdict, run_gates

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How many pairs, in which shards and batches, and when a shard gives up (candidates per wanted pair).

    Attributes:
        oversample: pairs that have to pass the gates for each one that is kept.
    """

    n: int
    shard_size: int
    batch_size: int
    max_tries: int
    oversample: float = 1.0

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.n // self.shard_size)

    def quota(self, shard: int) -> int:
        """Returns the kept pairs that shard number `shard` must hold."""
        return min(self.shard_size, self.n - shard * self.shard_size)

    def wanted(self, shard: int) -> int:
        """Returns the pairs that have to pass the gates of shard number `shard`, from which its quota is chosen."""
        return max(self.quota(shard), round(self.oversample * self.quota(shard)))


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
        # The painter's parent (a background), then the layout's (which the layout names too).
        further = [other for other in (painted.others[i], sources.others[i]) if other is not None]
        parents, parent_groups = [names[row], *(o[0] for o in further)], [groups[row], *(o[1] for o in further)]
        image, mask = from_channels(painted.pixels[i]), labels[i].astype(np.uint8)
        made = Provenance(
            parents=tuple(dict.fromkeys(parents)), parent_groups=tuple(dict.fromkeys(parent_groups)),
            seed=sources.seeds[i], generator=origin.generator, layout=sources.layouts[i], settings=origin.settings,
            kept_sha256=kept_hash(image, mask), scores=verdicts[i].scores,
            verdict="kept" if verdicts[i].kept else "rejected", reason=verdicts[i].reason)
        yield Pair(f"{origin.prefix}-{sources.keys[i]}", groups[row], image, mask, "synthetic", made)


def _judge(painted: Painted, gates: Gates | None, origin: Origin,
           supply: Supply | None) -> tuple[np.ndarray, list[Verdict]]:
    unit = pixels_to_unit(painted.pixels, origin.labelled.info.intensity_range)
    labels = torch.from_numpy(painted.labels.astype(np.int64))
    verdicts = [Verdict({}, kept=True, reason="")] * len(labels)
    if gates is not None:
        labels, verdicts = run_gates(unit, labels, gates)
    if supply is not None:  # the whole batch, rejected pairs too: its composition must not depend on the gates
        verdicts = [Verdict({**verdict.scores, **scores}, verdict.kept, verdict.reason)
                    for verdict, scores in zip(verdicts, score_supply(unit, labels, supply), strict=True)]
    return labels.numpy(), verdicts


def draw_shard(  # noqa: PLR0913 - what a batch goes through, part by part
    shard: int, plan: Plan, *, transform: Callable[[list[str]], Sources], painter: Painter, gates: Gates | None,
    origin: Origin, supply: Supply | None = None, seed: int = 0,
) -> tuple[list[Pair], list[Pair]]:
    """Returns the kept and the rejected pairs of one shard; candidates after the last wanted one are not recorded.

    Args:
        supply: chooses the kept pairs among all that passed the gates, with random numbers of `seed`.
    """
    kept: list[Pair] = []
    rejected: list[Pair] = []
    wanted, drawn = plan.wanted(shard), 0
    while len(kept) < wanted and drawn < plan.max_tries * wanted:
        sources = transform([f"{shard:05d}-{drawn + k:05d}" for k in range(plan.batch_size)])
        drawn += plan.batch_size
        painted = painter(sources)
        labels, verdicts = _judge(painted, gates, origin, supply)
        for pair in _pairs(sources, painted, labels, verdicts, origin):
            if len(kept) < wanted:
                (kept if pair.made.verdict == "kept" else rejected).append(pair)
    if supply is not None:
        kept, left = choose_pairs(kept, quota=plan.quota(shard), supply=supply, seed=seed, shard=shard)
        rejected += left
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
