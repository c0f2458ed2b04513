"""`draw` and `draw_copypaste`: settings, the claim on the output folder, and what is written when all is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from pydantic import Field, NonNegativeFloat

from synth.card import RECOLOURED, dataset_card
from synth.core.checks import UserError
from synth.core.config import Settings, load_config
from synth.core.files import claim_folder, sweep
from synth.core.pairs import Arrays, ImageSet, Pair, PairSet
from synth.core.rng import one_thread
from synth.diffusion.inpaint import blend_alpha
from synth.draw.curation import CurateSettings, Curation, check_models
from synth.draw.free import SHOWN, check_layout, label_painter, shapes_of
from synth.draw.hosts import Hosts, clear_hosts, insert_pairs
from synth.draw.modes import (
    check_recolourer,
    inserter_of,
    recolour_sources,
    repaint_sources,
    repainter_of,
    still_layout,
)
from synth.draw.painters import (
    ClearSettings,
    Painter,
    clear_backgrounds,
    generator_painter,
    no_painter,
    paste_painter,
    roundtrip_painter,
)
from synth.draw.shards import Origin, Plan, draw_shard, ledger_path, shard_is_whole, write_shards
from synth.draw.sources import Sources, Window, rows_with_foreground, transform_pairs
from synth.draw.supply import Supply, SupplySettings, check_judge
from synth.formats import read_shards, shard_name, write_dataset_files
from synth.gates import Gates
from synth.gates.gates import Predict
from synth.generator import CURATED, Generator, shows_source
from synth.layouts import LayoutSettings, ShapeModel, Shapes, learn_anatomy


class DrawSettings(Settings):
    """How pairs are drawn.

    Attributes:
        layout: of a generator that shows its source in another appearance (kind spectral), mirroring alone is done.
        shard_size: kept pairs per file. batch_size: candidates painted together, fixed so that files are identical
            for any number of processes. max_tries: candidates per wanted pair before a shard gives up.
        supply: how many pairs have to pass the gates for each one that is kept, and which are.
        curate: which of a pair's pixels teach, and whether a referee has to find its mask again.
        clear: which unlabelled images show no object, for hosts and for pasting.
        repaint_share: of the candidates, those whose objects are repainted before their surroundings are, so that one
            run varies both; other generators than None must know modes (`denoiser.labels`).
        appearance_share: of the candidates, those whose source gets other amplitudes before anything is painted, where
            there is a generator that changes them (`appearance=`); what is then kept is kept of that source.
        window: how far around the objects a generator of scale "native" paints, as a share of its own size (never
            narrower than that size); beyond, the source is kept. "all" = the whole image.
    """

    layout: LayoutSettings = LayoutSettings()
    shard_size: int = Field(32, ge=1)
    batch_size: int = Field(16, ge=1)
    max_tries: int = Field(4, ge=1)
    supply: SupplySettings = SupplySettings()
    curate: CurateSettings = CurateSettings()
    clear: ClearSettings = ClearSettings()
    repaint_share: float = Field(0.0, ge=0, le=1)
    appearance_share: float = Field(1.0, ge=0, le=1)
    window: Literal["all"] | NonNegativeFloat = 0.5


class CopyPasteSettings(Settings):
    """How wide the rim of a pasted foreground is."""

    width_px: int = Field(4, ge=1)


@dataclass(frozen=True)
class Before:
    """What becomes of labelled pairs before they are painted, beside their layout.

    Attributes:
        window: what is painted of images at native size. hosts: images that get the objects. shapes: draws new masks.
        recolourer: changes the sources' amplitudes; repainter: their objects.
    """

    window: Window | None = None
    hosts: Hosts | None = None
    shapes: Shapes | None = None
    recolourer: Generator | None = None
    repainter: Generator | None = None


def _transform(origin: Origin, settings: DrawSettings, before: Before, *, seed: int
               ) -> Callable[[Sequence[str]], Sources]:
    """Returns what turns keys of candidates into the sources that are painted."""
    rows, layout, hosts = rows_with_foreground(origin.labelled), settings.layout, before.hosts
    anatomy = learn_anatomy(hosts.donors if hosts else origin.labelled, layout)

    def transform(keys: Sequence[str]) -> Sources:
        if hosts is not None:
            sources = insert_pairs(hosts, keys, seed=seed, layout=layout, anatomy=anatomy, shapes=before.shapes)
        else:
            sources = transform_pairs(origin.labelled, keys, rows=rows, seed=seed, layout=layout, anatomy=anatomy,
                                      window=before.window, shapes=before.shapes)
        if before.recolourer is not None:
            sources = recolour_sources(sources, before.recolourer, share=settings.appearance_share)
        if before.repainter is not None:
            sources = repaint_sources(sources, before.repainter, share=settings.repaint_share)
        return sources

    return transform


def _run(out: Path, painter: Painter, *, origin: Origin, gates: Gates | None, settings: DrawSettings, n: int,  # noqa: PLR0913
         seed: int, supply: Supply | None = None, before: Before | None = None) -> PairSet | None:
    transform = _transform(origin, settings, before or Before(), seed=seed)
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
    return _finish(out, plan, origin)


def _finish(out: Path, plan: Plan, origin: Origin) -> PairSet:
    entries = [json.loads(ledger_path(out, i).read_text(encoding="utf-8")) for i in range(plan.n_shards)]
    n_kept, n_rejected = (sum(e[k] for e in entries) for k in ("n_kept", "n_rejected"))
    with FileLock(out / ".finish.lock"):
        sweep(out)  # all shards are whole: nobody is writing any more
        write_dataset_files(out, origin.labelled.info, dataset_card(
            n_kept=n_kept, n_rejected=n_rejected, n_asked=plan.n, classes=origin.labelled.info.classes,
            generator=origin.generator, settings=origin.settings, groups=origin.labelled.groups + origin.host_groups,
            note=RECOLOURED if shows_source(json.loads(origin.settings)) else ""))
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


def _curated(settings: DrawSettings, curation: Curation | None) -> DrawSettings:
    """Returns the settings with those of `curation`; raises if they name others, or rules that nobody calibrated."""
    if curation is None:
        check_models(settings.curate, judge=False, referee=False)
        return settings
    if settings.curate not in (CurateSettings(), curation.settings):
        raise UserError(f"curate {settings.curate}", rule=f"the curation given was calibrated with {curation.settings}",
                        repair="pass the same settings to default_curation and to draw, or none to draw")
    return settings.model_copy(update={"curate": curation.settings})


def _claim(out: str | Path, kind: str, settings: Settings, identity: dict[str, object]) -> Path:
    full = {"settings": settings.model_dump(mode="json"), **identity}
    if getattr(settings, "curate", None) == CurateSettings():  # sets drawn before there were rules still resume
        full["settings"].pop("curate")
    return claim_folder(Path(out), kind=kind, identity=full)


def draw(  # noqa: PLR0913 - the verb of the product: each of these is a choice that a caller makes
    generator: Generator | None, labelled: PairSet, *, n: int, seed: int = 0, gates: Gates | None = None,
    out: str | Path, config: str | Path | dict | DrawSettings | None = None, size: int | None = None,
    supply: Supply | None = None, curation: Curation | None = None, hosts: ImageSet | None = None,
    shape: ShapeModel | None = None, appearance: Generator | None = None,
    overrides: Sequence[str] = (),
) -> PairSet | None:
    """Returns the kept pairs, n of them where the gates allow; the rejected ones lie in the folder's own split.

    Running again finishes what is missing; under `accelerate launch` each process takes its shards, and a process
    that ends before the others returns None.

    Args:
        generator: None writes the transformed sources unpainted, at `size`.
        labelled: real pairs, of training groups only. out: a folder that `datasets.load_dataset` then opens.
        supply: chooses the kept ones among `supply.oversample` times as many, see `default_supply`; those left over
            are rejected with the reason "supply". Its settings are taken where `config` names none.
        curation: rules that each pair goes through after the gates, see `default_curation`; settings likewise.
        hosts: real images without masks. Objects of the labelled pairs' shapes are painted into those on which the
            gates' judge sees none (mode "object", whatever the generator's own); all around them stays the host's.
        shape: draws the layouts, where `layout.source` is "shape".
        appearance: a spectral generator that changes the amplitudes of the sources before they are painted, of the
            share `appearance_share`; None leaves them as they are.

    Raises:
        UserError: if `out` holds another run, the pairs do not fit the generator, no pair passes the gates, or more is
            to be drawn than kept and there is no `supply`; for hosts without a judge, or a generator without labels;
            for labels that change shape over pixels that are kept.
    """
    settings = _curated(_supplied(load_config(DrawSettings, config, overrides), supply), curation)
    if generator is not None and shows_source(generator.sampler_settings()):
        settings = settings.model_copy(update={"layout": still_layout(settings.layout)})
    if hosts is not None:
        generator = inserter_of(generator, settings.repaint_share)
    check_layout(settings.layout, generator, hosts=hosts is not None)
    repainter = repainter_of(generator, settings.repaint_share)
    side = generator.size if generator else size
    if side is None:
        raise UserError("size", rule="without a generator the working resolution must be given", repair="add size=64")
    arrays = labelled.native(side) if _native(generator) else labelled.arrays(side)
    if generator is not None:
        _check_fit(generator, arrays, labelled.where)
    if appearance is not None:
        check_recolourer(appearance, arrays, size=side)
    _check(n, arrays)
    clear = clear_hosts(hosts, arrays, gates, size=side, settings=settings.clear) if hosts is not None else None
    shapes = shapes_of(shape, settings.layout, clear.donors if clear else arrays, size=side)
    name = generator.content_hash() if generator else "none"
    sampler = generator.sampler_settings() if generator else {"sampler": "none"}
    if curation is not None:
        sampler = {**sampler, CURATED: curation.identity}
    prefix = "insert" if clear else generator.kind if generator else "source"
    origin = Origin(arrays, name, json.dumps(sampler, sort_keys=True), prefix, clear.images.groups if clear else (),
                    curation)
    folder = _claim(out, "draw", settings, {
        "generator": name, "sampler": sampler, "labelled": arrays.fingerprint(), "n": n, "seed": seed,
        "gates": gates.identity if gates else "none", **({"supply": supply.identity} if supply else {}),
        **({"hosts": clear.identity} if clear else {}), **({"shape": shapes.identity} if shapes else {}),
        **({"appearance": appearance.content_hash()} if appearance else {})})
    painter = generator_painter(generator) if generator else no_painter
    return _run(folder, painter, origin=origin, gates=gates, settings=settings, n=n, seed=seed, supply=supply,
                before=Before(_window(generator, settings), clear, shapes, appearance, repainter))


def draw_layouts(  # noqa: PLR0913 - as `draw`
    labelled: PairSet, *, n: int, seed: int = 0, size: int, out: str | Path,
    config: str | Path | dict | DrawSettings | None = None, shape: ShapeModel | None = None,
) -> PairSet | None:
    """Returns n layouts as `draw` would give them to a generator that keeps nothing: their images show the labels.

    Raises:
        UserError: as `draw`.
    """
    settings, arrays = load_config(DrawSettings, config), labelled.arrays(size)
    _check(n, arrays)
    shapes = shapes_of(shape, settings.layout, arrays, size=size)
    folder = _claim(out, "layouts", settings, {"labelled": arrays.fingerprint(), "n": n, "seed": seed,
                                               "shape": shapes.identity if shapes else "none"})
    origin = Origin(arrays, "none", json.dumps(SHOWN, sort_keys=True), "layout")
    return _run(folder, label_painter(arrays), origin=origin, gates=None, settings=settings, n=n, seed=seed,
                before=Before(shapes=shapes))


def draw_roundtrip(  # noqa: PLR0913 - as `draw`
    generator: Generator, labelled: PairSet, *, n: int, seed: int = 0, out: str | Path,
    config: str | Path | dict | DrawSettings | None = None,
) -> PairSet | None:
    """Returns n pairs of the control: the sources that `draw` transforms, through the generator's autoencoder alone.

    Raises:
        UserError: as `draw`; also if the generator has no autoencoder.
    """
    settings, side = load_config(DrawSettings, config), generator.size
    check_layout(settings.layout, None)
    arrays = labelled.native(side) if _native(generator) else labelled.arrays(side)
    _check_fit(generator, arrays, labelled.where)
    _check(n, arrays)
    generator.roundtrip(torch.zeros(1, generator.channels, side, side))  # raises before the folder is claimed
    name, sampler = generator.content_hash(), {"sampler": "roundtrip"}
    folder = _claim(out, "roundtrip", settings, {
        "generator": name, "sampler": sampler, "labelled": arrays.fingerprint(), "n": n, "seed": seed})
    origin = Origin(arrays, name, json.dumps(sampler, sort_keys=True), "roundtrip")
    return _run(folder, roundtrip_painter(generator), origin=origin, gates=None, settings=settings, n=n, seed=seed,
                before=Before(_window(generator, settings)))


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
    check_layout(settings.layout, None)
    arrays = labelled.arrays(size)
    _check(n, arrays)
    pile = unlabelled.arrays(size) if unlabelled is not None and predict is not None else None
    sampler = {"sampler": "copypaste", **paste.model_dump(), **settings.clear.model_dump()}
    folder = _claim(out, "copypaste", settings, {
        "sampler": sampler, "labelled": arrays.fingerprint(), "unlabelled": pile.fingerprint() if pile else "none",
        "judge": judge, "n": n, "seed": seed})
    clear = pile and clear_backgrounds(pile, predict, confidence=settings.clear.confidence,
                                       max_share=settings.clear.max_share)
    painter = paste_painter(arrays, clear or None, seed=seed,
                            blend=lambda keep: blend_alpha(keep, width_px=paste.width_px))
    origin = Origin(arrays, "copypaste", json.dumps(sampler, sort_keys=True), "paste")
    return _run(folder, painter, origin=origin, gates=None, settings=settings, n=n, seed=seed)
