"""How fast a loop goes, and what it waits for. Pure: times come in as arguments, in seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SPAN_S = 5.0
MOST_MARKS = 64
INPUT_BOUND = 0.5


@dataclass(frozen=True)
class Speed:
    """Over the last seconds. ``waiting`` is the share of time in which the loop waited for its next item."""

    rows_s: float
    items_s: float
    waiting: float

    @property
    def verdict(self) -> str:
        """What a faster run needs: ``input-bound`` loops a faster source, ``compute-bound`` ones a faster step."""
        return "input-bound" if self.waiting > INPUT_BOUND else "compute-bound"


@dataclass
class Speedometer:
    """Told of every item, it remembers a mark every `SPAN_S` / `MOST_MARKS` seconds: (time, items, rows, waited)."""

    now_s: float
    items: int = 0
    rows: int = 0
    waited_s: float = 0.0
    _marks: deque[tuple[float, int, int, float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._marks.append((self.now_s, 0, 0, 0.0))

    def received(self, now_s: float, rows: int, waited_s: float) -> None:
        """An item of so many rows came, after the loop had waited so long for it."""
        self.items += 1
        self.rows += rows
        self.waited_s += waited_s
        self.now_s = now_s
        if now_s - self._marks[-1][0] >= SPAN_S / MOST_MARKS:
            self._marks.append((now_s, self.items, self.rows, self.waited_s))
            while len(self._marks) > 2 and self._marks[1][0] <= now_s - SPAN_S:
                self._marks.popleft()

    def speed(self) -> Speed:
        since_s, items, rows, waited_s = self._marks[0]
        passed_s = max(self.now_s - since_s, 1e-9)
        waiting = min(max((self.waited_s - waited_s) / passed_s, 0.0), 1.0)
        return Speed((self.rows - rows) / passed_s, (self.items - items) / passed_s, waiting)
