"""The next batch, made while the network trains on this one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from synth.core.loop import Batch, Batches


class Ahead:
    """Batches, each made in a second thread while its predecessor is used.

    A batch is a pure function of its step, so nothing changes but when it is made; one that was not foreseen (a run
    that resumes, ranks that change) is asked for and waited for. Use it as a context: the thread ends with it.
    """

    def __init__(self, batches: Batches, n_steps: int) -> None:
        self.batches, self.n_steps = batches, n_steps
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
        n_threads = torch.get_num_threads()
        self.worker.submit(_compute_alone).result()
        torch.set_num_threads(n_threads)
        self.coming: tuple[tuple[int, int, int], Future[Batch]] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.worker.shutdown(wait=True, cancel_futures=True)

    def __call__(self, step: int, rank: int, n_ranks: int) -> Batch:
        """Returns what `batches` returns for these, and starts on the next step's.

        Raises:
            Exception: whatever `batches` raised.
        """
        asked, coming = (step, rank, n_ranks), self.coming
        foreseen = coming[1] if coming and coming[0] == asked else self.worker.submit(self.batches, *asked)
        batch = foreseen.result()
        after = (step + 1, rank, n_ranks)
        self.coming = (after, self.worker.submit(self.batches, *after)) if step + 1 < self.n_steps else None
        return batch


def _compute_alone() -> None:
    # As many OpenMP threads again as the network's own are more than there are cores, and libgomp then puts every
    # thread to sleep at every barrier: training took 1.6 times as long on two cores. The number is a thread's own from
    # the first time it is read there; for the process it is set back afterwards.
    torch.set_num_threads(1)
    torch.get_num_threads()
