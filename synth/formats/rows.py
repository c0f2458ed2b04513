"""A pair's metadata as one flat row: the columns of a parquet shard, the keys of a line of metadata.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping

from synth.core.checks import UserError
from synth.core.pairs import Pair, Provenance

TEXTS = ("generator", "layout", "settings", "kept_sha256", "verdict", "reason")
"""The plain texts among them."""

META = ("id", "group", "origin", "parents", "parent_groups", "seed", *TEXTS, "scores", "weight")
"""All of them; `scores` is JSON text, `weight` what the pair counts in training."""


def to_meta(pair: Pair) -> dict[str, object]:
    """Returns the metadata of `pair`; empty texts and seed 0 for one that nobody drew."""
    made = pair.made or Provenance((), (), 0, "", "", "", verdict="")
    return {
        "id": pair.id, "group": pair.group, "origin": pair.origin, "parents": list(made.parents),
        "parent_groups": list(made.parent_groups), "seed": made.seed,
        **{name: getattr(made, name) for name in TEXTS}, "scores": json.dumps(made.scores, sort_keys=True),
        "weight": pair.weight,
    }


def from_meta(row: Mapping[str, object], where: str) -> Provenance | None:
    """Returns the provenance in one row of metadata; None for a pair that nobody drew.

    Raises:
        UserError: naming `where`, if parents are no list, the seed no number or the scores no JSON object.
    """
    if not any(row.get(key) for key in ("parents", "generator", "layout", "settings")):
        return None
    parents, parent_groups = (_listed(row, key, where) for key in ("parents", "parent_groups"))
    scores = row.get("scores") or {}
    try:
        seed, scores = int(row.get("seed") or 0), json.loads(scores) if isinstance(scores, str) else dict(scores)
    except (ValueError, TypeError) as error:
        raise UserError(where, rule=f"its seed is no number, or its scores no JSON object ({error})",
                        repair="mend them, or leave them out") from None
    if not isinstance(scores, dict):
        raise UserError(where, rule=f"its scores {scores!r} are no JSON object", repair="mend them, or leave them out")
    return Provenance(parents, parent_groups, seed, scores=scores, **{key: str(row.get(key) or "") for key in TEXTS})


def _listed(row: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    # A text would be taken for a list of its letters, and no leak would be found.
    if not isinstance(row.get(key) or [], list):
        raise UserError(where, rule=f"its {key} {row[key]!r} are no list", repair=f"write [{row[key]!r}]")
    return tuple(str(one) for one in row.get(key) or ())


def name_in(row: Mapping[str, object], key: str, default: str) -> str:
    """Returns the name that a row has under `key` as text, `default` where it has none; 0 is a name like any number."""
    return default if row.get(key) in (None, "") else str(row[key])


def weight_of(row: Mapping[str, object], where: str) -> float:
    """Returns what the pair of a row counts in training, 1 where the row does not say.

    Raises:
        UserError: naming `where`, if it is no number from 0 to 1.
    """
    weight = 1.0 if row.get("weight") is None else row["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise UserError(where, rule=f"its weight {weight!r} is no number from 0 to 1",
                        repair="mend it, or leave it out")
    return float(weight)
