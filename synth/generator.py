"""The one abstract class: a fitted model that turns (image, mask, seeds) into new images for that mask."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from synth.core.checks import IGNORE, UserError
from synth.core.space import labels_to_keep
from synth.core.taught import Taught

KEEPS = {"surroundings": "foreground", "object": "surroundings", "layout": "nothing", "appearance": "nothing"}
"""What of its source a pair shows untouched, bit for bit, by what is painted (the mode). In mode "appearance" no pixel
is, but all of its content: see `shows_source`."""


CURATED = "curated"
"""Key of a pair's settings that says: labels became 255 after it was drawn, so what is ignored may be painted."""


def kept_pixels(labels: torch.Tensor, *, mode: str, ring_px: int, curated: bool = False) -> torch.Tensor:
    """Returns which pixels of labels (B, H, W) a drawn pair takes from its source untouched, (B, H, W) bool.

    Of a curated pair those that are certainly so: a part of what was kept when it was drawn.

    Args:
        mode: what is painted, see `KEEPS`. curated: whether ignored pixels may be objects whose label was taken away.
        ring_px: in mode "object", how far around the foreground the surroundings are painted too.
    """
    foreground = labels_to_keep(labels)
    if KEEPS[mode] == "foreground":
        return foreground
    if KEEPS[mode] == "nothing":
        return torch.zeros_like(foreground)
    if curated:
        foreground = foreground | (labels == IGNORE)
    return ~(F.max_pool2d(foreground[:, None].float(), 2 * ring_px + 1, 1, ring_px)[:, 0] > 0)


def mode_of(settings: Mapping[str, object]) -> str:
    """Returns what was painted with sampler `settings`; those that name no mode keep the foreground."""
    return str(settings.get("mode", "surroundings"))


def keeps_of(settings: Mapping[str, object]) -> str:
    """Returns what of its source a pair drawn with sampler `settings` shows untouched, see `KEEPS`."""
    return "nothing" if settings.get("texture") == "redrawn" else KEEPS[mode_of(settings)]


def shows_source(settings: Mapping[str, object]) -> bool:
    """Returns whether a pair drawn with sampler `settings` is its source in another appearance, nothing being painted.

    Then labels hold everywhere, the geometry is the source's, and no picture can be new.
    """
    return mode_of(settings) == "appearance"


def kept_by(labels: torch.Tensor, settings: Mapping[str, object]) -> torch.Tensor:
    """Returns `kept_pixels` of labels (B, H, W) for the sampler settings of a pair's provenance, (B, H, W) bool."""
    if keeps_of(settings) == "nothing":
        return torch.zeros_like(labels, dtype=torch.bool)
    return painted_around(labels, settings)


def painted_around(labels: torch.Tensor, settings: Mapping[str, object]) -> torch.Tensor:
    """Returns which pixels of labels (B, H, W) a pair was painted around, (B, H, W) bool: where a seam may show.

    These are the ones that are kept, unless all is redrawn in the end.
    """
    return kept_pixels(labels, mode=mode_of(settings), ring_px=int(settings.get("ring_px", 0)),
                       curated=CURATED in settings)


def draws_from_labels(settings: Mapping[str, object]) -> bool:
    """Returns whether a pair drawn with sampler `settings` has nothing of its source, neither pixels nor shapes."""
    return KEEPS[mode_of(settings)] == "nothing" and not shows_source(settings)


class Generator(ABC):
    """A fitted model that draws images for label masks. Abstract; its subclasses are diffusers pipelines."""

    kind = "inpaint"
    """Of its settings (`synth fit`); the ids of what it draws begin with it."""

    taught: Taught | None = None
    """What it was fitted on; None = not known. Not a part of what it is: `content_hash` does not see it."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Side of the images it draws, px."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the images it draws."""

    @property
    @abstractmethod
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that were -1 and 1 in the unit space it was fitted in."""

    @property
    def n_classes(self) -> int | None:
        """Classes that the labels it is told may be of, background included; None where it is told none."""
        config = getattr(self, "config", {})
        return config.get("n_classes") if config.get("tells_labels", True) else None

    @property
    def scale(self) -> str:
        """At which resolution it was fitted and draws: "fit" = its own size, "native" = that of the images."""
        return "fit"

    @abstractmethod
    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int],
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns a new image, unit (B, C, H, W), for each source image, unit (B, C, H, W), and its labels (B, H, W).

        Row i depends on `seeds[i]` and on row i of the inputs alone.

        Args:
            keep_in: (B, H, W) bool, further pixels of `image` that show through but are no foreground (the frame of
                an endoscope's picture); a generator that cannot keep pixels may use it as it likes.
        """

    @property
    def keeps(self) -> str:
        """What of its source a drawn pair shows untouched: "foreground", "surroundings" or "nothing"."""
        return keeps_of(self.sampler_settings())

    def kept(self, mask: torch.Tensor, keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns which pixels a drawn pair takes from its source, (B, H, W) bool, for labels `mask` (B, H, W).

        Args:
            keep_in: (B, H, W) bool, as in `sample`.
        """
        keep = kept_by(mask, self.sampler_settings())
        return keep if keep_in is None else keep | (keep_in & ~labels_to_keep(mask))

    @property
    def shown_px(self) -> float:
        """How far around the foreground of a source what is drawn shows the source's own pixels, px; inf = all over.

        Where surroundings are painted it is the widest margin, and the cell in which they meet the foreground.
        """
        words = self.sampler_settings()
        margin = float(words.get("ring_px", 0)) * (max(words.get("margin_cells", (0,))) + 1)
        return {"surroundings": margin, "layout": 0.0}.get(mode_of(words), math.inf)

    def lenders(self, seeds: Sequence[int]) -> tuple[tuple[str, str] | None, ...]:
        """Returns id and group of a further real image that goes into what each seed draws, None where none does."""
        return (None,) * len(seeds)

    def transformed(self, image: torch.Tensor) -> torch.Tensor:
        """Returns unit `image` (B, C, H, W) as its kept pixels appear in what is drawn: untouched by default."""
        return image

    def roundtrip(self, image: torch.Tensor) -> torch.Tensor:
        """Returns `image`, unit (B, C, H, W), as the generator's own representation gives it back: decode(encode(x)).

        Optional: only generators that work in latents have one.

        Raises:
            UserError: if this generator has none.
        """
        raise UserError(f"{type(self).__name__} {tuple(image.shape)}", rule="this generator has no autoencoder to send "
                        "an image through", repair="take a latent generator, e.g. one of kind inpaint")

    @abstractmethod
    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns every setting that `sample` uses, for the provenance."""

    @abstractmethod
    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits that identify the fitted weights and their configuration."""


def check_labels(labels: torch.Tensor, n_classes: int) -> None:
    """Returns nothing; raises if labels of any shape hold a class that a generator of `n_classes` never learnt.

    Raises:
        UserError: naming it.
    """
    stray = labels[(labels != IGNORE) & ((labels >= n_classes) | (labels < 0))]
    if len(stray):
        raise UserError(f"label {int(stray[0])}", rule=f"this generator learnt classes 0 to {n_classes - 1} "
                        "(255 = unknown)", repair="give masks of its own classes")


def check_request(generator: Generator, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int]) -> None:
    """Returns nothing; raises if image (B, C, H, W), mask (B, H, W) and seeds are not what `generator` can draw.

    Raises:
        UserError: naming what it got and what it takes. One seed for several images would give all of them one noise.
    """
    b, c, size = len(seeds), generator.channels, generator.size
    if tuple(image.shape) != (b, c, size, size) or tuple(mask.shape) != (b, size, size):
        raise UserError(f"image {tuple(image.shape)}, mask {tuple(mask.shape)}, {b} seed(s)",
                        rule=f"this generator takes images (B, {c}, {size}, {size}), masks (B, {size}, {size}) and B "
                        f"seeds", repair=f"resize to {size} px and give one seed per image")
