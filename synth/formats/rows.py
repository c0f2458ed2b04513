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


def from_meta(row: Mapping[str, object]) -> Provenance | None:
    """Returns the provenance in one row of metadata; None for a pair that nobody drew."""
    if not any(row.get(key) for key in ("parents", "generator", "layout", "settings")):
        return None
    scores = row.get("scores") or {}
    texts = {key: str(row.get(key) or "") for key in TEXTS}
    return Provenance(tuple(row.get("parents") or ()), tuple(row.get("parent_groups") or ()), int(row.get("seed") or 0),
                      scores=json.loads(scores) if isinstance(scores, str) else dict(scores), **texts)


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
