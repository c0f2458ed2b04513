"""How appearance translation is learnt: a judge with a head for each style, the way back, edges, and a coach.

Labels are kept by a segmenter of its own, the coach, not by a discriminator with classes as OASIS's: a network that
learns from translated images learns to find the labels in whatever they have become, and no longer says whether they
hold. The coach is told the style, learns from real labelled pairs alone, and its weights rest when it speaks of
translated images: what it asks for is an object as real images of that style show it. It is asked only where it can
know: of labelled images, in styles that some labelled image shows. Elsewhere the edges alone keep the content.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from synth.core.adversarial import fooling_loss
from synth.core.checks import IGNORE
from synth.core.ema import Ema
from synth.core.loop import Batch, Recipe
from synth.core.rng import seeded
from synth.gan.augment import Alteration, alter_geometry, alter_images, alter_labels, draw_alteration
from synth.gan.discriminators import PatchDiscriminator, SegmenterDiscriminator
from synth.gan.losses import balanced_segmentation
from synth.gan.restyle.network import StyleTranslator
from synth.gan.restyle.settings import AppearanceSettings
from synth.gan.structure import edge_distance

Scalars = dict[str, torch.Tensor]
MASK_FROM = 0.2
"""Share of the run over which the weight of the coach grows: in the beginning it knows nothing."""


def build_restyle_nets(settings: AppearanceSettings, *, channels: int, n_classes: int,
                       n_styles: int) -> dict[str, nn.Module]:
    """Returns the untrained translator, discriminator and coach; their weights follow the run's seed."""
    own, seed = settings.translator, settings.loop.seed
    with seeded(seed, "restyler"):
        translator = StyleTranslator(channels, settings.size, n_styles, own.n_code, own.widths, own.n_blocks,
                                     own.jitter)
    with seeded(seed, "discriminator"):
        # A row of the last layer for each style: the projection discriminator of Miyato & Koyama 2018, eq. 3.
        judge = PatchDiscriminator(channels, width=settings.discriminator.width, norm="spectral", n_out=n_styles)
    with seeded(seed, "coach"):
        # Its architecture ends in one class more, there for "drawn"; here none is.
        coach = SegmenterDiscriminator(channels + n_styles, n_classes - 1, widths=settings.coach.widths)
    return {"translator": translator, "discriminator": judge, "coach": coach}


def style_logits(logits: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Returns of logits (B, K, h, w) those of each row's style (B,), (B, 1, h, w)."""
    return logits[torch.arange(len(logits), device=logits.device), style][:, None]


def coach_input(images: torch.Tensor, style: torch.Tensor, n_styles: int) -> torch.Tensor:
    """Returns what the coach sees of images (B, C, H, W) in styles (B,): them and a map for each style, one of it 1."""
    maps = F.one_hot(style, n_styles).to(images)[..., None, None].expand(-1, -1, *images.shape[-2:])
    return torch.cat([images, maps], 1)


def style_hinge(real: torch.Tensor, fake: torch.Tensor, strange: torch.Tensor) -> torch.Tensor:
    """Returns the scalar hinge loss of logits: real ones of their own style, drawn ones, real ones of another style.

    The third kind (as the mismatched pairs of Reed et al. 2016) teaches every head what its style is not.
    """
    return 0.5 * F.relu(1 - real).mean() + 0.25 * (F.relu(1 + fake).mean() + F.relu(1 + strange).mean())


class RestyleRecipe(Recipe):
    """StarGAN's task (Choi et al. 2018): one translator for all styles, trained there and back.

    Args:
        nets: of `build_restyle_nets`. known: styles that some labelled image shows, (K,) bool.
    """

    def __init__(self, nets: dict[str, nn.Module], settings: AppearanceSettings, *, known: torch.Tensor) -> None:
        super().__init__()
        self.settings, self.known, self.nets = settings, known, nets
        lrs = {name: getattr(settings, name).lr for name in nets}
        self.optimizers = {name: torch.optim.Adam(net.parameters(), lr=lrs[name], betas=(0.5, 0.999), fused=True)
                           for name, net in nets.items()}
        self.averages = {"translator": Ema(nets["translator"], decay=settings.translator.ema_decay)}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of real images seen, and of labelled pairs among them."""
        return {"images_seen": len(batch["images"]), "labelled_seen": len(batch["labels"])}

    def lr_factor(self, progress: float) -> float:
        """Returns 1 for half of the run, then a straight line to 0."""
        return min(1.0, 2 * (1 - progress))

    def step(self, batch: Batch, progress: float) -> Scalars:
        """Updates translator, discriminator and coach on batches of `restyle_batches`; returns scalars to log."""
        images = batch["images"]
        how = draw_alteration(len(images), tuple(images.shape[-2:]), strength=self.settings.discriminator.augment)
        fakes, scalars = self._update_translator(batch, how, progress)
        scalars |= self._update_discriminator(batch, fakes, how) | self._update_coach(batch)
        self.averages["translator"].update(self.nets["translator"])
        return scalars

    def _at_rest(self, name: str) -> nn.Module:
        """Returns a network without its wrapper, which would wait for gradients, its weights without any."""
        return getattr(self.nets[name], "module", self.nets[name]).requires_grad_(False)

    def _update_translator(self, batch: Batch, how: Alteration, progress: float) -> tuple[torch.Tensor, Scalars]:
        images, style, target, weights = batch["images"], batch["style"], batch["target"], self.settings.loss
        translate, n = self.nets["translator"], len(images)
        noise = torch.randn(n, self.settings.translator.n_code, device=images.device)
        still = torch.zeros_like(noise)
        fakes, own = translate(torch.cat([images, images]), torch.cat([target, style]),
                               torch.cat([noise, still])).chunk(2)
        judge, coach = self._at_rest("discriminator"), self._at_rest("coach")
        terms = {
            "fooling": fooling_loss(style_logits(judge(alter_geometry(fakes, how)), target)),
            "cycle": weights.cycle * F.l1_loss(translate(fakes, style, still), images),
            "own": weights.own * F.l1_loss(own, images),
            "edges": weights.edges * edge_distance(images, fakes),
            "mask": weights.mask * min(1.0, progress / MASK_FROM) * self._mask_loss(coach, batch, fakes)}
        self.descend(sum(terms.values()), "translator")
        judge.requires_grad_(True)
        coach.requires_grad_(True)
        return fakes.detach(), {name: term.detach() for name, term in terms.items()}

    def _mask_loss(self, coach: nn.Module, batch: Batch, fakes: torch.Tensor) -> torch.Tensor:
        """Returns the coach's balanced cross entropy on translated labelled images, in the styles that it knows."""
        n = len(batch["labels"])
        asked = self.known.to(fakes.device)[batch["target"][:n]]
        labels = batch["labels"].masked_fill(~asked[:, None, None], IGNORE)
        return balanced_segmentation(coach(coach_input(fakes[:n], batch["target"][:n], len(self.known))), labels)

    def _update_discriminator(self, batch: Batch, fakes: torch.Tensor, how: Alteration) -> Scalars:
        seen = alter_geometry(torch.cat([batch["images"], fakes]), how.repeat(2))
        on_images, on_fakes = self.nets["discriminator"](seen).chunk(2)
        real, strange = (style_logits(on_images, batch[name]) for name in ("style", "target"))
        fake = style_logits(on_fakes, batch["target"])
        loss = style_hinge(real, fake, strange)
        self.descend(loss, "discriminator")
        return {"discriminator": loss.detach(), "sign_real": real.detach().sign().mean(),
                "sign_fake": fake.detach().sign().mean(), "sign_strange": strange.detach().sign().mean()}

    def _update_coach(self, batch: Batch) -> Scalars:
        n = len(batch["labels"])
        how = draw_alteration(n, tuple(batch["images"].shape[-2:]), strength=self.settings.coach.augment)
        seen = coach_input(alter_images(batch["images"][:n], how), batch["style"][:n], len(self.known))
        loss = balanced_segmentation(self.nets["coach"](seen), alter_labels(batch["labels"], how, fill=IGNORE))
        self.descend(loss, "coach")
        return {"coach": loss.detach()}
