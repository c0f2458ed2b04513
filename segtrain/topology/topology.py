"""Who owns which networks: students, averages of them, and which of them labels and predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from segtrain.models import Ensemble, Features, Part, Seen, SegNet
from synth.core.checks import UserError
from synth.core.ema import Ema

Build = Callable[[str], SegNet]
"""Name of a network -> a fresh one; other names, other weights. Names may map to other architectures."""


@dataclass(frozen=True)
class Route:
    """Which network a branch is, and which of its decoders."""

    net: str
    decoder: int = 0


@dataclass(frozen=True)
class Look:
    """What a branch is shown: unit images (B, C, H, W), and what changes their features, if anything does."""

    branch: str
    images: torch.Tensor
    perturb: Callable[[Features], Features] | None = None


@dataclass
class Topology:
    """The networks of one method.

    Attributes:
        nets: trained networks by name. The loop puts their wrapped forms into this very dictionary.
        routes: branches, the things that see views, by name.
        averages: exponential averages by name. follows: of which networks' mean each is one.
        labels_for: who labels for a branch; a branch that is not named has the first average, else itself.
        n_stages: at each equal part of the run but the first, `teacher` becomes a copy of the student.
    """

    nets: dict[str, SegNet]
    routes: dict[str, Route] = field(default_factory=dict)
    averages: dict[str, Ema] = field(default_factory=dict)
    follows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels_for: dict[str, str] = field(default_factory=dict)
    n_stages: int = 1
    stage: int = 0
    fresh: Callable[[int], SegNet] | None = None

    def __post_init__(self) -> None:
        self.routes = self.routes or {name: Route(name) for name in self.nets}

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches."""
        return tuple(self.routes)

    def route(self, branch: str) -> Route:
        """Returns the network and decoder of a branch.

        Raises:
            UserError: if there is no such branch.
        """
        if branch not in self.routes:
            raise UserError(f"branch {branch}", rule="this topology has no such branch",
                            repair=f"take one of {', '.join(self.routes)}")
        return self.routes[branch]

    def network(self, branch: str) -> SegNet:
        """Returns the network of a branch without the loop's wrapping, for terms that reach into its parts."""
        return _bare(self.nets[self.route(branch).net])

    def labeller(self, branch: str) -> str:
        """Returns the name of what labels for `branch` unless its view says otherwise."""
        return self.labels_for.get(branch) or next(iter(self.averages), branch)

    def students(self, looks: Sequence[Look]) -> list[Seen]:
        """Returns what each look's branch saw, with gradient, in training mode.

        All looks at one network go through it together, hence share, where it has batch norm, the statistics.
        """
        found: dict[int, Seen] = {}
        for name, net in self.nets.items():
            mine = [i for i, look in enumerate(looks) if self.route(look.branch).net == name]
            if not mine:
                continue
            parts = [Part(len(looks[i].images), self.route(looks[i].branch).decoder, looks[i].perturb) for i in mine]
            images = looks[mine[0]].images if len(mine) == 1 else torch.cat([looks[i].images for i in mine])
            found |= dict(zip(mine, net(images, parts).split([part.rows for part in parts]), strict=True))
        return [found[i] for i in range(len(looks))]

    @torch.no_grad()
    def teacher(self, images: torch.Tensor, name: str, *, perturb: Callable[[Features], Features] | None = None,
                dropout: bool = False) -> Seen:
        """Returns what an average or a branch says of unit images (B, C, H, W): no gradient, evaluation mode.

        Where the answer shall vary, `perturb` changes the features, and `dropout` leaves dropout layers at work.
        """
        decoder = 0
        if name in self.averages:
            net = self.averages[name].net
        else:
            route = self.route(name)
            net, decoder = _bare(self.nets[route.net]), route.decoder
        mode = net.training
        net.eval()
        for module in net.modules():
            if dropout and isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.train()
        seen = net(images, [Part(len(images), decoder, perturb)])
        net.train(mode)
        return seen

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Called once after every optimiser step, `progress` of the run then done: averages follow, stages pass."""
        for name, average in self.averages.items():
            if name in self.follows:
                average.update(*(self.nets[net] for net in self.follows[name]))
        stage = min(int(progress * self.n_stages + 1e-9), self.n_stages - 1)
        if stage > self.stage:
            self.stage = stage
            student = _bare(self.nets["student"])
            self.averages["teacher"].net.load_state_dict(student.state_dict())
            student.load_state_dict(self.fresh(stage).state_dict())

    def predictor(self, name: str) -> nn.Module:
        """Returns the network that a finished run predicts with: an average, a branch, or the "mean" of all branches.

        Raises:
            UserError: if this topology has none of that name.
        """
        if name in self.averages:
            return self.averages[name].net.main()
        if name == "mean":
            if any(route.decoder for route in self.routes.values()):
                raise UserError("predictor 'mean'", rule="the branches of this topology are decoders of one network, "
                                "and the first alone is kept", repair=f"write predictor: {self.branches[0]}")
            return Ensemble([_bare(self.nets[net]).main() for net in self.predictors("mean")])
        if name not in self.routes or self.routes[name].decoder:
            names = [*self.averages, *(n for n, r in self.routes.items() if not r.decoder)]
            raise UserError(f"predictor {name!r}", rule="this topology has no such predictor",
                            repair=f"take one of {', '.join(names)}")
        return _bare(self.nets[self.routes[name].net]).main()

    def predictors(self, name: str) -> tuple[str, ...]:
        """Returns the names of the networks, as `Build` knows them, that `predictor(name)` is made of."""
        if name == "mean":
            return tuple(dict.fromkeys(route.net for route in self.routes.values()))
        return (self.follows.get(name, ("student",))[0],) if name in self.averages else (self.routes[name].net,)


def _bare(net: nn.Module) -> SegNet:
    return getattr(net, "module", net)
