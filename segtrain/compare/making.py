"""How each kind of synthetic pairs of a comparison is made, into a folder of its own; and what came of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pyarrow import parquet

from segtrain.compare.arms import ENGINES, SHUFFLED, engines_of, parts_of
from segtrain.compare.splits import LabelDraw
from synth.core.pairs import Pair, PairSet
from synth.core.rng import sample_rng
from synth.formats import read_shards, shard_name, write_dataset_files, write_shard
from synth.gates import rules_of

if TYPE_CHECKING:
    from segtrain.compare.runs import Bench

log = logging.getLogger(__name__)

JUDGED = ("copypaste", *ENGINES)
"""Kinds in which the judge has a say."""


def made_of(kind: str) -> tuple[str, ...]:
    """Returns the kinds of pairs that those of `kind` are taken from; none if they are made anew."""
    if kind.endswith(SHUFFLED):
        return (kind.removesuffix(SHUFFLED),)
    return parts_of(kind) if len(parts_of(kind)) > 1 else ()


def is_judged(kind: str) -> bool:
    """Returns whether the judge has a say in pairs of `kind`, or in those that they are taken from."""
    return kind in JUDGED or any(is_judged(source) for source in made_of(kind))


def make_ready(bench: Bench, kind: str, draw: LabelDraw) -> None:
    """Trains what `kind` needs, so that the seconds of drawing are those of drawing."""
    for source in made_of(kind):
        bench.made(source, draw)
    if made_of(kind):
        return
    if kind in JUDGED:
        bench.judge(draw)
    for engine in engines_of([kind]):
        bench.generator(engine, draw)
    if kind in ENGINES and bench.refereed:
        bench.referee(draw)


def make_pairs(bench: Bench, kind: str, draw: LabelDraw, folder: Path) -> None:
    """Writes the pairs of one kind and label draw into `folder`, which may hold some of them already."""
    from synth.draw.flow import NothingKeptError

    plain: dict[str, Callable[[Bench, LabelDraw, Path], None]] = {
        "copypaste": _copypaste, "roundtrip": _roundtrip, "affine": _affine}
    try:
        if kind in plain:
            plain[kind](bench, draw, folder)
        elif kind in ENGINES:
            _generated(bench, kind, draw, folder)
        else:
            _derived(bench, kind, draw, folder)
    except NothingKeptError as error:
        # Gates that let nothing through are a finding, not a fault: the arm then has its real pairs alone.
        log.warning("label draw %d: %s", draw.index, error)


def _generated(bench: Bench, engine: str, draw: LabelDraw, folder: Path) -> None:
    from synth.draw import CurateSettings, SupplySettings, default_curation, default_supply
    from synth.draw import draw as draw_pairs
    from synth.gates import GateSettings, default_gates

    settings, labelled, judge = bench.settings, bench.parts.labelled_of(draw), bench.judge(draw)
    gates = default_gates(judge.predict, labelled, training=bench.parts.training(), size=settings.size,
                          settings=GateSettings(**settings.gates))
    referee = bench.referee(draw).predict if bench.refereed else None
    supply = default_supply(judge.predict, referee, labelled, size=settings.size,
                            settings=SupplySettings(**settings.draw["supply"])) if bench.supplied else None
    curation = default_curation(judge.predict, referee, labelled, size=settings.size,
                                settings=CurateSettings(**settings.draw["curate"])) if bench.curated else None
    draw_pairs(bench.generator(engine, draw), labelled, n=settings.synthetic.n, seed=settings.synthetic.seed,
               gates=gates, out=folder, config=bench.drawing(engine), supply=supply, curation=curation)


def _copypaste(bench: Bench, draw: LabelDraw, folder: Path) -> None:
    from synth.draw import draw_copypaste

    made, judge = bench.settings.synthetic, bench.judge(draw)
    draw_copypaste(bench.parts.labelled_of(draw), bench.parts.unlabelled_of(draw), predict=judge.predict,
                   judge=judge.content_hash(), n=made.n, seed=made.seed, size=bench.settings.size, out=folder,
                   config=bench.drawing("copypaste"))


def _roundtrip(bench: Bench, draw: LabelDraw, folder: Path) -> None:
    from synth.draw import draw_roundtrip

    made = bench.settings.synthetic
    draw_roundtrip(bench.generator("inpaint", draw), bench.parts.labelled_of(draw), n=made.n, seed=made.seed,
                   out=folder, config=bench.drawing("roundtrip"))


def _affine(bench: Bench, draw: LabelDraw, folder: Path) -> None:
    from synth.draw import draw as draw_pairs

    made = bench.settings.synthetic
    draw_pairs(None, bench.parts.labelled_of(draw), n=made.n, seed=made.seed, size=bench.settings.size, out=folder,
               config=bench.drawing("affine"))


def _derived(bench: Bench, kind: str, draw: LabelDraw, folder: Path) -> None:
    """Writes pairs that are others' pairs: exchanged masks, or some of each of several kinds."""
    from synth.card import dataset_card

    asked, seed = bench.settings.synthetic.n, bench.settings.synthetic.seed
    kept = [found for source in made_of(kind) if (found := bench.kept(bench.made(source, draw)))]
    if kind.endswith(SHUFFLED):
        pairs = shuffle_masks(kept[0], seed=seed) if kept and len(kept[0]) > 1 else []
    else:
        pairs = some_of_each(kept, n=asked // len(made_of(kind)))
    if not pairs:
        log.warning("label draw %d: too few pairs were kept to make %s of them", draw.index, kind)
        return
    write_shard(pairs, folder / shard_name("train", 0, 1))
    write_dataset_files(folder, kept[0].info, dataset_card(
        n_kept=len(pairs), n_rejected=0, n_asked=asked, classes=kept[0].info.classes,
        generator=", ".join(dict.fromkeys(pair.made.generator for pair in pairs)), settings=pairs[0].made.settings,
        groups=[pair.group for pair in pairs]))


def some_of_each(sets: Sequence[PairSet], *, n: int) -> list[Pair]:
    """Returns the first n pairs of every set, or as many as it has: kinds share a budget in equal parts."""
    return [pairs[i] for pairs in sets for i in range(min(n, len(pairs)))]


def shuffle_masks(pairs: PairSet, *, seed: int) -> list[Pair]:
    """Returns the images of `pairs` in their order, each with the mask of another one: labels that are wrong.

    The masks go round one ring through all pairs in random order, so none stays where it was. A pair that carries
    another's mask stems from the parents of both. Scores are dropped: they were of the right mask.

    Args:
        pairs: two or more, drawn ones. seed: of the order.
    """
    order = torch.randperm(len(pairs), generator=sample_rng(seed, "shuffled")).tolist()
    donor = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [_with_mask(pair, pairs[donor[i]]) for i, pair in enumerate(pairs)]


def _with_mask(pair: Pair, other: Pair) -> Pair:
    mine, theirs = pair.made, other.made
    made = dataclasses.replace(
        mine, parents=tuple(dict.fromkeys(mine.parents + theirs.parents)),
        parent_groups=tuple(dict.fromkeys(mine.parent_groups + theirs.parent_groups)), kept_sha256="", scores={})
    return dataclasses.replace(pair, id=f"shuffled-{pair.id}", mask=other.mask, made=made)


def made_identity(bench: Bench, kind: str, draw: LabelDraw, *, labelled: str | None, unlabelled: str | None) -> object:
    """Returns everything that the pairs of one kind and label draw depend on.

    Args:
        labelled, unlabelled: fingerprints of the label draw's images.
    """
    settings = bench.settings
    if made_of(kind):
        return [kind, settings.synthetic.n, *(bench.made_folder(source, draw).name for source in made_of(kind))]
    judge = bench.judge_folder(draw).name if kind in JUDGED else labelled
    own: object = unlabelled if kind == "copypaste" else None
    for engine in engines_of([kind]):
        own = [bench.generator_folder(engine, draw).name, bench.sampling(engine)]
    if kind in ENGINES:
        own = [own, settings.gates, *([bench.referee_folder(draw).name] if bench.refereed else [])]
    return [settings.synthetic.model_dump(), bench.drawing(kind), judge, own]


def rejected_pairs(folder: Path) -> PairSet | None:
    """Returns the pairs in `folder` that were rejected, None if there are none."""
    return read_shards(folder, "rejected") if n_rows(folder, "rejected") else None


def n_rows(folder: Path, split: str) -> int:
    """Returns how many pairs the shards of a split hold, 0 if there are no shards."""
    return sum(parquet.read_metadata(path).num_rows for path in (folder / "data").glob(f"{split}-*.parquet"))


def count_verdicts(folder: Path) -> dict[str, object]:
    """Returns how many pairs in `folder` were kept and rejected, and by which gates (a pair may fail several).

    Pairs that passed every gate while others were chosen count under the reason "supply".
    """
    rejected = rejected_pairs(folder)
    reasons: dict[str, int] = {}
    for item in rejected.items if rejected else ():
        for gate in rules_of(item.made.reason):
            reasons[gate] = reasons.get(gate, 0) + 1
    return {"kept": n_rows(folder, "train"), "rejected": n_rows(folder, "rejected"), "reasons": reasons}
