"""Trains a probabilistic U-Net: the masks it draws shall lie as the masks do that raters gave, or might have given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.labels.shifted import ShiftSettings, apply_shifts, draw_shifts
from segtrain.losses.clouds import cloud_distance, gaussian_kl, masks_as_points
from segtrain.losses.deep import between_kinds
from segtrain.models.probabilistic import Plausible
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

if TYPE_CHECKING:
    from segtrain.scene import Scene


def by_kind(values: torch.Tensor, synthetic: torch.Tensor, w_syn: float) -> torch.Tensor:
    """Returns `between_kinds` of the means of values (B,) over the real and over the synthetic images (B,) bool."""
    real, made = (values[rows].sum() / rows.sum().clamp(min=1) for rows in (~synthetic, synthetic))
    return between_kinds(real, made, synthetic, w_syn=w_syn)


class PlausibleMasks(Settings):
    """Slot member `plausible_masks`: D({drawn masks}, {plausible labels}) + kl * KL(posterior || prior), per image.

    The drawn masks come from the prior, which is what predicts, and from the posterior of each label: the mean of both
    distances. Labels are the observers' where there are several, else shifted forms of the one (`shifts`).

    Attributes:
        head: the posterior's name. view: a view of the supervised images, unperturbed. n_prior: masks from the prior.
        blur: of the soft minimum, see `cloud_distance`; null = the energy distance. kl: of the KL term.
    """

    head: str = "posterior"
    view: int = Field(0, ge=0)
    n_prior: int = Field(6, ge=2)
    blur: float | None = Field(0.1, gt=0)
    kl: float = Field(0.01, ge=0)
    shifts: ShiftSettings = ShiftSettings()

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar); logs `distance` and `kl`."""
        shown = scene.view(self.view)
        sampler = self._sampler(scene, shown.branch)
        labels, hidden = self._labels(scene), shown.seen.hidden
        onehot = torch.stack([labels_to_onehot(one, scene.n_classes) for one in labels.unbind(1)], dim=1)
        prior, posterior = sampler.prior(hidden), self._posterior(scene, shown.images, onehot)
        kl = gaussian_kl(*posterior, *(part[:, None] for part in prior)).mean(dim=1)
        counted = (labels != IGNORE).all(dim=1).float()
        points = masks_as_points(onehot, counted)
        distances = [cloud_distance(masks_as_points(logits.float().softmax(dim=2), counted), points,
                                    blur=self.blur or torch.inf)
                     for logits in self._draw(scene, sampler, hidden, posterior)]
        distance = torch.stack(distances).mean(dim=0)
        scene.stats |= {"distance": distance.mean(), "kl": kl.mean()}
        return by_kind(distance + self.kl * kl, scene.supervised.synthetic, scene.w_syn)

    def _sampler(self, scene: Scene, branch: str) -> Plausible:
        head = scene.topology.network(branch).heads[scene.topology.route(branch).decoder]
        if not isinstance(head, Plausible):
            raise UserError("regulariser plausible_masks", rule="this network draws no masks",
                            repair="write topology: prob_unet, or take model.name=prob_tiny or prob_lite")
        return head

    def _labels(self, scene: Scene) -> torch.Tensor:
        given = scene.supervised
        if given.observers is not None:
            return given.observers
        return apply_shifts(given.labels, draw_shifts(scene.supervised_rngs("shifts"), scene.n_classes, self.shifts))

    def _posterior(self, scene: Scene, images: torch.Tensor, onehot: torch.Tensor
                   ) -> tuple[torch.Tensor, torch.Tensor]:
        n = onehot.shape[1]
        found = scene.head(self.head)(images.repeat_interleave(n, dim=0), onehot.flatten(0, 1))
        return found[0].unflatten(0, (-1, n)), found[1].unflatten(0, (-1, n))

    def _draw(self, scene: Scene, sampler: Plausible, hidden: torch.Tensor,
              posterior: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        """Returns logits (B, N, K, H, W) from the prior, and from each label's posterior."""
        mean, log_std = posterior
        n, latent = mean.shape[1:]
        noise = torch.stack([torch.randn((self.n_prior + n, latent), generator=rng)
                             for rng in scene.supervised_rngs("latent")]).to(mean)
        return [sampler.draw(hidden, noise[:, :self.n_prior]),
                sampler.masks(hidden, mean + log_std.exp() * noise[:, self.n_prior:])]


PLAUSIBLE: dict[str, type[Settings]] = {"plausible_masks": PlausibleMasks}
"""Regularisers of this module by the name that method files use."""
