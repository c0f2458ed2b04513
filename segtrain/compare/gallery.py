"""Pictures of a comparison: what was made, what was rejected and why, and what the models say on test cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import TypeAdapter

from segtrain.compare.arms import Arm
from segtrain.compare.making import rejected_pairs
from segtrain.compare.runs import Bench, Job
from segtrain.plots import tile
from segtrain.record import MadeFacts, Row, Tile
from synth.core.files import hash_json, replace_file, write_text
from synth.core.pairs import Pair
from synth.core.space import pixels_to_unit, to_channels

if TYPE_CHECKING:
    from segtrain.segmenter import Segmenter

PER_SECTION = 4


def make_gallery(bench: Bench, arms: Sequence[Arm]) -> tuple[Row, ...]:
    """Returns rows of pictures of the first label draw, drawn once and kept beside the runs."""
    draw = bench.parts.draws[0]
    jobs = [Job(arm, draw) for arm in arms]
    made = [bench.made(kind, draw) for kind in dict.fromkeys(a.synthetic for a in arms if a.synthetic)]
    key = hash_json([[str(bench.scores_file(job)) for job in jobs], [m.folder for m in made], PER_SECTION])
    folder = bench.out / "cache" / f"gallery-{key}"
    index = folder / "rows.json"
    if not index.exists():
        sheet = _Sheet(bench, folder)
        rows = [row for facts in made for row in sheet.made_rows(facts)] + sheet.test_rows(jobs)
        write_text(index, TypeAdapter(list[Row]).dump_json(rows, indent=1).decode())
    return tuple(TypeAdapter(list[Row]).validate_json(index.read_bytes()))


class _Sheet:
    """Draws tiles into one folder and counts them."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder, self.n = bench, folder, 0
        self.range = bench.parts.test.info.intensity_range

    def tile(self, image: np.ndarray, labels: np.ndarray | None, caption: str) -> Tile:
        """Returns one picture, written as a PNG."""
        path = self.folder / f"{self.n:03d}.png"
        self.n += 1
        data = tile(image, labels, intensity_range=self.range)
        replace_file(path, lambda p: p.write_bytes(data))
        return Tile(str(path.relative_to(self.bench.out)), caption)

    def made_rows(self, facts: MadeFacts) -> list[Row]:
        """Returns rows of kept and of rejected pairs: parent, synthetic image, its mask, what the judge sees."""
        judge = self.bench.judge(self.bench.parts.draws[facts.draw])
        rows = []
        rejected = rejected_pairs(self.bench.out / facts.folder)
        for section, pairs in (("kept", self.bench.kept(facts)), ("rejected", rejected)):
            chosen = _spread(len(pairs) if pairs else 0)
            rows += [self._made_row(section, facts.kind, pairs[i], judge) for i in chosen]
        return rows

    def _made_row(self, section: str, kind: str, pair: Pair, judge: Segmenter) -> Row:
        parents = self.bench.parts.labelled
        parent = parents[parents.ids.index(pair.made.parents[0])]
        scores = ", ".join(f"{name} {value:.2f}" for name, value in pair.made.scores.items())
        title = f"{pair.id}: " + (f"rejected, {pair.made.reason}" if section == "rejected" else scores or kind)
        predicted = _predict(judge, pair.image, self.range)
        return Row(section, title, (
            self.tile(parent.image, parent.mask, f"real {parent.id} and its mask"),
            self.tile(pair.image, None, "synthetic image"),
            self.tile(pair.image, pair.mask, "with its mask (dark = ignored)"),
            self.tile(pair.image, predicted, "what the judge sees")))

    def test_rows(self, jobs: Sequence[Job]) -> list[Row]:
        """Returns test cases from the baseline's worst to its best: the truth, then the prediction of each arm."""
        results = [self.bench.result(job) for job in jobs]
        masks = [np.load(self.bench.predictions_file(job))["labels"] for job in jobs]
        dice = np.array([[np.mean(case.dice) for case in result.cases] for result in results])
        order = np.argsort(dice[0], kind="stable")
        rows = []
        for i in (int(order[k]) for k in _spread(len(order))):
            pair = self.bench.parts.test[i]
            tiles = [self.tile(pair.image, pair.mask, "truth")]
            tiles += [self.tile(pair.image, m[i], f"{job.arm.name}: {d[i]:.2f}")
                      for job, m, d in zip(jobs, masks, dice, strict=True)]
            rows.append(Row("test", f"test case {pair.id}", tuple(tiles)))
        return rows


def _spread(n: int) -> list[int]:
    """Returns up to PER_SECTION indices below `n`, first and last included."""
    return sorted({round(k * (n - 1) / max(1, min(n, PER_SECTION) - 1)) for k in range(min(n, PER_SECTION))})


def _predict(judge: Segmenter, image: np.ndarray, intensity_range: tuple[float, float]) -> np.ndarray:
    unit = pixels_to_unit(to_channels(image)[None], intensity_range)
    return judge.predict_labels(unit)[0].to(torch.uint8).cpu().numpy()
