"""The command `synth`: from a few annotated images to generators, layouts, drawn and curated pairs, and audits.

Heavy imports wait in the commands.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from synth.core.checks import UserError
from synth.core.shell import refuse, required, run, say, take, take_number

if TYPE_CHECKING:
    from synth.core.pairs import ImageSet

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Fit generators on a few annotated images and draw new, checked image-mask pairs from them.")

CONFIG = typer.Argument(..., help="YAML file of settings, e.g. configs/tiny/inpaint.yaml")
DRAW_CONFIG = typer.Argument(..., help="YAML file of settings, e.g. configs/draw.yaml")
OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="settings that replace the file's")
DRY_RUN = typer.Option(False, "--dry-run", help="print the resolved settings and stop")
CHECK_ONLY = typer.Option(False, "--dry-run", help="read and check everything, write nothing")
FOLDER = typer.Argument(..., help="folder of pairs, in any supported format")


@app.command()
def fit(config: Path = CONFIG, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Fit a generator: synth fit CONFIG data.labelled=DIR [data.unlabelled=DIR] out=DIR.

    Without any label: synth fit configs/unpaired.yaml data.unlabelled=DIR data.masks=DIR out=DIR.
    """
    from synth.core.config import to_yaml
    from synth.fit import fit_folders, load_fit_settings

    settings = load_fit_settings(config, overrides or [])
    if dry_run:
        typer.echo(to_yaml(settings), nl=False)
        return
    made = fit_folders(settings)
    say(f"{settings.out}: {settings.kind} {made.content_hash()}, {made.size} px")


@app.command()
def draw(config: Path = DRAW_CONFIG, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN,
         no_paint: bool = typer.Option(False, "--no-paint", help="write the transformed sources unpainted")) -> None:
    """Draw pairs: synth draw CONFIG generator=DIR data.labelled=DIR [data.unlabelled=DIR] [judge=DIR] n=500 out=DIR.

    Without judge= only novelty rejects. judge=DIR referee=DIR supply.oversample=4 draws four times as many and keeps
    those that are hard for the judge and true to their mask for the referee, and a random half. preset=fast and
    sampler.n_steps=8 change how this run paints, sampler.mode=object what. data.hosts=DIR judge=DIR paints objects
    into real images that show none. appearance=DIR (a generator of kind spectral or appearance) changes the
    appearance of sources before they are painted; sampler.style=NAME gives all pairs one style.
    gates.spectrum=reject rejects what leaves the real spectrum. shape=DIR (of kind shape) rejects implausible layouts
    and, with layout.source=shape, draws new ones for a generator that keeps nothing.
    curate.ignore=1.25 curate.min_agreement=0.8 [data.held_out=DIR] are the rules of synth curate while drawing.
    --no-paint writes what every kept pixel must equal; it takes size= in the place of generator=.
    """
    from synth.commands.draw import read_request, run_draw

    request = read_request(config, overrides or [])
    if dry_run:
        typer.echo(request.text(), nl=False)
        return
    run_draw(request, no_paint=no_paint)


@app.command()
def curate(folder: Path = FOLDER, overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Curate a drawn set: synth curate MADE judge=DIR referee=DIR data.labelled=DIR [data.held_out=DIR] RULE out=DIR.

    One rule at least, none is on by itself. Of any engine's pairs: pixels that the judge finds too unlikely become
    ignore (curate.ignore=1.25), pairs whose mask the referee does not find again go (curate.min_agreement=0.8), and
    with budget=100 the hardest of the rest stay, and a random half.
    """
    from synth.commands.curate import run_curate

    run_curate(folder, overrides or [], dry_run=dry_run)


@app.command()
def translate(generator: Path = typer.Argument(..., help="folder of a generator of kind appearance or spectral"),
              overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Show real unlabelled images in other styles: synth translate GENERATOR data.unlabelled=DIR out=DIR [style=NAME].

    Writes n=1 translation of each and, but for originals=false, the images themselves: a folder for data.unlabelled= of
    segtrain. An image and its translations share a group. Running it again finishes what is missing.
    """
    from synth.commands.translate import run_translate

    run_translate(generator, overrides or [], dry_run=dry_run)


@app.command()
def label(generator: Path = typer.Argument(..., help="folder of a fit of kind unpaired"),
          overrides: list[str] = OVERRIDES, dry_run: bool = CHECK_ONLY) -> None:
    """Label images without labels: synth label GENERATOR data.unlabelled=DIR out=DIR [data.channels=1].

    Writes masks/ID.png and confidence/ID.png, which segtrain fit ... method=annotation_efficient data.stored=DIR reads.
    """
    from synth.commands.label import run_label

    run_label(generator, overrides or [], dry_run=dry_run)


@app.command()
def layouts(overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN) -> None:
    """Show random layouts: synth layouts data.labelled=DIR size=64 n=32 seed=0 out=layouts.png.

    Those that change shape (layout.grow_px=, layout.bend_px=, or layout.source=shape shape=DIR) have no image: labels.
    """
    from synth.commands.layouts import run_layouts

    run_layouts(overrides or [], dry_run=dry_run)


@app.command()
def audit(folder: str = typer.Argument(None, metavar="[DIR]", help="folder of a drawn set"),
          overrides: list[str] = OVERRIDES, dry_run: bool = DRY_RUN,
          seam: Path = typer.Option(None, help="folder of a generator: look for its seams instead"),
          spectrum: Path = typer.Option(None, help="folder of a drawn set: where does it leave the real spectrum?"),
          json_file: Path = typer.Option(None, "--json", help="with --seam, --spectrum: write it there")) -> None:
    """Verify a drawn set, files and kept pixels against their hashes: synth audit DIR.

    Or ask whether a network finds places that a generator kept although they hold no object (0.5 = it does not):
    synth audit --seam GENERATOR data.labelled=DIR [data.unlabelled=DIR] [n=200] [out=DIR] [steps=400 ...].

    Or where a drawn set leaves the spectrum of real images, by frequency, and whether a decoder's upsampling shows:
    synth audit --spectrum DIR data.labelled=DIR [data.unlabelled=DIR] [out=spectrum.png].
    """
    from synth.audit import run_drawn, run_seam
    from synth.commands.data import take_data
    from synth.core.files import check_file

    words = [word for word in (folder, *(overrides or [])) if word is not None]
    if json_file is not None:
        check_file(json_file, "--json")
    if spectrum is not None:
        from synth.audit_spectrum import run_spectrum

        if seam is not None:
            raise UserError("--seam and --spectrum", rule="they look at different things", repair="run one at a time")
        data, rest = take_data(words)
        run_spectrum(spectrum, data, rest, json_file=json_file, dry_run=dry_run)
        return
    if seam is None:
        given = {"--json": json_file is not None, "--dry-run": dry_run}
        run_drawn(words, seam_only=[option for option, there in given.items() if there])
        return
    data, rest = take_data(words)
    run_seam(seam, data, rest, json_file=json_file, dry_run=dry_run)


@app.command()
def export(folder: Path = FOLDER, overrides: list[str] = OVERRIDES,
           without_group: str = typer.Option("", help="leave out everything that stems from this group"),
           dry_run: bool = CHECK_ONLY) -> None:
    """Write a set for people and other tools: synth export DIR out=DIR [format=imagefolder|folder]."""
    from synth.formats import load_set, write_folder, write_imagefolder
    from synth.show import what_of

    out, rest = take(overrides, "out")
    kind, rest = take(rest, "format")
    refuse(rest, "out= and format=")
    writers = {"imagefolder": write_imagefolder, "folder": write_folder}
    if (kind or "imagefolder") not in writers:
        raise UserError(f"format={kind}", rule="no such format", repair="take imagefolder or folder")
    pairs = load_set(folder)
    what, n_before = what_of(pairs), len(pairs)
    if without_group:
        pairs = _recall(pairs, without_group, str(folder))
    out = Path(required(out, "out", "exported"))
    left_out = f", {n_before - len(pairs)} of group {without_group} left out" if without_group else ""
    if dry_run:
        say(f"would write {len(pairs)} {what} to {out}{left_out}")
        return
    writers[kind or "imagefolder"](pairs, out)
    say(f"{out}: {len(pairs)} {what}{left_out}")


def _recall(pairs: ImageSet, group: str, where: str) -> ImageSet:
    # A misspelt group would leave everything of that patient in a set that is then given away.
    stem = {g for item in pairs.items for g in (item.group, *(item.made.parent_groups if item.made else ()))}
    if group not in stem:
        near = get_close_matches(group, sorted(stem), n=1, cutoff=0.0)
        raise UserError(f"--without-group {group}", rule=f"nothing in {where} stems from this group, so there is "
                        "nothing to leave out", repair=f"drop the option, or did you mean {near[0]}?")
    if all(group in (item.group, *(item.made.parent_groups if item.made else ())) for item in pairs.items):
        raise UserError(f"--without-group {group}", rule=f"everything in {where} stems from this group",
                        repair="delete the set, nothing of it may stay")
    return pairs.without_group(group)


@app.command("import")
def import_(folder: Path = FOLDER, overrides: list[str] = OVERRIDES, dry_run: bool = CHECK_ONLY) -> None:
    """Check a folder and write it clean: synth import DIR out=DIR [mask_map=0:0,255:1] [channels=1]."""
    from synth.formats import load_pairs, write_folder

    mask_map, rest = take(overrides, "mask_map")
    channels, rest = take_number(rest, "channels", None)
    out, rest = take(rest, "out")
    refuse(rest, "mask_map=, channels= and out=")
    pairs = load_pairs(folder, mask_map=mask_map, channels=channels)
    out = Path(required(out, "out", "data/labelled"))
    found = f"{len(pairs)} pairs, classes {', '.join(pairs.info.classes)}"
    if dry_run:
        say(f"would write {found} to {out}")
        return
    write_folder(pairs, out)
    say(f"{out}: {found}")


@app.command("merge-labels")
def merge_labels(folder: Path = typer.Argument(..., help="folder with images/ and annotators/WHO/NAME.png"),
                 overrides: list[str] = OVERRIDES, dry_run: bool = CHECK_ONLY) -> None:
    """Merge several annotators' masks into one set: synth merge-labels DIR out=DIR [method=staple|vote|soft ...]."""
    from synth.merge.command import run_merge

    run_merge(folder, overrides or [], dry_run=dry_run)


@app.command()
def show(folder: Path = FOLDER, out: Path = typer.Option(None, help="also save a grid of pairs as PNG")) -> None:
    """Say what a set holds; with --out FILE.png also draw a grid of its pairs."""
    from synth.formats import load_set
    from synth.show import save_grid, summary

    for line in summary(folder):
        say(line)
    if out is not None:
        save_grid(load_set(folder), out)
        say(str(out))


def main() -> None:
    """Runs the command line."""
    run(app)


if __name__ == "__main__":
    main()
