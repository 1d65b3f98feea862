"""How many requests and tokens go out a minute: never more than allowed in any 60 seconds, whenever they begin."""

import threading
from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0


@dataclass
class Start:
    """A request that has its time.

    Attributes:
        at: seconds on the caller's clock; not earlier than those given before.
        tokens: what it takes, as far as is known.
    """

    at: float
    tokens: int


class RequestPace:
    """Gives each request the time at which it may go; may be shared by threads.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit. A request that alone takes more goes alone.
    """

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        self._most_requests, self._most_tokens = requests_per_minute, tokens_per_minute
        self._starts: deque[Start] = deque()
        self._one_at_a_time = threading.Lock()

    def start(self, now: float, tokens: int) -> Start:
        """When a request may go that takes at most `tokens`; the caller waits until then.

        Args:
            now: seconds on a clock that never goes back.
            tokens: an upper bound; told better by `took`, so that later requests need not wait for nothing.
        """
        with self._one_at_a_time:
            at = max(now, self._starts[-1].at) if self._starts else now
            while (free := self._free_from(at, tokens)) > at:
                at = free
            while self._starts and self._starts[0].at <= at - WINDOW_SECONDS:
                self._starts.popleft()
            start = Start(at, tokens)
            self._starts.append(start)
            return start

    def took(self, start: Start, tokens: int) -> None:
        """What a request really took."""
        with self._one_at_a_time:
            start.tokens = tokens

    def _free_from(self, at: float, tokens: int) -> float:
        """`at`, or when the oldest request that stands in the way is 60 seconds old."""
        recent = [start for start in self._starts if start.at > at - WINDOW_SECONDS]
        if not recent:
            return at
        full = self._most_requests is not None and len(recent) >= self._most_requests
        heavy = self._most_tokens is not None and sum(start.tokens for start in recent) + tokens > self._most_tokens
        return recent[0].at + WINDOW_SECONDS if full or heavy else at
