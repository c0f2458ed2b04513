"""LabelPipeline: labels of images from a fit that saw no label, how sure each pixel is, and what the image weighs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from synth.core.checks import UserError
from synth.core.device import compute_device
from synth.core.files import claim_folder, hash_json, replace_file, write_text
from synth.core.pairs import ImageSet
from synth.core.space import labels_to_onehot, pixels_to_unit, resize_image, to_channels, top_class
from synth.formats.imagefolder import check_file_name
from synth.gan.unpaired.batches import frames_of
from synth.gan.unpaired.networks import Labeller, MaskVae
from synth.pipelines import check_depth, own_config, quiet, weights_hash

FOLDER = "labels"
"""Of the labelling half, inside the generator's folder."""


@dataclass(frozen=True)
class Said:
    """What is said of images.

    Attributes:
        probabilities: of the classes, (B, K, S, S). energy: of the labels, (B,). weight: of the images, (B,), up to 1.
    """

    probabilities: torch.Tensor
    energy: torch.Tensor
    weight: torch.Tensor


class LabelPipeline(DiffusionPipeline):
    """Labels images by a network that learnt from images and masks that do not belong together.

    Args:
        labeller: from images to logits. judge: of masks; its code calibrates the labeller, its energy weighs an image.
        energy: mean energy of the masks it learnt from. tau: how fast the weight falls above it.
        calibrate: whether the labeller takes the judge's feedback. keep_in: "frame" = an image's frame is background,
            "none" = it may be anything. unit_low, unit_high: as of a generator.
        bit_depth: of the images it was fitted on, None where an older folder does not say.
    """

    model_cpu_offload_seq = "labeller->judge"

    # Defaults because diffusers takes arguments without one for networks; a fit gives them all.
    def __init__(self, labeller: Labeller, judge: MaskVae, *, energy: float = 1.0, tau: float = 1.0,  # noqa: PLR0913
                 calibrate: bool = True, keep_in: str = "frame", unit_low: float = 0.0,
                 unit_high: float = 255.0, bit_depth: int | None = None) -> None:
        super().__init__()
        self.register_modules(labeller=labeller, judge=judge)
        self.register_to_config(energy=energy, tau=tau, calibrate=calibrate, keep_in=keep_in, unit_low=unit_low,
                                unit_high=unit_high, bit_depth=bit_depth)

    @property
    def size(self) -> int:
        """Side of the images it looks at, px."""
        return int(self.labeller.config.sample_size)

    @property
    def channels(self) -> int:
        """Channels of the images it looks at."""
        return int(self.labeller.config.channels)

    @property
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that are -1 and 1 in unit space."""
        return float(self.config.unit_low), float(self.config.unit_high)

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over the weights and configuration."""
        parts: dict[str, nn.Module] = {"labeller": self.labeller, "judge": self.judge}
        apart = {*parts, "bit_depth"}  # it changes no label, and older folders have none
        return hash_json({"config": {k: v for k, v in own_config(self).items() if k not in apart},
                          **{f"{k}_config": own_config(v) for k, v in parts.items()},
                          **{k: weights_hash(v) for k, v in parts.items()}})

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, frames: torch.Tensor) -> Said:
        """Returns what is said of unit images (B, C, S, S) with frames (B, 1, S, S), each as if alone; on the CPU.

        Raises:
            UserError: if they have another size or number of channels.
        """
        if tuple(images.shape[1:]) != (self.channels, self.size, self.size):
            raise UserError(f"images {tuple(images.shape)}", rule=f"this labeller takes images (B, {self.channels}, "
                            f"{self.size}, {self.size})", repair="resize them, and convert grey and RGB explicitly")
        judge = self.judge if self.config.calibrate else None
        prob = torch.cat([self.labeller(image.to(self.device), frame.to(self.device), judge).softmax(1)
                          for image, frame in zip(images.split(1), frames.split(1), strict=True)])
        energy = self.energy_of(top_class(prob))
        return Said(prob.cpu(), energy, self.weigh(energy))

    def look(self, pixels: np.ndarray) -> Said:
        """Returns what is said of pixels (B, C, S, S), whose frames are looked for as in the fit."""
        frames = frames_of(pixels, keep_in=self.config.keep_in)
        return self(pixels_to_unit(pixels, self.intensity_range), torch.from_numpy(frames)[:, None].float())

    @torch.no_grad()
    def energy_of(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the energy (B,) of labels (B, S, S), high = unlike any mask it learnt from."""
        onehot = labels_to_onehot(labels.to(self.device), int(self.labeller.config.n_classes))
        return torch.cat([self.judge(one) for one in onehot.split(1)]).cpu()

    def weigh(self, energy: torch.Tensor) -> torch.Tensor:
        """Returns the weights exp(-(E - E0) / (tau E0)), (B,), of energies (B,); 1 up to E0, the masks' mean energy."""
        low = float(self.config.energy)
        return (-(energy - low).clamp(min=0) / (self.config.tau * low)).exp()


def load_labeller(folder: str | Path) -> LabelPipeline:
    """Returns the labelling half of the generator in `folder`, on the GPU if there is one; only local files.

    Raises:
        UserError: if the folder holds none.
    """
    root = Path(folder) / FOLDER
    if not (root / "model_index.json").is_file() or not (Path(folder) / "model_index.json").is_file():
        raise UserError(str(folder), rule="no finished generator of kind unpaired here, and no other kind labels",
                        repair="run synth fit configs/unpaired.yaml until it ends; it resumes")
    with quiet():
        return LabelPipeline.from_pretrained(root, local_files_only=True).to(compute_device())


def _png(values: np.ndarray, path: Path) -> None:
    replace_file(path, lambda p: Image.fromarray(values).save(p, format="PNG"))


def label(labeller: LabelPipeline | str | Path, images: ImageSet, *, out: str | Path) -> Path:
    """Returns `out`, in which masks/ID.png and confidence/ID.png lie for every image, at the image's own size.

    The form that `segtrain fit ... data.stored=DIR` reads: class indices, and 0 to 255 for 0 to 1. The confidence of a
    pixel is its largest probability times the image's weight, so the mean over an image is the weight that
    `annotation_efficient` gives it. labels.jsonl lists each image's energy and weight.

    Raises:
        UserError: if the images have other channels or another bit depth, an id cannot be a file name, or `out` holds
            something else.
    """
    pipeline = labeller if isinstance(labeller, LabelPipeline) else load_labeller(labeller)
    if images.info.channels != pipeline.channels:
        raise UserError(images.where, rule=f"its images have {images.info.channels} channel(s), the labeller takes "
                        f"{pipeline.channels}", repair=f"convert them with data.channels={pipeline.channels}")
    check_depth(pipeline, images.info, images.where)
    for name in images.ids:
        check_file_name(name)
    out = claim_folder(Path(out), kind="label", identity={"labeller": pipeline.content_hash(), "images": images.ids})
    lines = []
    for pair in images:
        small = resize_image(to_channels(pair.image), pipeline.size)
        said = pipeline.look(small[None])
        prob = F.interpolate(said.probabilities, pair.image.shape[:2], mode="bilinear", align_corners=False)[0]
        sure, labels = prob.max(0)
        weight = float(said.weight)
        _png(labels.numpy().astype(np.uint8), out / "masks" / f"{pair.id}.png")
        _png((sure * weight * 255).round().numpy().astype(np.uint8), out / "confidence" / f"{pair.id}.png")
        lines.append(json.dumps({"id": pair.id, "energy": round(float(said.energy), 6), "weight": round(weight, 6)}))
    write_text(out / "labels.jsonl", "\n".join(lines) + "\n")
    return out
