"""A bounded memory of the results of gold statements."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from spftsql.sandbox.result import Execution


class ResultCache:
    """Keeps the most recently used results, as many as together have at most `max_cells` cells."""

    def __init__(self, max_cells: int) -> None:
        self._max_cells, self._cells = max_cells, 0
        self._results: OrderedDict[Hashable, Execution] = OrderedDict()

    def get(self, key: Hashable) -> Execution | None:
        """The result kept for `key`, if any."""
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def put(self, key: Hashable, result: Execution) -> None:
        """Keeps a result, at the cost of the least recently used ones."""
        if key in self._results:
            return
        self._results[key] = result
        self._cells += _cost(result)
        while self._cells > self._max_cells:
            _, oldest = self._results.popitem(last=False)
            self._cells -= _cost(oldest)


def _cost(result: Execution) -> int:
    return 10 + len(result.rows) * len(result.columns)  # an entry without rows is not free either
