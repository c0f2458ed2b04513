"""The command `synth curate`: what the shell gives, made ready for `synth.draw.curated`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from synth.commands.data import load_held_out, load_labelled, take_data
from synth.core.config import load_config, to_yaml
from synth.core.shell import required, say, take
from synth.draw.curated import SelectSettings, check_budget, curate, side_of
from synth.draw.judges import load_pair
from synth.formats import read_shards


def run_curate(made: Path, overrides: Sequence[str], *, dry_run: bool) -> None:
    """Runs `synth curate MADE`, and says how many pairs stay.

    Raises:
        UserError: for unknown settings, as `curate`, and if judge and referee are one and the same model.
    """
    held_out, rest = take(overrides, "data.held_out")
    data, rest = take_data(rest)
    folders: dict[str, str | None] = {}
    for key in ("judge", "referee", "out"):
        folders[key], rest = take(rest, key)
    settings = load_config(SelectSettings, None, rest)
    check_budget(settings, judge=bool(folders["judge"]))
    if dry_run:
        words = "".join(f"{key}: {value}\n" for key, value in {"made": made, **folders}.items())
        say(f"{words}data:\n" + indent(f"held_out: {held_out}\n" + to_yaml(data), "  ") + to_yaml(settings).rstrip())
        return
    out = required(folders["out"], "out", "data/curated")
    labelled = load_labelled(data)
    models = load_pair(folders["judge"], folders["referee"], size=side_of(read_shards(made)))
    names = tuple("" if one is None else one.content_hash() for one in models)
    found = curate(made, *(one and one.predict for one in models), labelled, out=out, models=names, config=settings,
                   held_out=load_held_out(held_out, data, labelled))
    if found is not None:
        say(f"{out}: {len(found)} pairs stay")
