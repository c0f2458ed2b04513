"""Settings: YAML + key=value overrides -> a frozen, strict pydantic model. An unknown key is an error."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from synth.core.checks import UserError
from synth.core.files import write_text

SHIPPED = Path(__file__).resolve().parents[2]
"""The folder that holds configs/: the checkout's root, or where a wheel put its files."""


def find_config(path: str | Path) -> Path:
    """Returns the YAML file `path`: as seen from here or, for configs/..., the one that Pairsmith itself ships.

    A file of the user's own goes first, so a copy that was edited is the one that is read.

    Raises:
        UserError: if there is neither.
    """
    asked = Path(path)
    if asked.is_file():
        return asked
    shipped = SHIPPED / asked
    if not asked.is_absolute() and asked.parts[:1] == ("configs",) and shipped.is_file():
        return shipped
    presets = ", ".join(p.relative_to(SHIPPED).as_posix() for folder in ("configs", "configs/tiny")
                        for p in sorted((SHIPPED / folder).glob("*.yaml")))
    raise UserError(str(path), rule="no such file", repair=f"give the path of a YAML file, or one of {presets}")


MERGE = "tag:yaml.org,2002:merge"
"""Of the key <<, which takes over another mapping."""


class _Loader(yaml.SafeLoader):
    """YAML in which a word stays the word that was typed, but for true, false, null and plain decimal numbers.

    YAML 1.1 makes numbers of 007, 2024_02_02 and 1:1, a date of 2024-02-03 and false of "no": patients and folders are
    called so. "1.50" stays as well, for settings that want a number read one from it.
    """

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:  # noqa: FBT001, FBT002 - yaml's
        """Returns the mapping of `node`, unless it names a key twice: yaml would take the last without a word."""
        names = [key.value for key, _ in node.value if key.tag != MERGE]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            problem = f"the key {twice!r} stands there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"), ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"-?(0|[1-9][0-9]*)", "-0123456789"), ("merge", "<<", "<"),
        ("float", r"-?(0|[1-9][0-9]*)\.([0-9]*[1-9]|0)([eE][-+]?[0-9]+)?|-?\.inf|\.nan", "-.0123456789")):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list(_first))


def read_yaml(text: str) -> object:
    """Returns what a YAML text says; words that are no plain number, true, false or null are texts."""
    return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader


def _read_value(text: str) -> object:
    # Of an override. A word is taken whole: " #" or ": " in a folder's name is no comment and no mapping.
    plain = text.strip()
    if plain[:1] not in tuple("[{'\""):
        tag = _Loader("").resolve(yaml.ScalarNode, plain, (True, False))
        if tag == "tag:yaml.org,2002:str":
            return plain
    return read_yaml(plain)


class Settings(BaseModel):
    """A group of settings: frozen, and strict about its keys."""

    # A folder may be called 2024: YAML reads a number there, and the setting wants its text.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, tree: object) -> object:
        # The shell can write no other empty text than `key=`, in which YAML reads null.
        if not isinstance(tree, dict):
            return tree
        empty = {name for name, field in cls.model_fields.items() if field.default == ""}
        return {key: "" if value is None and key in empty else value for key, value in tree.items()}

    @model_validator(mode="before")
    @classmethod
    def _groups_keep_their_defaults(cls, tree: object) -> object:
        # A group that is given in part is else filled up by its class, where this model may have other defaults for it.
        if not isinstance(tree, dict):
            return tree
        own = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Settings)}
        return {key: _over(own[key].model_dump(exclude_unset=True), value) if key in own else value
                for key, value in tree.items()}


def _over(default: object, given: object) -> object:
    """Returns what is given, and of groups also the defaults that it does not name."""
    if not (isinstance(default, dict) and isinstance(given, dict)):
        return given
    return {**default, **{key: _over(default.get(key), value) for key, value in given.items()}}


Word = BeforeValidator(lambda value: "no" if value is False else value)
"""Of settings one of whose words is "no": a dict that was read as YAML 1.1 has false there."""

S = TypeVar("S", bound=Settings)


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _merge(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}", rule="overrides are key=value", repair="write for example seed=1")
    *path, last = key.strip().split(".")
    for part in path:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise UserError(f"override {key}", rule=f"{part} is not a group of settings", repair="drop the dot")
        tree = child
    try:
        tree[last] = _read_value(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}", rule=f"its value is not YAML ({getattr(error, 'problem', error)})",
                        repair=f"close its brackets, or quote it: {key}='\"...\"'") from None


def _explain(model: type[BaseModel], error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _known_keys(model), n=1, cutoff=0.0)
        return UserError(f"{where}: {key}", rule="no such setting", repair=f"did you mean {near[0]}?" if near else "")
    if first["type"] == "tuple_type" and not isinstance(first.get("input"), dict):
        return UserError(f"{where}: {key}", rule="it takes a list", repair=f"write {key}='[{first.get('input')}]'")
    return UserError(f"{where}: {key}", rule=first["msg"], repair=f"change it (got {first.get('input')!r})")


def load_config(model: type[S], source: str | Path | S | dict | None = None, overrides: Sequence[str] = ()) -> S:
    """Returns the settings of `source` (a YAML file, a dict, a model, or nothing) with `key=value` overrides.

    Raises:
        UserError: naming the key; for an unknown one, the nearest known key.
    """
    tree, where = _read_tree(source, overrides)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _explain(model, error, where) from None


def _read_tree(source: str | Path | Settings | dict | None, overrides: Sequence[str]) -> tuple[dict, str]:
    """Returns the settings of `source` with `key=value` overrides, unchecked, and where they come from."""
    if isinstance(source, Settings):
        tree, where = source.model_dump(mode="json"), type(source).__name__
    elif isinstance(source, dict) or source is None:
        tree, where = copy.deepcopy(source or {}), "settings"  # overrides must not reach the caller's own dict
    else:
        tree, where = _read_yaml(find_config(source)), str(source)
    for override in overrides:
        _merge(tree, override)
    return tree, where


def kind_of(source: str | Path | Settings | dict | None, overrides: Sequence[str] = ()) -> str | None:
    """Returns what `source` and its overrides name as `kind`, None if nothing: it decides which model the rest fits."""
    return _read_tree(source, overrides)[0].get("kind")


def _read_yaml(path: Path) -> dict:
    try:
        tree = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(path), rule=f"not YAML ({str(error).splitlines()[0]})", repair="mend the file") from None
    if not isinstance(tree, dict):
        raise UserError(str(path), rule="settings are a mapping of keys to values", repair="mend the file")
    return tree


def save_config(settings: Settings, path: Path) -> None:
    """Writes every resolved setting as YAML, atomically."""
    write_text(path, to_yaml(settings))


def change_config(path: Path, words: dict[str, object]) -> None:
    """Makes saved settings say `words`, by name, atomically; all others stay as they were when the run was made."""
    held = read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else words
    if {**held, **words} != held:
        write_text(path, yaml.safe_dump({**held, **words}, sort_keys=False))


def to_yaml(settings: Settings) -> str:
    """Returns every resolved setting as YAML text, in the order in which the model names them."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
