"""Which of millions of statements were seen before, in a few bytes for each."""

from __future__ import annotations

from array import array
from hashlib import blake2b

_SMALLEST = 1 << 12
_MOST = 255


class Seen:
    """Counts 64-bit keys up to 255, by open addressing: 13 to 27 bytes for a key, and no object for it."""

    def __init__(self) -> None:
        self._keys = array("Q", bytes(8 * _SMALLEST))
        self._counts = bytearray(_SMALLEST)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: int) -> bool:
        return self.count(key) > 0

    def count(self, key: int) -> int:
        """How often a key was added, 255 at most."""
        return self._counts[self._at(key)]

    def add(self, key: int) -> int:
        """Adds a key (0 ≤ key < 2⁶⁴) and says how often it had been added before, 255 at most."""
        at = self._at(key)
        before = self._counts[at]
        if before:
            self._counts[at] = min(before + 1, _MOST)
            return before
        self._keys[at], self._counts[at] = key, 1
        self._size += 1
        if 3 * self._size > 2 * len(self._counts):
            self._grow()
        return 0

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return len(self._keys) * self._keys.itemsize + len(self._counts)

    def _at(self, key: int) -> int:
        """The place of a key, or the free place where it belongs."""
        keys, counts, mask = self._keys, self._counts, len(self._counts) - 1
        at = key & mask
        while counts[at] and keys[at] != key:
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        keys, counts = self._keys, self._counts
        self._keys, self._counts = array("Q", bytes(16 * len(counts))), bytearray(2 * len(counts))
        for key, count in zip(keys, counts, strict=True):
            if count:
                at = self._at(key)
                self._keys[at], self._counts[at] = key, count


def key_of(*parts: str) -> int:
    """A 64-bit key of texts. Two of a million differ, but for one case in 10⁷."""
    return int.from_bytes(blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
