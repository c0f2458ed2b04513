"""Does it help on my data? Arms x label draws x seeds, paired by case, every run cached by what went into it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from segtrain.compare.arms import ENGINES, REAL, Arm, check_methods, check_trainable, choose_arms, engines_of
from segtrain.compare.data import Parts
from segtrain.compare.gallery import make_gallery
from segtrain.compare.making import is_judged, made_of
from segtrain.compare.prepare import prepare
from segtrain.compare.runs import Bench, Job
from segtrain.compare.settings import CompareSettings, load_settings
from segtrain.record import INDEX, DataFacts, DrawFacts, Index, MadeFacts, versions, write_index
from segtrain.report import Report, write_report
from segtrain.settings import SegmentSettings
from segtrain.summary import RunResult, check_budgets
from synth.core.checks import UserError, check_read
from synth.core.config import load_config, save_config
from synth.core.files import claim_folder
from synth.core.pairs import ImageSet, PairSet

__all__ = ["CompareSettings", "compare", "load_settings"]

log = logging.getLogger(__name__)

WEAK_JUDGE = 0.3
"""Test Dice below which the report warns of a judge; nothing is decided by it."""


def compare(config: str | Path | CompareSettings | dict | None, labelled: PairSet | None = None,
            unlabelled: ImageSet | None = None, *, test: PairSet | None = None, out: str | Path,
            overrides: Sequence[str] = ()) -> Report:
    """Returns what each arm scored and how it differs from the baseline; `out` then holds report.html and report.json.

    Sets given here replace the folders that `data` names. Without `test`, the labelled set is split by group. Running
    the same command again after an interruption finishes what is missing; further arms or draws reuse what is there.

    Raises:
        UserError: on a mistake in settings or data, before anything is trained.
    """
    check_read({"labelled": labelled, "unlabelled": unlabelled, "test": test})
    settings = load_settings(config, overrides)
    parts = prepare(settings, labelled, unlabelled, test)
    arms = choose_arms(settings.arms, baseline=settings.baseline,
                       has_unlabelled=all(parts.unlabelled_of(draw) is not None for draw in parts.draws))
    segment = load_config(SegmentSettings, {**settings.segment, "size": settings.size})
    check_methods(arms, settings.method, segment, settings.data)
    check_trainable(arms, settings.method, segment, parts)
    out = Path(out)
    claim_folder(out, kind="compare", identity={"data": parts.source})
    try:
        with FileLock(out / ".lock", timeout=0):
            return _run(settings, parts, arms, out)
    except Timeout:
        raise UserError(str(out), rule="another process is running a comparison in this folder",
                        repair="wait for it, or choose another out=") from None


def _run(settings: CompareSettings, parts: Parts, arms: Sequence[Arm], out: Path) -> Report:
    save_config(settings, out / "config.yaml")
    bench = Bench(settings, parts, out)
    jobs = [Job(arm, draw, seed) for draw in parts.draws for seed in range(settings.seeds) for arm in arms]
    log.info("%d runs: %d arms x %d label draws x %d seeds", len(jobs), len(arms), settings.draws, settings.seeds)
    log.info("%d training images, %d test images of %d other groups", len(parts.training()), len(parts.test),
             len(set(parts.test.groups)))
    clock, results = _Clock(len(jobs)), []
    for job in jobs:
        before = bench.trained
        results.append(bench.result(job))
        check_budgets(results)
        clock.tick(results[-1], trained=bench.trained > before, generators_due=bench.generators_due(arms))
    write_index(out / INDEX, _index(bench, arms, jobs))
    return write_report(out)


class _Clock:
    """Says how far a comparison is and how long the rest may take, judged by the runs of this sitting."""

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs, self.done, self.trained, self.started = n_jobs, 0, 0, time.perf_counter()

    def tick(self, result: RunResult, *, trained: bool, generators_due: bool) -> None:
        """Logs one finished run."""
        self.done, self.trained = self.done + 1, self.trained + trained
        dice = sum(sum(c.dice) / len(c.dice) for c in result.cases) / len(result.cases)
        how = f"trained {result.seconds:.0f} s" if trained else "found, not run again"
        log.info("[%d/%d] %s, label draw %d, seed %d: Dice %.3f (%s)%s", self.done, self.n_jobs, result.arm,
                 result.draw, result.seed, dice, how, self._rest(generators_due=generators_due))

    def _rest(self, *, generators_due: bool) -> str:
        if not self.trained or self.done == self.n_jobs:
            return ""
        minutes = (time.perf_counter() - self.started) / self.trained * (self.n_jobs - self.done) / 60
        more = " and the generators' training" if generators_due else ""
        return f"; about {max(1, round(minutes))} min to go{more}"


def _pairs(arms: Sequence[Arm], baseline: str) -> tuple[tuple[str, str], ...]:
    names = [arm.name for arm in arms]
    pairs = [(name, baseline) for name in names if name != baseline]
    # A generator has to beat what has the same masks and needs none; exchanged masks are held to the baseline.
    kinds = {"inpaint": ("copypaste", "affine", "roundtrip"), "translate": ("copypaste", "affine", "inpaint")}
    controls = [(f"real+{engine}", f"real+{kind}") for engine in ENGINES for kind in kinds[engine]]
    return (*pairs, *(c for c in controls if set(c) <= set(names) and c not in pairs))


def _index(bench: Bench, arms: Sequence[Arm], jobs: Sequence[Job]) -> Index:
    settings, parts = bench.settings, bench.parts
    kinds = dict.fromkeys(arm.synthetic for arm in arms if arm.synthetic)
    made = tuple(bench.made(kind, draw) for draw in parts.draws for kind in kinds)
    notes = (*parts.notes, *_weak_judges(bench, made), *(_shortage(m) for m in made if m.kept < m.asked))
    return Index(settings.baseline, _pairs(arms, settings.baseline),
                 tuple(str(bench.scores_file(job).relative_to(bench.out)) for job in jobs), made,
                 bench.generator_seconds(engines_of(tuple(kinds))), _data_facts(bench), notes,
                 make_gallery(bench, arms), settings.model_dump(mode="json"), versions(),
                 bench.referee_seconds() if any(set(ENGINES) & {kind, *made_of(kind)} for kind in kinds) else 0.0)


def _weak_judges(bench: Bench, made: Sequence[MadeFacts]) -> list[str]:
    notes = []
    for k in sorted({m.draw for m in made if is_judged(m.kind)}):
        cases = bench.result(Job(REAL, bench.parts.draws[k])).cases
        dice = sum(sum(c.dice) / len(c.dice) for c in cases) / len(cases)
        if dice < WEAK_JUDGE:
            notes.append(f"Label draw {k}: the judge of its synthetic pairs reaches only Dice {dice:.2f} on the test "
                         "images, so what its gates kept and rejected means little.")
    return notes


def _shortage(made: MadeFacts) -> str:
    if not made.kept:
        return f"Label draw {made.draw}: {made.kind} kept no pair at all, so its arms trained on real pairs alone."
    return f"Label draw {made.draw}: {made.kind} kept {made.kept} of the {made.asked} pairs asked for."


def _data_facts(bench: Bench) -> DataFacts:
    parts, info = bench.parts, bench.parts.test.info
    groups = dict(zip(parts.labelled.ids, parts.labelled.groups, strict=True))
    training = parts.training()
    draws = tuple(DrawFacts(d.index, d.labelled, len({groups[i] for i in d.labelled}), len(training) - len(d.labelled))
                  for d in parts.draws)
    name = Path(parts.labelled.where).name if info.name == "unnamed" else info.name
    return DataFacts(name, info.modality, parts.labelled.where, info.classes, info.channels, bench.settings.size,
                     len(training), len(set(training.groups)), len(parts.test), len(set(parts.test.groups)),
                     tuple(sorted(set(parts.test.groups))), parts.source, draws, "mm" if bench.spacings else "px")
