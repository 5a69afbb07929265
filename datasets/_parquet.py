"""Parquet files that nobody vouches for: what their pages declare is compared with what the file can hold, before it is read.

Numbers are bounded by the count of values; texts and pictures, of which one stored copy may stand for any number of rows, are
read 64 rows at a time and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flywheel import bounds
from flywheel.episode import EpisodeError

ROWS, WIDEST = 64, 16  # rows that are read at once where a row may be of any size; bytes of the widest number
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_2 = 0, 2, 3


def names(path: Path) -> list[str]:
    """The columns of a file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.schema_arrow.names


def table(path: Path, columns: Sequence[str] | None = None):
    """The columns of a file as a pyarrow table; EpisodeError for one that declares more than it can hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    stored = path.stat().st_size
    with pq.ParquetFile(path, memory_map=False) as file:
        wanted = [c for c in file.schema_arrow.names if columns is None or c in columns]
        if absent := [c for c in columns or () if c not in wanted]:
            raise EpisodeError(
                f"{path.name}: no column {', '.join(absent)}; there is {', '.join(file.schema_arrow.names)[:500]}"
            )
        if any(chunk < 0 for chunk in (file.metadata.num_rows, file.metadata.num_row_groups)):
            raise EpisodeError(f"{path.name}: {file.metadata.num_rows} rows; the file is damaged")
        texts = _declared(path, file.metadata, set(wanted), stored)
        plain = [c for c in wanted if c not in texts]
        out = {c: None for c in wanted}
        bounds.allow(WIDEST * file.metadata.num_rows, stored, f"{path.name}: {file.metadata.num_rows} rows")
        if plain:
            read = file.read(columns=plain)
            out |= {c: read.column(c) for c in plain}
        if texts:
            parts, total = [], 0
            for part in file.iter_batches(batch_size=ROWS, columns=sorted(texts)):
                total += part.nbytes
                bounds.allow(total, stored, f"{path.name}: column {', '.join(sorted(texts))}")
                parts.append(part)
            schema = (
                parts[0].schema
                if parts
                else pa.schema([file.schema_arrow.field(c) for c in file.schema_arrow.names if c in texts])
            )
            read = pa.Table.from_batches(parts, schema)
            out |= {c: read.column(c) for c in texts}
        return pa.table(out)


def _declared(path: Path, metadata, wanted: set[str], stored: int) -> set[str]:
    """The wanted columns whose rows are texts or bytes; EpisodeError where the others declare too much."""
    texts, values = set(), 0
    with open(path, "rb") as file:
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(number)
                name = (
                    chunk.path_in_schema.split(".")[0] if chunk.path_in_schema not in wanted else chunk.path_in_schema
                )
                names = {c for c in wanted if chunk.path_in_schema == c or chunk.path_in_schema.startswith(f"{c}.")}
                if not names:
                    continue
                if chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
                    texts |= names
                else:
                    values += chunk.num_values
                    bounds.allow(WIDEST * values, stored, f"{path.name}: column {name}")
                _pages(file, chunk, f"{path.name}: column {name}", stored)
    return texts


def _pages(file, chunk, where: str, stored: int) -> None:
    """Walk the pages of a column: EpisodeError where one declares more than its bytes can hold, or lies outside of the file."""
    at = min(o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o is not None)
    end, packed = at + chunk.total_compressed_size, 0
    if not 0 <= at < end <= stored:
        raise EpisodeError(f"{where}: its pages lie outside of the file; it is damaged")
    while at < end:
        file.seek(at)
        head = _Compact(file.read(min(2**16, end - at)))
        found = head.struct()
        size, wide = found.get(3, -1), found.get(2, -1)
        if size < 0 or wide < 0 or at + head.at + size > end:
            raise EpisodeError(f"{where}: a page that goes beyond its column; the file is damaged")
        bounds.allow(wide, packed + size, f"{where}: a page")
        at, packed = at + head.at + size, packed + size


class _Compact:
    """Thrift's compact protocol, as much of it as page headers need: {field: integer or nested struct}."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise EpisodeError("a page header that is cut short; the file is damaged")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        out = shift = 0
        while True:
            byte = self.byte()
            out, shift = out | (byte & 127) << shift, shift + 7
            if not byte & 128 or shift > 63:
                return out

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, object]:
        out, field = {}, 0
        while (head := self.byte()) and depth < 8:
            field = field + (head >> 4) if head >> 4 else self.zigzag()
            out[field] = self.value(head & 15, depth)
        return out

    def value(self, kind: int, depth: int):
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 7:
            self.at += 8
        elif kind == 8:
            length = self.varint()
            self.at += length
        elif kind == 12:
            return self.struct(depth + 1)
        else:
            raise EpisodeError("a page header of an unknown kind; the file is damaged")
        return None
