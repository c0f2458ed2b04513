"""A semi-supervised method as data: a YAML file that names the member of each slot and its settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_serializer

from segtrain.losses import LOSSES
from segtrain.targets import TARGETS
from segtrain.topology import TOPOLOGIES
from segtrain.views import PERTURBATIONS
from synth.core.checks import UserError
from synth.core.config import Settings, load_config, to_yaml

METHODS = Path(__file__).resolve().parents[1] / "configs" / "methods"


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
    """One view of the unlabelled images: what perturbs the student's input, what it shall predict, how that counts."""

    perturb: tuple[Slot, ...]
    target: tuple[Slot, ...]
    loss: Slot
    weight: float = Field(1.0, gt=0)


class Schedule(Settings):
    """Weight of the unlabelled loss over the run.

    Attributes:
        kind: "const", or "exp": max * exp(-5 (1 - t/length)^2) up to `length`, then `max` (Laine & Aila 2017).
        length, unit: of the ramp; the unit is "fraction" of the run or optimiser "steps", and has no default, because
            a ramp in steps changes its meaning when the run is shortened.
    """

    kind: Literal["const", "exp"] = "const"
    max: float = Field(1.0, ge=0)
    length: float | None = Field(None, gt=0)
    unit: Literal["fraction", "steps"] | None = None

    def at(self, progress: float, n_steps: int) -> float:
        """Returns the weight when the share `progress` of `n_steps` is done."""
        if self.kind == "const":
            return self.max
        length = self.length if self.unit == "fraction" else self.length / n_steps
        return self.max * math.exp(-5 * (1 - min(progress / length, 1)) ** 2)


class Method(Settings):
    """A published recipe.

    Attributes:
        citation: where it comes from. deviations: what differs here from there.
        topology: who owns which networks. views: of the unlabelled images; none = supervised.
        lambda_u: weight of the unlabelled loss. predictor: the network that predicts in the end.
    """

    name: str
    citation: str = ""
    deviations: tuple[str, ...] = ()
    topology: Slot = Step(name="single")
    views: tuple[View, ...] = ()
    lambda_u: Schedule = Schedule()
    predictor: Literal["student", "teacher"] = "student"


def member(registry: Mapping[str, type[Settings]], step: Step, slot: str) -> Settings:
    """Returns the slot member that `step` names, a callable, with its settings checked.

    Raises:
        UserError: naming the slot and the nearest known member or setting.
    """
    if step.name not in registry:
        near = difflib.get_close_matches(step.name, registry, n=1, cutoff=0.0)[0]
        raise UserError(f"{slot}: {step.name}", rule="no such member of this slot", repair=f"did you mean {near}?")
    try:
        return load_config(registry[step.name], dict(step.args))
    except UserError as error:
        raise UserError(f"{slot} {step.name}", rule=str(error), repair="mend the method file") from None


def _spelt_out(registry: Mapping[str, type[Settings]], step: Step, slot: str) -> Step:
    return Step(name=step.name, args=member(registry, step, slot).model_dump(mode="json"))


def _resolve(method: Method) -> Method:
    views = tuple(view.model_copy(update={
        "perturb": tuple(_spelt_out(PERTURBATIONS, s, "perturb") for s in view.perturb),
        "target": tuple(_spelt_out(TARGETS, s, "target") for s in view.target),
        "loss": _spelt_out(LOSSES, view.loss, "loss")}) for view in method.views)
    return method.model_copy(update={"views": views, "topology": _spelt_out(TOPOLOGIES, method.topology, "topology")})


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
    if source.lambda_u.kind == "exp" and (source.lambda_u.length is None or source.lambda_u.unit is None):
        raise UserError(f"method {source.name}: lambda_u", rule="a ramp has a length and a unit",
                        repair="add length: 0.4 and unit: fraction (or unit: steps)")
    return _resolve(source)


def method_text(source: str | Path | Method) -> str:
    """Returns a method, every setting spelt out, as YAML text: what identifies it."""
    return to_yaml(load_method(source))
