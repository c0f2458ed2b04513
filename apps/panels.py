"""The preview page's layout: inputs left, what was painted and what the gates say right."""

from __future__ import annotations

import html
import secrets
import time

import gradio as gr
import numpy as np

from apps.studio import MAX_SEED, Ask, Outcome, Studio, paint, read_upload
from synth.core.checks import UserError
from synth.core.pairs import Arrays, DataInfo
from synth.diffusion.inpaint import InpaintPipeline
from synth.gates import Gates
from synth.show import outlined, view

SHOWN_PX = 512
MAX_VARIANTS = 8
NEW_SEEDS = 1_000_000
"""What the button draws from: seeds short enough to be written down."""
START = "Press **Paint**."
FROM_SET, OWN = "From the data set", "My own files"
FILES = [".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"]
COLUMNS = {"faithfulness": "Faithfulness", "false_foreground": "False foreground", "correlation": "Correlation"}

CSS = """
.gradio-container {max-width: 1380px !important; margin: 0 auto !important}
#head h1 {margin-bottom: .1em}
#head p {margin: .15em 0}
#head code {font-size: .85em}
.caption {overflow: visible !important; min-height: 0 !important}
.caption p {margin: 0}
.tight {gap: .4em !important}
.files .icon-wrap {display: none}
.variants .grid-wrap {height: auto; min-height: 0; max-height: none; overflow: visible}
.variants .caption-label {font-size: .72rem; padding: 0 .5em; opacity: .9}
.gates table {font-family: inherit; font-size: .82rem}
"""


def make_theme() -> gr.themes.Base:
    """Returns a theme that takes its fonts from this computer and nothing from the network."""
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate",
                             font=["system-ui", "Segoe UI", "Helvetica", "Arial", "sans-serif"],
                             font_mono=["ui-monospace", "Consolas", "monospace"])


def _picture(pixels: np.ndarray, info: DataInfo, labels: np.ndarray | None = None) -> np.ndarray:
    """Returns pixels (C, S, S) as RGB (k S, k S, 3), each pixel a whole square, so that no browser blurs a small image.

    Outlines of labels (S, S), where given, are drawn at half that size: a line thin against the pixels, but visible.
    """
    k = max(2, SHOWN_PX // pixels.shape[-1] // 2 * 2)
    rgb = view(pixels, info).repeat(k // 2, 0).repeat(k // 2, 1)
    if labels is not None:
        rgb = outlined(rgb, labels.repeat(k // 2, 0).repeat(k // 2, 1))
    return rgb.repeat(2, 0).repeat(2, 1)


def limits(gates: Gates, *, is_new: bool = True) -> dict[str, str]:
    """Returns the threshold of each score that `gates` compute, as text; empty where a score is only noted.

    Args:
        is_new: whether anything is painted, as in `run_gates`.
    """
    mine = {"correlation": f"≤ {gates.max_correlation:.3f}" if is_new else ""}
    if gates.predict is None:
        return mine
    false = {"false_foreground": f"≤ {gates.settings.max_false_foreground:.2f}"} if is_new else {}
    return {"faithfulness": f"≥ {gates.min_faithfulness:.2f}", **false, **mine}


def verdict_rows(outcome: Outcome, gates: Gates, *, is_new: bool = True) -> list[list[str]]:
    """Returns one row of text per variant: seed, verdict, a cell per score, and why it was rejected."""
    rows = []
    for seed, verdict in zip(outcome.seeds, outcome.verdicts, strict=True):
        scores = [f"{verdict.scores[name]:.3f}" for name in limits(gates, is_new=is_new)]
        rows.append([str(seed), "✓ kept" if verdict.kept else "✗ rejected", *scores, verdict.reason or "–"])
    return rows


def gallery_items(outcome: Outcome | None, info: DataInfo, outlines: bool) -> list[tuple[np.ndarray, str]]:  # noqa: FBT001
    """Returns the painted variants as RGB (H, W, 3) with a caption each."""
    if outcome is None:
        return []
    return [(_picture(pixels, info, labels if outlines else None), f"seed {seed} · {'kept' if v.kept else 'rejected'}")
            for pixels, labels, seed, v in zip(outcome.painted, outcome.judged, outcome.seeds, outcome.verdicts,
                                               strict=True)]


def _explain(gates: Gates, *, has_strength: bool, is_new: bool) -> str:
    if not is_new:
        noted = "**Correlation** with the nearest training image is noted and not judged: the picture is its source's."
        return noted if gates.predict is None else f"**Faithfulness**: the judge's Dice with the mask.  \n{noted}"
    lines = ["**Correlation** (novelty): the highest of what was drawn with any training image; above the limit it is "
             "rejected as a copy."]
    if has_strength:
        lines[0] += " A low strength keeps much of the old surrounding, so it comes close to it."
    if gates.predict is None:
        return lines[0] + " Start with `--judge DIR` to see faithfulness and false foreground too."
    lines.insert(0, "**Faithfulness**: the judge's Dice with the mask, near the kept structure.")
    lines.insert(1, "**False foreground**: share of the drawn region where the judge is confident of another object; "
                    "up to the limit those pixels are set to ignore (red hatch), above it the pair is rejected.")
    return "  \n".join(lines)


def shown_errors(error: UserError) -> gr.Error:
    """Returns a user's mistake as the page shows it: its text, with nothing in it taken for HTML."""
    return gr.Error(html.escape(str(error), quote=False), duration=15, print_exception=False)


class Page:
    """The page's actions on one studio: what its buttons call."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def _one(self, kind: str, name: str | None, files: tuple[str | None, str | None], mask_map: str) -> Arrays:
        if kind == OWN:
            return read_upload(*files, mask_map, self.studio)
        if name not in self.studio.ids:
            raise UserError("the pair", rule="none is chosen", repair="choose one from the list")
        return self.studio.pair(name)

    def show_pair(self, kind: str, name: str | None, image: str | None, mask: str | None,
                  mask_map: str) -> tuple[np.ndarray | None, np.ndarray | None, list, list, str, None]:
        """Returns the chosen pair and the same with its mask outlined, RGB (H, W, 3), and empties the results.

        Raises:
            gr.Error: with the text of the UserError.
        """
        chosen = name if kind == FROM_SET else image and mask
        if not chosen:
            return None, None, [], [], START, None
        try:
            one = self._one(kind, name, (image, mask), mask_map or "")
        except UserError as error:
            raise shown_errors(error) from None
        return (_picture(one.images[0], one.info), _picture(one.images[0], one.info, one.masks[0]), [], [], START, None)

    def paint(  # noqa: PLR0913 - one argument per input of the page, in their order: gradio calls it
        self, kind: str, name: str | None, image: str | None, mask: str | None, mask_map: str, seed: float | None,
        strength: float, n_steps: float, n_variants: float, random_layout: bool, outlines: bool,  # noqa: FBT001
        progress: gr.Progress = gr.Progress(),
    ) -> tuple[np.ndarray, np.ndarray, dict, list[list[str]], str, Outcome]:
        """Returns source, outlined source, gallery, verdicts, one line that sums up, and the outcome itself.

        Raises:
            gr.Error: with the text of the UserError.
        """
        began = time.monotonic()
        try:
            if seed is None:
                raise UserError("the seed", rule="it is empty", repair="type a whole number, or press New seed")
            one = self._one(kind, name, (image, mask), mask_map or "")
            ask = Ask(int(seed), float(strength), int(n_steps), int(n_variants), bool(random_layout))
            outcome = paint(self.studio, one, ask,
                            callback=lambda done, total: progress((done, total), desc="Painting", unit="evaluations"))
        except UserError as error:
            raise shown_errors(error) from None
        seconds = time.monotonic() - began
        rows = verdict_rows(outcome, self.studio.gates, is_new=self.studio.is_new)
        return (_picture(outcome.source, one.info), _picture(outcome.source, one.info, outcome.labels),
                self.show_variants(outcome, outlines), rows, self._sum_up(outcome, one.ids[0], seconds), outcome)

    def show_variants(self, outcome: Outcome | None, outlines: bool) -> dict:  # noqa: FBT001 - gradio calls it
        """Returns the update of the gallery."""
        items = gallery_items(outcome, self.studio.arrays.info, outlines)
        return gr.update(value=items, columns=max(2, min(4, len(items))))

    def _sum_up(self, outcome: Outcome, name: str, seconds: float) -> str:
        n, kept = len(outcome.verdicts), sum(v.kept for v in outcome.verdicts)
        layout = f" Layout: {outcome.layout}." if outcome.layout else ""
        return (f"**{kept} of {n} kept** · {html.escape(name)} · {outcome.n_evaluations} network evaluations · "
                f"{seconds:.1f} s.{layout}")


DOES = {"foreground": "Keeps the annotated structure of an image pixel by pixel, paints a new surrounding",
        "surroundings": "Keeps the surroundings of an image, paints the annotated structure anew",
        "nothing": "Draws a new image from the label mask alone"}
KEPT = {"foreground": ": inside the outline every pixel is kept",
        "surroundings": ": away from the outline every pixel is kept", "nothing": ": no pixel of the source is kept"}
"""By what a generator keeps."""


def _does(studio: Studio) -> str:
    """Returns what the generator does; one that keeps no pixel need not have drawn all of it from the mask."""
    if not studio.is_new:
        return "Shows an image in another appearance, its structures and labels where they were"
    if studio.generator.sampler_settings().get("texture") == "redrawn":
        return "Paints around or in place of the annotated structure of an image, then draws the whole image once more"
    return DOES[studio.generator.keeps]


def _kept(studio: Studio) -> str:
    if studio.generator.sampler_settings().get("texture") == "codec" and studio.generator.keeps != "nothing":
        return KEPT[studio.generator.keeps].replace("is kept", "is the source's, sent through the autoencoder")
    return KEPT[studio.generator.keeps]


def build_page(studio: Studio) -> gr.Blocks:
    """Returns the page, not yet served."""
    page = Page(studio)
    with gr.Blocks(title="Pairsmith preview", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"# Pairsmith preview\n{_does(studio)}, and shows what the gates of `synth draw` "
                    f"say about the result.\n\n<small>{html.escape(studio.title)}</small>", elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=340):
                which, how, button = _inputs(studio)
            with gr.Column(scale=2, min_width=560):
                results, variants, outlines = _results(studio)
        results.append(outcome := gr.State(None))
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        blocks.load(page.show_pair, which, results, **quiet)
        gr.on([which[0].change, which[1].change, which[2].change, which[3].change, which[4].submit],
              page.show_pair, which, results, **quiet)
        button.click(page.paint, [*which, *how, outlines], results, show_progress_on=variants,
                     api_visibility="private", trigger_mode="once")
        outlines.change(page.show_variants, [outcome, outlines], variants, **quiet)
    return blocks


def _inputs(studio: Studio) -> tuple[list[gr.components.Component], list[gr.components.Component], gr.Button]:
    """Returns what chooses the pair and what says how to paint it, in the order of `Page.paint`, and the button."""
    which = _choice(studio)
    with gr.Group():
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED - MAX_VARIANTS, min_width=140)
            fresh = gr.Button("New seed", min_width=100, size="md")
        n_variants = gr.Slider(1, MAX_VARIANTS, value=4, step=1, label="Variants", info="each from the next seed")
        strength = gr.Slider(0.2, 1, value=1, step=0.05, label="Strength", visible=studio.has_steps,
                             info="1 paints a new surrounding, less stays closer to the old one")
        layout = gr.Checkbox(False, label="Random layout", info="mirror, scale, turn and shift the pair first")
    n_steps = _steps(studio)
    button = gr.Button("Paint", variant="primary", size="lg")
    fresh.click(lambda: secrets.randbelow(NEW_SEEDS), None, seed, show_progress="hidden", api_visibility="private")
    return which, [seed, strength, n_steps, n_variants, layout], button


def _steps(studio: Studio) -> gr.Slider:
    """Returns the slider of noise levels, out of sight where the generator has none."""
    generator, default, words = studio.generator, 1, ""
    if isinstance(generator, InpaintPipeline):
        default = int(generator.config.n_steps)
        words = f"{generator.config.sampler}, {generator.evaluations()} network evaluations"
    with gr.Accordion("Sampler", open=False, visible=studio.has_steps):
        return gr.Slider(min(4, default), max(100, default), value=default, step=1, label="Noise levels",
                         info=f"more is slower and finer; the start value is the generator's own: {words}")


def _choice(studio: Studio) -> list[gr.components.Component]:
    """Returns what chooses the pair: from where, id, image file, mask file, mask values."""
    with gr.Group():
        kind = gr.Radio([FROM_SET, OWN], value=FROM_SET, label="Pair")
        name = gr.Dropdown(studio.ids, value=studio.ids[0], label="Id", filterable=True)
        with gr.Column(visible=False) as own:
            look = {"file_types": FILES, "height": 130, "elem_classes": "files"}
            image = gr.File(label="Image (20 MB at most)", **look)
            mask = gr.File(label="Label mask: class indices, 0 = background", **look)
            mask_map = gr.Textbox(label="Mask values", placeholder="0:0,255:1", max_lines=1, max_length=2000,
                                  info="value:class, only where the mask does not hold class indices")
    kind.change(lambda k: (gr.update(visible=k == FROM_SET), gr.update(visible=k == OWN)), kind, [name, own],
                show_progress="hidden", api_visibility="private")
    return [kind, name, image, mask, mask_map]


def _results(studio: Studio) -> tuple[list[gr.components.Component], gr.Gallery, gr.Checkbox]:
    """Returns the outputs in the order of `Page.paint` without the outcome, the gallery among them, and its switch."""
    look = {"format": "png", "interactive": False, "height": 300, "show_label": False,
            "buttons": ["download", "fullscreen"]}
    with gr.Row():
        with gr.Column(min_width=240, elem_classes="tight"):
            gr.Markdown("**Source**", elem_classes="caption")
            source = gr.Image(label="Source", **look)
        with gr.Column(min_width=240, elem_classes="tight"):
            gr.Markdown(f"**Label mask**{_kept(studio)}", elem_classes="caption")
            mask = gr.Image(label="Label mask", **look)
    with gr.Column(elem_classes="tight"):
        gr.Markdown("**Synthetic**", elem_classes="caption")
        variants = gr.Gallery(label="Synthetic", format="png", columns=4, height="auto", object_fit="contain",
                              show_label=False, interactive=False, elem_classes="variants",
                              buttons=["download", "fullscreen"])
    outlines = gr.Checkbox(False, label="Outline the label mask on the synthetic images")
    summary = gr.Markdown(START, elem_classes="caption")
    limit = limits(studio.gates, is_new=studio.is_new)
    widths = [10, 13, *([17] * len(limit)), 77 - 17 * len(limit)]
    verdicts = gr.Dataframe(headers=["Seed", "Verdict", *(f"{COLUMNS[k]} {limit[k]}".strip() for k in limit), "Reason"],
                            label="Gates", interactive=False, wrap=True, type="array", buttons=["copy"],
                            column_widths=[f"{w}%" for w in widths], elem_classes="gates")
    gr.Markdown(f"<small>{_explain(studio.gates, has_strength=studio.has_steps, is_new=studio.is_new)}</small>")
    return [source, mask, variants, verdicts, summary], variants, outlines
