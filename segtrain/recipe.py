"""The one recipe behind every method: loss of labels, real and synthetic, + lambda(t) * what the method's slots say."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from segtrain.bound import BoundPhase, BoundTerm, BoundView
from segtrain.heads import HEADS, Sizes
from segtrain.labels import LABELS
from segtrain.losses import SUPERVISED
from segtrain.losses.deep import between_kinds, loss_by_kind
from segtrain.method import Method, Step, member
from segtrain.models import SegNet, build_model, check_size, partner_of
from segtrain.optimizers import make_optimizer
from segtrain.scene import Scene, Supervised
from segtrain.settings import ModelSettings, SegmentSettings
from segtrain.streams.fingerprint import Standard
from segtrain.targets import from_labels, soft
from segtrain.topology import TOPOLOGIES, Look
from synth.core.loop import Batch, Recipe, poly
from synth.core.pairs import DataInfo
from synth.core.rng import derive_seed
from synth.spectral import FrequencyPrior

log = logging.getLogger(__name__)
PATIENCE = 500
PROBE_EVERY = 20
"""Steps between two looks at how right the kept pixels of the labelled images are."""


class SegmentRecipe(Recipe):
    """How a segmenter is trained by any method.

    Everything that one network sees in a step goes through it together. At lambda = 0 no unlabelled image is looked
    at, and a step is a supervised one, bit for bit.
    """

    def __init__(self, settings: SegmentSettings, method: Method, *, info: DataInfo, has_synthetic: bool,
                 standard: Standard = None, prior: FrequencyPrior | None = None) -> None:
        super().__init__()
        assert (standard is None) == (settings.normalise == "range"), "images are standardised as the settings say"
        self.standard, self.prior = standard, prior
        self.settings, self.method, self.info, self.has_synthetic = settings, method, info, has_synthetic
        self.form = member(TOPOLOGIES, method.topology, "topology")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(settings.loop.seed, "topology"))  # for decoders that a network gets later
            self.topology = self.form(self._build)
        self.nets, self.averages = self.topology.nets, self.topology.averages
        for net in self.nets.values():
            check_size(net, settings.side)
        self.predictor()
        first = next(iter(self.nets.values()))
        self.heads = {name: self._head(name, step, first) for name, step in method.heads.items()}
        self.optimizers = {name: make_optimizer(net, settings, self.model(name)) for name, net in self.nets.items()}
        self.optimizers |= {f"head_{name}": make_optimizer(head, settings) for name, head in self.heads.items()}
        self.nets |= {f"head_{name}": head for name, head in self.heads.items()}
        starts = (0.0, *(phase.until for phase in method.plan()))
        self.phases = [BoundPhase(phase, start, self.topology.branches[0])
                       for phase, start in zip(method.plan(), starts, strict=False)]
        self.labels = member(LABELS, method.labels, "labels")
        self.supervised_loss = member(SUPERVISED, method.supervised_loss, "supervised_loss")
        self.memory: dict[str, torch.Tensor] = {}
        self.n_steps, self.n_inert, self.n_unlabelled = 0, 0, 0
        self.precision: float | None = None
        for view in (view for phase in self.phases for view in phase.views):
            self.topology.route(view.branch)
            view.narrow(soft(torch.zeros(1, info.n_classes, 1, 1)), None)  # a threshold nothing can miss is found here

    def model(self, name: str) -> ModelSettings:
        """Returns which network the topology's net `name` is; a topology may have its own `network` for each name."""
        if hasattr(self.form, "network"):
            return self.form.network(name, self.settings.model, self.settings.second)
        if name != "b" or not self.method.hetero:
            return self.settings.model
        return self.settings.second or partner_of(self.settings.model)

    def _build(self, name: str) -> SegNet:
        # The one of a supervised run has the run's own seed, so that methods start from the same weights.
        seed = self.settings.loop.seed
        model = self.model(name)
        return build_model(model.name, self.info.channels, self.info.n_classes, model, standard=self.standard,
                           seed=seed if name in ("student", "a", "low") else derive_seed(seed, name))

    def _head(self, name: str, step: Step, net: SegNet) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.settings.loop.seed, "head", name))
            widths = {of: some.widths for of, some in self.topology.nets.items() if isinstance(some, SegNet)}
            return member(HEADS, step, "head")(Sizes(net.widths, self.info.channels, self.info.n_classes, widths))

    def predictor(self) -> nn.Module:
        """Returns the network that the method predicts with."""
        return self.topology.predictor(self.method.predictor)

    def predictor_models(self) -> tuple[ModelSettings, ...]:
        """Returns which networks the predictor is made of."""
        return tuple(self.model(name) for name in self.topology.predictors(self.method.predictor))

    def lr_factor(self, progress: float) -> float:
        """Returns the poly schedule at `progress`, anew for every stage of a staged run."""
        return poly(progress * self.topology.n_stages % 1)

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns how many supervised (labelled + synthetic) images the batch held, the same for every method, and at
        how many unlabelled ones the last step looked: none while a method has not begun with them."""
        return {"images_seen": len(batch["images"]), "unlabelled_seen": self.n_unlabelled}

    def extra_state(self) -> dict:
        """Returns what the slots remember, the stage, and what the log needs to go on."""
        return {"n_steps": self.n_steps, "n_inert": self.n_inert, "precision": self.precision, "memory": self.memory,
                "stage": self.topology.stage}

    def load_extra_state(self, state: dict) -> None:
        """Restores what `extra_state` returned."""
        self.n_steps, self.n_inert, self.precision = state["n_steps"], state["n_inert"], state["precision"]
        # What is kept as bytes, an entry for each image, stays off the device, whatever else was loaded onto it.
        self.memory = {k: v.cpu() if v.dtype == torch.uint8 else v for k, v in state["memory"].items()}
        self.topology.stage = state["stage"]

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Returns the losses, and what the slots have to say, of one update."""
        phase = next(phase for phase in self.phases if progress < phase.until)
        within = phase.progress(progress)
        lam = phase.lambda_u.at(within, round(self.settings.loop.steps * (phase.until - phase.start)))
        views = [view for view in phase.views if lam or not view.ramp]
        terms = [term for term in phase.terms if lam or not term.ramp]
        scene = self._scene(batch, within, views, terms)
        scene.shown = [view.show(scene, i) for i, view in enumerate(views)]
        self._look(scene, phase)
        loss, logged = self._supervised(scene, phase)
        if views or terms:
            extra, said = self._extra(scene, views, terms, lam)
            loss, logged = loss + extra, logged | said
        self._update(loss, progress)
        return {"loss": loss.detach(), **logged, **{k: v.detach() for k, v in scene.stats.items()}}

    def _update(self, loss: torch.Tensor, progress: float) -> None:
        self.descend(loss, clip=self.settings.optim.clip)
        self.n_steps += 1
        stage = self.topology.stage
        self.topology.after_step(progress + 1 / self.settings.loop.steps)
        if self.topology.stage != stage:  # the moments were the old student's; the new one starts without
            self.optimizers["student"].state.clear()

    def _scene(self, batch: Batch, progress: float, views: list[BoundView], terms: list[BoundTerm]) -> Scene:
        seeds = tuple(batch["seeds"].tolist())
        weight = batch["weights"][:, None, None].expand(batch["labels"].shape) if "weights" in batch else None
        given = Supervised(batch["images"], batch["labels"], batch["synthetic"], batch["rows"], seeds, weight=weight,
                           observers=batch.get("observers"))
        heads = {name: self.nets[f"head_{name}"] for name in self.heads}
        scene = Scene(self.n_steps, progress, self.settings.loop.steps, self.info.n_classes, self.topology, heads,
                      self.memory, batch, given, w_syn=self.settings.w_syn, prior=self.prior)
        scene.augment(self.settings.augment)
        scene.supervised = self.labels(scene)
        if "unlabelled" in batch and (terms or any(view.of == "unlabelled" for view in views)):
            scene.show_clean(self.settings.augment.geometry)
        looked = scene.clean is not None or self.settings.augment.spectrum.needs_unlabelled
        self.n_unlabelled = len(batch["unlabelled"]) if looked and "unlabelled" in batch else 0
        return scene

    def _look(self, scene: Scene, phase: BoundPhase) -> None:
        taught = phase.supervised and len(scene.supervised.images)
        own = [Look(branch, scene.supervised.images) for branch in self.topology.branches] if taught else []
        seen = self.topology.students([*own, *(Look(v.branch, v.images, v.perturb) for v in scene.shown)])
        scene.seen = dict(zip(self.topology.branches, seen, strict=False)) if own else {}
        for view, found in zip(scene.shown, seen[len(own):], strict=True):
            view.seen = found

    def _supervised(self, scene: Scene, phase: BoundPhase) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not scene.seen:
            return torch.zeros((), device=self.device), {}
        parts = [loss_by_kind(self.supervised_loss, seen, scene.supervised) for seen in scene.seen.values()]
        real, synthetic = (sum(kind) for kind in zip(*parts, strict=True))
        logged = {"loss_labelled": real.detach() / len(parts)}
        if self.has_synthetic:
            logged["loss_synthetic"] = synthetic.detach() / len(parts)
        both = between_kinds(real, synthetic, scene.supervised.synthetic, w_syn=self.settings.w_syn)
        return phase.supervised * both, logged

    def _extra(self, scene: Scene, views: list[BoundView], terms: list[BoundTerm], lam: float
               ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, logged = torch.zeros((), device=scene.supervised.images.device), {"lambda": torch.tensor(lam)}
        for view, shown in zip(views, scene.shown, strict=True):
            if view.loss is None:
                continue
            total = total + (lam if view.ramp else 1.0) * view.weight * view.loss_of(shown)
        for term in terms:
            value = term.call(scene)
            key = f"loss_{term.name}"  # a method may have a term twice, of other views each
            logged[key] = logged.get(key, 0) + value.detach()
            total = total + (lam if term.ramp else 1.0) * term.weight * value
        if views:
            logged |= self._stats(scene, views)
        return total, {"loss_unlabelled": total.detach(), **logged}

    def _stats(self, scene: Scene, views: list[BoundView]) -> dict[str, torch.Tensor]:
        stats: dict[str, torch.Tensor] = {}
        for i, shown in enumerate(scene.shown):
            stats |= {key if i == 0 else f"{key}_{i}": value for key, value in shown.target.stats.items()}
        if "kept" in stats:
            self._watch(float(stats["kept"]))
        if "kept" in stats and len(scene.supervised.images):
            if self.precision is None or self.n_steps % PROBE_EVERY == 0:
                self.precision = self._precision(scene, views[0])
            stats["precision_labelled"] = torch.tensor(self.precision)
        return stats

    def _watch(self, kept: float) -> None:
        self.n_inert = self.n_inert + 1 if not 0.02 <= kept <= 0.98 else 0
        if self.n_inert == PATIENCE:
            log.warning("for %d steps the filter has kept %.3g of the pixels: it decides nothing; change how strict it "
                        "is", PATIENCE, kept)

    @torch.no_grad()
    def _precision(self, scene: Scene, view: BoundView) -> float:
        """Returns how many of the pixels that the filter would keep of the labelled images are right.

        The network was trained on these very images: an upper bound for the unlabelled ones.
        """
        real = ~scene.supervised.synthetic
        said = soft(scene.said_of_supervised(scene.topology.labeller(view.branch)).logits)
        target = view.narrow(said, replace(scene, probe=True))
        truth = from_labels(scene.supervised.labels, self.info.n_classes)
        counted = (target.valid & truth.valid)[real]
        right = (target.labels() == truth.hard)[real] & counted
        return float(right.sum() / counted.sum().clamp(min=1))
