"""How images and masks that do not belong together teach two translators: one recipe, with a cycle or without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from synth.core.checks import IGNORE
from synth.core.ema import Ema
from synth.core.loop import Batch, Recipe
from synth.core.rng import seeded
from synth.core.space import labels_to_onehot, top_class
from synth.gan.augment import alter_images, draw_alteration
from synth.gan.cycle import binarise, draw_places, least_squares_fooling, least_squares_loss, patch_nce
from synth.gan.discriminators import PatchDiscriminator
from synth.gan.networks import N_EXTRA, UNetTranslator
from synth.gan.recipe import draw_told
from synth.gan.told import labels_to_told
from synth.gan.unpaired.networks import Labeller, MaskVae, Projector, StyleEncoder
from synth.gan.unpaired.settings import UnpairedSettings

Scalars = dict[str, torch.Tensor]
NCE_LEVEL = 2
"""Of both networks' encoders, where PatchNCE compares: a place is four pixels a side."""


def told_of(onehot: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Returns what one-hot masks (B, K, H, W) and frames (B, 1, H, W) tell, (B, K + 2, H, W).

    The gradient goes through the one-hot channels alone; distance and frame are read off the hard mask.
    """
    labels = top_class(onehot.detach())
    rest = labels_to_told(labels, (frames[:, 0].cpu() > 0) & (labels.cpu() == 0), n_classes=onehot.shape[1])
    return torch.cat([onehot, rest[:, onehot.shape[1]:].to(onehot)], 1)


@dataclass(frozen=True)
class Passes:
    """What one step's passes gave.

    Attributes:
        logits, back: labels of the real and of the drawn images, (B, K, S, S). drawn: images of the masks.
        again: images of the real images' labels; None without a cycle. codes: the masks' noise codes.
        found: mean and log-variance of the real images' style; drawn_style: mean of the drawn ones'.
        contrast: PatchNCE, a scalar; None with a cycle.
    """

    logits: torch.Tensor
    back: torch.Tensor
    drawn: torch.Tensor
    again: torch.Tensor | None
    codes: torch.Tensor
    found: tuple[torch.Tensor, torch.Tensor]
    drawn_style: torch.Tensor
    contrast: torch.Tensor | None


class Translators(nn.Module):
    """Labeller (image -> mask), translator (mask -> image) and style encoder, which are trained together.

    An image is drawn again from its label and its style, both of which are told of it: the one where things are, the
    other how they look. What the style cannot say, the label must.
    """

    def __init__(self, settings: UnpairedSettings, *, channels: int, n_classes: int) -> None:
        super().__init__()
        own, labeller = settings.translator, settings.labeller
        self.settings = settings
        self.labeller = Labeller(channels, n_classes, settings.size, settings.shape.n_code, labeller.widths)
        self.translator = UNetTranslator(n_classes + N_EXTRA, channels, settings.size, own.n_code, own.widths)
        self.style = StyleEncoder(channels, width=own.widths[0], n_code=own.n_code)
        if not labeller.calibrate:
            self.labeller.calibration.requires_grad_(False)
        if settings.translation == "contrastive":
            self.projectors = nn.ModuleList([Projector(labeller.widths[NCE_LEVEL]), Projector(own.widths[NCE_LEVEL])])

    def forward(self, batch: Batch, judge: MaskVae) -> Passes:
        """Returns the passes of a batch as `unpaired_batches` returns it, `judge` giving the labeller its feedback."""
        judge = judge if self.settings.labeller.calibrate else None
        images, n = batch["images"], len(batch["images"])
        logits, found = self.labeller(images, batch["frames"], judge), self.style(images)
        said = told_of(binarise(logits, noise=self.settings.loss.noise), batch["frames"])
        told, codes = draw_told(torch.cat([batch["told"], said]), self.settings.translator.n_code)
        style = found[0] + (0.5 * found[1]).exp() * torch.randn_like(found[0])
        codes = torch.cat([codes[:n], style])
        if self.settings.translation == "contrastive":
            drawn, again = self.translator(told[:n], codes[:n]), None
        else:
            drawn, again = self.translator(told, codes).split(n)
        contrast = None if again is not None else self._contrast(batch, told, codes, drawn)
        back = self.labeller(drawn, batch["told"][:, -1:], judge)  # what is told last is the drawn image's frame
        return Passes(logits, back, drawn, again, codes[:n], found, self.style(drawn)[0],
                      contrast)

    def _contrast(self, batch: Batch, told: torch.Tensor, codes: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        # Both ways: a drawn image is compared with its mask, and the label of a real image with that image.
        of_images, of_masks = self.projectors
        seen = of_images(self.labeller.encode(torch.cat([drawn, batch["images"]]))[NCE_LEVEL])
        x = self.translator.first(told)
        for layer in self.translator.down[:NCE_LEVEL]:
            x = layer(x, codes)
        query, key = seen.split(len(drawn)), of_masks(x).split(len(drawn))
        words, loss = {"temperature": self.settings.loss.temperature}, self.settings.loss
        places = draw_places(len(drawn), tuple(x.shape[-2:]), n_places=loss.n_places)
        return 0.5 * (patch_nce(query[0], key[0], places, **words) + patch_nce(key[1], query[1], places, **words))


class UnpairedRecipe(Recipe):
    """CycleGAN after Annotation-efficient learning (Wang et al. 2020): least squares judge images, energy masks."""

    def __init__(self, settings: UnpairedSettings, *, channels: int, n_classes: int) -> None:
        super().__init__()
        self.settings = settings
        with seeded(settings.loop.seed, "unpaired"):
            both = Translators(settings, channels=channels, n_classes=n_classes)
            images = PatchDiscriminator(channels, width=settings.discriminator.width)
            shape = settings.shape
            masks = MaskVae(n_classes, settings.size, shape.n_code, shape.widths, shape.beta)
        self.nets = {"translators": both, "image_judge": images, "mask_judge": masks}
        drawing = [*both.translator.parameters(), *both.style.parameters()]
        drawn_by = {id(p) for p in drawing}
        labelling = [p for p in both.parameters() if id(p) not in drawn_by]
        groups = {"translators": [{"params": drawing, "lr": settings.translator.lr},
                                  {"params": labelling, "lr": settings.labeller.lr}],
                  "image_judge": [{"params": list(images.parameters()), "lr": settings.discriminator.lr}],
                  "mask_judge": [{"params": list(masks.parameters()), "lr": shape.lr}]}
        self.optimizers = {k: torch.optim.Adam(some, betas=(0.5, 0.999), fused=True) for k, some in groups.items()}
        self.averages = {"labeller": Ema(both.labeller, decay=settings.labeller.ema_decay),
                         "translator": Ema(both.translator, decay=settings.translator.ema_decay),
                         "mask_judge": Ema(masks, decay=settings.labeller.ema_decay)}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of images and of masks seen."""
        return {"unlabelled_seen": len(batch["images"]), "masks_seen": len(batch["masks"])}

    def lr_factor(self, progress: float) -> float:
        """Returns 1 for half of the run, then a straight line to 0."""
        return min(1.0, 2 * (1 - progress))

    def step(self, batch: Batch, progress: float) -> Scalars:
        """Updates the translators, then their judges; returns scalars to log."""
        judges = [getattr(self.nets[name], "module", self.nets[name]) for name in ("image_judge", "mask_judge")]
        for judge in judges:
            judge.requires_grad_(False)
        done = self.nets["translators"](batch, judges[1])
        scalars = self._update_translators(batch, done, judges, progress)
        for judge in judges:
            judge.requires_grad_(True)
        scalars |= self._update_judges(batch, done)
        both = getattr(self.nets["translators"], "module", self.nets["translators"])
        self.averages["labeller"].update(both.labeller)
        self.averages["translator"].update(both.translator)
        self.averages["mask_judge"].update(self.nets["mask_judge"])
        return scalars

    def _update_translators(self, batch: Batch, done: Passes, judges: list[nn.Module], progress: float) -> Scalars:
        weights = self.settings.loss
        how = draw_alteration(len(done.drawn), tuple(done.drawn.shape[-2:]),
                              strength=self.settings.discriminator.augment)
        mean, logvar = done.found
        terms = {
            "image": least_squares_fooling(judges[0](alter_images(done.drawn, how))),
            "shape": judges[1](done.logits.softmax(1)).mean(),
            "cycle_mask": F.cross_entropy(done.back, batch["masks"], ignore_index=IGNORE),
            "style": F.l1_loss(done.drawn_style, done.codes),
        }
        scale = {"shape": min(1.0, progress / weights.warmup) if weights.warmup else 1.0}
        if done.again is not None:
            terms["cycle_image"] = F.l1_loss(done.again, batch["images"])
            terms["divergence"] = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        else:
            terms["contrast"] = done.contrast
        loss = sum(getattr(weights, name) * scale.get(name, 1.0) * term for name, term in terms.items())
        self.descend(loss, "translators")
        return {name: term.detach() for name, term in terms.items()}

    def _update_judges(self, batch: Batch, done: Passes) -> Scalars:
        n, augment = len(done.drawn), self.settings.discriminator.augment
        how = draw_alteration(n, tuple(done.drawn.shape[-2:]), strength=augment)
        seen = torch.cat([alter_images(batch["images"], how), alter_images(done.drawn.detach(), how)])
        real, fake = self.nets["image_judge"](seen).chunk(2)
        image = least_squares_loss(real, fake)
        self.descend(image, "image_judge")
        onehot = labels_to_onehot(batch["masks"], done.logits.shape[1])
        known, made = self.nets["mask_judge"](torch.cat([onehot, done.logits.detach().softmax(1)])).chunk(2)
        # EBGAN (Zhao et al. 2017, eq. 1): what a labeller makes is pushed up to the margin, and no farther.
        self.descend(known.mean() + F.relu(self.settings.shape.margin - made).mean(), "mask_judge")
        return {"image_judge": image.detach(), "energy_masks": known.mean().detach(),
                "energy_labels": made.mean().detach()}
