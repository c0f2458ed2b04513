"""An encoder's weights from a local safetensors file: read, checked, never downloaded and never unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from segtrain.models.gms import describe_autoencoder
from segtrain.settings import ModelSettings, SegmentSettings
from synth.core.checks import UserError
from synth.core.files import replace_file, sha256

SHIPPED = ("", "imagenet")
"""Values of `model.weights` that are no path."""

MARK = "sha256:"


def identify(model: ModelSettings) -> ModelSettings:
    """Returns the settings with paths of weights replaced by the hash of what lies there: a run is known by that.

    Raises:
        UserError: if there is no such file or folder.
    """
    if model.name == "gms":
        model = model.model_copy(update={"autoencoder": describe_autoencoder(model.autoencoder)})
    if model.weights in SHIPPED or model.weights.startswith(MARK):
        return model
    return model.model_copy(update={"weights": f"{MARK}{sha256(_file(model.weights).read_bytes())[:16]}"})


def identify_all(settings: SegmentSettings) -> SegmentSettings:
    """Returns a run's settings, both networks as `identify` returns them."""
    return settings.model_copy(update={"model": identify(settings.model),
                                       "second": settings.second and identify(settings.second)})


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"model.weights {path}", rule="no such file; weights are '', imagenet or a safetensors file",
                        repair="give the path of a file on this machine; nothing is downloaded")
    return Path(path)


def save_encoder(net: nn.Module, path: str | Path) -> None:
    """Writes the encoder of a segmentation network as the file that `model.weights` takes."""
    state = {name: value.detach().cpu().contiguous() for name, value in net.encoder.state_dict().items()}
    replace_file(Path(path), lambda p: save_file(state, p))


def load_encoder(net: nn.Module, path: str) -> None:
    """Puts the tensors of a file into the encoder of a segmentation network.

    Raises:
        UserError: if the file cannot be read, or a tensor is missing, unknown or of another shape, naming the first.
    """
    try:
        given = load_file(_file(path))
    except SafetensorError as error:
        raise UserError(f"model.weights {path}", rule=f"not a safetensors file ({error})",
                        repair="write it with safetensors.torch.save_file") from None
    own = net.encoder.state_dict()
    for name in (*own, *given):
        if said := _differs(own.get(name), given.get(name)):
            raise UserError(f"model.weights {path}: {name}", rule=said, repair="give the weights of this very encoder: "
                            "the same model.name, model.encoder, model.channels and channels of the images")
    net.encoder.load_state_dict(given)


def _differs(own: torch.Tensor | None, given: torch.Tensor | None) -> str:
    if own is None:
        return "the network's encoder has no tensor of this name"
    if given is None:
        return f"the file has no tensor of this name; the encoder's is {tuple(own.shape)}"
    return "" if own.shape == given.shape else f"it is {tuple(given.shape)} there and {tuple(own.shape)} in the encoder"
