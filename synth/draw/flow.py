"""What every drawing goes through: checks, the claim on its folder, shards, and what is written when all is done."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from filelock import FileLock

from synth.card import MOVED, RECOLOURED, dataset_card
from synth.core.checks import IGNORE, MIN_SIDE, UserError, check_written
from synth.core.config import Settings
from synth.core.files import claim_folder, hash_json, sweep
from synth.core.pairs import Arrays, Pair, PairSet
from synth.core.rng import one_thread
from synth.core.shell import say
from synth.draw.curation import CurateSettings
from synth.draw.hosts import Hosts, insert_pairs
from synth.draw.modes import recolour_sources, repaint_sources
from synth.draw.painters import Painter, seeds_apart
from synth.draw.settings import DrawSettings
from synth.draw.shards import Origin, Plan, draw_shard, ledger_path, shard_is_whole, write_shards
from synth.draw.sources import Sources, Window, rows_with_foreground, transform_pairs
from synth.draw.supply import Supply
from synth.formats import read_shards, shard_name, write_dataset_files
from synth.gates import Gates
from synth.generator import Generator, shows_source
from synth.layouts import Shapes, learn_anatomy


class NothingKeptError(UserError):
    """All pairs are drawn, and the gates let none through."""


def check_request(n: int, labelled: Arrays) -> None:
    """Raises before the folder is claimed what would stop the run after it."""
    if n < 1:
        raise UserError(f"n={n}", rule="there is nothing to draw", repair="write n=100")
    check_written(labelled.info.channels, labelled.info.bit_depth, "the labelled set")
    rows_with_foreground(labelled)


def check_size(size: int) -> None:
    """Raises for a working resolution at which no image could be read again."""
    if size < MIN_SIDE:
        raise UserError(f"size={size}", rule=f"an image has at least {MIN_SIDE} px a side", repair="write size=64")


def check_fit(generator: Generator, arrays: Arrays, where: str) -> None:
    info = arrays.info
    if generator.channels != info.channels or generator.intensity_range != tuple(info.intensity_range):
        raise UserError(where, rule=f"pairs of {info.channels} channel(s), range {info.intensity_range}, do not fit a "
                        f"generator of {generator.channels} channel(s), range {generator.intensity_range}",
                        repair="draw from the kind of data it was fitted on")


def check_told(generator: Generator, arrays: Arrays, where: str) -> None:
    """Raises before the folder is claimed for masks that show a class which the generator never learnt."""
    known = generator.n_classes
    if known is None or arrays.info.n_classes <= known:
        return
    top = max(int(mask[mask != IGNORE].max(initial=0)) for mask in arrays.masks)
    if top >= known:
        raise UserError(where, rule=f"its masks show class {top}, and this generator learnt classes 0 to {known - 1}",
                        repair="draw from masks of its own classes, or fit one on these")


def is_native(generator: Generator | None) -> bool:
    """Returns whether `generator` was fitted on, and paints, images at their own resolution."""
    return generator is not None and generator.scale == "native"


def window_of(generator: Generator | None, settings: DrawSettings) -> Window | None:
    """Returns what is painted of an image at native size; None = everything."""
    if settings.window == "all" or not is_native(generator):
        return None
    return Window(grow_px=round(settings.window * generator.size), least_px=generator.size)


def claim_draw(out: str | Path, kind: str, settings: Settings, identity: dict[str, object], *,
               stems: Mapping[str, tuple[str, ...]]) -> Path:
    full = {"settings": settings.model_dump(mode="json"), **identity, **({"stems": hash_json(stems)} if stems else {})}
    if getattr(settings, "curate", None) == CurateSettings():  # sets drawn before there were rules still resume
        full["settings"].pop("curate")
    return claim_folder(Path(out), kind=kind, identity=full)


@dataclass(frozen=True)
class Before:
    """What becomes of labelled pairs before they are painted, beside their layout.

    Attributes:
        window: what is painted of images at native size. hosts: images that get the objects. shapes: draws new masks.
        recolourer: changes the sources' amplitudes; repainter: their objects; lender: draws, perhaps with others'
            amplitudes. shown_px, ring_px, painted: see `transform_pairs`.
    """

    window: Window | None = None
    hosts: Hosts | None = None
    shapes: Shapes | None = None
    recolourer: Generator | None = None
    repainter: Generator | None = None
    shown_px: float = math.inf
    ring_px: int | None = None
    painted: bool = True
    lender: Generator | None = None


def transform_of(origin: Origin, settings: DrawSettings, before: Before, *, seed: int
               ) -> Callable[[Sequence[str]], Sources]:
    """Returns what turns keys of candidates into the sources that are painted."""
    rows, layout, hosts = rows_with_foreground(origin.labelled), settings.layout, before.hosts
    anatomy = learn_anatomy(hosts.donors if hosts else origin.labelled, layout)

    def transform(keys: Sequence[str]) -> Sources:
        if hosts is not None:
            sources = insert_pairs(hosts, keys, seed=seed, layout=layout, anatomy=anatomy, shapes=before.shapes)
        else:
            sources = transform_pairs(origin.labelled, keys, rows=rows, seed=seed, layout=layout, anatomy=anatomy,
                                      window=before.window, shapes=before.shapes, shown_px=before.shown_px,
                                      ring_px=before.ring_px, painted=before.painted)
        owners = sources.hosts or [(origin.labelled.ids[r], origin.labelled.groups[r]) for r in sources.rows]
        if before.lender is not None:
            sources = replace(sources, seeds=seeds_apart(before.lender, sources.seeds, owners))
        if before.recolourer is not None:
            sources = recolour_sources(sources, before.recolourer, owners=owners, share=settings.appearance_share)
        if before.repainter is not None:
            sources = repaint_sources(sources, before.repainter, share=settings.repaint_share)
        return sources

    return transform


def run_draw(out: Path, painter: Painter, *, origin: Origin, gates: Gates | None, settings: DrawSettings, n: int,  # noqa: PLR0913
         seed: int, supply: Supply | None = None, before: Before | None = None) -> PairSet | None:
    transform = transform_of(origin, settings, before or Before(), seed=seed)
    batch_size = 1 if origin.labelled.is_native else settings.batch_size  # at native size no two pairs need be alike
    plan = Plan(n, settings.shard_size, batch_size, settings.max_tries,
                oversample=settings.supply.oversample if supply else 1.0)

    def draw_one(shard: int) -> tuple[list[Pair], list[Pair]]:
        return draw_shard(shard, plan, painter=painter, gates=gates, origin=origin, supply=supply, seed=seed,
                          transform=transform)

    with one_thread():  # else files would depend on how many processes share the cores
        write_shards(out, plan, draw_one)
    if not all(shard_is_whole(out, i) for i in range(plan.n_shards)):
        return None  # another process is still at work; whoever ends last writes the card
    return _finish(out, plan, origin, shaped=before is not None and before.shapes is not None)


def _finish(out: Path, plan: Plan, origin: Origin, *, shaped: bool) -> PairSet:
    """Returns the kept pairs when card and facts are written.

    Args:
        shaped: whether a shape model was to draw the layouts: how many it did not draw is said.
    """
    entries = [json.loads(ledger_path(out, i).read_text(encoding="utf-8")) for i in range(plan.n_shards)]
    n_kept, n_rejected = (sum(e[k] for e in entries) for k in ("n_kept", "n_rejected"))
    moved = n_kept - sum(e.get("n_new_shapes", e["n_kept"]) for e in entries) if shaped else 0
    if moved:
        say(f"warning: {out}: {moved} of {n_kept} layouts are labelled maps, moved: the shape model found no plausible "
            "new one. Repair: fit it for longer or on more maps, or raise layout.shape.max_percentile",
            anyone=not (out / "README.md").exists())
    with FileLock(out / ".finish.lock"):
        sweep(out)  # all shards are whole: nobody is writing any more
        if origin.taught is not None:
            origin.taught.save(out)
        write_dataset_files(out, origin.labelled.info, dataset_card(
            n_kept=n_kept, n_rejected=n_rejected, n_asked=plan.n, classes=origin.labelled.info.classes,
            generator=origin.generator, settings=origin.settings,
            groups=(*origin.labelled.groups, *origin.host_groups, *chain(*origin.stems.values())),
            note=(RECOLOURED if shows_source(json.loads(origin.settings)) else "")
            + (MOVED.format(moved=moved, n_kept=n_kept) if moved else "")))
        if n_rejected == 0:  # a split without a single row cannot be opened
            for i in range(plan.n_shards):
                (out / shard_name("rejected", i, plan.n_shards)).unlink(missing_ok=True)
    if n_kept == 0:
        raise NothingKeptError(str(out), rule=f"none of {n_rejected} drawn pairs passed the gates; see the rejected "
                               "split", repair="train the generator or the judge longer, or loosen the gate that "
                               "the reasons name")
    return read_shards(out)


