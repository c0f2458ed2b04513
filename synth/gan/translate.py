"""TranslatePipeline: a new image for a label map, another one for each seed; nothing of a source image is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DiffusionPipeline

from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.rng import randn_each, sample_rng
from synth.gan.networks import Translator
from synth.gan.told import labels_to_told
from synth.generator import Generator, check_labels, check_request
from synth.pipelines import DrawnOutput, draw_seeds, own_config, unit_to_output, weights_hash


class TranslatePipeline(DiffusionPipeline, Generator):
    """Draws the image of a label map in one pass of a network that learnt against a discriminator.

    Args:
        translator: from what is told and a noise code to an image. n_classes: of the labels it is told.
        model: how it was trained, "pix2pix", "spade" or "oasis".
        unit_low, unit_high: pixel values that are -1 and 1 in unit space.
    """

    model_cpu_offload_seq = "translator"
    kind = "translate"

    def __init__(self, translator: Translator, n_classes: int = 2, model: str = "oasis", *, unit_low: float = 0.0,
                 unit_high: float = 255.0) -> None:
        super().__init__()
        self.register_modules(translator=translator)
        self.register_to_config(n_classes=n_classes, model=model, unit_low=unit_low, unit_high=unit_high)

    @property
    def size(self) -> int:
        """Side of the images it draws, px."""
        return int(self.translator.config.sample_size)

    @property
    def channels(self) -> int:
        """Channels of the images it draws."""
        return int(self.translator.config.channels)

    @property
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that are -1 and 1 in unit space."""
        return float(self.config.unit_low), float(self.config.unit_high)

    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns what `sample` does: one pass, from the label map alone."""
        return {"sampler": self.config.model, "mode": "layout"}

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over the weights and configuration."""
        return hash_json({"sampler": self.sampler_settings(), "range": self.intensity_range,
                          "n_classes": self.config.n_classes, "translator_config": own_config(self.translator),
                          "translator": weights_hash(self.translator)})

    def kept(self, mask: torch.Tensor, keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns which pixels are the source's, none of them: False in the shape of `mask` (B, H, W).

        Args:
            keep_in: (B, H, W) bool; it is told to the network, which draws a frame there.
        """
        return torch.zeros_like(mask, dtype=torch.bool)

    @torch.no_grad()
    def draw(self, mask: torch.Tensor, *, seeds: Sequence[int], keep_in: torch.Tensor | None = None,
             callback: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """Returns unit images (B, C, S, S) for labels `mask` (B, S, S), row i a function of `seeds[i]` and row i alone.

        Args:
            keep_in: (B, S, S) bool, where the image shall show its frame; None = nowhere.
            callback: called with (images done, images in all).

        Raises:
            UserError: for labels that it never learnt.
        """
        check_labels(mask, self.config.n_classes)
        keep_in = torch.zeros_like(mask, dtype=torch.bool) if keep_in is None else keep_in
        told = labels_to_told(mask, keep_in, n_classes=self.config.n_classes)
        rngs = [sample_rng(s, "translate") for s in seeds]
        codes = randn_each((self.translator.config.n_code,), rngs)
        told = torch.cat([told, randn_each((1, self.size, self.size), rngs)], 1)
        drawn = []
        # One by one: a batch of another size may round otherwise, and one pass is cheap.
        for i, (one, code) in enumerate(zip(told, codes, strict=True)):
            drawn.append(self.translator(one[None].to(self.device), code[None].to(self.device)).float())
            if callback is not None:
                callback(i + 1, len(told))
        return torch.cat(drawn)

    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int],
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns a new image for labels `mask` (B, S, S); of unit `image` (B, C, S, S) only the size is looked at.

        Args:
            keep_in: (B, S, S) bool, where a frame is drawn.
        """
        check_request(self, image, mask, seeds=seeds)
        return self.draw(mask, seeds=seeds, keep_in=keep_in).cpu()

    @torch.no_grad()
    def __call__(self, mask: torch.Tensor, *, keep_in: torch.Tensor | None = None, seeds: Sequence[int] | None = None,
                 generator: torch.Generator | Sequence[torch.Generator] | None = None, output_type: str = "pil",
                 callback_on_step_end: Callable[[int, int], None] | None = None) -> DrawnOutput:
        """Returns drawn images for labels `mask` (B, S, S).

        Args:
            keep_in: (B, S, S) bool, where a frame is drawn.
            seeds: one per image. generator: in the place of seeds: one for all images or one for each, from which the
                seeds are drawn. Without either the images are not repeatable.
            output_type: "pil", "np" or "pt".
            callback_on_step_end: called with (images done, images in all).

        Raises:
            UserError: if sizes or seeds do not fit, for labels it never learnt, or an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type={output_type}", rule="no such form", repair="take pil, np or pt")
        seeds = draw_seeds(len(mask), seeds, generator)
        shape = (len(mask), self.channels, *mask.shape[1:])
        check_request(self, torch.empty(shape), mask, seeds=seeds)
        with self.progress_bar(total=len(mask)) as bar:
            def tick(done: int, total: int) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(done, total)

            unit = self.draw(mask, seeds=seeds, keep_in=keep_in, callback=tick).cpu()
        return unit_to_output(unit, output_type)
