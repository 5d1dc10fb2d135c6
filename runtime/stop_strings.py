"""Strings that end a generation, found also where they lie across the borders of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import RuntimeFailure


class StopStrings:
    """Text in, text out up to the first stop string; what may be the beginning of one is held back.

    Raises:
        RuntimeFailure: a stop string is empty, or not text.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        self._held = ""
        self.found: str | None = None
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise RuntimeFailure("stop", f"is {stop!r}", "give text of at least one character")

    def push(self, text: str) -> str:
        """The part of what came so far that is certainly before any stop string; sets `found`."""
        if self.found is not None:
            return ""
        text = self._held + text
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            place, self.found = min(places)
            self._held = ""
            return text[:place]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        border = len(text) - keep
        self._held = text[border:]
        return text[:border]

    def finish(self) -> str:
        """What was held back, when nothing follows."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
