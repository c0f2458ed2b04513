"""Fits the spectral generator: a prior of the training images, or amplitudes of some of them. Nothing is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from synth.appearance.amplitudes import Amplitudes, Lenders
from synth.appearance.pipeline import SpectralPipeline, pipeline_of
from synth.appearance.settings import OperationSettings, OwnPriorSettings, SpectralSettings
from synth.core.checks import UserError
from synth.core.config import save_config
from synth.core.device import compute_device
from synth.core.files import claim_folder
from synth.core.pairs import ImageSet, PairSet, check_joinable
from synth.core.rng import one_thread, sample_rng
from synth.core.space import pixels_to_unit, resize_image, to_channels
from synth.core.taught import Taught
from synth.pipelines import quiet, save_pipeline
from synth.spectral import FrequencyPrior
from synth.spectral.sums import Seen, seen_of
from synth.spectral.swap import amplitude_to_lend

LIMITS = {"match_ratio": 1.0, "match_coded": 1.0, "fda": 0.5, "mix": 1.0, "reweight": 3.0, "kspace": 1.0}
"""The largest strength of each operation."""


def load_spectral(folder: Path) -> SpectralPipeline:
    """Returns the pipeline saved in `folder`, on the GPU if there is one; only local files."""
    with quiet():
        return SpectralPipeline.from_pretrained(folder, local_files_only=True).to(compute_device())


def check_operation(operation: OperationSettings) -> None:
    """Returns nothing; raises UserError if the range of strengths is none that the operation has."""
    low, high = operation.strength
    if not 0 <= low <= high <= LIMITS[operation.name]:
        raise UserError(f"operation.strength={list(operation.strength)}", rule=f"for {operation.name} a range within "
                        f"[0, {LIMITS[operation.name]:g}], smaller number first",
                        repair=f"write for example operation.strength=[0, {min(0.3, LIMITS[operation.name]):g}]")


def check_prior(settings: SpectralSettings) -> None:
    """Returns nothing; raises UserError if the prior cannot be measured so, or a setting of another operation is given.
    """
    prior, name, size = settings.prior, settings.operation.name, settings.size
    if prior.size not in (None, size):
        raise UserError(f"prior.size={prior.size}", rule=f"the generator works at {size} px, where its prior is "
                        "measured", repair="leave prior.size out")
    if prior.bands is not None and prior.bands > size // 2:
        raise UserError(f"prior.bands={prior.bands}", rule=f"an image of {size} px has no more than {size // 2} rings",
                        repair="set fewer, or leave prior.bands out")
    unread = {"prior.": not name.startswith("match_") and prior != OwnPriorSettings(),
              "operation.n_references=": name not in ("fda", "mix")
              and settings.operation.n_references != OperationSettings().n_references}
    for words, told in unread.items():
        if told:
            raise UserError(words, rule=f"operation.name={name} does not read it", repair=f"leave {words} out")


def fit_spectral(settings: SpectralSettings, labelled: PairSet, unlabelled: ImageSet | None,
                 out: Path) -> SpectralPipeline:
    """Returns the fitted pipeline, saved in `out`; a finished folder is loaded at once.

    The images are those of the training split. A prior is fitted on the labelled pairs; of kind "whole", which needs no
    outlines, on the unlabelled images too. fda and mix take the amplitudes of unlabelled images, of labelled ones
    without any.

    Raises:
        UserError: for a strength that the operation does not have, sets that do not fit together, or an `out` that
            holds another run.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_operation(settings.operation)
    check_prior(settings)
    pile = unlabelled if unlabelled is not None and len(unlabelled) else None
    if pile is not None:
        check_joinable(labelled, pile, pile.where)
    seen = _seen_of_all(labelled if pile is None else [*labelled, *pile])
    claim_folder(out, kind="spectral", identity={"settings": settings.model_dump(mode="json", exclude={"data", "out"}),
                                                 "images": [seen.n_images, seen.fingerprint]})
    if not (out / "model_index.json").exists():
        save_config(settings, out / "config.yaml")
        with one_thread():
            pipeline = _fitted(settings, labelled, pile)
        if state.is_main_process:
            save_pipeline(pipeline, out)
        state.wait_for_everyone()
    return _checked(load_spectral(out), labelled, out)


def _checked(made: SpectralPipeline, labelled: PairSet, out: Path) -> SpectralPipeline:
    # The same pixels may have been given another meaning since; `seen` is of the pixels.
    now = tuple(labelled.info.intensity_range)
    if made.intensity_range != now:
        raise UserError(str(out), rule=f"it was fitted over the range {made.intensity_range}, and that of the images "
                        f"is {now} now", repair="choose another out=, or delete the folder")
    return made


def spectral_taught(settings: SpectralSettings, labelled: PairSet, unlabelled: ImageSet | None) -> Taught:
    """Returns what a fit keeps something of: the images behind its prior or its lenders; other operations know none."""
    name, whole = settings.operation.name, settings.prior.kind == "whole"
    if name.startswith("match_"):
        return Taught.of_sets([labelled, unlabelled if whole else None])
    return Taught.of_sets([unlabelled or labelled] if name in ("fda", "mix") else [])


def _seen_of_all(images: ImageSet | list) -> Seen:
    found = [seen_of(pair) for pair in images]
    total = found[0]
    for one in found[1:]:
        total = total.joined(one)
    return total


def _fitted(settings: SpectralSettings, labelled: PairSet, pile: ImageSet | None) -> SpectralPipeline:
    operation, info = settings.operation, labelled.info
    prior = lenders = None
    if operation.name.startswith("match_"):
        prior = _prior(settings, labelled, pile)
    elif operation.name in ("fda", "mix"):
        lenders = _lenders(settings, pile or labelled)
    amplitudes = Amplitudes.of(channels=info.channels, size=settings.size, prior=prior, lenders=lenders)
    return pipeline_of(amplitudes, operation, intensity_range=info.intensity_range, bit_depth=info.bit_depth)


def _prior(settings: SpectralSettings, labelled: PairSet, pile: ImageSet | None) -> FrequencyPrior:
    words = {**settings.prior.model_dump(), "size": settings.size}
    prior = FrequencyPrior.fit(labelled, **words)
    return prior if pile is None or settings.prior.kind != "whole" else prior.merged(FrequencyPrior.fit(pile, **words))


def _lenders(settings: SpectralSettings, images: ImageSet) -> Lenders:
    order = torch.randperm(len(images), generator=sample_rng(settings.seed, "lenders")).tolist()
    chosen = [images[i] for i in sorted(order[:settings.operation.n_references])]
    lent = [amplitude_to_lend(pixels_to_unit(resize_image(to_channels(pair.image), settings.size)[None],
                                             images.info.intensity_range), settings.operation.border)
            for pair in chosen]
    return Lenders(tuple(p.id for p in chosen), tuple(p.group for p in chosen), torch.cat(lent).half())
