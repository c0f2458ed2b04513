"""Does a shape model tell real label maps from broken ones? AUC of its energy on maps it was not fitted on.

python scripts/benchmarks/shapes.py MODEL PAIRS [--without FITTED] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from synth.core.rng import choice, sample_rng
from synth.formats import load_pairs
from synth.layouts import ShapeModel


def torn(mask: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """Returns mask (S, S) with all below the middle of its foreground moved aside by a sixth of the side."""
    rows = np.flatnonzero((mask > 0).any(1))
    at, by = int(rows.mean().round()), len(mask) // 6 * (1 if choice(rng, 2) else -1)
    return np.concatenate([mask[:at], np.roll(mask[at:], by, axis=1)])


def mirrored(mask: np.ndarray, rng: torch.Generator) -> np.ndarray | None:
    """Returns mask (S, S) with its foreground mirrored within its own box; None for one class, whose mirror is real."""
    if mask.max() < 2:
        return None
    columns = np.flatnonzero((mask > 0).any(0))
    out, box = mask.copy(), slice(columns[0], columns[-1] + 1)
    out[:, box] = mask[:, box][:, ::-1]
    return out


def misplaced(mask: np.ndarray, rng: torch.Generator) -> np.ndarray | None:
    """Returns mask (S, S) with one class moved a quarter of the side away, None for one class."""
    classes = [k for k in np.unique(mask) if k > 0]
    if len(classes) < 2:
        return None
    k, quarter = classes[choice(rng, len(classes))], len(mask) // 4
    step = [(0, quarter), (0, -quarter), (quarter, 0), (-quarter, 0)][choice(rng, 4)]
    return np.where(np.roll(mask == k, step, (0, 1)), k, np.where(mask == k, 0, mask)).astype(np.uint8)


def auc(real: np.ndarray, broken: np.ndarray) -> float:
    """Returns the probability that a broken map has more energy than a real one; both (N,)."""
    return float((broken[:, None] > real[None]).mean() + 0.5 * (broken[:, None] == real[None]).mean())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--without", type=Path, help="pairs that the model was fitted on; their groups are left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="60 maps instead of 200")
    ask = parser.parse_args()
    model, pairs = ShapeModel.load(ask.model), load_pairs(ask.pairs)
    seen = set(load_pairs(ask.without).groups) if ask.without else set()
    rows = [i for i, group in enumerate(pairs.groups) if group not in seen]
    picked = torch.randperm(len(rows), generator=sample_rng(0, "maps"))[:60 if ask.quick else 200].tolist()
    masks = [m for m in pairs.select([rows[i] for i in picked]).arrays(model.size).masks if (m > 0).any()]
    real = model.energy(torch.from_numpy(np.stack(masks).astype(np.int64))).numpy()
    shown = [{"name": f"median_percentile/{ask.pairs.name}/real", "value": float(np.median(model.percentile(
        torch.from_numpy(np.stack(masks).astype(np.int64))))), "unit": ""}]
    for spoil in (torn, mirrored, misplaced):
        broken = [b for i, mask in enumerate(masks) if (b := spoil(mask, sample_rng(0, spoil.__name__, i))) is not None]
        if broken:
            energy = model.energy(torch.from_numpy(np.stack(broken).astype(np.int64))).numpy()
            shown.append({"name": f"auc/{ask.pairs.name}/{spoil.__name__}", "value": auc(real, energy), "unit": ""})
    for row in shown:
        print(f"{row['name']:48s} {row['value']:.3f}   n = {len(masks)}")
    if ask.json:
        ask.json.write_text(json.dumps({"rows": shown, "context": {"model": model.content_hash()}}, indent=1))


if __name__ == "__main__":
    main()
