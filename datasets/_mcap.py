"""MCAP files that nobody vouches for: read from front to back, no record longer than the file, no chunk that is a
bomb."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from flywheel import bounds
from flywheel.episode import EpisodeError

UNKNOWN = (2**64 - 1, -1)  # zstd's size of a frame that does not say it


class Stream:
    """A file as mcap's reader wants it; it is never given more than there is, whatever a record says of its length."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(self.left if count < 0 else min(count, self.left))
        self.left -= len(data)
        return data


def messages(path: Path, topics: set[str]) -> list[tuple[int, str, Any]]:
    """(log time in ns, topic, decoded ROS 2 message) of the topics, in the order of their log times."""
    from mcap.records import Channel, Message, Schema
    from mcap_ros2.decoder import DecoderFactory

    schemas, channels, decoders, found = {}, {}, {}, []
    for record in records(path):
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel):
            channels[record.id] = record
        elif isinstance(record, Message) and (channel := channels[record.channel_id]).topic in topics:
            schema = schemas[channel.schema_id]
            if schema.id not in decoders:
                decoders[schema.id] = DecoderFactory().decoder_for(channel.message_encoding, schema)
            found.append((record.log_time, channel.topic, decoders[schema.id](record.data)))
    return sorted(found, key=lambda one: one[0])


def records(path: Path) -> Iterator[Any]:
    """All records of a file, those of chunks too; EpisodeError for a chunk that unpacks to more than it can hold."""
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    size, total = Path(path).stat().st_size, 0
    with open(path, "rb") as file:
        for record in StreamReader(Stream(file, size), emit_chunks=True, record_size_limit=size).records:
            if isinstance(record, Chunk):
                total += unpacks(record)
                bounds.allow(total, size, "its chunks")
                yield from breakup_chunk(record)
            else:
                yield record


def unpacks(chunk: Any) -> int:
    """How many bytes a chunk becomes; EpisodeError where that is more than it declares, or more than it can be."""
    packed, declared = chunk.data, chunk.uncompressed_size
    bounds.allow(declared, len(packed), "a chunk")
    if chunk.compression == "zstd":
        import zstandard

        told = zstandard.get_frame_parameters(packed).content_size
        if told not in (declared, *UNKNOWN):
            raise EpisodeError(f"a chunk that unpacks to {told:,} bytes and declares {declared:,}; the file is damaged")
        return declared
    if chunk.compression == "lz4":
        import lz4.frame

        stream, made = lz4.frame.LZ4FrameDecompressor(), 0
        while not stream.eof and made <= declared:
            part = stream.decompress(packed, max_length=2**20)
            if not part and stream.needs_input:
                break
            packed, made = b"", made + len(part)
        if made > declared:
            raise EpisodeError(f"a chunk that unpacks to more than the {declared:,} bytes that it declares: a bomb")
        return made
    return len(packed)
