"""What a comparison trains and draws: each thing once, in a folder named by everything that went into it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import JsonValue

from segtrain.compare.arms import BESIDE, ENGINES, REAL, Arm, engines_of, method_of
from segtrain.compare.beside import Beside
from segtrain.compare.content import Content
from segtrain.compare.data import Parts
from segtrain.compare.making import count_verdicts, made_identity, make_pairs, make_ready
from segtrain.compare.settings import CompareSettings
from segtrain.compare.splits import LabelDraw
from segtrain.metrics import score_cases
from segtrain.record import MadeFacts
from segtrain.summary import RunResult, read_result, write_result
from synth.core.files import hash_json, replace_file, write_json
from synth.core.pairs import ImageSet, PairSet
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit
from synth.core.version import VERSION
from synth.formats import read_shards
from synth.spectral import FrequencyPrior

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
        known = [item.spacing for item in parts.test.items if item.spacing]
        self.spacings = tuple(known) if len(known) == len(parts.test) else ()
        self.trained = 0
        self.content = Content(settings, parts)

    def _folder(self, kind: str, identity: object) -> Path:
        key = hash_json([VERSION, identity])
        return self.out / "cache" / f"{kind}-{key}"

    def sampling(self, engine: str) -> JsonValue:
        """Returns the settings of a generator that matter when it draws, and not to its fit."""
        return getattr(self.settings, engine).get("sampler")

    def _own_draw(self, engine: str, draw: LabelDraw) -> LabelDraw:
        """Returns the label draw whose masks a generator may see: `draw`, or, if it sees none, any one for all."""
        return draw if self.content.sees_masks(engine) else self.parts.draws[0]

    def generator_folder(self, engine: str, draw: LabelDraw) -> Path:
        """Returns where the generator of a label draw lies; one that never sees a mask is the same for all of them, or
        for all whose objects are to be painted in the same space (autoencoder.kind=auto)."""
        seen = self.content.labelled(draw) if self.content.sees_masks(engine) else None
        return self._folder("painter", [self.content.fitting(engine, draw), self.settings.size, seen,
                                        self.content.training])

    def generator(self, engine: str, draw: LabelDraw) -> Generator:
        """Returns a generator, fitted on training images and on no mask but those of its label draw."""
        from synth.fit import fit

        own = self._own_draw(engine, draw)
        # A translator learns from pairs alone, unless its settings say otherwise.
        takes_pile = engine == "inpaint" or self.settings.translate["loss"]["unlabelled"] > 0
        pile = self.parts.unlabelled_of(own) if takes_pile else None
        space = (f"autoencoder.kind={self.content.space(draw)}",) if engine == "inpaint" else ()
        return fit(getattr(self.settings, engine), self.parts.labelled_of(own), pile,
                   out=self.generator_folder(engine, draw), overrides=(f"size={self.settings.size}", *space))

    def generators_due(self, arms: Sequence[Arm]) -> bool:
        """Returns whether one of `arms` needs a generator that is not fitted yet."""
        engines = engines_of([arm.synthetic for arm in arms if arm.synthetic])
        return not all((folder / "model_index.json").exists() for folder in self._generator_folders(engines))

    def generator_seconds(self, engines: Sequence[str]) -> float:
        """Returns how long the generators trained, over all sittings and label draws."""
        return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"]
                   for folder in self._generator_folders(engines) for path in folder.rglob("done.json"))

    def _generator_folders(self, engines: Sequence[str]) -> list[Path]:
        return list(dict.fromkeys(self.generator_folder(e, draw) for e in engines for draw in self.parts.draws))

    def judge(self, draw: LabelDraw) -> Segmenter:
        """Returns the segmenter that judges synthetic pairs: trained on this draw's real pairs alone, first seed."""
        return self.segmenter(Job(REAL, draw))

    def judge_folder(self, draw: LabelDraw) -> Path:
        """Returns where the judge lies."""
        return self.segmenter_folder(Job(REAL, draw))

    @property
    def supplied(self) -> bool:
        """Whether more pairs are painted than kept, and a referee is needed to choose."""
        return self.settings.draw["supply"]["oversample"] > 1

    @property
    def refereed(self) -> bool:
        """Whether a referee is needed, to choose among painted pairs or to find their masks again."""
        return self.supplied or self.settings.draw["curate"]["min_agreement"] > 0

    @property
    def curated(self) -> bool:
        """Whether a rule of curation is on."""
        rules = self.settings.draw["curate"]
        return rules["ignore"] is not None or rules["min_agreement"] > 0

    def _referee_seed(self, draw: LabelDraw) -> int:
        return derive_seed(self.settings.split.seed, "referee", draw.index) % 2**31

    def referee_folder(self, draw: LabelDraw) -> Path:
        """Returns where the referee of a label draw lies."""
        prior = self._prior("supervised")
        return self._folder("referee", [*self.content.referee, self.settings.size, self._referee_seed(draw),
                                        self.content.labelled(draw),
                                        *([] if prior is None else [prior.content_hash()])])

    def referee(self, draw: LabelDraw) -> Segmenter:
        """Returns the judge's second opinion: another architecture, trained as long on the same real pairs."""
        from segtrain.train import fit

        return fit({**self.settings.segment, "model": self.settings.referee}, self.parts.labelled_of(draw),
                   method="supervised", out=self.referee_folder(draw), held_out=self._held_out,
                   prior=self._prior("supervised"),
                   overrides=(f"size={self.settings.size}", f"loop.seed={self._referee_seed(draw)}"))

    def referee_seconds(self) -> float:
        """Returns how long the referees trained, all label draws together; 0 if there are none."""
        done = [self.referee_folder(draw) / "done.json" for draw in self.parts.draws] if self.refereed else []
        return sum(json.loads(p.read_text(encoding="utf-8"))["seconds"] for p in done if p.exists())

    def drawing(self, kind: str) -> dict[str, JsonValue]:
        """Returns the draw settings of one kind of pairs.

        Supply and curation are for generators' pairs, where they are on at all; labels change shape (layout.grow_px,
        layout.bend_px) for translators alone, as all others show pixels that would not follow.
        """
        mine = {"supply": kind in ENGINES and self.supplied, "curate": kind in ENGINES and self.curated}
        drawn = {k: v for k, v in self.settings.draw.items() if mine.get(k, True)}
        if kind != "translate":
            drawn["layout"] = {**drawn["layout"], "grow_px": 0.0, "bend_px": 0.0}
        return drawn

    def made_folder(self, kind: str, draw: LabelDraw) -> Path:
        """Returns where the synthetic pairs of a label draw lie."""
        return self._folder(kind, made_identity(self, kind, draw, labelled=self.content.labelled(draw),
                                                unlabelled=self.content.unlabelled(draw)))

    def made(self, kind: str, draw: LabelDraw) -> MadeFacts:
        """Returns what is known of the synthetic pairs of a label draw; they are drawn if they are not there yet."""
        folder = self.made_folder(kind, draw)
        facts = folder / FACTS
        if not facts.exists():
            make_ready(self, kind, draw)
            started = time.perf_counter()
            log.info("label draw %d: %s draws %d pairs", draw.index, kind, self.settings.synthetic.n)
            make_pairs(self, kind, draw, folder)
            write_json(facts, {**count_verdicts(folder), "seconds": time.perf_counter() - started})
        return MadeFacts(kind, draw.index, str(folder.relative_to(self.out)), self.settings.synthetic.n,
                         **json.loads(facts.read_text(encoding="utf-8")))

    def kept(self, made: MadeFacts) -> PairSet | None:
        """Returns the pairs that the gates kept, None if they kept none."""
        return read_shards(self.out / made.folder) if made.kept else None

    @property
    def _held_out(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.parts.test.groups)))

    def _seed(self, job: Job) -> int:
        return derive_seed(self.settings.split.seed, "training", job.draw.index, job.seed) % 2**31

    def _prior(self, method: str) -> FrequencyPrior | None:
        # The one that the settings name, for runs that use one; the others are the same runs whatever it is.
        from segtrain.method import load_method
        from segtrain.priors import wanted_prior
        from segtrain.settings import SegmentSettings

        folder, settings = self.settings.data.prior, SegmentSettings(**self.settings.segment)
        if folder is None or wanted_prior(settings, load_method(method)) is None:
            return None
        return FrequencyPrior.from_pretrained(folder)

    def _method(self, arm: Arm) -> str:
        return method_of(arm, self.settings.method)

    def _beside(self, arm: Arm) -> dict[str, Beside]:
        # Masks beside the images that the arm's method reads, by their name among the arguments of a fit.
        from segtrain.method import load_method

        method = load_method(self._method(arm))
        return {name: getattr(self.parts, name) for name in BESIDE if method.needs(name)}

    def _written(self, arm: Arm) -> dict[str, Path | list[Path]]:
        found = {name: beside.write(self._folder(name, beside.fingerprint))
                 for name, beside in self._beside(arm).items()}
        if "observers" in found:  # a folder for each
            found["observers"] = [found["observers"] / str(k) for k in range(len(self.settings.data.observers))]
        return found

    def segmenter_folder(self, job: Job) -> Path:
        """Returns where a run lies. Arms that would train on the same things share it."""
        from segtrain.method import method_text

        made = self.made(job.arm.synthetic, job.draw) if job.arm.synthetic else None
        read = self.content.segment.identity(synthetic=bool(made and made.kept), unlabelled=job.arm.unlabelled)
        prior = self._prior(self._method(job.arm))
        return self._folder("segment", [
            read, self.settings.size, method_text(self._method(job.arm)), self._seed(job),
            self.content.labelled(job.draw), made.folder if made and made.kept else None,
            self.content.unlabelled(job.draw) if job.arm.unlabelled else None,
            *([] if prior is None else [prior.content_hash()]),
            *(beside.fingerprint for beside in self._beside(job.arm).values())])

    def segmenter(self, job: Job) -> Segmenter:
        """Returns the segmenter of one run, trained or resumed if need be. Test groups are barred by name."""
        from segtrain.train import fit

        made = self.made(job.arm.synthetic, job.draw) if job.arm.synthetic else None
        return fit(
            self.settings.segment, self.parts.labelled_of(job.draw), synthetic=self.kept(made) if made else None,
            unlabelled=self.parts.unlabelled_of(job.draw) if job.arm.unlabelled else None, method=self._method(job.arm),
            out=self.segmenter_folder(job), held_out=self._held_out, prior=self._prior(self._method(job.arm)),
            **self._written(job.arm),
            overrides=(f"size={self.settings.size}", f"loop.seed={self._seed(job)}"))

    def scores_file(self, job: Job) -> Path:
        """Returns where the scores of a run lie: beside it, named by the test cases and how they are measured."""
        key = hash_json([self.test.fingerprint(), self.settings.nsd_tolerance_px, self.spacings])
        return self.segmenter_folder(job) / f"scores-{job.arm.name.replace(':', '-')}-{key}.json"

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
                            tolerance_px=self.settings.nsd_tolerance_px, spacings=self.spacings)
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
