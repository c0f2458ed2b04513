"""AppearancePipeline: the same image as another site, scanner or stain shows it; geometry and labels stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DiffusionPipeline

from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.rng import randn_each, sample_rng
from synth.gan.restyle.batches import another_style
from synth.gan.restyle.looks import cluster_names, look_distance, look_of
from synth.gan.restyle.network import StyleTranslator
from synth.gan.restyle.settings import StyleSettings
from synth.generator import Generator, check_request
from synth.pipelines import DrawnOutput, aligned, draw_seeds, own_config, unit_to_output, weights_hash


class AppearancePipeline(DiffusionPipeline, Generator):
    """Shows an image in another style: its geometry stays, so its labels hold; no pixel stays bit for bit.

    Args:
        translator: from image, style and noise to an image. names: of the styles.
        centres: mean look of each style; spread: deviation of each number of a look; see `looks.look_of`.
        style: that all images are given; "" = another one than an image looks like, by its seed.
        unit_low, unit_high: pixel values that are -1 and 1 in unit space.
        bit_depth: of the images it was fitted on, None where an older folder does not say.
    """

    model_cpu_offload_seq = "translator"
    kind = "appearance"

    def __init__(self, translator: StyleTranslator, names: list[str] = (),  # noqa: PLR0913 - its saved configuration
                 centres: list[list[float]] = (), spread: list[float] = (), *, style: str = "",
                 unit_low: float = 0.0, unit_high: float = 255.0, bit_depth: int | None = None) -> None:
        super().__init__()
        self.register_modules(translator=aligned(translator))
        self.register_to_config(names=list(names), centres=[list(c) for c in centres], spread=list(spread), style=style,
                                unit_low=unit_low, unit_high=unit_high, bit_depth=bit_depth)

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

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the styles that it knows."""
        return tuple(self.config.names)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the styles that are domains, all or none: clusters are no sites, scanners or stains."""
        return () if self.styles == cluster_names(len(self.styles)) else self.styles

    @property
    def sampler(self) -> StyleSettings:
        """What `sampler.` sets."""
        return StyleSettings(style=self.config.style or None)

    def with_sampler(self, sampler: StyleSettings) -> AppearancePipeline:
        """Returns the same networks giving all images one style, or, with none, others by their seeds.

        Raises:
            UserError: for a style that it does not know.
        """
        if sampler.style is not None and sampler.style not in self.styles:
            raise UserError(f"style={sampler.style}", rule="this generator does not know it",
                            repair=f"take one of {', '.join(self.styles)}")
        low, high = self.intensity_range
        made = AppearancePipeline(self.translator, list(self.styles), self.config.centres, self.config.spread,
                                  style=sampler.style or "", unit_low=low, unit_high=high,
                                  bit_depth=self.config.bit_depth)
        made.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        made.taught = self.taught
        return made

    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns what `sample` does: one pass, in one style or in another one for each seed."""
        return {"sampler": "restyle", "mode": "appearance", "style": self.config.style or "another"}

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over the weights and configuration; not over the style that is set."""
        return hash_json({"range": self.intensity_range, "names": self.styles, "centres": self.config.centres,
                          "spread": self.config.spread, "translator_config": own_config(self.translator),
                          "translator": weights_hash(self.translator)})

    def kept(self, mask: torch.Tensor, keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns which pixels are the source's bit for bit, none of them: False in the shape of `mask` (B, H, W).

        Args:
            keep_in: a frame, which is translated like the rest.
        """
        return torch.zeros_like(mask, dtype=torch.bool)

    def looks_like(self, image: torch.Tensor) -> list[int]:
        """Returns the style whose mean look each unit image (B, C, H, W) is nearest to."""
        centres, spread = torch.tensor(self.config.centres), torch.tensor(self.config.spread)
        return [int(look_distance(look_of(one[None]), centres, spread).argmin()) for one in image]

    def styles_for(self, image: torch.Tensor, *, seeds: Sequence[int]) -> list[int]:
        """Returns the style that each unit image (B, C, H, W) is given: the one set, or another than it looks like."""
        if self.config.style:
            return [self.styles.index(self.config.style)] * len(seeds)
        return [another_style(sample_rng(seed, "style"), own, len(self.styles))
                for seed, own in zip(seeds, self.looks_like(image), strict=True)]

    @torch.no_grad()
    def draw(self, image: torch.Tensor, styles: Sequence[int], *, seeds: Sequence[int],
             callback: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """Returns unit images (B, C, S, S) in `styles`, row i a function of row i and of the noise of `seeds[i]`.

        Args:
            callback: called with (images done, images in all).
        """
        noise = randn_each((self.translator.config.n_code,), [sample_rng(s, "appearance") for s in seeds])
        drawn = []
        # One by one: a batch of another size may round otherwise, and one pass is cheap.
        for i, (one, style) in enumerate(zip(image, styles, strict=True)):
            drawn.append(self.translator(one[None].to(self.device), torch.tensor([style], device=self.device),
                                         noise[i:i + 1].to(self.device)).float())
            if callback is not None:
                callback(i + 1, len(image))
        return torch.cat(drawn)

    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int],
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns unit `image` (B, C, S, S) in the style set or others; labels `mask` (B, S, S) hold and are not seen.

        Args:
            keep_in: a frame, which is translated like the rest.
        """
        check_request(self, image, mask, seeds=seeds)
        return self.draw(image, self.styles_for(image, seeds=seeds), seeds=seeds).cpu()

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, *, seeds: Sequence[int] | None = None,
                 generator: torch.Generator | Sequence[torch.Generator] | None = None, output_type: str = "pil",
                 callback_on_step_end: Callable[[int, int], None] | None = None) -> DrawnOutput:
        """Returns unit images (B, C, S, S) in the style set, or in others than they look like.

        Args:
            seeds: one per image. generator: in the place of seeds: one for all images or one for each, from which the
                seeds are drawn. Without either the images are not repeatable.
            output_type: "pil", "np" or "pt".
            callback_on_step_end: called with (images done, images in all).

        Raises:
            UserError: if sizes or seeds do not fit, or for an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type={output_type}", rule="no such form", repair="take pil, np or pt")
        seeds = draw_seeds(len(image), seeds, generator)
        check_request(self, image, torch.empty(len(image), *image.shape[2:]), seeds=seeds)
        with self.progress_bar(total=len(image)) as bar:
            def tick(done: int, total: int) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(done, total)

            unit = self.draw(image, self.styles_for(image, seeds=seeds), seeds=seeds, callback=tick).cpu()
        return unit_to_output(unit, output_type)
