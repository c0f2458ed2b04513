"""What a spectral generator knows: its prior, and the amplitudes of real images, as a module that saves like any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from synth.spectral import FrequencyPrior, PriorSettings
from synth.spectral.sums import Seen


@dataclass(frozen=True)
class Lenders:
    """Real images by id and group, and their amplitudes, (N, C, h, w // 2 + 1) float16, of the extended images."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    amplitudes: torch.Tensor


class Amplitudes(ModelMixin, ConfigMixin):
    """A prior's statistics and lenders' amplitudes; nothing in it is trained.

    Args:
        in_channels, sample_size: of the images. prior: settings, regions and provenance of the prior; None without.
        shapes: of the tensors, by name. lender_ids, lender_groups: whose amplitudes they are.
    """

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 64, prior: dict | None = None,
                 shapes: dict[str, list[int]] | None = None, lender_ids: Sequence[str] = (),
                 lender_groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # gives the module a device and a file
        for name, shape in sorted((shapes or {}).items()):  # the order in which a saved configuration has them
            self.register_buffer(name, torch.zeros(shape, dtype=_dtype_of(name)))

    @classmethod
    def of(cls, *, channels: int, size: int, prior: FrequencyPrior | None, lenders: Lenders | None) -> Amplitudes:
        """Returns the module that holds `prior` and `lenders`, for images of that many channels and px a side."""
        tensors = {f"prior_{name}": value for name, value in prior.sums.items()} if prior else {}
        if lenders:
            tensors["lent"] = lenders.amplitudes
        facts = prior and {"settings": prior.settings.model_dump(mode="json"), "regions": list(prior.regions),
                           "seen": {**asdict(prior.seen), "groups": list(prior.seen.groups)}}
        made = cls(channels, size, facts, {name: list(value.shape) for name, value in tensors.items()},
                   list(lenders.ids) if lenders else [], list(lenders.groups) if lenders else [])
        made.load_state_dict({"anchor": made.anchor, **tensors})
        return made

    @property
    def prior(self) -> FrequencyPrior | None:
        """The prior, None if it has none."""
        facts = self.config.prior
        if facts is None:
            return None
        sums = {name.removeprefix("prior_"): value for name, value in self.named_buffers() if name != "lent"}
        seen = Seen(**{**facts["seen"], "groups": tuple(facts["seen"]["groups"])})
        return FrequencyPrior(PriorSettings(**facts["settings"]), tuple(facts["regions"]), seen, sums)

    def lender(self, row: int) -> tuple[str, str]:
        """Returns id and group of lender number `row`."""
        return self.config.lender_ids[row], self.config.lender_groups[row]

    @property
    def n_lenders(self) -> int:
        """How many images' amplitudes it has."""
        return len(self.config.lender_ids)


def _dtype_of(name: str) -> torch.dtype:
    if name == "lent":
        return torch.float16
    return torch.int64 if name == "prior_buckets" else torch.float64
