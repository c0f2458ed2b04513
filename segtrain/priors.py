"""The frequency prior of a run: what settings and method want of one; given, or fitted on labelled training pairs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from segtrain.method import Method, member
from segtrain.settings import SegmentSettings
from segtrain.transforms.spectral import FrequencySettings
from segtrain.views import PERTURBATIONS
from synth.core.checks import UserError
from synth.core.pairs import DataInfo, PairSet
from synth.core.rng import one_thread
from synth.spectral import FrequencyPrior, PriorSettings

FOLDER = "prior"
"""Where the prior of a run lies in its folder."""


def wanted_prior(settings: SegmentSettings, method: Method) -> PriorSettings | None:
    """Returns how the prior that a run needs is measured, None if it needs none.

    Raises:
        UserError: if two operations want priors that are measured differently.
    """
    asked = [step for step in method.perturbations() if "prior" in getattr(PERTURBATIONS[step.name], "needs", ())]
    users = [member(PERTURBATIONS, step, "perturb") for step in asked]
    users += [m for m in settings.augment.spectrum.members().values() if "prior" in getattr(m, "needs", ())]
    wanted = list(dict.fromkeys(user.measured(size=settings.size, patch=settings.patch) for user in users))
    if len(wanted) > 1:
        raise UserError(f"priors of {wanted[0].kind} ({wanted[0].channels}) and {wanted[1].kind} "
                        f"({wanted[1].channels})", rule="a run has one frequency prior", repair="give kind, channels "
                        "and edge_px alike wherever the method and augment.spectrum use it")
    return wanted[0] if wanted else None


def with_use(settings: SegmentSettings, method: Method, prior: FrequencyPrior | str | Path | None) -> SegmentSettings:
    """Returns settings that use the `prior` that is given: as they are if they or the method already do.

    Otherwise labelled and synthetic images are drawn towards it, augment.spectrum.frequency with its defaults.
    """
    if prior is None or wanted_prior(settings, method) is not None:
        return settings
    spectrum = settings.augment.spectrum.model_copy(update={"frequency": FrequencySettings()})
    return settings.model_copy(update={"augment": settings.augment.model_copy(update={"spectrum": spectrum})})


def find_prior(settings: SegmentSettings, method: Method, labelled: PairSet, *,
               given: FrequencyPrior | str | Path | None = None,
               held_out: Collection[str] = ()) -> FrequencyPrior | None:
    """Returns the prior of a run: the given one, checked, or one fitted on `labelled`, the pairs that teach; or None.

    Raises:
        UserError: if the given one saw a held-out group or does not fit the run, or none can be fitted.
    """
    wanted = wanted_prior(settings, method)
    if wanted is None:
        return None
    if given is None:
        with one_thread():  # the sums, and so the run's identity, must not depend on the number of threads
            return FrequencyPrior.fit(labelled, **wanted.model_dump())
    prior = given if isinstance(given, FrequencyPrior) else FrequencyPrior.from_pretrained(given)
    check_prior(prior, settings, labelled.info, held_out)
    return prior


def check_prior(prior: FrequencyPrior, settings: SegmentSettings, info: DataInfo, held_out: Collection[str]) -> None:
    """Returns nothing; raises if a run on images of `info` cannot use `prior`, or must not.

    Raises:
        UserError: naming what does not fit.
    """
    if leaked := sorted(set(prior.seen.groups) & set(held_out)):
        raise UserError(f"prior: group {leaked[0]}", rule="the prior was fitted on images of a group that is held out "
                        "for validation or test", repair="fit it on the training images alone, or give none: the run "
                        "then fits its own on the labelled pairs")
    size = prior.settings.size
    if size != (None if settings.patch else settings.size):
        seen = f"squares of {settings.patch} px of native images" if settings.patch else f"images of {settings.size} px"
        own = "native images" if size is None else f"{size} px"
        raise UserError(f"prior of {own}", rule=f"the network sees {seen}, where frequencies mean something else",
                        repair=f"fit it with size={None if settings.patch else settings.size}")
    if prior.n_channels not in (1, info.channels):
        raise UserError(f"prior of {prior.n_channels} channels", rule=f"the images have {info.channels}",
                        repair="fit it on such images, or with channels=grey")
