"""Which rows of a set make up a step's batch: a pure function of step and rank, so resuming needs no state."""

from __future__ import annotations

import numpy as np

from synth.core.checks import UserError
from synth.core.rng import derive_seed


def rows_of(step: int, rank: int, n_ranks: int, *, n: int, batch_size: int, seed: int) -> list[int]:
    """Returns this rank's rows of a step's batch: epochs of seeded permutations, cut into batches.

    Raises:
        UserError: if the batch cannot be shared evenly.
    """
    if batch_size % n_ranks:
        raise UserError(f"batch_size={batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                        repair="change batch_size or the number of processes")
    rows = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, n)
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(n)
        rows.append(int(order[offset]))
    return rows[rank::n_ranks]
