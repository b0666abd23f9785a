"""The same work on many items, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

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
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in track(futures, description):
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
