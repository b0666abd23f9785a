"""The same work on many items, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from rich.progress import track


def in_parallel(function: Callable, items: Iterable, description: str, workers: int | None = None) -> None:
    """Call `function` on every item in `workers` threads (default: one per CPU); the first error stops all.

    Threads suffice: Pillow and zlib let go of the interpreter lock while they decode and encode.
    """
    items = list(items)
    if workers == 1:  # in this thread: nothing is begun after an error
        for item in track(items, description):
            function(item)
        return
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, dropping_the_rest(pool):
        futures = [pool.submit(function, item) for item in items]
        for future in track(futures, description):
            future.result()


@contextmanager
def dropping_the_rest(pool: Executor) -> Iterator[None]:
    """An error or a Ctrl-C in the block ends the pool's work; by itself, a pool finishes all that it was given."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


@contextmanager
def in_processes(function: Callable, items: Iterable, workers: int, chunk: int = 1) -> Iterator[Iterator]:
    """The results of `function` on every item, in order, from `workers` fresh processes that end with the block.

    A terminal sends Ctrl-C to them, too: they leave it to this process to end them.
    """
    # spawn, as nnU-Net: forking a process that holds torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _ignore_ctrl_c) as pool, dropping_the_rest(pool):
        with _ctrl_c_held_back():  # new processes inherit that, long before they can ask for it
            results = pool.map(function, items, chunksize=chunk)
        yield results


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
