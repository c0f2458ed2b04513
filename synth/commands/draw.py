"""The command `synth draw`: folders and settings from the shell, the models they name, and what is drawn with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from pydantic import JsonValue

from synth.commands.data import join, load_held_out, load_labelled, load_like, take_data, take_group
from synth.core.config import load_config, to_yaml
from synth.core.data import DataSettings
from synth.core.pairs import PairSet
from synth.core.shell import refuse, required, say, take, take_number
from synth.draw import DrawSettings, draw
from synth.draw.flow import is_native
from synth.draw.judges import (
    check_held_out,
    check_painted,
    check_supply,
    check_unpainted,
    load_curation,
    load_judge,
    load_shape,
    load_supply,
)
from synth.draw.modes import sampler_changes, with_changes
from synth.fit import load_generator
from synth.gates import GateSettings, default_gates
from synth.gates.probe import SeamProbe
from synth.generator import Generator

FOLDERS = ("generator", "judge", "referee", "seam", "shape", "appearance", "data.hosts", "data.held_out", "out")
"""Words that name folders; none is needed but those that `draw` asks for."""


@dataclass(frozen=True)
class DrawRequest:
    """Everything that the shell says of a drawing.

    Attributes:
        folders: by the words of `FOLDERS`. preset: of the sampler; None = the generator's own. changes: of its
            settings. strictness: of the gates.
    """

    folders: Mapping[str, str | None]
    n: int
    seed: int
    size: int | None
    preset: str | None
    changes: Mapping[str, JsonValue]
    strictness: GateSettings
    data: DataSettings
    settings: DrawSettings

    def text(self) -> str:
        """Returns all of it as YAML."""
        words = {k: v for k, v in self.folders.items() if not k.startswith("data.")}
        lines = {**words, "n": self.n, "seed": self.seed, "size": self.size, "preset": self.preset}
        data = "".join(f"{k.removeprefix('data.')}: {v}\n" for k, v in self.folders.items() if k.startswith("data."))
        return ("".join(f"{k}: {v}\n" for k, v in lines.items()) + f"sampler: {json.dumps(self.changes)}\n"
                + "gates:\n" + indent(to_yaml(self.strictness), "  ")
                + "data:\n" + indent(data + to_yaml(self.data), "  ") + to_yaml(self.settings))


def read_request(config: Path | None, overrides: Sequence[str]) -> DrawRequest:
    """Returns what a configuration file and key=value words ask for.

    Raises:
        UserError: for an unknown key or value.
    """
    folders: dict[str, str | None] = {}
    rest = list(overrides)
    for word in FOLDERS:
        folders[word], rest = take(rest, word)
    n, rest = take_number(rest, "n", 100)
    seed, rest = take_number(rest, "seed", 0)
    size, rest = take_number(rest, "size", None)
    preset, rest = take(rest, "preset")
    sampler, rest = take_group(rest, "sampler")
    gates, rest = take_group(rest, "gates")
    data, rest = take_data(rest)
    return DrawRequest(folders, n, seed, size, preset, sampler_changes(preset, sampler),
                       load_config(GateSettings, None, gates), data, load_config(DrawSettings, config, rest))


def run_draw(request: DrawRequest, *, no_paint: bool) -> None:
    """Draws what is asked for, and says how many pairs were kept.

    Raises:
        UserError: for what does not go together, before anything is loaded where that can be seen; and as `draw`.
    """
    folders, settings = request.folders, request.settings
    out = required(folders["out"], "out", "data/made")
    if no_paint:
        unread = {word: folder for word, folder in folders.items() if word != "out"}
        check_unpainted(settings, request.changes, {**unread, "data.unlabelled": request.data.unlabelled})
        refuse([f"gates.{word}" for word in request.strictness.model_fields_set],
               "nothing of gates. with --no-paint: there are none")
    there = (Path(out) / "README.md").exists()
    check_supply(settings, folders["judge"], folders["referee"])
    check_held_out(settings, folders["data.held_out"])
    generator = None if no_paint else with_changes(
        load_generator(required(folders["generator"], "generator", "runs/painter")), request.changes)
    if generator is not None:
        check_painted(settings, request.strictness, folders, native=is_native(generator))
    labelled = load_labelled(request.data)
    if generator is None:
        made = draw(None, labelled, n=request.n, seed=request.seed, out=out, config=settings, size=request.size)
    else:
        made = _paint(request, generator, labelled, out=out)
    if made is not None:  # only whoever ends last has them all, and says so unless they were there before
        say(f"{out}: {len(made)} pairs kept of {request.n} asked for", anyone=not there)


def _paint(request: DrawRequest, generator: Generator, labelled: PairSet, *, out: str) -> PairSet | None:
    """Returns the kept pairs of `generator`, judged by whatever the request names."""
    folders, settings, size = request.folders, request.settings, generator.size
    judge_dir, referee_dir, appearance_dir = folders["judge"], folders["referee"], folders["appearance"]
    shape = load_shape(folders["shape"], labelled, size=size)
    gates = default_gates(
        load_judge(judge_dir, size=size) if judge_dir else None, labelled, size=size, settings=request.strictness,
        training=join(labelled, load_like(request.data.unlabelled, labelled)),
        seam=SeamProbe.load(folders["seam"]) if folders["seam"] else None, shape=shape)
    return draw(
        generator, labelled, n=request.n, seed=request.seed, gates=gates, out=out, config=settings,
        supply=load_supply(settings, judge_dir, referee_dir, labelled=labelled, size=size),
        curation=load_curation(settings.curate, judge_dir, referee_dir, labelled=labelled, size=size,
                               held_out=load_held_out(folders["data.held_out"], request.data, labelled)),
        hosts=load_like(folders["data.hosts"], labelled), size=request.size,
        shape=shape if settings.layout.source == "shape" else None,
        appearance=load_generator(appearance_dir) if appearance_dir else None)
