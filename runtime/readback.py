"""Reading ranges of GPU buffers after a submission: one mappable buffer, made bigger when needed."""

from __future__ import annotations

from collections.abc import Sequence

from .replay import CopyCall, Prepared
from .resources import Resources
from .staging import Staging

Range = tuple[int, int, int]
"""(buffer, offset, nbytes); offset and size are multiples of 4."""


class Readback:
    """Submits work together with copies of what it wrote, waits, and gives the bytes."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._staging: Staging | None = None

    def run(self, work: Sequence[Prepared], ranges: Sequence[Range]) -> list[bytes]:
        """Replay `work`, then read `ranges`; their bytes in order.

        Raises:
            RuntimeFailure: the device reported an error or was lost.
        """
        total = sum(nbytes for _, _, nbytes in ranges)
        staging = self._fit(max(total, 4))
        copies, at = [], 0
        for buffer, offset, nbytes in ranges:
            copies.append(CopyCall(self._resources.buffers[buffer], offset, staging.buffer, at, nbytes))
            at += nbytes
        submission = self._resources.recorder.submit([*work, *copies])
        staging.request(max(total, 4))
        data = memoryview(staging.read(submission, max(total, 4)))
        parts, at = [], 0
        for _, _, nbytes in ranges:
            parts.append(bytes(data[at : at + nbytes]))
            at += nbytes
        return parts

    def _fit(self, nbytes: int) -> Staging:
        if self._staging is None or self._staging.nbytes < nbytes:
            self.destroy()
            size = -(-nbytes // 4096) * 4096
            self._staging = Staging(self._resources.device, self._resources.recorder, size)
        return self._staging

    def destroy(self) -> None:
        if self._staging is not None:
            self._staging.destroy()
            self._staging = None
