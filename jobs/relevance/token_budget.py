"""A hard limit on tokens: nothing is asked unless the most that it may take still fits.

Whoever asks reserves an upper bound first and settles with what was used afterwards; what was not used is free again.
So the sum of what was used never exceeds the budget, in whatever order threads reserve and settle, as long as the
bounds are bounds.
"""

import logging
import threading

logger = logging.getLogger(__name__)


class TokenBudget:
    """Tokens that may be used in all, shared by threads.

    Args:
        most: None for no limit.
    """

    def __init__(self, most: int | None = None) -> None:
        if most is not None and most < 0:
            raise ValueError(f"TokenBudget: expected 0 tokens or more, got {most}")
        self.most = most
        self._used = self._reserved = 0
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Tokens settled so far."""
        with self._changed:
            return self._used

    @property
    def reserved(self) -> int:
        """Tokens promised to those who have not settled yet."""
        with self._changed:
            return self._reserved

    def reserve(self, tokens: int, *, wait: bool = True) -> bool:
        """Promise tokens to the caller, who must `settle` them.

        Args:
            tokens: the most that may be used.
            wait: where they would fit if others settle with less than they reserved, wait for it. Only for a caller
                who holds no reservation: two who hold one and wait for each other would wait for ever.

        Returns:
            False: they do not fit, and nothing is promised.
        """
        assert tokens >= 0, f"{tokens} tokens"
        with self._changed:
            while self.most is not None and self._used + self._reserved + tokens > self.most:
                if not wait or not self._reserved or self._used + tokens > self.most:
                    return False
                self._changed.wait()
            self._reserved += tokens
            return True

    def settle(self, reserved: int, used: int) -> None:
        """Give a reservation back and note what was used of it."""
        with self._changed:
            assert 0 <= reserved <= self._reserved, f"{reserved} tokens settled, {self._reserved} are reserved"
            self._reserved -= reserved
            self._used += used
            self._changed.notify_all()
        if used > reserved:
            logger.warning(
                "token budget: %s tokens were used where %s were expected at most", f"{used:_}", f"{reserved:_}"
            )

    def __str__(self) -> str:
        with self._changed:
            return f"{self._used:_} of {'any number of' if self.most is None else f'{self.most:_}'} tokens used"
