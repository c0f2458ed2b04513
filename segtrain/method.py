"""A semi-supervised method as data: a YAML file that names the member of each slot and its settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_serializer

from segtrain.heads import HEADS
from segtrain.labels import LABELS
from segtrain.losses import LOSSES, SUPERVISED
from segtrain.regularisers import REGULARISERS
from segtrain.schedule import Schedule
from segtrain.targets import SOURCES, TARGETS
from segtrain.topology import TOPOLOGIES
from segtrain.views import FEATURE_PERTURBATIONS, PERTURBATIONS
from synth.core.checks import UserError
from synth.core.config import SHIPPED, Settings, load_config, to_yaml

METHODS = SHIPPED / "configs" / "methods"


class Step(Settings):
    """A slot's member and its settings; `name` or `{name: {key: value}}` in YAML."""

    name: str
    args: dict[str, JsonValue] = {}

    @model_serializer
    def _short(self) -> str | dict[str, dict[str, JsonValue]]:
        return {self.name: dict(self.args)} if self.args else self.name


def _as_step(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1 and "name" not in value:
        name, args = next(iter(value.items()))
        return {"name": name, "args": args or {}}
    return value


Slot = Annotated[Step, BeforeValidator(_as_step)]


class View(Settings):
    """One view: what perturbs a branch's input, what it shall predict, how that counts.

    Attributes:
        of: which images: the "unlabelled" ones, or the "supervised" ones, whose source is then `labels`.
        branch: who sees it; null = the first branch.
        input: a further form of the images that the streams make ("tree_max", ...); null = the images.
        source: who says what the target is. target: operators on that.
        perturb: of the images, one after another. features: of what the encoder makes of them; null = none.
        loss, weight: how it counts; loss null = the view is only there for regularisers to look at. ramp: whether it
            also grows as `lambda_u` does.
    """

    of: Literal["unlabelled", "supervised"] = "unlabelled"
    branch: str | None = None
    input: str | None = None
    source: Slot = Step(name="teacher")
    target: tuple[Slot, ...] = ()
    perturb: tuple[Slot, ...] = ()
    features: Slot | None = None
    loss: Slot | None
    weight: float = Field(1.0, gt=0)
    ramp: bool = True

    def brings_labels(self) -> bool:
        """Returns whether pixels that a person labelled are among those it shows."""
        return self.of == "supervised" or any(step.name == "bcp" for step in self.perturb)


class Term(Settings):
    """A regulariser and how it counts: `weight`, times `lambda_u` where it shall `ramp` too."""

    use: Slot
    weight: float = Field(1.0, gt=0)
    ramp: bool = True


class Phase(Settings):
    """A part of the run, `until` that share of it: which terms are on. Schedules inside it run over the phase alone.

    Attributes:
        supervised: weight of the labelled and synthetic images' loss; 0 = they are not looked at.
    """

    until: float = Field(1.0, gt=0, le=1)
    supervised: float = Field(1.0, ge=0)
    views: tuple[View, ...] = ()
    regularisers: tuple[Term, ...] = ()
    lambda_u: Schedule = Schedule()


class Method(Settings):
    """A published recipe.

    Attributes:
        citation: where it comes from. deviations: what differs here from there.
        topology: who owns which networks. hetero: whether the second of two networks is of another architecture,
            `segment.second`. heads: what is trained beside them, by name.
        supervised_loss: of labelled and synthetic images. labels: what is made of their labels first.
        views, regularisers, lambda_u: of the whole run; or phases, each with its own.
        held_out_share: of the labelled images, whole groups that teach nothing: what slots calibrate themselves on.
        stack: so many neighbouring slices of a group are drawn together; 1 = images by themselves.
        predictor: the branch or average that predicts in the end, or "mean" of all branches.
    """

    name: str
    citation: str = ""
    deviations: tuple[str, ...] = ()
    topology: Slot = Step(name="single")
    hetero: bool = False
    heads: dict[str, Slot] = {}
    supervised_loss: Slot = Step(name="dice_ce")
    labels: Slot = Step(name="dense")
    views: tuple[View, ...] = ()
    regularisers: tuple[Term, ...] = ()
    lambda_u: Schedule = Schedule()
    phases: tuple[Phase, ...] = ()
    held_out_share: float = Field(0.0, ge=0, lt=1)
    stack: int = Field(1, ge=1)
    predictor: str = "student"

    def plan(self) -> tuple[Phase, ...]:
        """Returns the phases; a method without has one, of its own views."""
        return self.phases or (Phase(views=self.views, regularisers=self.regularisers, lambda_u=self.lambda_u),)

    def inputs(self) -> tuple[str, ...]:
        """Returns the further forms of the images that its views start from."""
        views = [view for phase in self.plan() for view in phase.views]
        return tuple(sorted({str(name) for v in views for name in (v.input, v.source.args.get("input")) if name}))

    def needs(self, what: Literal["unlabelled", "stored", "observers", "calibration", "stacks", "whole"]) -> bool:
        """Returns whether it looks at unlabelled images, stored pseudo-labels of them, or several observers' masks.

        Or at labelled images held out for "calibration", at "stacks" of slices, or at unlabelled images as a "whole".
        """
        if what == "unlabelled" and any(v.of == "unlabelled" for phase in self.plan() for v in phase.views):
            return True
        return any(what in getattr(registry[step.name], "needs", ()) for registry, step in self._steps())

    def perturbations(self) -> tuple[Step, ...]:
        """Returns every perturbation of images that its views name."""
        return tuple(step for phase in self.plan() for view in phase.views for step in view.perturb)

    def needs_labels(self) -> bool:
        """Returns whether it learns nothing, or not what it says, without labelled pairs.

        It can do without if every view is of unlabelled images whose labels are stored, and no other term looks on.
        """
        parts = self.plan()
        views = [view for phase in parts for view in phase.views]
        stored = all("stored" in getattr(SOURCES[view.source.name], "needs", ()) for view in views)
        # One perturbation brings labelled images of its own.
        mixed = any(step.name == "bcp" for view in views for step in view.perturb)
        plain = not (self.heads or self.held_out_share or self.stack > 1 or any(p.regularisers for p in parts))
        return not (stored and plain and not mixed and all(p.views for p in parts) and self.labels.name == "dense")

    def _steps(self) -> list[tuple[Mapping[str, type[Settings]], Step]]:
        steps = [(LABELS, self.labels), (SUPERVISED, self.supervised_loss)]
        for phase in self.plan():
            steps += [(REGULARISERS, term.use) for term in phase.regularisers]
            steps += [(SOURCES, view.source) for view in phase.views]
            steps += [(TARGETS, step) for view in phase.views for step in view.target]
        return steps


def member(registry: Mapping[str, type[Settings]], step: Step, slot: str) -> Settings:
    """Returns the slot member that `step` names, a callable, with its settings checked.

    Raises:
        UserError: naming the slot and the nearest known member or setting.
    """
    if step.name not in registry:
        near = difflib.get_close_matches(step.name, registry, n=1, cutoff=0.0)
        raise UserError(f"{slot}: {step.name}", rule="no such member of this slot",
                        repair=f"did you mean {near[0]}?" if near else "")
    try:
        return load_config(registry[step.name], dict(step.args))
    except UserError as error:
        raise UserError(f"{slot} {step.name}", rule=str(error), repair="mend the method file") from None


def _spelt_out(registry: Mapping[str, type[Settings]], step: Step, slot: str) -> Step:
    return Step(name=step.name, args=member(registry, step, slot).model_dump(mode="json"))


def _resolve_view(view: View) -> View:
    source = Step(name="labels") if view.of == "supervised" and view.source.name == "teacher" else view.source
    return view.model_copy(update={
        "source": _spelt_out(SOURCES, source, "source"),
        "perturb": tuple(_spelt_out(PERTURBATIONS, s, "perturb") for s in view.perturb),
        "features": view.features and _spelt_out(FEATURE_PERTURBATIONS, view.features, "features"),
        "target": tuple(_spelt_out(TARGETS, s, "target") for s in view.target),
        "loss": view.loss and _spelt_out(LOSSES, view.loss, "loss")})


def _resolve_terms(part: Method | Phase) -> dict[str, object]:
    terms = (t.model_copy(update={"use": _spelt_out(REGULARISERS, t.use, "regulariser")}) for t in part.regularisers)
    return {"views": tuple(_resolve_view(view) for view in part.views), "regularisers": tuple(terms)}


def _resolve(method: Method) -> Method:
    return method.model_copy(update={
        **_resolve_terms(method), "topology": _spelt_out(TOPOLOGIES, method.topology, "topology"),
        "heads": {name: _spelt_out(HEADS, step, "head") for name, step in method.heads.items()},
        "supervised_loss": _spelt_out(SUPERVISED, method.supervised_loss, "supervised_loss"),
        "labels": _spelt_out(LABELS, method.labels, "labels"),
        "phases": tuple(phase.model_copy(update=_resolve_terms(phase)) for phase in method.phases)})


def _check_view(name: str, view: View) -> None:
    # What one set's images show says nothing of the other's, though batches of equal size would go together.
    own = view.source in (Step(name="teacher"), Step(name="labels")) if view.of == "supervised" \
        else view.source.name != "labels"
    if not own:
        raise UserError(f"method {name}: source {view.source.name} of {view.of} images",
                        rule="it speaks of other images: supervised ones have the source labels, and no others do",
                        repair="leave source out, or change of")
    if view.of == "supervised" and view.input:
        raise UserError(f"method {name}: input {view.input}", rule="the streams make further forms of the unlabelled "
                        "images alone", repair="leave input out, or write of: unlabelled")


def _check(method: Method) -> None:
    if method.phases and (method.views or method.regularisers):
        raise UserError(f"method {method.name}", rule="terms of the whole run and phases exclude each other",
                        repair="move the views and regularisers into the phases")
    ends = [phase.until for phase in method.plan()]
    if ends != sorted(set(ends)) or ends[-1] != 1:
        raise UserError(f"method {method.name}: phases until {ends}", rule="the ends of phases grow up to 1",
                        repair="end the last phase with until: 1")
    for phase in method.plan():
        for view in phase.views:
            _check_view(method.name, view)
        phase.lambda_u.check(f"method {method.name}: lambda_u")


def load_method(source: str | Path | Method) -> Method:
    """Returns a method with every member's settings spelt out; `source` is a name in configs/methods, or a YAML file.

    Raises:
        UserError: if there is no such method, or a slot, member or setting in it is unknown.
    """
    if not isinstance(source, Method):
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            path = METHODS / f"{source}.yaml"
            if not path.is_file():
                known = sorted(p.stem for p in METHODS.glob("*.yaml"))
                raise UserError(f"method {source}", rule="no such method", repair=f"take one of {', '.join(known)}, "
                                "or give the path of a YAML file")
        source = load_config(Method, path)
    _check(source)
    return _resolve(source)


def method_text(source: str | Path | Method) -> str:
    """Returns a method, every setting spelt out, as YAML text: what identifies it."""
    return to_yaml(load_method(source))
