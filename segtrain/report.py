"""The answer as files: report.json, and one self-contained report.html that needs no network and no script."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import TypeAdapter

from segtrain.plots import PALETTE, Bar, Curve, interval_plot, loss_plot
from segtrain.record import Index, MadeFacts, read_index
from segtrain.summary import (
    ArmSummary,
    ComparisonSummary,
    Judging,
    RunResult,
    compare_arms,
    read_result,
    summarise_arm,
)
from synth.core.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    Attributes:
        arms: baseline first. sentences: one per comparison, in words. gates: kept, rejected and why, by kind of pair.
        seconds: training and drawing, all runs that the report rests on, whenever they were made. out: its folder.
    """

    arms: tuple[ArmSummary, ...]
    comparisons: tuple[ComparisonSummary, ...]
    sentences: tuple[str, ...]
    gates: dict[str, MadeFacts]
    index: Index
    seconds: float
    out: Path

    @property
    def verdict(self) -> str:
        """The first sentence: do inpainted pairs help; without such an arm, does the first other arm."""
        ours = next((i for i, c in enumerate(self.comparisons) if c.arm == "real+inpaint"), 0)
        return self.sentences[ours] if self.sentences else f"Only {self.arms[0].name} was run: nothing to compare."

    def to_json(self) -> str:
        """Returns the report as JSON text: arms, comparisons, data, gates, settings, versions, seconds."""
        def plain(kind: object, value: object) -> object:
            return TypeAdapter(kind).dump_python(value, mode="json")

        gates = {kind: {k: getattr(facts, k) for k in ("asked", "kept", "rejected", "reasons", "seconds")}
                 for kind, facts in self.gates.items()}
        tree = {"verdict": self.verdict, "arms": plain(tuple[ArmSummary, ...], self.arms),
                "comparisons": plain(tuple[ComparisonSummary, ...], self.comparisons),
                "data": plain(Index, self.index)["data"], "gates": gates, "notes": list(self.index.notes),
                "settings": self.index.settings, "versions": self.index.versions, "seconds": round(self.seconds, 1),
                "painter_seconds": round(self.index.painter_seconds, 1),
                "referee_seconds": round(self.index.referee_seconds, 1)}
        return json.dumps(tree, indent=1) + "\n"

    def table(self) -> Table:
        """Returns the results as a table for the terminal."""
        from rich.table import Table

        first, data = self.arms[0], self.index.data
        table = Table(title=f"{data.name}: {first.n_cases} test cases of {first.n_groups} groups, {data.size} px")
        for name in ("arm", "Dice", "95 %", "NSD", f"HD95 {data.unit}", "difference", "95 %", "p", "Holm", "seen",
                     "unlabelled", "s"):
            table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
        against = {c.arm: c for c in self.comparisons if c.baseline == self.index.baseline}
        for arm in self.arms:
            c = against.get(arm.name)
            difference = [signed(c.dice_diff), interval(c.ci, sign=True), number(c.p), number(c.p_holm)] if c else []
            table.add_row(arm.name, number(arm.dice_mean), interval(arm.dice_ci), number(arm.nsd_mean),
                          "" if arm.hd95_mean is None else f"{arm.hd95_mean:.1f}", *(difference or [""] * 4),
                          f"{arm.images_seen:,}", f"{arm.unlabelled_seen:,}", f"{arm.seconds:.0f}")
        return table


def number(value: float) -> str:
    """Returns three decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Returns three decimals with a sign, a true minus."""
    return f"{value:+.3f}".replace("-", MINUS)


def interval(ci: tuple[float, float] | None, *, sign: bool = False) -> str:
    """Returns "low to high", or "none"."""
    show = signed if sign else number
    return "none" if ci is None else f"{show(ci[0])} to {show(ci[1])}"


def say(comparison: ComparisonSummary) -> str:
    """Returns the comparison in one sentence: helps, hurts, or cannot tell, and the numbers behind it."""
    c = comparison
    what = {"helps": " helps", "hurts": " hurts"}.get(c.verdict, ": cannot tell whether it helps")
    return f"{c.arm}{what}. Dice {signed(c.dice_diff)} against {c.baseline} ({_evidence(c)})."


def _evidence(c: ComparisonSummary) -> str:
    if c.ci is None:
        return f"no interval: {c.note}"
    where = "which holds 0" if c.ci[0] <= 0 <= c.ci[1] else "which leaves out 0"
    but = f", but p is {number(c.p)}" if c.verdict == "cannot tell" and c.ci[0] * c.ci[1] > 0 else ""
    least = "" if c.detectable is None else f"smallest detectable difference {number(c.detectable)}"
    parts = (f"95 % interval {interval(c.ci, sign=True)}, {where}{but}",
             f"{len(c.per_draw)} label draws, {c.n_cases} test cases of {c.n_groups} groups", least, c.note)
    return "; ".join(part for part in parts if part)


def write_report(out: str | Path) -> Report:
    """Returns the report of the finished comparison in `out`, written again from the scores of its runs.

    Raises:
        UserError: if no finished comparison lies there.
    """
    out = Path(out)
    index = read_index(out)
    results = [read_result(out / path) for path in index.scores]
    report = _summarise(out, index, results)
    write_text(out / "report.json", report.to_json())
    write_text(out / "report.html", _render(report, results))
    return report


def _summarise(out: Path, index: Index, results: Sequence[RunResult]) -> Report:
    runs: dict[str, list[RunResult]] = {}
    for result in results:
        runs.setdefault(result.arm, []).append(result)
    judging = Judging(seed=int(index.settings["test_seed"]), resamples=int(index.settings["resamples"]))
    arms = tuple(summarise_arm(r, classes=index.data.classes[1:], judging=judging) for r in runs.values())
    comparisons = compare_arms(runs, index.pairs, judging)
    seconds = (sum(a.seconds for a in arms) + index.painter_seconds + index.referee_seconds
               + sum(m.seconds for m in index.made))
    return Report(arms, comparisons, tuple(say(c) for c in comparisons), _gates(index.made), index, seconds, out)


def _gates(made: Sequence[MadeFacts]) -> dict[str, MadeFacts]:
    """Returns the facts of all label draws together, by kind."""
    total: dict[str, MadeFacts] = {}
    for facts in made:
        before = total.get(facts.kind, dataclasses.replace(facts, asked=0, kept=0, rejected=0, reasons={}, seconds=0.0))
        reasons = {r: before.reasons.get(r, 0) + facts.reasons.get(r, 0) for r in {**before.reasons, **facts.reasons}}
        total[facts.kind] = dataclasses.replace(
            before, asked=before.asked + facts.asked, kept=before.kept + facts.kept, reasons=reasons,
            rejected=before.rejected + facts.rejected, seconds=before.seconds + facts.seconds)
    return total


def _curves(out: Path, results: Sequence[RunResult]) -> list[Curve]:
    curves = []
    for result in results:
        path = out / result.folder / "stats.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        key = next((k for k in ("loss_labelled", "loss") if lines and k in lines[0]), None)
        if key:
            curves.append(Curve(result.arm, tuple(x["step"] for x in lines), tuple(x[key] for x in lines)))
    return curves


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _bars(report: Report) -> tuple[list[Bar], list[Bar]]:
    colours = {arm.name: PALETTE[i % len(PALETTE)] for i, arm in enumerate(report.arms)}
    scores = [Bar(a.name, a.dice_mean, a.dice_ci, a.dice_per_draw, colours[a.name]) for a in report.arms]
    several = len({c.baseline for c in report.comparisons}) > 1
    differences = [Bar(f"{c.arm}\n{MINUS} {c.baseline}" if several else c.arm, c.dice_diff, c.ci, c.per_draw,
                       colours[c.arm]) for c in report.comparisons]
    return scores, differences


def _render(report: Report, results: Sequence[RunResult]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("segtrain"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, signed=signed, interval=interval)
    environment.globals["picture"] = lambda file: _data_uri("image/png", (report.out / file).read_bytes())
    curves = _curves(report.out, results)
    plot = interval_plot(*_bars(report))
    return environment.get_template("report.html.j2").render(
        report=report, index=report.index, data=report.index.data, settings=report.index.settings,
        against={c.arm: c for c in report.comparisons if c.baseline == report.index.baseline},
        gallery={s: [row for row in report.index.gallery if row.section == s] for s in ("kept", "rejected", "test")},
        plot=_data_uri("image/svg+xml", plot.encode()),
        losses=_data_uri("image/svg+xml", loss_plot(curves).encode()) if curves else "",
        yaml=yaml.safe_dump(report.index.settings, sort_keys=False))
