"""Which rows a budget of seconds has room for, the most important first; what a run takes corrects the guesses."""

import time
from collections.abc import Callable, Iterable, Iterator

from .rows import Row

DOUBT = 20.0  # seconds of guesses that have to be wrong before they are corrected by half of it


class Budget:
    """So many seconds from now on; infinity has room for all."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds
        self._guessed = self._spent = DOUBT
        self.left_out: dict[str, str] = {}

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - self._clock()

    def expected(self, guess: float) -> float:
        """A guess, corrected by what earlier ones turned out to be."""
        return guess * self._spent / self._guessed

    def picks(self, rows: Iterable[Row], guess: Callable[[Row], float]) -> Iterator[Row]:
        """The rows that there is time for, in order, each to be measured before the next is asked for."""
        for row in rows:
            needed, left = self.expected(guess(row)), self.left
            if needed > left:
                self.left_out[row.name] = f"needs some {needed:.0f} s, {max(left, 0):.0f} s of the budget are left"
                continue
            yield row
            self._guessed += guess(row)
            self._spent += left - self.left
