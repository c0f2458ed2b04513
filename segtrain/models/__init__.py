"""Networks behind one call: unit images (B, C, H, W) in, logits (B, K, H, W) out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from segtrain.models.segnet import Ensemble, Features, Part, Seen, SegNet, Widths
from segtrain.models.tiny import lite, tiny
from segtrain.settings import ModelSettings
from synth.core.checks import UserError
from synth.core.rng import derive_seed

__all__ = ["MODELS", "Ensemble", "Features", "Part", "SegNet", "Seen", "Widths", "build_model", "check_size",
           "partner_of"]


def _at_least_two(settings: ModelSettings, most: int | None = None) -> tuple[int, ...]:
    n = len(settings.channels)
    if n < 2 or (most and n > most):
        limit = f"two to {most} levels" if most else "at least two levels"
        raise UserError(f"model.channels {list(settings.channels)}", rule=f"{settings.name} has {limit}",
                        repair="give as many widths, from fine to coarse")
    return settings.channels


def _tiny(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return tiny(in_channels, n_classes, _at_least_two(settings))


def _lite(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return lite(in_channels, n_classes, _at_least_two(settings, most=4), pretrained=settings.weights == "imagenet")


def _unet(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    from segtrain.models.smp import unet  # slow to import, and the small networks do without

    return unet(in_channels, n_classes, settings)


MODELS: dict[str, Callable[[int, int, ModelSettings], SegNet]] = {"tiny": _tiny, "lite": _lite, "unet": _unet}
"""Builders by name: (channels of the images, classes, settings) -> network."""


_PARTNERS: dict[str, ModelSettings] = {
    "tiny": ModelSettings(name="unet", encoder="timm-mobilenetv3_small_100", channels=(8, 16, 16, 32, 64)),
    "lite": ModelSettings(name="tiny", channels=(24, 48, 96, 128)),
    "unet": ModelSettings(name="tiny", channels=(32, 64, 128, 256)),
}


def partner_of(model: ModelSettings) -> ModelSettings:
    """Returns a network of another architecture: the second of two that shall differ, or the referee of a judge.

    That of the tiny network is as quick on a CPU at 64 px as itself.
    """
    return _PARTNERS[model.name]


def build_model(name: str, in_channels: int, n_classes: int, settings: ModelSettings, *, seed: int = 0) -> SegNet:
    """Returns the network `name` with fresh weights that depend on `seed` alone; its `stride` divides every size.

    Raises:
        UserError: if the name, the encoder or the number of widths is unknown to us, or weights are not to be had.
    """
    if name not in MODELS:
        raise UserError(f"model.name {name!r}", rule="no such network", repair=f"take one of {', '.join(MODELS)}")
    if settings.weights and name != "lite":
        raise UserError(f"model.weights {settings.weights}", rule=f"there are none for {name}",
                        repair="take model.name=lite, or leave weights empty")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return MODELS[name](in_channels, n_classes, settings)


def check_size(net: nn.Module, size: int) -> None:
    """Returns nothing; raises if the network cannot halve `size` as often as it has to.

    Raises:
        UserError: naming the two nearest sizes that it can.
    """
    if size % net.stride:
        low = size // net.stride * net.stride
        raise UserError(f"size {size}", rule=f"this network needs a multiple of {net.stride} px",
                        repair=f"take {low or net.stride} or {low + net.stride}")
