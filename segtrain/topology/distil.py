"""The topology of a light student between two larger teachers, all of them trained."""

from __future__ import annotations

from segtrain.models import partner_of
from segtrain.settings import ModelSettings
from segtrain.topology.topology import Build, Topology
from synth.core.config import Settings


class Distil(Settings):
    """Slot member `distil`: branches `student`, `wide` (its form, twice its widths) and `other` (another form).

    The student is the network of the settings, and the one that is light; the teachers are gone when the run ends.
    """

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of three networks; the wide teacher labels for the student, the student for both."""
        return Topology({name: build(name) for name in ("student", "wide", "other")},
                        labels_for={"student": "wide", "wide": "student", "other": "student"})

    def network(self, name: str, own: ModelSettings, second: ModelSettings | None) -> ModelSettings:
        """Returns which network `name` is."""
        if name == "wide":
            return own.model_copy(update={"channels": tuple(2 * width for width in own.channels)})
        return own if name == "student" else second or partner_of(own)
