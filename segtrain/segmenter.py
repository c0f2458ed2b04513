"""A fitted segmenter: probabilities for images, saved as JSON + safetensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import model_validator
from safetensors.torch import load_file, save_file
from torch import nn

from segtrain.models import Ensemble, at_depth, build_model
from segtrain.settings import ModelSettings
from segtrain.streams.fingerprint import Standard
from segtrain.streams.patches import predict_tiles
from synth.core.checks import UserError
from synth.core.config import Settings, load_config
from synth.core.device import compute_device
from synth.core.files import claim_folder, hash_json, replace_file, write_json
from synth.core.loop import TrainResult
from synth.core.pairs import DataInfo, ImageSet, Pair
from synth.core.space import pixels_to_unit, resize_image, to_channels, top_class
from synth.core.taught import Taught
from synth.spectral import Alignment, AlignSettings, FrequencyPrior, align_images, fit_alignment, has_prior

CHUNK = 32


class SegmenterConfig(Settings):
    """What a saved segmenter is, beside its weights.

    Attributes:
        model: its network. others: those beside it, if it is the mean of several.
        size: side of the images its network sees, px. flips: axes (2 = rows, 3 = columns) to average over.
        tiles: whether it sees overlapping tiles of images at their own size, instead of images brought to `size`.
        fingerprint: by what its network standardises unit images: "image" = by each one's own grey values.
    """

    model: ModelSettings
    others: tuple[ModelSettings, ...] = ()
    info: DataInfo
    size: int
    flips: tuple[tuple[int, ...], ...] = ()
    tiles: bool = False
    fingerprint: Standard = None
    version: int = 2

    @model_validator(mode="before")
    @classmethod
    def _normalised_by_groups(cls, given: object) -> object:
        # Version 1 knew one norm, and did not write it down.
        if not isinstance(given, dict) or given.get("version", 2) != 1:
            return given
        first, *others = ({"norm": "group", **model} for model in (given["model"], *given.get("others", ())))
        return {**given, "model": first, "others": others, "version": 2}

    def build(self) -> nn.Module:
        """Returns its network, or the ensemble of several, untrained."""
        # Weights to start from would be overwritten at once: whoever loads a segmenter does not need them.
        models = [m.model_copy(update={"weights": ""}) for m in (self.model, *self.others)]
        nets = [build_model(m.name, self.info.channels, self.info.n_classes, m, standard=self.fingerprint).main()
                for m in models]
        return Ensemble(nets) if self.others else nets[0]


class Segmenter:
    """A network with what it needs to be used: the meaning of its classes and pixels, and its working size.

    Attributes:
        result: what its training did, taught: what it was trained with, where known.
    """

    def __init__(self, net: nn.Module, config: SegmenterConfig, result: TrainResult | None = None,
                 taught: Taught | None = None) -> None:
        self.net = net.eval().requires_grad_(False)
        self.config, self.result, self.taught = config, result, taught
        self._chosen = at_depth(self.net, [m.depth for m in (config.model, *config.others)]).eval()

    @property
    def info(self) -> DataInfo:
        """What classes and pixel values mean."""
        return self.config.info

    @property
    def size(self) -> int:
        """Side of the images the network sees, px."""
        return self.config.size

    def at_depth(self, depth: int) -> Segmenter:
        """Returns the same segmenter predicting with its nested decoder of `depth`; 0 = the deepest.

        Raises:
            UserError: if its network has no trained decoder of that depth.
        """
        models = [m.model_copy(update={"depth": depth}) for m in (self.config.model, *self.config.others)]
        config = self.config.model_copy(update={"model": models[0], "others": tuple(models[1:])})
        return Segmenter(self.net, config, self.result, self.taught)

    @torch.no_grad()
    def predict(self, images: torch.Tensor, *, align: Alignment | None = None) -> torch.Tensor:
        """Returns class probabilities (B, K, H, W) of unit images (B, C, H, W), on the device of `images`.

        Images of another size than `size` are resized there, and their probabilities back, bilinear; one of tiles
        looks at them as they are, tile by tile. `align` is a filter that they go through first, at the size they come
        in (`fit_alignment`).

        Raises:
            UserError: if the number of channels is not the trained one, or the filter is for other images.
        """
        if images.ndim != 4 or images.shape[1] != self.info.channels:
            raise UserError(f"images {tuple(images.shape)}", rule=f"this segmenter reads unit images "
                            f"(B, {self.info.channels}, H, W)", repair="convert them to grey or RGB")
        device = next(self.net.parameters()).device
        images = images if align is None else align_images(images, align)
        if self.config.tiles:
            found = predict_tiles(self._probabilities, images.to(device), side=self.size, chunk=CHUNK)
            return found.to(images.device)
        parts = [self._probabilities(part.to(device)) for part in images.split(CHUNK)]
        return torch.cat(parts).to(images.device)

    def _probabilities(self, images: torch.Tensor) -> torch.Tensor:
        native, size = tuple(images.shape[-2:]), (self.size, self.size)
        if native != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        net = self._chosen
        views = [net(images)] + [net(images.flip(axes)).flip(axes) for axes in self.config.flips]
        prob = torch.stack([view.float().softmax(dim=1) for view in views]).mean(dim=0)
        return prob if native == size else F.interpolate(prob, native, mode="bilinear", align_corners=False)

    def predict_labels(self, images: torch.Tensor, *, align: Alignment | None = None) -> torch.Tensor:
        """Returns the most probable class (B, H, W), int64, of unit images (B, C, H, W), aligned as in `predict`."""
        return top_class(self.predict(images, align=align))

    def fit_alignment(self, images: ImageSet, prior: FrequencyPrior | str | Path, *,
                      strength: float = 1.0) -> Alignment:
        """Returns the filter that brings a new centre's `images`, read one by one, to the mean spectrum `prior`.

        `prior` is that of the training images, of kind "whole" at this segmenter's size, or a folder
        (`training_spectrum`). What this assumes is said in `synth.spectral.fit_alignment`; the new images' masks, if
        any, are not looked at.

        Raises:
            UserError: if the prior is of another kind or size, or the images have other channels.
        """
        training = prior if isinstance(prior, FrequencyPrior) else self.training_spectrum(prior)
        size, settings = self._spectral_size, load_config(AlignSettings, {"strength": strength})
        if training.settings.kind != "whole" or training.settings.size != size:
            raise UserError(f"a prior of kind {training.settings.kind} at size {training.settings.size}",
                            rule="this segmenter's images are aligned by the spectra of whole images of size "
                            f"{size}", repair=f"FrequencyPrior.fit(training images, kind='whole', size={size})")
        like_training = ImageSet(images.items, self.info, where=images.where)  # grey values mean what they did there
        own = FrequencyPrior.fit(like_training, **training.settings.model_dump())
        return fit_alignment(training, own, settings)

    @property
    def _spectral_size(self) -> int | None:
        """Side at which spectra are measured, px; None = native."""
        return None if self.config.tiles else self.size

    def training_spectrum(self, folder: str | Path) -> FrequencyPrior:
        """Returns the prior in `folder`, or, where it holds images and no prior, one of kind "whole" fitted on them.

        Raises:
            UserError: if it holds neither.
        """
        if has_prior(folder):
            return FrequencyPrior.from_pretrained(folder)
        from synth.formats import load_images

        images = load_images(folder, channels=self.info.channels, like=self.info)
        return FrequencyPrior.fit(images, kind="whole", size=self._spectral_size)

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits that identify the weights and their configuration."""
        digest = hashlib.sha256(hash_json(self.config.model_dump(mode="json")).encode())
        for name, value in sorted(self.net.state_dict().items()):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes config.json, taught.json (where known) and model.safetensors, each whole or not at all."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.net.state_dict().items()}
        write_json(Path(folder) / "config.json", self.config.model_dump(mode="json"))
        if self.taught is not None:
            self.taught.save(Path(folder))
        replace_file(Path(folder) / "model.safetensors", lambda path: save_file(state, path))

    @classmethod
    def load(cls, folder: str | Path) -> Segmenter:
        """Returns the segmenter of a run's folder, or of the `model` folder in it; nothing is unpickled.

        Raises:
            UserError: if there is none.
        """
        run = Path(folder)
        home = run / "model" if (run / "model").is_dir() else run
        if not (home / "config.json").is_file() or not (home / "model.safetensors").is_file():
            raise UserError(str(folder), rule="no fitted segmenter is there",
                            repair="give the out folder of a finished segtrain fit")
        config = load_config(SegmenterConfig, json.loads((home / "config.json").read_text(encoding="utf-8")))
        net = config.build()
        net.load_state_dict(load_file(home / "model.safetensors"))
        device = compute_device()
        done = home.parent / "done.json"
        result = TrainResult(**json.loads(done.read_text(encoding="utf-8"))) if done.is_file() else None
        return cls(net.to(device), config, result, Taught.load(home))


def load_segmenter(folder: str | Path) -> Segmenter:
    """Returns `Segmenter.load(folder)`."""
    return Segmenter.load(folder)


def predict(model_folder: str | Path, images: ImageSet | str | Path, *, out: str | Path,
            align: FrequencyPrior | str | Path | None = None, strength: float = 1.0) -> list[Path]:
    """Returns the paths of single-channel PNG masks `out`/ID.png, one per image, at the image's own size.

    Probabilities are resized, bilinear, before the most probable class is taken. Each file is whole or absent.

    Args:
        align: prior of the training images, of kind "whole", or its folder, or a folder of those images: all images
            are first brought to that mean spectrum by one filter, fitted on these very images without labels
            (`Segmenter.fit_alignment`). That assumes that they show what the training images showed, taken otherwise.
            None = as they are.
        strength: how far, in [0, 1].

    Raises:
        UserError: if the model, the images or the prior cannot be read or do not go together, or `out` holds something
            else.
    """
    segmenter = Segmenter.load(model_folder)
    if not isinstance(images, ImageSet):
        from synth.formats import load_images

        images = load_images(images, channels=segmenter.info.channels, like=segmenter.info)
    identity = {"model": segmenter.content_hash(), "images": list(images.ids)}
    alignment = None
    if align is not None:
        align = align if isinstance(align, FrequencyPrior) else segmenter.training_spectrum(align)
        alignment = segmenter.fit_alignment(images, align, strength=strength)
        identity |= {"align": align.content_hash(), "strength": strength}
    out = claim_folder(Path(out), kind="predict", identity=identity)
    return [_write_mask(segmenter, pair, out, alignment) for pair in images]


def _write_mask(segmenter: Segmenter, pair: Pair, out: Path, alignment: Alignment | None) -> Path:
    from synth.formats import encode_png

    path = out / f"{pair.id}.png"
    if not path.resolve().is_relative_to(out.resolve()):
        raise UserError(pair.id, rule="this id leads out of the output folder", repair="rename the image")
    labels = predict_pair(segmenter, pair, align=alignment)
    replace_file(path, lambda p: p.write_bytes(encode_png(labels.numpy())))
    return path


def predict_pair(segmenter: Segmenter, pair: Pair, *, align: Alignment | None = None) -> torch.Tensor:
    """Returns the labels (H, W), uint8, of one image at its own size, aligned as in `Segmenter.predict`."""
    pixels = to_channels(pair.image)
    native = pixels.shape[-2:]
    seen = pixels if segmenter.config.tiles else resize_image(pixels, segmenter.size)
    prob = segmenter.predict(pixels_to_unit(seen[None], segmenter.info.intensity_range), align=align)
    if prob.shape[-2:] != native:
        prob = F.interpolate(prob, native, mode="bilinear", align_corners=False)
    return top_class(prob)[0].to(torch.uint8)
