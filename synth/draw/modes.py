"""The same generator painting in another way: other sampler settings for one run, objects repainted beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from synth.core.checks import UserError
from synth.core.config import Settings, load_config
from synth.core.pairs import Arrays
from synth.core.rng import derive_seed, sample_rng, uniform
from synth.diffusion.settings import PRESETS, SamplerSettings
from synth.draw.painters import painted_pixels, seeds_apart
from synth.draw.sources import Sources, note_in_layout
from synth.gan.restyle.settings import StyleSettings
from synth.generator import Generator, shows_source
from synth.layouts import LayoutSettings


def sampler_changes(preset: str | None, overrides: Sequence[str] = ()) -> dict[str, JsonValue]:
    """Returns the sampler settings that a preset and then key=value `overrides` name, checked, and no others.

    They are an inpainter's, or `style`, which generators of kind appearance have.

    Raises:
        UserError: for an unknown preset, key or value.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset={preset}", rule="no such preset", repair=f"take one of {', '.join(PRESETS)}")
    if preset is None and overrides and all(o.startswith("style=") for o in overrides):
        return load_config(StyleSettings, {}, overrides).model_dump(mode="json")
    named = load_config(SamplerSettings, dict(PRESETS[preset]) if preset else {}, overrides)
    return named.model_dump(mode="json", exclude_unset=True)


def with_changes(generator: Generator, changes: Mapping[str, JsonValue]) -> Generator:
    """Returns `generator`, same networks, with `changes` on top of its own sampler settings.

    Raises:
        UserError: if it has none, or cannot paint so.
    """
    if not changes:
        return generator
    own = getattr(generator, "sampler", None)
    if not isinstance(own, Settings) or not set(changes) <= set(type(own).model_fields):
        raise UserError(f"{type(generator).__name__}: {', '.join(f'{k}={v}' for k, v in changes.items())}",
                        rule="this generator has no sampler to set" if own is None else "this generator has no "
                        "such setting", repair="take an inpainting generator, for objects one fitted with "
                        "denoiser.labels=true, for style= one of kind appearance")
    return generator.with_sampler(load_config(type(own), {**own.model_dump(mode="json"), **changes}))


def repainter_of(generator: Generator | None, share: float) -> Generator | None:
    """Returns `generator` repainting objects, None where `share` is 0 or nothing is painted at all.

    Raises:
        UserError: if it does not paint surroundings, or never learnt where an object shall be.
    """
    if generator is None or share == 0:
        return None
    if generator.keeps != "foreground":
        raise UserError(f"repaint_share={share:g}", rule="an object is repainted before its surroundings are painted, "
                        f"but this generator keeps: {generator.keeps}", repair="write repaint_share=0, or, with an "
                        "inpainting generator, sampler.mode=surroundings")
    return with_changes(generator, {"mode": "object"})


def inserter_of(generator: Generator | None, share: float) -> Generator:
    """Returns `generator` painting objects into hosts.

    Args:
        share: `repaint_share`, which means nothing then.

    Raises:
        UserError: if there is none, it never learnt where an object shall be, or `share` is not 0.
    """
    if generator is None:
        raise UserError("hosts", rule="objects are to be painted into them, and there is no generator",
                        repair="give one, or leave the hosts (data.hosts=) out")
    if share:
        raise UserError(f"repaint_share={share:g}", rule="an object put into a host is painted anyway, its "
                        "surroundings never", repair="write repaint_share=0")
    return with_changes(generator, {"mode": "object"})


def repaint_sources(sources: Sources, repainter: Generator, *, share: float) -> Sources:
    """Returns the sources, of that share of them with the foreground repainted; their layouts then say so.

    Whether and how is a function of the candidate's seed alone, so it can be done again from the provenance.
    """
    rows = [i for i, seed in enumerate(sources.seeds) if uniform(sample_rng(seed, "repaint"), 0, 1) < share]
    if not rows:
        return sources
    pixels, layouts = sources.pixels.copy(), list(sources.layouts)
    pixels[rows] = painted_pixels(repainter, sources, rows=rows,
                                  seeds=[derive_seed(sources.seeds[i], "repaint") for i in rows])
    for i in rows:
        layouts[i] = note_in_layout(layouts[i], {"repainted": True})
    return replace(sources, pixels=pixels, layouts=tuple(layouts))


def still_layout(layout: LayoutSettings) -> LayoutSettings:
    """Returns `layout` with mirroring alone: what moves beyond the border comes back mirrored there, without labels.

    A painter covers that; a generator that shows its source in another appearance would leave it unlabelled.
    """
    return layout.model_copy(update={"scale": (1.0, 1.0), "rotate_deg": 0.0, "shift": 0.0, "elastic": 0.0,
                                     "recombine": 0.0})


def check_recolourer(recolourer: Generator | None, arrays: Arrays, *, size: int, share: float) -> None:
    """Returns nothing; raises UserError if `recolourer` cannot change the appearance of sources at `size` px.

    Or if there is none, though a `share` of the sources was asked for.
    """
    if recolourer is None:
        if share < 1:
            raise UserError(f"appearance_share={share:g}", rule="no generator is given that changes the appearance of "
                            "sources", repair="give one with appearance=, or leave the share away")
        return
    if not shows_source(recolourer.sampler_settings()):
        raise UserError(f"appearance={type(recolourer).__name__}", rule="it paints, so what it changes would no longer "
                        "fit the labels", repair="give a generator of kind spectral or appearance")
    info = arrays.info
    alike = (recolourer.channels, recolourer.intensity_range) == (info.channels, tuple(info.intensity_range))
    if arrays.is_native or not alike or recolourer.size != size:
        at = "their own size" if arrays.is_native else f"{size} px"
        raise UserError(f"appearance of {recolourer.channels} channel(s), {recolourer.size} px, range "
                        f"{recolourer.intensity_range}", rule=f"the sources have {info.channels} channel(s), "
                        f"{at}, range {tuple(info.intensity_range)}",
                        repair=f"fit it on the same images with size={size}, and draw with a generator of scale fit")


def recolour_sources(sources: Sources, recolourer: Generator, *, owners: Sequence[tuple[str, str]], share: float
                     ) -> Sources:
    """Returns the sources, of that share of them with the amplitudes changed; their layouts then say by what and how.

    Whether and how is a function of the candidate's seed and of these words alone. What is kept afterwards is kept of
    these sources, whose images are of `owners`, id and group.
    """
    rows = [i for i, seed in enumerate(sources.seeds) if uniform(sample_rng(seed, "appearance"), 0, 1) < share]
    if not rows:
        return sources
    pixels, layouts = sources.pixels.copy(), list(sources.layouts)
    seeds = seeds_apart(recolourer, [derive_seed(sources.seeds[i], "appearance") for i in rows],
                        [owners[i] for i in rows])
    pixels[rows] = painted_pixels(recolourer, sources, rows=rows, seeds=seeds)
    lent = dict(zip(rows, recolourer.lenders(seeds), strict=True))
    words = {"appearance": recolourer.content_hash(), "appearance_sampler": recolourer.sampler_settings()}
    for i in rows:
        layouts[i] = note_in_layout(layouts[i], words)
    return replace(sources, pixels=pixels, layouts=tuple(layouts),
                   lent=tuple(lent.get(i) for i in range(len(sources.keys))))
