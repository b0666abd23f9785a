"""The same work on many items, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
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
    """An error or a Ctrl-C in the block ends the pool's work, which it would finish otherwise."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


@contextmanager
def in_processes(function: Callable, items: Iterable, workers: int, chunk: int = 1) -> Iterator[Iterator]:
    """The results of `function` on every item, in order, from fresh processes that end with the block.

    A terminal sends Ctrl-C to them, too: they leave it to this process to end them.
    """
    # spawn, as nnU-Net: forking a process that holds torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    items = list(items)
    parts = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        try:
            with _ctrl_c_held_back():  # new processes inherit that, long before they can ask for it
                futures = [pool.submit(_call, function, part) for part in parts]
            yield (result for future in futures for result in future.result())
        except BaseException:
            for process in multiprocessing.active_children():  # a pool would wait until they have begun
                process.terminate()
            raise


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


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot say that there is nothing more to do."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable, items: list) -> list:
    return [function(item) for item in items]
