"""The same generator painting in another way: other sampler settings for one run, objects repainted beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.rng import derive_seed, sample_rng, uniform
from synth.diffusion.settings import PRESETS, SamplerSettings
from synth.draw.painters import painted_pixels
from synth.draw.sources import Sources, note_in_layout
from synth.generator import Generator


def sampler_changes(preset: str | None, overrides: Sequence[str] = ()) -> dict[str, JsonValue]:
    """Returns the sampler settings that a preset and then key=value `overrides` name, checked, and no others.

    Raises:
        UserError: for an unknown preset, key or value.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset={preset}", rule="no such preset", repair=f"take one of {', '.join(PRESETS)}")
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
    if not isinstance(own, SamplerSettings):
        raise UserError(f"{type(generator).__name__}: {', '.join(f'{k}={v}' for k, v in changes.items())}",
                        rule="this generator has no sampler to set", repair="take an inpainting generator, for objects "
                        "one fitted with denoiser.labels=true")
    return generator.with_sampler(load_config(SamplerSettings, {**own.model_dump(mode="json"), **changes}))


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
