"""The next batch, made while the network trains on this one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from synth.core.loop import Batch, Batches


class Ahead:
    """Batches, each made in a second thread while its predecessor is used.

    A batch is a pure function of its step, so nothing changes but when it is made; one that was not foreseen (a run
    that resumes, ranks that change) is made on the spot. Use it as a context: the thread ends with it.
    """

    def __init__(self, batches: Batches, n_steps: int) -> None:
        self.batches, self.n_steps = batches, n_steps
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
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
        batch = coming[1].result() if coming and coming[0] == asked else self.batches(*asked)
        after = (step + 1, rank, n_ranks)
        self.coming = (after, self.worker.submit(self.batches, *after)) if step + 1 < self.n_steps else None
        return batch
