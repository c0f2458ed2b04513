"""Who owns which networks: a student, perhaps a teacher, and which of them predicts in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import Field
from torch import nn

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.core.ema import Ema


class Topology(ABC):
    """The networks of one method.

    Attributes:
        nets: trained networks by name. The loop puts their wrapped forms into this very dictionary.
        averages: exponential averages by name.
    """

    def __init__(self, student: nn.Module) -> None:
        self.nets: dict[str, nn.Module] = {"student": student}
        self.averages: dict[str, Ema] = {}

    def students(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the student's logits (B, K, H, W) of unit images (B, C, H, W), with gradient, in training mode."""
        return self.nets["student"](images)

    @abstractmethod
    def teacher(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits (B, K, H, W) that label unit images (B, C, H, W): no gradient, evaluation mode."""

    @abstractmethod
    def after_step(self) -> None:
        """Called once after every optimiser step."""

    @abstractmethod
    def predictor(self, name: str) -> nn.Module:
        """Returns the network that a finished run predicts with.

        Raises:
            UserError: if this topology has none of that name.
        """


class _Single(Topology):
    @torch.no_grad()
    def teacher(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the student's own logits (B, K, H, W) of unit images (B, C, H, W) in evaluation mode."""
        net = getattr(self.nets["student"], "module", self.nets["student"])
        net.eval()
        logits = net(images)
        net.train()
        return logits

    def after_step(self) -> None:
        """Nothing follows a step."""

    def predictor(self, name: str) -> nn.Module:
        """Returns the student."""
        if name != "student":
            raise UserError(f"predictor {name!r}", rule="the topology single has a student only",
                            repair="write predictor: student, or topology: ema_teacher")
        return self.nets["student"]


class _EmaTeacher(Topology):
    def __init__(self, student: nn.Module, *, decay: float) -> None:
        super().__init__(student)
        self.averages["teacher"] = Ema(student, decay=decay)

    @torch.no_grad()
    def teacher(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the average's logits (B, K, H, W) of unit images (B, C, H, W)."""
        return self.averages["teacher"].net(images)

    def after_step(self) -> None:
        """Moves the average one step towards the student."""
        self.averages["teacher"].update(self.nets["student"])

    def predictor(self, name: str) -> nn.Module:
        """Returns the student or the teacher."""
        return self.averages["teacher"].net if name == "teacher" else self.nets["student"]


class Single(Settings):
    """Slot member `single`: one network, which also labels for itself where a view asks for labels."""

    def __call__(self, student: nn.Module) -> Topology:
        """Returns the topology around `student`."""
        return _Single(student)


class EmaTeacher(Settings):
    """Slot member `ema_teacher`: the exponential average of the student labels, buffers copied, evaluation mode."""

    decay: float = Field(0.99, ge=0, lt=1)

    def __call__(self, student: nn.Module) -> Topology:
        """Returns the topology around `student`."""
        return _EmaTeacher(student, decay=self.decay)


TOPOLOGIES: dict[str, type[Settings]] = {"single": Single, "ema_teacher": EmaTeacher}
"""Topologies by the name that method files use."""
