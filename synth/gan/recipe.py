"""How a translator and its discriminator learn from each other: one recipe, two ways to judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from synth.core.adversarial import fooling_loss, hinge_loss
from synth.core.checks import IGNORE
from synth.core.ema import Ema
from synth.core.loop import Batch, Recipe
from synth.core.rng import seeded
from synth.gan.augment import Alteration, alter_geometry, alter_images, alter_labels, draw_alteration
from synth.gan.discriminators import PatchDiscriminator, SegmenterDiscriminator
from synth.gan.losses import (
    balanced_segmentation,
    draw_labelmix,
    drawn_segmentation,
    labelmix,
    labelmix_consistency,
    noise_response,
    real_segmentation,
    realness,
)
from synth.gan.networks import N_EXTRA, SpadeTranslator, Translator, UNetTranslator
from synth.gan.settings import TranslateSettings

Scalars = dict[str, torch.Tensor]


def build_translator(settings: TranslateSettings, *, channels: int, n_classes: int) -> Translator:
    """Returns an untrained translator to images (B, channels, S, S); its weights follow the run's seed."""
    own = settings.translator
    shape = {"n_told": n_classes + N_EXTRA, "channels": channels, "sample_size": settings.size, "n_code": own.n_code,
             "widths": own.widths}
    with seeded(settings.loop.seed, "translator"):
        if settings.model == "pix2pix":
            return UNetTranslator(**shape)
        return SpadeTranslator(**shape, hidden=own.hidden)


def build_discriminator(settings: TranslateSettings, *, channels: int, n_classes: int) -> nn.Module:
    """Returns the untrained discriminator of `settings.model`; its weights follow the run's seed."""
    own = settings.discriminator
    with seeded(settings.loop.seed, "discriminator"):
        if settings.model == "oasis":
            return SegmenterDiscriminator(channels, n_classes, widths=own.widths)
        return PatchDiscriminator(channels + n_classes + N_EXTRA - 1, width=own.width)


def draw_told(told: torch.Tensor, n_code: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns told (B, T, H, W) with a field of noise, (B, T + 1, H, W), and codes (B, n_code), by torch's own rng."""
    field = torch.randn_like(told[:, :1])
    return torch.cat([told, field], 1), torch.randn(len(told), n_code, device=told.device)


def _pile(batch: Batch, how: Alteration) -> list[torch.Tensor]:
    """Returns the images without labels of a batch, altered as its pairs are; none where it has none."""
    return [alter_images(batch["pile"], how)] if "pile" in batch else []


class TranslateRecipe(Recipe):
    """pix2pix and SPADE: a patch discriminator of image and condition, hinge, L1. OASIS: a segmenter of K + 1 classes,
    which may also see images without labels: those are of any class but the last.

    Real and drawn images of one mask are altered alike (`draw_alteration`) before they are judged, whatever the model.
    """

    def __init__(self, translator: Translator, discriminator: nn.Module, settings: TranslateSettings) -> None:
        super().__init__()
        self.settings = settings
        self.nets = {"translator": translator, "discriminator": discriminator}
        # SPADE's and OASIS's betas begin with 0, pix2pix's with 0.5 (there 0 is as good).
        betas = (0.5, 0.999) if settings.model == "pix2pix" else (0.0, 0.999)
        lrs = {name: getattr(settings, name).lr for name in self.nets}
        self.optimizers = {name: torch.optim.Adam(net.parameters(), lr=lrs[name], betas=betas, fused=True)
                           for name, net in self.nets.items()}
        self.averages = {"translator": Ema(translator, decay=settings.translator.ema_decay)}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of real pairs seen."""
        return {"images_seen": len(batch["images"])}

    def lr_factor(self, progress: float) -> float:
        """Returns 1 for half of the run, then a straight line to 0 (Isola et al. 2017's released code)."""
        return min(1.0, 2 * (1 - progress))

    def step(self, batch: Batch, progress: float) -> Scalars:
        """Updates translator, then discriminator, on pairs as `pair_batches` returns them; returns scalars to log."""
        real, told = batch["images"], batch["told"]
        fakes, codes = self._draw(told)
        n = len(fakes) // len(real)
        how = draw_alteration(len(real), tuple(real.shape[-2:]), strength=self.settings.discriminator.augment)
        scalars = self._update_translator(batch, fakes, codes, how.repeat(n))
        scalars |= self._update_discriminator(batch, fakes[:len(real)].detach(), how)
        self.averages["translator"].update(self.nets["translator"])
        return scalars

    def _draw(self, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns drawn images and their codes: one for each mask, or, where the answer to noise counts, two."""
        twice = self.settings.model != "oasis" and self.settings.loss.response > 0
        full, codes = draw_told(torch.cat([told, told]) if twice else told, self.settings.translator.n_code)
        return self.nets["translator"](full, codes), codes

    def _seen(self, images: torch.Tensor, told: torch.Tensor, how: Alteration) -> torch.Tensor:
        """Returns what the discriminator looks at: altered images, and with patches the condition moved alike."""
        altered = alter_images(images, how)
        if self.settings.model == "oasis":
            return altered
        return torch.cat([altered, alter_geometry(told, how)], 1)

    def _update_translator(self, batch: Batch, fakes: torch.Tensor, codes: torch.Tensor, how: Alteration) -> Scalars:
        weights, real = self.settings.loss, batch["images"]
        n = len(fakes) // len(real)
        # Without its wrapper, and its weights at rest: a wrapper would wait for their gradients.
        judge = getattr(self.nets["discriminator"], "module", self.nets["discriminator"]).requires_grad_(False)
        logits = judge(self._seen(fakes, batch["told"].repeat(n, 1, 1, 1), how))
        if self.settings.model == "oasis":
            loss = balanced_segmentation(logits, alter_labels(batch["labels"], how, fill=IGNORE))
            scalars = {"fooling": loss.detach()}
        else:
            fooling, l1 = fooling_loss(logits), F.l1_loss(fakes[:len(real)], real)
            loss = fooling + weights.l1 * l1
            scalars = {"fooling": fooling.detach(), "l1": l1.detach()}
        if n > 1:
            response = noise_response(*fakes.chunk(2), codes.chunk(2), bound=weights.response_bound)
            loss, scalars["response"] = loss - weights.response * response, response.detach()
        self.descend(loss, "translator")
        judge.requires_grad_(True)
        return scalars

    def _update_discriminator(self, batch: Batch, fake: torch.Tensor, how: Alteration) -> Scalars:
        real, told, judge = batch["images"], batch["told"], self.nets["discriminator"]
        a, b = self._seen(real, told, how), self._seen(fake, told, how)
        if self.settings.model == "oasis":
            labels = alter_labels(batch["labels"], how, fill=IGNORE)
            mask = draw_labelmix(labels)
            # One forward for all, as a data-parallel wrapper expects it.
            on_real, on_fake, on_mix, *on_pile = judge(torch.cat([a, b, labelmix(a, b, mask), *_pile(batch, how)])
                                                       ).split(len(a))
            consistency = labelmix_consistency(on_mix, on_real, on_fake, mask)
            loss = (balanced_segmentation(on_real, labels) + drawn_segmentation(on_fake)
                    + self.settings.loss.labelmix * consistency)
            scalars, on_real = {"consistency": consistency.detach()}, realness(on_real)
            for logits in on_pile:
                loss = loss + self.settings.loss.unlabelled * real_segmentation(logits)
                scalars["sign_unlabelled"] = realness(logits).detach().sign().mean()
        else:
            on_real, on_fake = judge(torch.cat([a, b])).chunk(2)
            loss, scalars = hinge_loss(on_real, on_fake), {}
        self.descend(loss, "discriminator")
        return {"discriminator": loss.detach(), **scalars, "sign_training": on_real.detach().sign().mean(),
                **self._aside(batch)}

    @torch.no_grad()
    def _aside(self, batch: Batch) -> Scalars:
        """Returns the mean sign of the discriminator on real images that it never learnt from (Karras et al. 2020).

        They are altered like those of `sign_training`, or the two would not compare.
        """
        if "held_images" not in batch:
            return {}
        images, told = batch["held_images"], batch["held_told"]
        how = draw_alteration(len(images), tuple(images.shape[-2:]), strength=self.settings.discriminator.augment)
        return {"sign_held_aside": self.judge(alter_images(images, how), alter_geometry(told, how)).sign().mean()}

    @torch.no_grad()
    def judge(self, images: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, 1, h, w), high = real, of images (B, C, H, W) with told (B, T, H, W)."""
        net = getattr(self.nets["discriminator"], "module", self.nets["discriminator"])
        return realness(net(images)) if self.settings.model == "oasis" else net(torch.cat([images, told], 1))
