"""`draw` and `draw_copypaste`: settings, the claim on the output folder, and what is written when all is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, NonNegativeFloat

from synth.card import dataset_card
from synth.core.checks import UserError
from synth.core.config import Settings, load_config
from synth.core.files import claim_folder, sweep
from synth.core.pairs import Arrays, ImageSet, Pair, PairSet
from synth.core.rng import one_thread
from synth.diffusion.inpaint import blend_alpha
from synth.draw.painters import (
    Painter,
    clear_backgrounds,
    generator_painter,
    no_painter,
    paste_painter,
    roundtrip_painter,
)
from synth.draw.shards import Origin, Plan, draw_shard, kept_hash, ledger_path, shard_is_whole, write_shards
from synth.draw.sources import Window, rows_with_foreground, transform_pairs
from synth.draw.supply import Supply, SupplySettings, check_judge
from synth.formats import read_shards, shard_name, write_dataset_files
from synth.gates import Gates
from synth.gates.gates import Predict
from synth.generator import Generator
from synth.layouts import LayoutSettings, learn_anatomy


class DrawSettings(Settings):
    """How pairs are drawn.

    Attributes:
        shard_size: kept pairs per file. batch_size: candidates painted together, fixed so that files are identical
            for any number of processes. max_tries: candidates per wanted pair before a shard gives up.
        supply: how many pairs have to pass the gates for each one that is kept, and which are.
        window: how far around the objects a generator of scale "native" paints, as a share of its own size (never
            narrower than that size); beyond, the source is kept. "all" = the whole image.
    """

    layout: LayoutSettings = LayoutSettings()
    shard_size: int = Field(32, ge=1)
    batch_size: int = Field(16, ge=1)
    max_tries: int = Field(4, ge=1)
    supply: SupplySettings = SupplySettings()
    window: Literal["all"] | NonNegativeFloat = 0.5


class CopyPasteSettings(Settings):
    """Which unlabelled images may carry a pasted foreground, see `clear_backgrounds`; and the rim's width."""

    confidence: float = Field(0.9, gt=0.5, lt=1)
    max_share: float = Field(0.002, ge=0, le=1)
    width_px: int = Field(4, ge=1)


def _run(out: Path, painter: Painter, *, origin: Origin, gates: Gates | None, settings: DrawSettings, n: int,  # noqa: PLR0913
         seed: int, supply: Supply | None = None, window: Window | None = None) -> PairSet | None:
    rows, anatomy = rows_with_foreground(origin.labelled), learn_anatomy(origin.labelled, settings.layout)
    batch_size = 1 if origin.labelled.is_native else settings.batch_size  # at native size no two pairs need be alike
    plan = Plan(n, settings.shard_size, batch_size, settings.max_tries,
                oversample=settings.supply.oversample if supply else 1.0)

    def draw_one(shard: int) -> tuple[list[Pair], list[Pair]]:
        return draw_shard(shard, plan, painter=painter, gates=gates, origin=origin, supply=supply, seed=seed,
                          transform=lambda keys: transform_pairs(origin.labelled, keys, rows=rows, seed=seed,
                                                                 layout=settings.layout, anatomy=anatomy, window=window))

    with one_thread():  # else files would depend on how many processes share the cores
        write_shards(out, plan, draw_one)
    if not all(shard_is_whole(out, i) for i in range(plan.n_shards)):
        return None  # another process is still at work; whoever ends last writes the card
    return _finish(out, plan, origin)


def _finish(out: Path, plan: Plan, origin: Origin) -> PairSet:
    entries = [json.loads(ledger_path(out, i).read_text(encoding="utf-8")) for i in range(plan.n_shards)]
    n_kept, n_rejected = (sum(e[k] for e in entries) for k in ("n_kept", "n_rejected"))
    with FileLock(out / ".finish.lock"):
        sweep(out)  # all shards are whole: nobody is writing any more
        write_dataset_files(out, origin.labelled.info, dataset_card(
            n_kept=n_kept, n_rejected=n_rejected, n_asked=plan.n, classes=origin.labelled.info.classes,
            generator=origin.generator, settings=origin.settings, groups=origin.labelled.groups))
        if n_rejected == 0:  # a split without a single row cannot be opened
            for i in range(plan.n_shards):
                (out / shard_name("rejected", i, plan.n_shards)).unlink(missing_ok=True)
    if n_kept == 0:
        raise UserError(str(out), rule=f"none of {n_rejected} drawn pairs passed the gates; see the rejected split",
                        repair="train the generator or the judge longer, or loosen the gate that the reasons name")
    return read_shards(out)


def _check(n: int, labelled: Arrays) -> None:
    """Raises before the folder is claimed what would stop the run after it."""
    if n < 1:
        raise UserError(f"n={n}", rule="there is nothing to draw", repair="write n=100")
    rows_with_foreground(labelled)


def _check_fit(generator: Generator, arrays: Arrays, where: str) -> None:
    info = arrays.info
    if generator.channels != info.channels or generator.intensity_range != tuple(info.intensity_range):
        raise UserError(where, rule=f"pairs of {info.channels} channel(s), range {info.intensity_range}, do not fit a "
                        f"generator of {generator.channels} channel(s), range {generator.intensity_range}",
                        repair="draw from the kind of data it was fitted on")


def _native(generator: Generator | None) -> bool:
    """Returns whether `generator` was fitted on, and paints, images at their own resolution."""
    return getattr(generator, "scale", "fit") == "native"


def _window(generator: Generator | None, settings: DrawSettings) -> Window | None:
    """Returns what is painted of an image at native size; None = everything."""
    if settings.window == "all" or not _native(generator):
        return None
    return Window(grow_px=round(settings.window * generator.size), least_px=generator.size)


def _supplied(settings: DrawSettings, supply: Supply | None) -> DrawSettings:
    """Returns the settings with those of `supply`; raises if they name others, or a supply and there is none."""
    if supply is None:
        check_judge(settings.supply, there=False)
        return settings
    if settings.supply not in (SupplySettings(), supply.settings):
        raise UserError(f"supply {settings.supply}", rule=f"the supply given was calibrated with {supply.settings}",
                        repair="pass the same settings to default_supply and to draw, or none to draw")
    return settings.model_copy(update={"supply": supply.settings})


def _claim(out: str | Path, kind: str, settings: Settings, identity: dict[str, object]) -> Path:
    full = {"settings": settings.model_dump(mode="json"), **identity}
    return claim_folder(Path(out), kind=kind, identity=full)


def draw(  # noqa: PLR0913 - the verb of the product: each of these is a choice that a caller makes
    generator: Generator | None, labelled: PairSet, *, n: int, seed: int = 0, gates: Gates | None = None,
    out: str | Path, config: str | Path | dict | DrawSettings | None = None, size: int | None = None,
    supply: Supply | None = None, overrides: Sequence[str] = (),
) -> PairSet | None:
    """Returns the kept pairs, n of them where the gates allow; the rejected ones lie in the folder's own split.

    Running again finishes what is missing; under `accelerate launch` each process takes its shards, and a process
    that ends before the others returns None.

    Args:
        generator: None writes the transformed sources unpainted, at `size`.
        labelled: real pairs, of training groups only. out: a folder that `datasets.load_dataset` then opens.
        supply: chooses the kept ones among `supply.oversample` times as many, see `default_supply`; those left over
            are rejected with the reason "supply". Its settings are taken where `config` names none.

    Raises:
        UserError: if `out` holds another run, the pairs do not fit the generator, no pair passes the gates, or more is
            to be drawn than kept and there is no `supply`.
    """
    settings = _supplied(load_config(DrawSettings, config, overrides), supply)
    side = generator.size if generator else size
    if side is None:
        raise UserError("size", rule="without a generator the working resolution must be given", repair="add size=64")
    arrays = labelled.native(side) if _native(generator) else labelled.arrays(side)
    if generator is not None:
        _check_fit(generator, arrays, labelled.where)
    _check(n, arrays)
    name = generator.content_hash() if generator else "none"
    sampler = generator.sampler_settings() if generator else {"sampler": "none"}
    origin = Origin(arrays, name, json.dumps(sampler, sort_keys=True), "inpaint" if generator else "source")
    folder = _claim(out, "draw", settings, {
        "generator": name, "sampler": sampler, "labelled": arrays.fingerprint(), "n": n, "seed": seed,
        "gates": gates.identity if gates else "none", **({"supply": supply.identity} if supply else {})})
    painter = generator_painter(generator) if generator else no_painter
    return _run(folder, painter, origin=origin, gates=gates, settings=settings, n=n, seed=seed, supply=supply,
                window=_window(generator, settings))


def draw_roundtrip(  # noqa: PLR0913 - as `draw`
    generator: Generator, labelled: PairSet, *, n: int, seed: int = 0, out: str | Path,
    config: str | Path | dict | DrawSettings | None = None,
) -> PairSet | None:
    """Returns n pairs of the control: the sources that `draw` transforms, through the generator's autoencoder alone.

    Raises:
        UserError: as `draw`; also if the generator has no autoencoder.
    """
    settings, side = load_config(DrawSettings, config), generator.size
    arrays = labelled.native(side) if _native(generator) else labelled.arrays(side)
    _check_fit(generator, arrays, labelled.where)
    _check(n, arrays)
    name, sampler = generator.content_hash(), {"sampler": "roundtrip"}
    folder = _claim(out, "roundtrip", settings, {
        "generator": name, "sampler": sampler, "labelled": arrays.fingerprint(), "n": n, "seed": seed})
    origin = Origin(arrays, name, json.dumps(sampler, sort_keys=True), "roundtrip")
    return _run(folder, roundtrip_painter(generator), origin=origin, gates=None, settings=settings, n=n, seed=seed,
                window=_window(generator, settings))


def draw_copypaste(  # noqa: PLR0913 - as `draw`
    labelled: PairSet, unlabelled: ImageSet | None, *, predict: Predict | None, judge: str = "", n: int, seed: int = 0,
    size: int, out: str | Path, config: str | Path | dict | DrawSettings | None = None,
    paste: CopyPasteSettings | None = None,
) -> PairSet | None:
    """Returns n pairs of the control: the foregrounds that `draw` transforms, pasted onto other real images.

    Args:
        unlabelled: further backgrounds, used where `predict` sees no confident foreground; needs `predict`.
        judge: content hash of the model behind `predict`.

    Raises:
        UserError: as `draw`.
    """
    settings, paste = load_config(DrawSettings, config), paste or CopyPasteSettings()
    arrays = labelled.arrays(size)
    _check(n, arrays)
    pile = unlabelled.arrays(size) if unlabelled is not None and predict is not None else None
    sampler = {"sampler": "copypaste", **paste.model_dump()}
    folder = _claim(out, "copypaste", settings, {
        "sampler": sampler, "labelled": arrays.fingerprint(), "unlabelled": pile.fingerprint() if pile else "none",
        "judge": judge, "n": n, "seed": seed})
    clear = pile and clear_backgrounds(pile, predict, confidence=paste.confidence, max_share=paste.max_share)
    painter = paste_painter(arrays, clear or None, seed=seed,
                            blend=lambda keep: blend_alpha(keep, width_px=paste.width_px))
    origin = Origin(arrays, "copypaste", json.dumps(sampler, sort_keys=True), "paste")
    return _run(folder, painter, origin=origin, gates=None, settings=settings, n=n, seed=seed)


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
    try:
        for pair in read_shards(out):
            if pair.made and kept_hash(pair.image, pair.mask) != pair.made.kept_sha256:
                faults.append(f"{pair.id}: a pixel under the foreground differs from the transformed source")
    except UserError as error:  # a shard that is missing or does not open is a fault like any other
        faults.append(str(error))
    return faults
