"""The command `synth`: fit | layouts | draw | audit | export | import | show. Heavy imports wait in the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from synth.core.checks import UserError
from synth.core.shell import refuse, required, run, say, take, take_number

if TYPE_CHECKING:
    from synth.core.pairs import PairSet
    from synth.draw import DrawSettings
    from synth.gates.gates import Predict

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Fit generators on a few annotated images and draw new, checked image-mask pairs from them.")

CONFIG = typer.Argument(..., help="YAML file of settings, e.g. configs/tiny/inpaint.yaml")
OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="settings that replace the file's")
DRY_RUN = typer.Option(False, "--dry-run", help="print the resolved settings and stop")
FOLDER = typer.Argument(..., help="folder of pairs, in any supported format")


@app.command()
def fit(config: Path = CONFIG, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Fit a generator: synth fit CONFIG data.labelled=DIR [data.unlabelled=DIR] out=DIR."""
    from synth.core.config import load_config, to_yaml
    from synth.diffusion.settings import InpaintSettings

    settings = load_config(InpaintSettings, config, overrides or [])
    if dry_run:
        typer.echo(to_yaml(settings), nl=False)
        return
    from synth.fit import fit as run_fit
    from synth.formats import load_images, load_pairs

    data = settings.data
    out = required(settings.out, "out", "runs/painter")
    labelled = load_pairs(required(data.labelled, "data.labelled", "data/labelled"), mask_map=data.mask_map,
                          channels=data.channels)
    unlabelled = load_images(data.unlabelled, channels=data.channels, like=labelled.info) if data.unlabelled else None
    generator = run_fit(settings, labelled, unlabelled, out=out)
    say(f"{out}: generator {generator.content_hash()}, {generator.size} px, {generator.channels} channel(s)")


def _settings(config: Path | None, overrides: list[str]) -> DrawSettings:
    from synth.core.config import load_config
    from synth.draw import DrawSettings

    return load_config(DrawSettings, config, overrides)


def _load_labelled(rest: list[str]) -> tuple[PairSet, list[str]]:
    from synth.formats import load_pairs

    folder, rest = take(rest, "data.labelled")
    mask_map, rest = take(rest, "data.mask_map")
    channels, rest = take_number(rest, "data.channels", None)
    return load_pairs(required(folder, "data.labelled", "data/labelled"), mask_map=mask_map, channels=channels), rest


def _load_judge(folder: str, *, size: int) -> Predict:
    """Returns the judge's predict. Trainers register their loader as an entry point, so `synth` imports no trainer."""
    from importlib.metadata import entry_points

    loaders = entry_points(group="pairsmith.judges")
    if not loaders:
        raise UserError(f"judge={folder}", rule="no trainer is installed that could load it",
                        repair="install the package with pip, or leave judge= out")
    judge = next(iter(loaders)).load()(folder)
    if judge.size != size:
        raise UserError(f"judge={folder}", rule=f"it works at {judge.size} px, the generator at {size} px",
                        repair=f"train it with size={size}")
    return judge.predict


@app.command()
def draw(config: Path = CONFIG, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN,
         no_paint: bool = typer.Option(False, "--no-paint", help="write the transformed sources unpainted")) -> None:
    """Draw pairs: synth draw CONFIG generator=DIR data.labelled=DIR [data.unlabelled=DIR] [judge=DIR] n=500 out=DIR.

    Without judge= only novelty is checked. --no-paint writes what every kept pixel must equal; it takes size= in the
    place of generator=.
    """
    from synth.core.config import to_yaml

    generator_dir, rest = take(overrides, "generator")
    judge_dir, rest = take(rest, "judge")
    unlabelled_dir, rest = take(rest, "data.unlabelled")
    out, rest = take(rest, "out")
    n, rest = take_number(rest, "n", 100)
    seed, rest = take_number(rest, "seed", 0)
    size, rest = take_number(rest, "size", None)
    own = [o for o in rest if not o.startswith("data.")]
    settings = _settings(config, own)
    if dry_run:
        typer.echo(f"generator: {generator_dir}\njudge: {judge_dir}\nn: {n}\nseed: {seed}\nout: {out}\n"
                   + to_yaml(settings), nl=False)
        return
    from synth.draw import draw as run_draw
    from synth.fit import load_generator
    from synth.formats import load_images
    from synth.gates import default_gates

    out = required(out, "out", "data/made")
    generator = None if no_paint else load_generator(required(generator_dir, "generator", "runs/painter"))
    labelled, _ = _load_labelled([o for o in rest if o.startswith("data.")])
    gates = None
    if generator is not None:
        training = load_images(unlabelled_dir, channels=labelled.info.channels, like=labelled.info) \
            if unlabelled_dir else None
        judge = _load_judge(judge_dir, size=generator.size) if judge_dir else None
        gates = default_gates(judge, labelled, training=_join(labelled, training), size=generator.size)
    made = run_draw(generator, labelled, n=n, seed=seed, gates=gates, out=out, config=settings, size=size)
    if made is not None:
        typer.echo(f"{out}: {len(made)} pairs kept of {n} asked for")


def _join(labelled: PairSet, unlabelled: object) -> object:
    from synth.core.pairs import ImageSet

    if unlabelled is None:
        return None
    return ImageSet([*labelled.items, *unlabelled.items], labelled.info, where=unlabelled.where)


@app.command()
def layouts(overrides: list[str] = OVERRIDES) -> None:
    """Show random layouts: synth layouts data.labelled=DIR size=64 n=32 seed=0 out=layouts.png."""
    from synth.draw import draw as run_draw
    from synth.show import save_grid

    labelled, rest = _load_labelled(overrides or [])
    n, rest = take_number(rest, "n", 32)
    seed, rest = take_number(rest, "seed", 0)
    size, rest = take_number(rest, "size", 64)
    out, rest = take(rest, "out")
    out = Path(required(out, "out", "layouts.png"))
    made = run_draw(None, labelled, n=n, seed=seed, size=size, out=out.with_suffix(""), overrides=rest)
    save_grid(made, out)
    say(f"{out}: {len(made)} layouts; the pairs are in {out.with_suffix('')}")


@app.command()
def audit(folder: Path = FOLDER) -> None:
    """Verify a drawn set: every file against the ledger, every kept pixel against its hash; sum up the gates."""
    from synth.draw import verify_shards
    from synth.show import summary

    faults = verify_shards(folder)
    for line in (*summary(folder), *faults):
        say(line)
    if faults:
        raise UserError(str(folder), rule=f"{len(faults)} fault(s), listed above",
                        repair="run the synth draw command that made it again, it draws the bad shards anew")
    say("every file and every kept pixel is as drawn")


@app.command()
def export(folder: Path = FOLDER, overrides: list[str] = OVERRIDES,
           without_group: str = typer.Option("", help="leave out everything that stems from this group")) -> None:
    """Write a set for people and other tools: synth export DIR out=DIR [format=imagefolder|folder]."""
    from synth.formats import load_pairs, write_folder, write_imagefolder

    out, rest = take(overrides, "out")
    kind, rest = take(rest, "format")
    refuse(rest, "out= and format=")
    writers = {"imagefolder": write_imagefolder, "folder": write_folder}
    if (kind or "imagefolder") not in writers:
        raise UserError(f"format={kind}", rule="no such format", repair="take imagefolder or folder")
    pairs = load_pairs(folder)
    if without_group:
        pairs = pairs.without_group(without_group)
    out = Path(required(out, "out", "exported"))
    writers[kind or "imagefolder"](pairs, out)
    say(f"{out}: {len(pairs)} pairs")


@app.command("import")
def import_(folder: Path = FOLDER, overrides: list[str] = OVERRIDES) -> None:
    """Check a folder and write it clean: synth import DIR out=DIR [mask_map=0:0,255:1] [channels=1]."""
    from synth.formats import load_pairs, write_folder

    mask_map, rest = take(overrides, "mask_map")
    channels, rest = take_number(rest, "channels", None)
    out, rest = take(rest, "out")
    refuse(rest, "mask_map=, channels= and out=")
    pairs = load_pairs(folder, mask_map=mask_map, channels=channels)
    out = Path(required(out, "out", "data/labelled"))
    write_folder(pairs, out)
    say(f"{out}: {len(pairs)} pairs, classes {', '.join(pairs.info.classes)}")


@app.command()
def show(folder: Path = FOLDER, out: Path = typer.Option(None, help="also save a grid of pairs as PNG")) -> None:
    """Say what a set holds; with --out FILE.png also draw a grid of its pairs."""
    from synth.formats import load_pairs
    from synth.show import save_grid, summary

    for line in summary(folder):
        say(line)
    if out is not None:
        save_grid(load_pairs(folder), out)
        say(str(out))


def main() -> None:
    """Runs the command line."""
    run(app)


if __name__ == "__main__":
    main()
