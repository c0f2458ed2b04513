"""The command `segtrain`: fit | predict | score | compare | report | methods. Heavy imports wait inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from synth.core.checks import UserError
from synth.core.shell import is_main, refuse, required, run, say, take, take_number

if TYPE_CHECKING:
    from rich.table import Table

    from segtrain.report import Report

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Train segmenters from few labels, synthetic pairs and unlabelled images, and compare them.")

CONFIG = typer.Argument(..., help="YAML file of settings, e.g. configs/tiny/segment.yaml")
ARMS_CONFIG = typer.Argument(..., help="YAML file of settings, e.g. configs/tiny/compare.yaml")
OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="settings that replace the file's, and out=FOLDER")
DRY_RUN = typer.Option(False, "--dry-run", help="print the resolved settings and stop")


@app.command()
def fit(config: Path = CONFIG, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Train a segmenter: segtrain fit CONFIG data.labelled=DIR [data.unlabelled=DIR] [data.synthetic=DIR] out=DIR.

    prior=DIR is a frequency prior for what draws images towards one; without it, that is fitted on the labelled pairs.
    """
    from segtrain.priors import with_use
    from segtrain.train import fit as run_fit
    from segtrain.train import make_plan
    from synth.core.config import to_yaml
    from synth.formats import load_images, load_pairs

    out, rest = take(overrides, "out")
    prior, rest = take(rest, "prior")
    plan = make_plan(config, rest)
    if dry_run:
        typer.echo(f"{to_yaml(with_use(plan.settings, plan.method, prior))}# method\n{to_yaml(plan.method)}", nl=False)
        return
    data = plan.settings.data
    out = required(out, "out", "runs/segment")
    if plan.method.needs_labels():
        required(data.labelled, "data.labelled", "data/labelled")
    labelled, like, channels = None, None, data.channels
    if data.labelled:
        labelled = load_pairs(data.labelled, mask_map=data.mask_map, channels=channels)
        like, channels = labelled.info, labelled.info.channels
    segmenter = run_fit(plan.settings, labelled, out=out, held_out=data.held_out,
                    stored=data.stored or None, observers=data.observers, prior=prior,
                    synthetic=load_pairs(data.synthetic, channels=channels, like=like) if data.synthetic else None,
                    unlabelled=load_images(data.unlabelled, channels=channels, like=like) if data.unlabelled else None)
    say(f"{out}: {segmenter.result.counts} in {segmenter.result.seconds:.0f} s, model {segmenter.content_hash()}")


@app.command()
def predict(model: Path = typer.Argument(..., help="out folder of segtrain fit"),
            overrides: list[str] = typer.Argument(None, metavar="images=DIR out=DIR [samples=N]"),
            align: str = typer.Option("", metavar="DIR", help="training images, or their prior of kind whole: "
                                      "bring all images to that mean spectrum first; off by default"),
            strength: float = typer.Option(1.0, min=0, max=1, help="how far --align goes"),
            dry_run: bool = DRY_RUN) -> None:
    """Write a mask for every image of a folder: segtrain predict MODEL images=DIR out=DIR.

    samples=8 writes pairs instead, each image with eight plausible masks of a probabilistic segmenter (method=pulaski):
    a folder of pairs whose masks synth draw takes as layouts.
    """
    from segtrain.segmenter import predict as run_predict

    images, rest = take(overrides, "images")
    out, rest = take(rest, "out")
    samples, rest = take_number(rest, "samples", None)
    images, out = required(images, "images", "data/unlabelled"), required(out, "out", "masks")
    refuse(rest, "images=, out= and samples=")
    _check_strength(strength, align)
    if dry_run:
        typer.echo(f"model: {model}\nimages: {images}\nout: {out}\nalign: {align or 'no'}\nstrength: {strength}\n"
                   f"samples: {samples}")
        return
    if samples is not None:
        if align:
            raise UserError(f"--align {align}", rule="plausible masks are drawn of images as they are", repair="leave "
                            "--align out")
        _sample(model, images, out, samples)
        return
    say(f"{out}: {len(run_predict(model, images, out=out, align=align or None, strength=strength))} masks")


@app.command()
def score(model: Path = typer.Argument(..., help="out folder of segtrain fit"),
          overrides: list[str] = typer.Argument(None, metavar="data.labelled=DIR [data.mask_map=...] [out=DIR]"),
          tolerance: float = typer.Option(0.0, min=0, help="of NSD, px; 0 = one pixel of the network's size"),
          align: str = typer.Option("", metavar="DIR", help="as in segtrain predict"),
          strength: float = typer.Option(1.0, min=0, max=1, help="how far --align goes"),
          dry_run: bool = DRY_RUN) -> None:
    """Score a segmenter on labelled images it has not seen: segtrain score MODEL data.labelled=DIR [out=DIR].

    Dice, NSD, HD95 and ASD at the images' own size, with intervals over groups. Images and patients that it was trained
    with are refused.
    """
    from segtrain.score import score as run_score

    out, rest = take(overrides, "out")
    folder, rest = take(rest, "data.labelled")
    mask_map, rest = take(rest, "data.mask_map")
    refuse(rest, "data.labelled=, data.mask_map= and out=")
    folder = required(folder, "data.labelled", "data/test")
    _check_strength(strength, align)
    if dry_run:
        typer.echo(f"model: {model}\ndata.labelled: {folder}\ndata.mask_map: {mask_map or 'none'}\n"
                   f"out: {out or 'none'}\ntolerance: {tolerance or 'one pixel of the working size'}\n"
                   f"align: {align or 'no'}\nstrength: {strength}")
        return
    found = run_score(model, folder, mask_map=mask_map, out=out, tolerance_px=tolerance or None, align=align or None,
                      strength=strength)
    _print(found.table())
    for note in found.notes:
        say(f"note: {note}")
    if out:
        say(f"{out}: scores.csv, scores.json")


@app.command()
def compare(config: Path = ARMS_CONFIG, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Compare arms over label draws and seeds: segtrain compare CONFIG data.root=DIR out=DIR."""
    from segtrain.compare import compare as run_compare
    from segtrain.compare import load_settings
    from synth.core.config import to_yaml

    out, rest = take(overrides, "out")
    if dry_run:
        typer.echo(to_yaml(load_settings(config, tuple(rest))), nl=False)
        return
    _show(run_compare(config, out=required(out, "out", "runs/compare"), overrides=rest))


@app.command()
def report(out: Path = typer.Argument(..., help="out folder of segtrain compare")) -> None:
    """Write report.html and report.json again from the scores of a comparison."""
    from segtrain.report import write_report

    _show(write_report(out))


@app.command()
def methods(name: str = typer.Argument("", help="one of them, or a YAML file; without it, all are listed")) -> None:
    """List the methods, or print all that one of them is: its source, how it differs from it, and every setting."""
    from segtrain.method import METHODS, load_method, method_text

    if name:
        typer.echo(method_text(name), nl=False)
        return
    for path in sorted(METHODS.glob("*.yaml")):
        method = load_method(path)
        say(f"{method.name:<24}{'unlabelled  ' if method.needs('unlabelled') else 'labels only '}{method.citation}")


def _check_strength(strength: float, align: str) -> None:
    if strength != 1 and not align:
        raise UserError(f"--strength {strength}", rule="it says how far --align goes, and that is off",
                        repair="add --align DIR, or leave --strength out")


def _sample(model: Path, images: str, out: str, n: int) -> None:
    from segtrain.plausible import write_plausible
    from segtrain.segmenter import load_segmenter
    from synth.formats import load_images

    segmenter = load_segmenter(model)
    found = load_images(images, channels=segmenter.info.channels, like=segmenter.info)
    say(f"{out}: {len(write_plausible(segmenter, found, out=out, n=n))} pairs of plausible masks")


def _print(table: Table) -> None:
    from rich.console import Console

    if is_main():
        # A pipe or a narrow window would squeeze the numbers away; a wide table only wraps.
        Console(width=max(Console().width, 140)).print(table)


def _show(found: Report) -> None:
    _print(found.table())
    for line in (*found.sentences, str(found.out / "report.html")):
        say(line)


def main() -> None:
    """Runs the command line."""
    run(app)


if __name__ == "__main__":
    main()
