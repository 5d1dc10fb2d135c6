"""An iterator that waits for the GPU, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


async def in_thread(iterator: Iterator[T]) -> AsyncGenerator[T, None]:
    """The items of `iterator`, each made in a thread of its own while the event loop goes on.

    >>> async for token in in_thread(session.generate(ids)): ...    # doctest: +SKIP

    Waiting for the GPU holds no lock of Python's. Cancelling the task, or leaving the loop and closing this,
    ends the generation once the tokens under way have come.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="webgpu-compile")
    try:
        while (item := await loop.run_in_executor(executor, next, iterator, _END)) is not _END:
            yield item
    finally:
        # The one thread takes its work in turn: after a cancellation this waits for the `next` under way.
        close = getattr(iterator, "close", None)
        try:
            if close is not None:
                await asyncio.shield(loop.run_in_executor(executor, close))
        finally:
            executor.shutdown(wait=False)
