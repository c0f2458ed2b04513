"""Cuts the work into shards of fixed composition; ranks take shards by index, without collectives."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from synth.core.checks import IGNORE, UserError
from synth.core.files import sha256, write_json
from synth.core.pairs import Arrays, ImageSet, Pair, Provenance
from synth.core.space import from_channels, labels_to_keep, pixels_to_unit
from synth.core.taught import Taught, stem_of
from synth.draw.curation import Curation, curate_batch
from synth.draw.painters import Painted, Painter
from synth.draw.sources import Sources
from synth.draw.supply import Supply, choose_pairs, score_supply
from synth.formats import read_shards, shard_name, write_shard
from synth.gates import Gates, Verdict, run_gates
from synth.generator import CURATED, keeps_of, kept_by, painted_around, shows_source

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
    """What stands in the provenance of every pair of a run.

    Attributes:
        settings: JSON text of the sampler's; they also say which pixels are kept. prefix: begins the ids.
        host_groups: groups of the images that foreground was put in.
        curation: the rules that every drawn pair goes through after the gates, or None.
        stems: of parents that were drawn themselves, by id, all the groups that they stem from.
        taught: what the models that draw were fitted on, as far as known; for the whole set.
    """

    labelled: Arrays
    generator: str
    settings: str
    prefix: str
    host_groups: tuple[str, ...] = ()
    curation: Curation | None = None
    taught: Taught | None = None
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def stems_of(*sets: ImageSet | None) -> dict[str, tuple[str, ...]]:
    """Returns, of those items of `sets` that were drawn, by id, all the groups that they stem from."""
    return {item.id: stem_of(item) for one in sets if one is not None for item in one.items if item.made}


def kept_hash(image: np.ndarray, mask: np.ndarray, settings: str = "{}") -> str:
    """Returns the SHA-256 of the pixels (H, W[, C]) that a pair of mask (H, W) has from its source: never to change.

    These are the ones that the mask alone tells: no frame. Where nothing is kept, the empty text.

    Args:
        settings: JSON text of the sampler's settings, see `synth.generator.kept_by`.
    """
    words = json.loads(settings)
    if keeps_of(words) == "nothing":
        return ""
    keep = kept_by(torch.from_numpy(mask.astype(np.int64))[None], words)[0].numpy()
    return sha256(np.ascontiguousarray(image[keep]).tobytes())


def _pairs(sources: Sources, painted: Painted, labels: np.ndarray, verdicts: list[Verdict],
           origin: Origin) -> Iterator[Pair]:
    groups, names = origin.labelled.groups, origin.labelled.ids
    weights = dict(zip(names, origin.labelled.weights, strict=True)) if origin.labelled.weights else {}
    for i, row in enumerate(sources.rows):
        # Whose surroundings it shows comes first; then the painter's parent (a background, a lender of amplitudes), the
        # layout's, and whose amplitudes went into the source.
        host = sources.hosts[i] if sources.hosts else None
        lent = sources.lent[i] if sources.lent else None
        family = [one for one in (host, (names[row], groups[row]), painted.others[i], sources.others[i], lent) if one]
        parents, parent_groups = zip(*family, strict=True)
        groups_of_all = (*parent_groups, *(group for name in parents for group in origin.stems.get(name, ())))
        image, mask = from_channels(painted.pixels[i]), labels[i].astype(np.uint8)
        made = Provenance(
            parents=tuple(dict.fromkeys(parents)), parent_groups=tuple(dict.fromkeys(groups_of_all)),
            seed=sources.seeds[i], generator=origin.generator, layout=sources.layouts[i], settings=origin.settings,
            kept_sha256=kept_hash(image, mask, origin.settings), scores=verdicts[i].scores,
            verdict="kept" if verdicts[i].kept else "rejected", reason=verdicts[i].reason)
        # Its labels are its parents', and no surer than those of the least sure.
        yield Pair(f"{origin.prefix}-{sources.keys[i]}", parent_groups[0], image, mask, "synthetic", made,
                   min(weights.get(name, 1.0) for name in parents))


def _judge(painted: Painted, keep_in: np.ndarray, gates: Gates | None, origin: Origin,
           supply: Supply | None) -> tuple[np.ndarray, list[Verdict]]:
    unit = pixels_to_unit(painted.pixels, origin.labelled.info.intensity_range)
    labels = torch.from_numpy(painted.labels.astype(np.int64))
    words = {k: v for k, v in json.loads(origin.settings).items() if k != CURATED}
    kept = kept_by(labels, words)
    verdicts = [Verdict({}, kept=True, reason="")] * len(labels)
    if gates is not None:
        if origin.labelled.is_native:  # a frequency means something else at each size
            gates = replace(gates, spectrum=None)
        fresh = ~kept
        # Outside the window of a pair at native size, pixels and labels are the source's: nothing there is judged.
        outside = torch.from_numpy(keep_in & origin.labelled.is_native) & ~labels_to_keep(labels)
        judged, verdicts = run_gates(unit, torch.where(outside, IGNORE, labels), gates, painted=fresh & ~outside,
                                     around=painted_around(labels, words) | outside, is_new=not shows_source(words))
        labels = torch.where(outside, labels, judged)
    if origin.curation is not None:
        labels, verdicts = curate_batch(unit, labels, verdicts, origin.curation,
                                        kept=kept | torch.from_numpy(keep_in & origin.labelled.is_native))
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
        labels, verdicts = _judge(painted, sources.keep_in, gates, origin, supply)
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


def write_missing(out: Path, n_shards: int, write_one: Callable[[int], dict[str, object]]) -> None:
    """Writes what is missing of this process's shards (index modulo number of processes).

    Args:
        write_one: writes a shard, and returns its entry in the ledger: the hash of each of its `files`, and what else
            is to be known when all are written.
    """
    rank, n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for shard in range(rank, n_shards, n_ranks):
        if not shard_is_whole(out, shard):
            # The ledger comes last: a shard that is noted is whole.
            write_json(ledger_path(out, shard), write_one(shard))


def write_shards(out: Path, plan: Plan, draw_one: Callable[[int], tuple[list[Pair], list[Pair]]]) -> None:
    """Draws what is missing of this process's shards, as `write_missing`."""
    def write_one(shard: int) -> dict[str, object]:
        kept, rejected = draw_one(shard)
        files = {}
        for split, pairs in (("train", kept), ("rejected", rejected)):
            name = shard_name(split, shard, plan.n_shards)
            files[name] = write_shard(pairs, out / name)
        log.info("shard %d of %d: %d kept, %d rejected", shard + 1, plan.n_shards, len(kept), len(rejected))
        new = sum("shape" in json.loads(pair.made.layout) for pair in kept)
        return {"files": files, "n_kept": len(kept), "n_rejected": len(rejected), "n_new_shapes": new}

    write_missing(out, plan.n_shards, write_one)


def verify_shards(folder: str | Path) -> list[str]:
    """Returns what is wrong with a drawn folder, one line each: changed files, changed kept pixels. Empty = nothing.

    Raises:
        UserError: if `folder` holds no drawn set.
    """
    out, faults = Path(folder), []
    ledgers = sorted((out / "ledger").glob("*.json"))
    if not ledgers:
        raise UserError(str(out), rule="no ledger here, so this is no drawn set", repair="give the out= of synth draw")
    for path in ledgers:
        if not shard_is_whole(out, int(path.stem)):
            faults.append(f"shard {path.stem}: a file is missing or its hash differs from the ledger")
    # Where the gates rejected everything there is no kept pixel, and the set is as it was drawn.
    n_kept = sum(json.loads(path.read_text(encoding="utf-8")).get("n_kept", 1) for path in ledgers)
    try:
        for pair in read_shards(out) if n_kept else ():
            if pair.made and kept_hash(pair.image, pair.mask, pair.made.settings) != pair.made.kept_sha256:
                what = keeps_of(json.loads(pair.made.settings))
                faults.append(f"{pair.id}: a pixel of the {what} differs from the transformed source")
    except UserError as error:  # a shard that is missing or does not open is a fault like any other
        faults.append(str(error))
    return faults
