"""Networks behind one call: unit images (B, C, H, W) in, logits (B, K, H, W) out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from segtrain.models.nested import unetpp
from segtrain.models.probabilistic import probabilistic
from segtrain.models.queries import queries
from segtrain.models.segnet import Ensemble, Features, Part, Seen, SegNet, Widths, at_depth
from segtrain.models.tiny import ChannelNorm, lite, plain, tiny
from segtrain.models.weights import SHIPPED, load_encoder
from segtrain.settings import ModelSettings
from segtrain.streams.fingerprint import Standard, door
from synth.core.checks import UserError
from synth.core.rng import derive_seed

__all__ = ["MODELS", "Ensemble", "Features", "Part", "SegNet", "Seen", "Widths", "at_depth", "build_model",
           "check_size", "partner_of", "unread"]


def _at_least_two(settings: ModelSettings, most: int | None = None) -> tuple[int, ...]:
    n = len(settings.channels)
    if n < 2 or (most and n > most):
        limit = f"two to {most} levels" if most else "at least two levels"
        raise UserError(f"model.channels {list(settings.channels)}", rule=f"{settings.name} has {limit}",
                        repair="give as many widths, from fine to coarse")
    return settings.channels


def _tiny(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return tiny(in_channels, n_classes, _at_least_two(settings), norm=settings.norm)


def _plain(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return plain(in_channels, n_classes, _at_least_two(settings), norm=settings.norm)


def _lite(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return lite(in_channels, n_classes, _at_least_two(settings, most=4), norm=settings.norm,
                pretrained=settings.weights == "imagenet", given=bool(settings.weights))


def _unet(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    from segtrain.models.smp import unet  # slow to import, and the small networks do without

    return unet(in_channels, n_classes, settings)


def _unetpp(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return unetpp(in_channels, n_classes, _at_least_two(settings), norm=settings.norm)


def _queries(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return queries(in_channels, n_classes, _at_least_two(settings), settings.n_queries, norm=settings.norm)


def _segformer(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    from segtrain.models.transformer import segformer

    _at_least_two(settings)
    return segformer(in_channels, n_classes, settings)


def _deeplabv3plus(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    from segtrain.models.deeplab import deeplabv3plus

    return deeplabv3plus(in_channels, n_classes, settings)


def _by_groups(settings: ModelSettings) -> ModelSettings:
    # A prior reads the mean of each channel over the image, which instance norm takes out.
    return settings.model_copy(update={"norm": "group"})


def _prob_tiny(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return probabilistic(_tiny(in_channels, n_classes, _by_groups(settings)), n_classes, latent=settings.latent,
                         n_samples=settings.n_samples)


def _prob_lite(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    return probabilistic(_lite(in_channels, n_classes, _by_groups(settings)), n_classes, latent=settings.latent,
                         n_samples=settings.n_samples)


def _gms(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    from segtrain.models.gms import gms  # it brings diffusers in

    return gms(in_channels, n_classes, settings)


MODELS: dict[str, Callable[[int, int, ModelSettings], SegNet]] = {
    "tiny": _tiny, "plain": _plain, "lite": _lite, "unet": _unet, "unetpp": _unetpp, "segformer": _segformer,
    "deeplabv3plus": _deeplabv3plus, "queries": _queries, "prob_tiny": _prob_tiny, "prob_lite": _prob_lite,
    "gms": _gms,
}
"""Builders by name: (channels of the images, classes, settings) -> network."""


_SMALL_UNET = ModelSettings(name="unet", encoder="timm-mobilenetv3_small_100", channels=(8, 16, 16, 32, 64))
_PARTNERS: dict[str, ModelSettings] = {
    "tiny": _SMALL_UNET, "plain": _SMALL_UNET, "unetpp": _SMALL_UNET, "queries": _SMALL_UNET,
    "lite": ModelSettings(name="tiny", channels=(24, 48, 96, 128)),
    "segformer": ModelSettings(name="tiny", channels=(24, 48, 96, 128)),
    "unet": ModelSettings(name="tiny", channels=(32, 64, 128, 256)),
    "prob_tiny": _SMALL_UNET, "prob_lite": ModelSettings(name="tiny", channels=(24, 48, 96, 128)),
    "gms": ModelSettings(name="tiny", channels=(24, 48, 96, 128)),
    "deeplabv3plus": ModelSettings(name="tiny", channels=(32, 64, 128, 256)),
}


_READ_BY = {"encoder": ("unet", "deeplabv3plus"), "n_queries": ("queries",), "latent": ("prob_tiny", "prob_lite"),
            "n_samples": ("prob_tiny", "prob_lite"), "autoencoder": ("gms",),
            "norm": ("tiny", "plain", "lite", "unetpp", "queries")}


def unread(model: ModelSettings) -> list[str]:
    """Returns which of `model`'s settings were changed although its network reads none of them."""
    return [key for key, readers in _READ_BY.items() if model.name not in readers
            and getattr(model, key) != ModelSettings.model_fields[key].default]


def partner_of(model: ModelSettings) -> ModelSettings:
    """Returns a network of another architecture: the second of two that shall differ, or the referee of a judge.

    That of the tiny network is as quick on a CPU at 64 px as itself. Labels teach both as deeply.
    """
    return _PARTNERS[model.name].model_copy(update={"deep_supervision": model.deep_supervision})


def build_model(name: str, in_channels: int, n_classes: int, settings: ModelSettings, *, seed: int = 0,
                standard: Standard = None) -> SegNet:
    """Returns the network `name` with fresh weights that depend on `seed` alone; its `stride` divides every size.

    It standardises the unit images it is given by `standard`.

    Raises:
        UserError: if the name, the encoder or the number of widths is unknown to us, weights are not to be had, or
            images are to be standardised for a network whose frozen half knows them as they are.
    """
    if name not in MODELS:
        raise UserError(f"model.name {name!r}", rule="no such network", repair=f"take one of {', '.join(MODELS)}")
    if settings.weights == "imagenet" and name not in ("lite", "prob_lite"):
        raise UserError(f"model.weights {settings.weights}", rule=f"there are none for {name}",
                        repair="take model.name=lite, give a safetensors file, or leave weights empty")
    if name == "gms" and standard is not None:
        raise UserError("model.name gms", rule="its autoencoder was trained on images as they are",
                        repair="take normalise=range")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        net = MODELS[name](in_channels, n_classes, settings)
        if settings.deep_supervision:  # drawn last, so that all else starts as it would without
            net.supervise_deeply(n_classes)
    net.at_depth(settings.depth)
    if settings.weights not in SHIPPED:
        load_encoder(net, settings.weights)
    net.door = door(standard)
    return net


def check_size(net: nn.Module, size: int) -> None:
    """Returns nothing; raises if the network cannot halve `size` as often as it has to.

    Raises:
        UserError: naming the two nearest sizes that it can; or if one pixel would be left and was normalised alone.
    """
    if size % net.stride:
        low = size // net.stride * net.stride
        raise UserError(f"size {size}", rule=f"this network needs a multiple of {net.stride} px",
                        repair=f"take {low or net.stride} or {low + net.stride}")
    if size == net.stride and any(isinstance(module, ChannelNorm) for module in net.modules()):
        raise UserError(f"size {size}", rule="one pixel is left of it at the network's coarsest level, of which a norm "
                        "over each channel leaves the sign at most", repair="take a larger size, fewer "
                        "model.channels, or model.norm=group")
