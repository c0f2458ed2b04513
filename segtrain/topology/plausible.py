"""The topology of one network that draws plausible masks."""

from __future__ import annotations

from segtrain.settings import ModelSettings
from segtrain.topology.topology import Build, Topology
from synth.core.config import Settings


class ProbUnet(Settings):
    """Slot member `prob_unet`: one probabilistic U-Net, on the encoder and decoder of the settings' `lite` network, or
    of a tiny one of the settings' widths in the place of any other."""

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of one network."""
        return Topology({"student": build("student")})

    def network(self, name: str, own: ModelSettings, second: ModelSettings | None) -> ModelSettings:  # noqa: ARG002
        """Returns which network `name` is."""
        if own.name in ("lite", "prob_lite"):
            return own.model_copy(update={"name": "prob_lite"})
        return own.model_copy(update={"name": "prob_tiny"})
