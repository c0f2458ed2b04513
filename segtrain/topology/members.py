"""The topologies that are made of one or two networks, their decoders and their averages."""

from __future__ import annotations

from pydantic import Field

from segtrain.topology.topology import Build, Route, Topology
from synth.core.config import Settings
from synth.core.ema import Ema


class Single(Settings):
    """Slot member `single`: one network, which also labels for itself where a view asks for labels."""

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of one network."""
        return Topology({"student": build("student")})


class EmaTeacher(Settings):
    """Slot member `ema_teacher`: the exponential average of the student labels, buffers copied, evaluation mode."""

    decay: float = Field(0.99, ge=0, lt=1)

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of a student and its average."""
        student = build("student")
        return Topology({"student": student}, averages={"teacher": Ema(student, decay=self.decay)},
                        follows={"teacher": ("student",)})


class Dual(Settings):
    """Slot member `dual`: two networks that start differently; each labels for the other, or its average does.

    Attributes:
        decay: of the averages `teacher_a` and `teacher_b`; null = none.
    """

    decay: float | None = Field(None, ge=0, lt=1)

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of branches `a` and `b`."""
        nets = {"a": build("a"), "b": build("b")}
        if self.decay is None:
            return Topology(nets, labels_for={"a": "b", "b": "a"})
        averages = {f"teacher_{name}": Ema(net, decay=self.decay) for name, net in nets.items()}
        return Topology(nets, averages=averages, follows={"teacher_a": ("a",), "teacher_b": ("b",)},
                        labels_for={"a": "teacher_b", "b": "teacher_a"})


class MultiDecoder(Settings):
    """Slot member `multi_decoder`: one encoder under a main decoder and `n` more, branches `student`, `aux1`, ...

    Without an average the main decoder labels for all.
    """

    n: int = Field(3, ge=1, le=8)

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of one network with 1 + n branches."""
        names = ("student", *(f"aux{i + 1}" for i in range(self.n)))
        return Topology({"student": build("student").add_decoders(self.n)},
                        routes={name: Route("student", i) for i, name in enumerate(names)},
                        labels_for=dict.fromkeys(names, "student"))


class Bands(Settings):
    """Slot member `bands`: a low-frequency and a high-frequency student; `teacher` is the average of their mean."""

    decay: float = Field(0.99, ge=0, lt=1)

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of branches `low` and `high`; both start from the same weights, else no mean of them
        would mean anything."""
        low, high = build("low"), build("low")
        return Topology({"low": low, "high": high}, averages={"teacher": Ema(low, decay=self.decay)},
                        follows={"teacher": ("low", "high")})


class Staged(Settings):
    """Slot member `staged`: noisy student. The run is cut into `n` parts; at the end of each the student becomes the
    teacher of the next, which starts anew."""

    n: int = Field(3, ge=2, le=10)

    def __call__(self, build: Build) -> Topology:
        """Returns the topology of a student and the frozen teacher before it."""
        student = build("student")
        return Topology({"student": student}, averages={"teacher": Ema(student, decay=0.0)}, n_stages=self.n,
                        fresh=lambda stage: build(f"student{stage}"))
