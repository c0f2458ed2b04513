"""`draw`: pairs from a generator, in as many files as are asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.pairs import ImageSet, PairSet
from synth.core.taught import joined
from synth.draw.curation import CurateSettings, Curation, check_models
from synth.draw.flow import (
    Before,
    check_fit,
    check_request,
    check_size,
    check_told,
    claim_draw,
    is_native,
    run_draw,
    window_of,
)
from synth.draw.free import check_layout, shapes_of
from synth.draw.hosts import clear_hosts
from synth.draw.modes import check_recolourer, inserter_of, repainter_of, still_layout
from synth.draw.painters import generator_painter, no_painter
from synth.draw.settings import DrawSettings
from synth.draw.shards import Origin, stems_of
from synth.draw.supply import Supply, SupplySettings, check_judge
from synth.gates import Gates
from synth.generator import CURATED, Generator, mode_of, shows_source
from synth.layouts import ShapeModel


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


def _side(generator: Generator | None, size: int | None) -> int:
    if generator is not None:
        if size not in (None, generator.size):
            raise UserError(f"size={size}", rule=f"this generator draws at {generator.size} px",
                            repair="leave size= out, or fit a generator of that size")
        return generator.size
    if size is None:
        raise UserError("size", rule="without a generator the working resolution must be given", repair="add size=64")
    check_size(size)
    return size


def _check_spectrum(gates: Gates | None, generator: Generator | None) -> None:
    if gates is not None and gates.settings.spectrum == "reject" and is_native(generator):
        raise UserError("gates.spectrum=reject", rule="frequencies can be compared at one working size only, and this "
                        "generator paints images at their own", repair="leave it out, or take a generator of scale fit")


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
        generator: None writes the transformed sources unpainted, at `size`; else `size` may be its own or None.
        labelled: real pairs, of training groups only. out: a folder that `datasets.load_dataset` then opens.
        supply: chooses the kept ones among `supply.oversample` times as many, see `default_supply`; those left over
            are rejected with the reason "supply". Its settings are taken where `config` names none.
        curation: rules that each pair goes through after the gates, see `default_curation`; settings likewise.
        hosts: real images without masks. Objects of the labelled pairs' shapes are painted into those on which the
            gates' judge sees none (mode "object", whatever the generator's own); all around them stays the host's.
        shape: draws the layouts, where `layout.source` is "shape".
        appearance: a generator of kind spectral or appearance that sources go through before they are painted, of the
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
    _check_spectrum(gates, generator)
    repainter = repainter_of(generator, settings.repaint_share)
    side = _side(generator, size)
    arrays = labelled.native(side) if is_native(generator) else labelled.arrays(side)
    if generator is not None:
        check_fit(generator, arrays, labelled.where)
        check_told(generator, arrays, labelled.where)
    check_recolourer(appearance, arrays, size=side, share=settings.appearance_share)
    check_request(n, arrays)
    clear = clear_hosts(hosts, arrays, gates, size=side, settings=settings.clear) if hosts is not None else None
    shapes = shapes_of(shape, settings.layout, clear.donors if clear else arrays, size=side)
    name = generator.content_hash() if generator else "none"
    sampler = generator.sampler_settings() if generator else {"sampler": "none"}
    if curation is not None:
        sampler = {**sampler, CURATED: curation.identity}
    prefix = "insert" if clear else generator.kind if generator else "source"
    stems = stems_of(labelled, hosts)
    origin = Origin(arrays, name, json.dumps(sampler, sort_keys=True), prefix, clear.images.groups if clear else (),
                    curation, joined(one.taught for one in (generator, appearance, shape, labelled, hosts) if one),
                    stems)
    folder = claim_draw(out, "draw", settings, {
        "generator": name, "sampler": sampler, "labelled": arrays.fingerprint(), "n": n, "seed": seed,
        "gates": gates.identity if gates else "none", **({"supply": supply.identity} if supply else {}),
        **({"hosts": clear.identity} if clear else {}), **({"shape": shapes.identity} if shapes else {}),
        **({"appearance": [appearance.content_hash(), appearance.sampler_settings()]} if appearance else {})},
        stems=stems)
    painter = generator_painter(generator) if generator else no_painter
    before = Before(window_of(generator, settings), clear, shapes, appearance, repainter,
                    generator.shown_px if generator else math.inf,
                    int(sampler.get("ring_px", 0)) if mode_of(sampler) == "object" else None,
                    painted=generator is not None, lender=generator)
    return run_draw(folder, painter, origin=origin, gates=gates, settings=settings, n=n, seed=seed, supply=supply,
                    before=before)
