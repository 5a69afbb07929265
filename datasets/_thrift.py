"""Thrift's compact protocol, as far as the footer and the page headers of a Parquet file need it: {field: value},
nested.

pyarrow's own look at a damaged footer ends the process (an uncaught C++ exception), so it is looked at here first.
"""

from __future__ import annotations

from typing import Any

from flywheel.episode import EpisodeError

DEPTH = 16
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


class Compact:
    """Reads one struct after the other from bytes; `at` is how far it came. EpisodeError for damaged ones."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct by their numbers."""
        if depth > DEPTH:
            raise EpisodeError("a header nested too deeply; the file is damaged")
        out, field = {}, 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            out[field] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
        return out

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE, BYTE):  # a truth in a list is a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == DOUBLE:
            return self._bytes(8)
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self.data) - self.at:
                raise EpisodeError(f"a list of {count} in a header; the file is damaged")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        raise EpisodeError("a header with a field of an unknown kind; the file is damaged")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise EpisodeError("a header that is cut short; the file is damaged")
        self.at += count
        return self.data[self.at - count : self.at]

    def _varint(self) -> int:
        out = shift = 0
        while True:
            byte = self._byte()
            out, shift = out | (byte & 127) << shift, shift + 7
            if not byte & 128 or shift > 63:
                return out

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
