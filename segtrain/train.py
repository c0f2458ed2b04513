"""From settings and sets to a finished run's folder and its segmenter."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from segtrain.method import Method, load_method, member
from segtrain.models import unread
from segtrain.models.weights import identify, identify_all
from segtrain.priors import FOLDER as PRIOR
from segtrain.priors import find_prior, wanted_prior, with_use
from segtrain.recipe import SegmentRecipe
from segtrain.segmenter import Segmenter, SegmenterConfig
from segtrain.settings import SegmentSettings
from segtrain.streams import Streams, check_kept, check_leak, check_ranks
from segtrain.streams.ahead import Ahead
from segtrain.streams.extras import Extras
from segtrain.streams.fingerprint import Standard, measure
from segtrain.streams.stored import info_of
from segtrain.topology import TOPOLOGIES
from synth.core.checks import UserError, check_read
from synth.core.config import load_config, save_config
from synth.core.files import claim_folder
from synth.core.loop import train
from synth.core.pairs import DataInfo, ImageSet, PairSet
from synth.core.taught import Taught
from synth.spectral import FrequencyPrior

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Everything resolved before anything is read: settings and method."""

    settings: SegmentSettings
    method: Method


def make_plan(config: str | Path | dict | SegmentSettings, overrides: Sequence[str] = (),
              *, method: str | Path | None = None) -> Plan:
    """Returns resolved settings and method; `method` wins over the settings' own. Logs settings that nothing reads.

    Raises:
        UserError: naming the key that is unknown or wrong.
    """
    settings = load_config(SegmentSettings, config, overrides)
    if method is not None:
        settings = settings.model_copy(update={"method": str(method)})
    plan = Plan(settings, load_method(settings.method))
    for text in _unread(plan):
        log.warning(text)
    return plan


def _unread(plan: Plan) -> list[str]:
    model, method = plan.settings.model, plan.method
    texts = [f"model.{key}={getattr(model, key)}: model.name={model.name} does not read it" for key in unread(model)]
    takes_two = method.hetero or hasattr(member(TOPOLOGIES, method.topology, "topology"), "network")
    if plan.settings.second is not None and not takes_two:
        texts.append(f"second: method {method.name} trains no network of another architecture and does not read it")
    return texts


def fit(  # noqa: PLR0913 - the public call of the package: three sets, each by its name
    config: str | Path | dict | SegmentSettings,
    labelled: PairSet | None,
    *,
    synthetic: PairSet | None = None,
    unlabelled: ImageSet | None = None,
    method: str | Path | None = None,
    out: str | Path,
    overrides: Sequence[str] = (),
    held_out: Collection[str] = (),
    stored: str | Path | None = None,
    observers: Sequence[str | Path] = (),
    prior: FrequencyPrior | str | Path | None = None,
) -> Segmenter:
    """Returns the segmenter trained on labelled (+ synthetic, + unlabelled) images; its run is written to `out`.

    Called again with the same arguments it resumes, or returns at once if the run is finished. Works under
    `accelerate launch` with any number of processes; only the main one writes.

    Args:
        config: YAML file, dict or settings. method: a name in configs/methods or a YAML file; None takes the settings'.
        labelled: None = there is no labelled pair; for methods that learn from what is `stored` alone.
        overrides: "key=value" texts. held_out: groups of validation and test cases.
        stored: folder of pseudo-labels of the unlabelled images, masks/ID.png and perhaps confidence/ID.png.
        observers: folders of further annotators' masks/ID.png of the labelled images.
        prior: a frequency prior or its folder, for whatever draws images towards one; if nothing does, it augments the
            labelled images (augment.spectrum.frequency). Where one is needed and None is given, it is fitted on the
            labelled training pairs. It is saved as `out`/prior.

    Raises:
        UserError: if something stems from a held-out group or was drawn by a generator that was fitted on it, if the
            sets do not go together or do not suit the method, or if `out` holds another run.
    """
    check_read({"labelled": labelled, "synthetic": synthetic, "unlabelled": unlabelled})
    plan = make_plan(config, overrides, method=method)
    plan = Plan(with_use(plan.settings, plan.method, prior), plan.method)
    _check_sets(plan, labelled, synthetic=synthetic, unlabelled=unlabelled, held_out=held_out)
    extras = make_extras(plan.method, stored=stored, observers=observers)
    if labelled is None:
        unlabelled = ImageSet(unlabelled.items, info_of(unlabelled, stored), where=unlabelled.where,
                              taught=unlabelled.taught)
    info = unlabelled.info if labelled is None else labelled.info
    streams = Streams.read(plan.settings, labelled, synthetic=synthetic, unlabelled=unlabelled, extras=extras)
    standard = _standard(plan.settings, streams)
    prior = find_prior(plan.settings, plan.method, _teaching(labelled, streams), given=prior, held_out=held_out)
    recipe = SegmentRecipe(plan.settings, plan.method, info=info, has_synthetic=synthetic is not None,
                           standard=standard, prior=prior)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    _check_ranks(plan.settings, state.num_processes, unlabelled)
    out = _claim(Path(out), plan, streams, state, prior)
    if (out / "done.json").exists() and (out / "model" / "model.safetensors").exists():
        return Segmenter.load(out)
    with Ahead(streams.batches, plan.settings.loop.steps) as batches:
        result = train(recipe, batches, out, plan.settings.loop, label=f"segtrain {plan.method.name}")
    taught = Taught.of(streams.shown(), (labelled, synthetic, unlabelled))
    segmenter = Segmenter(recipe.predictor(), _describe(plan.settings, info, recipe), result, taught)
    if state.is_main_process:
        segmenter.save(out / "model")
    state.wait_for_everyone()
    return segmenter


def _standard(settings: SegmentSettings, streams: Streams) -> Standard:
    if settings.normalise == "fingerprint":
        return measure(streams.labelled)
    return "image" if settings.normalise == "image" else None


def _teaching(labelled: PairSet | None, streams: Streams) -> PairSet | None:
    # The labelled pairs without those that are held out for calibration.
    if labelled is None:
        return None
    ids = frozenset(streams.labelled.ids)
    return labelled.select([i for i, name in enumerate(labelled.ids) if name in ids])


def _check_sets(plan: Plan, labelled: PairSet | None, *, synthetic: PairSet | None, unlabelled: ImageSet | None,
                held_out: Collection[str]) -> None:
    for images, kind in ((labelled, "labelled"), (synthetic, "synthetic"), (unlabelled, "unlabelled")):
        check_leak(images, held_out, kind)
    check_kept(synthetic)
    if labelled is None:
        _check_unlabelled_alone(plan, synthetic)
    if plan.method.needs("unlabelled") and unlabelled is None:
        raise UserError(f"method {plan.method.name}", rule="it learns from unlabelled images and got none",
                        repair="pass unlabelled=, or take method=supervised")
    lends = plan.settings.augment.spectrum.needs_unlabelled
    if lends and unlabelled is None:
        raise UserError("augment.spectrum", rule="it takes amplitudes from unlabelled images, and there are none",
                        repair="pass unlabelled=, or write partner: labelled")
    if unlabelled is not None and not plan.method.needs("unlabelled") and not lends:
        raise UserError(f"method {plan.method.name}", rule="it does not use the unlabelled images it was given",
                        repair="leave them out, or take method=fixmatch_ema")


def _check_unlabelled_alone(plan: Plan, synthetic: PairSet | None) -> None:
    if plan.method.needs_labels():
        raise UserError(f"method {plan.method.name}", rule="it learns from labelled pairs and got none",
                        repair="pass labelled pairs (data.labelled), or pseudo-labels of the unlabelled images "
                        "(data.stored) and take method=annotation_efficient")
    if synthetic is not None:
        raise UserError("synthetic pairs", rule="without labelled pairs all labels come from the folder of "
                        "pseudo-labels", repair="leave them out, or pass the labelled pairs they were made from")
    if wanted_prior(plan.settings, plan.method) is not None:
        raise UserError(f"method {plan.method.name}", rule="it wants a frequency prior, which is fitted on labelled "
                        "pairs", repair="leave out what asks for the prior, or pass labelled pairs")
    if plan.settings.normalise == "fingerprint":
        raise UserError("normalise=fingerprint", rule="it measures the labelled images' foreground, and there are none",
                        repair="take normalise=image or normalise=range")


def make_extras(method: Method, *, stored: str | Path | None = None, observers: Sequence[str | Path] = ()) -> Extras:
    """Returns what `method` wants of the streams; `stored` and `observers` are folders.

    Raises:
        UserError: if it wants something that is not given, or does not use what is.
    """
    for what, given, name in (("stored", stored, "pseudo-labels, stored="), ("observers", observers, "observers=")):
        if method.needs(what) != bool(given):
            rule = "it does not use the" if given else "it learns from further masks and got no"
            repair = "leave them out" if given else "pass their folder"
            raise UserError(f"method {method.name}", rule=f"{rule} {name}", repair=repair)
    if method.needs("calibration") and not method.held_out_share:
        raise UserError(f"method {method.name}", rule="it calibrates itself on labelled images that teach nothing, and "
                        "none are held out", repair="write held_out_share: 0.05 into the method file")
    if method.needs("stacks") and method.stack < 2:
        raise UserError(f"method {method.name}", rule="it learns from stacks, and slices are drawn by themselves",
                        repair="write stack: 4 into the method file")
    return Extras(method.inputs(), method.held_out_share, method.stack, stored, tuple(observers),
                  whole=method.needs("whole"))


def _check_ranks(settings: SegmentSettings, n_ranks: int, unlabelled: ImageSet | None) -> None:
    check_ranks(settings.batch_size, n_ranks, "batch_size")
    if unlabelled is not None:
        check_ranks(settings.unlabelled_batch_size, n_ranks, "unlabelled_batch_size")


def _claim(out: Path, plan: Plan, streams: Streams, state: PartialState, prior: FrequencyPrior | None) -> Path:
    # Paths are left out: a run is known by its data's content, wherever that lies.
    read = identify_all(plan.settings).identity(synthetic=streams.synthetic is not None,
                                                unlabelled=streams.unlabelled is not None)
    identity = {**read, "method": plan.method.model_dump(mode="json"), **streams.fingerprints()}
    identity |= {} if prior is None else {"prior": prior.content_hash()}
    error: UserError | None = None
    if state.is_main_process:
        try:
            claim_folder(out, kind="segment", identity=identity)
            save_config(plan.settings, out / "config.yaml")
            save_config(plan.method, out / "method.yaml")
            if prior is not None:
                prior.save_pretrained(out / PRIOR)
        except UserError as found:
            error = found
    state.wait_for_everyone()  # also after an error, which the other processes then meet themselves
    if error is not None:
        raise error
    return out if state.is_main_process else claim_folder(out, kind="segment", identity=identity)


def _describe(settings: SegmentSettings, info: DataInfo, recipe: SegmentRecipe) -> SegmenterConfig:
    models = tuple(identify(model) for model in recipe.predictor_models())
    geometry = settings.augment.geometry
    axes = [a for a, on in ((2, geometry.flip_vertical), (3, geometry.flip_horizontal)) if on]
    flips = [(a,) for a in axes] + ([tuple(axes)] if len(axes) == 2 else [])
    return SegmenterConfig(model=models[0], others=models[1:], info=info, size=settings.side,
                           tiles=settings.patch is not None, fingerprint=recipe.standard,
                           flips=tuple(flips) if settings.flip_averaging else ())
