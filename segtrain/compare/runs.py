"""What a comparison trains and draws: each thing once, in a folder named by everything that went into it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyarrow import parquet

from segtrain.compare.arms import ARMS, Arm
from segtrain.compare.data import Parts, fingerprint
from segtrain.compare.settings import CompareSettings
from segtrain.compare.splits import LabelDraw
from segtrain.metrics import score_cases
from segtrain.record import MadeFacts
from segtrain.summary import RunResult, read_result, write_result
from synth.core.checks import UserError
from synth.core.files import hash_json, replace_file, write_json
from synth.core.pairs import ImageSet, PairSet
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit
from synth.formats import read_shards

if TYPE_CHECKING:
    from segtrain.segmenter import Segmenter
    from synth.generator import Generator

log = logging.getLogger(__name__)

PREDICT_BATCH = 32
FACTS = "facts.json"


@dataclass(frozen=True)
class Job:
    """One run: an arm, a label draw, and which repetition."""

    arm: Arm
    draw: LabelDraw
    seed: int = 0


class Bench:
    """Runs of one comparison, made when first asked for and found again ever after."""

    def __init__(self, settings: CompareSettings, parts: Parts, out: Path) -> None:
        self.settings, self.parts, self.out = settings, parts, out
        self.test = parts.test.arrays(settings.size)
        self.trained = 0
        self._prints: dict[tuple[str, int], str | None] = {}

    def _folder(self, kind: str, identity: object) -> Path:
        key = hash_json([metadata.version("pairsmith"), identity])
        return self.out / "cache" / f"{kind}-{key}"

    def _labelled_print(self, draw: LabelDraw) -> str | None:
        key = ("labelled", draw.index)
        if key not in self._prints:
            self._prints[key] = fingerprint(self.parts.labelled_of(draw))
        return self._prints[key]

    def _unlabelled_print(self, draw: LabelDraw) -> str | None:
        key = ("unlabelled", draw.index)
        if key not in self._prints:
            self._prints[key] = fingerprint(self.parts.unlabelled_of(draw))
        return self._prints[key]

    @cached_property
    def painter_folder(self) -> Path:
        """Where the inpainting generator lies: it is one for all label draws, for it never sees a mask."""
        return self._folder("painter", [self.settings.inpaint, self.settings.size, fingerprint(self.parts.training())])

    def painter(self) -> Generator:
        """Returns the inpainting generator, fitted on every training image."""
        from synth.fit import fit

        draw = self.parts.draws[0]
        return fit(self.settings.inpaint, self.parts.labelled_of(draw), self.parts.unlabelled_of(draw),
                   out=self.painter_folder, overrides=(f"size={self.settings.size}",))

    def painter_due(self, arms: Sequence[Arm]) -> bool:
        """Returns whether one of `arms` needs the generator and it is not fitted yet."""
        wanted = any(arm.synthetic == "inpaint" for arm in arms)
        return wanted and not (self.painter_folder / "model_index.json").exists()

    def painter_seconds(self) -> float:
        """Returns how long the generator trained, over all sittings."""
        return sum(json.loads(p.read_text(encoding="utf-8"))["seconds"] for p in self.painter_folder.rglob("done.json"))

    def judge(self, draw: LabelDraw) -> Segmenter:
        """Returns the segmenter that judges synthetic pairs: trained on this draw's real pairs alone, first seed."""
        return self.segmenter(Job(ARMS["real"], draw))

    def made_folder(self, kind: str, draw: LabelDraw) -> Path:
        """Returns where the synthetic pairs of a label draw lie."""
        own = [self.painter_folder.name, self.settings.gates] if kind == "inpaint" else self._unlabelled_print(draw)
        judge = self.segmenter_folder(Job(ARMS["real"], draw)).name
        return self._folder(kind, [self.settings.synthetic.model_dump(), self.settings.draw, judge, own])

    def made(self, kind: str, draw: LabelDraw) -> MadeFacts:
        """Returns what is known of the synthetic pairs of a label draw; they are drawn if they are not there yet."""
        folder = self.made_folder(kind, draw)
        facts = folder / FACTS
        if not facts.exists():
            judge, painter = self.judge(draw), self.painter() if kind == "inpaint" else None
            started = time.perf_counter()
            log.info("label draw %d: %s draws %d pairs", draw.index, kind, self.settings.synthetic.n)
            self._draw(draw, judge, painter, folder)
            write_json(facts, {**count_verdicts(folder), "seconds": time.perf_counter() - started})
        return MadeFacts(kind, draw.index, str(folder.relative_to(self.out)), self.settings.synthetic.n,
                         **json.loads(facts.read_text(encoding="utf-8")))

    def _draw(self, draw: LabelDraw, judge: Segmenter, painter: Generator | None, folder: Path) -> None:
        try:
            if painter is None:
                self._copypaste(draw, judge, folder)
            else:
                self._inpaint(draw, judge, painter, folder)
        except UserError as error:
            if n_rows(folder, "train") or not n_rows(folder, "rejected"):
                raise
            # Gates that let nothing through are a finding, not a fault: the arm then has its real pairs alone.
            log.warning("label draw %d: %s", draw.index, error)

    def _inpaint(self, draw: LabelDraw, judge: Segmenter, painter: Generator, folder: Path) -> None:
        from synth.draw import draw as draw_pairs
        from synth.gates import GateSettings, default_gates

        labelled, made = self.parts.labelled_of(draw), self.settings.synthetic
        gates = default_gates(judge.predict, labelled, training=self.parts.training(), size=self.settings.size,
                              settings=GateSettings(**self.settings.gates))
        draw_pairs(painter, labelled, n=made.n, seed=made.seed, gates=gates, out=folder,
                   config=self.settings.draw)

    def _copypaste(self, draw: LabelDraw, judge: Segmenter, folder: Path) -> None:
        from synth.draw import draw_copypaste

        made = self.settings.synthetic
        draw_copypaste(self.parts.labelled_of(draw), self.parts.unlabelled_of(draw), predict=judge.predict,
                       judge=judge.content_hash(), n=made.n, seed=made.seed, size=self.settings.size, out=folder,
                       config=self.settings.draw)

    def kept(self, made: MadeFacts) -> PairSet | None:
        """Returns the pairs that the gates kept, None if they kept none."""
        return read_shards(self.out / made.folder) if made.kept else None

    def _seed(self, job: Job) -> int:
        return derive_seed(self.settings.split.seed, "training", job.draw.index, job.seed) % 2**31

    def _method(self, arm: Arm) -> str:
        return self.settings.method if arm.unlabelled else "supervised"

    def segmenter_folder(self, job: Job) -> Path:
        """Returns where a run lies. Arms that would train on the same things share it."""
        from segtrain.method import method_text

        made = self.made(job.arm.synthetic, job.draw) if job.arm.synthetic else None
        return self._folder("segment", [
            self.settings.segment, self.settings.size, method_text(self._method(job.arm)), self._seed(job),
            self._labelled_print(job.draw), made.folder if made and made.kept else None,
            self._unlabelled_print(job.draw) if job.arm.unlabelled else None])

    def segmenter(self, job: Job) -> Segmenter:
        """Returns the segmenter of one run, trained or resumed if need be. Test groups are barred by name."""
        from segtrain.train import fit

        made = self.made(job.arm.synthetic, job.draw) if job.arm.synthetic else None
        return fit(
            self.settings.segment, self.parts.labelled_of(job.draw), synthetic=self.kept(made) if made else None,
            unlabelled=self.parts.unlabelled_of(job.draw) if job.arm.unlabelled else None, method=self._method(job.arm),
            out=self.segmenter_folder(job), held_out=tuple(sorted(set(self.parts.test.groups))),
            overrides=(f"size={self.settings.size}", f"loop.seed={self._seed(job)}"))

    def scores_file(self, job: Job) -> Path:
        """Returns where the scores of a run lie: beside it, named by the test cases and how they are measured."""
        key = hash_json([self.test.fingerprint(), self.settings.nsd_tolerance_px])
        return self.segmenter_folder(job) / f"scores-{job.arm.name}-{key}.json"

    def predictions_file(self, job: Job) -> Path:
        """Returns where the predicted labels (N, S, S) of the test cases lie."""
        return self.segmenter_folder(job) / f"predictions-{self.test.fingerprint()}.npz"

    def result(self, job: Job) -> RunResult:
        """Returns the scores of one run on the test cases, trained and predicted if they are not there yet."""
        path = self.scores_file(job)
        if not path.exists():
            segmenter = self.segmenter(job)
            self.trained += 1
            write_result(self._score(job, segmenter), path)
        return read_result(path)

    def _score(self, job: Job, segmenter: Segmenter) -> RunResult:
        images = pixels_to_unit(self.test.images, self.test.info.intensity_range)
        predicted = torch.cat([segmenter.predict_labels(batch).cpu() for batch in images.split(PREDICT_BATCH)])
        folder, done = self.segmenter_folder(job), segmenter.result
        replace_file(self.predictions_file(job), lambda p: _save_labels(p, predicted.numpy().astype(np.uint8)))
        cases = score_cases(predicted, torch.from_numpy(self.test.masks.astype(np.int64)), ids=self.test.ids,
                            groups=self.test.groups, n_classes=self.test.info.n_classes,
                            tolerance_px=self.settings.nsd_tolerance_px)
        return RunResult(job.arm.name, job.draw.index, job.seed, str(folder.relative_to(self.out)), done.steps,
                         done.counts.get("images_seen", 0), done.counts.get("unlabelled_seen", 0), done.seconds,
                         n_labelled=len(job.draw.labelled),
                         n_synthetic=self.made(job.arm.synthetic, job.draw).kept if job.arm.synthetic else 0,
                         n_unlabelled=_count(self.parts.unlabelled_of(job.draw)) if job.arm.unlabelled else 0,
                         cases=cases)


def _count(images: ImageSet | None) -> int:
    return 0 if images is None else len(images)


def _save_labels(path: Path, labels: np.ndarray) -> None:
    with path.open("wb") as handle:  # a handle, for numpy would add .npz to the temporary name
        np.savez_compressed(handle, labels=labels)


def rejected_pairs(folder: Path) -> PairSet | None:
    """Returns the pairs in `folder` that the gates rejected, None if there are none."""
    return read_shards(folder, "rejected") if n_rows(folder, "rejected") else None


def n_rows(folder: Path, split: str) -> int:
    """Returns how many pairs the shards of a split hold, 0 if there are no shards."""
    return sum(parquet.read_metadata(path).num_rows for path in (folder / "data").glob(f"{split}-*.parquet"))


def count_verdicts(folder: Path) -> dict[str, object]:
    """Returns how many pairs in `folder` were kept and rejected, and by which gates (a pair may fail several)."""
    rejected = rejected_pairs(folder)
    reasons: dict[str, int] = {}
    for item in rejected.items if rejected else ():
        for reason in item.made.reason.split("; "):
            gate = reason.partition(" ")[0]
            reasons[gate] = reasons.get(gate, 0) + 1
    return {"kept": n_rows(folder, "train"), "rejected": n_rows(folder, "rejected"), "reasons": reasons}
