"""The one abstract class: a fitted model that turns (image, mask, seeds) into new images for that mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch


class Generator(ABC):
    """A fitted model that draws images for label masks. Abstract; its subclasses are diffusers pipelines."""

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

    @abstractmethod
    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Returns a new image, unit (B, C, H, W), for each source image, unit (B, C, H, W), and its labels (B, H, W).

        Row i depends on `seeds[i]` and on row i of the inputs alone.
        """

    @abstractmethod
    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns every setting that `sample` uses, for the provenance."""

    @abstractmethod
    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits that identify the fitted weights and their configuration."""
