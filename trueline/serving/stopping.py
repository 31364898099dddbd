"""Stop strings across chunks: text that may be the beginning of a stop string is held until it is known not to be."""

from __future__ import annotations

from collections.abc import Sequence


class StopHolder:
    """Cuts a stream of text before the stop string that is complete first; the stop string itself is never sent.

    Of several that end at the same character the longest counts. Where a stream is cut depends on its text alone, never
    on how it was parted into chunks.
    """

    def __init__(self, stops: Sequence[str]):
        if any(not stop for stop in stops):
            raise ValueError("an empty stop string")
        self.stops = tuple(sorted(stops, key=len, reverse=True))
        self.matched: str | None = None
        self._held = ""

    def add(self, text: str) -> str:
        """What may be sent of the text so far. Nothing more comes once `matched` is set."""
        if self.matched is not None:
            return ""
        self._held += text
        if found := self._first():
            start, self.matched = found
            sent, self._held = self._held[:start], ""
            return sent
        keep = self._open()
        sent = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return sent

    def finish(self) -> str:
        """What was held, once the text is over."""
        sent, self._held = self._held, ""
        return sent

    def _first(self) -> tuple[int, str] | None:
        """Start and text of the match that ends first; of equal ends the longest (the stops are in that order)."""
        found = [(at + len(stop), at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found, key=lambda match: match[0])
        return start, stop

    def _open(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(stop.startswith(tail) for stop in self.stops):
                return size
        return 0
