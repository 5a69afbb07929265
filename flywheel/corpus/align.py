"""Episodes of several robots in rows of one width: which of a row's columns each robot's numbers go to.

    action   robot A  a0 a1 a2 a3 a4      align="pad"                          a0 a1 a2 a3 a4
         robot B  b0 b1 b2            each robot's from the left           b0 b1 b2  0  0      action.mask  1 1 1 0 0
                                      {B: {"action": [0, 1, 4]}}           b0 b1  0  0 b2      action.mask  1 1 0 0 1

A robot is known by its schema (corpus.segment.robot). What is not mapped is padded. The field NAME.mask is 1 in the
columns that hold a number of the episode's robot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus.segment import CorpusError, Segment

if TYPE_CHECKING:
    from flywheel.corpus.version import Version

MASK = ".mask"


@dataclass(frozen=True)
class Layout:
    """widths {field: W}, those of masks included; places {schema: {field: [own width] columns of the W}}."""

    widths: dict[str, int]
    places: dict[str, dict[str, np.ndarray]]

    def fill(
        self, block: np.ndarray, columns: dict[str, slice], segment: Segment, arrays: dict[str, np.ndarray]
    ) -> None:
        """Put a segment's `arrays` {field: [R, ...]} into the zeros `block` [R, W]."""
        for name, part in columns.items():
            to = part.start + self.places[segment.robot][name.removesuffix(MASK)]
            if name.endswith(MASK):
                block[:, to] = 1.0
            elif name in arrays:
                block[:, to] = arrays[name].reshape(len(block), -1)


def layout(version: Version, fields: tuple[str, ...], align: str | dict[str, dict[str, list[int]]]) -> Layout:
    """How the episodes of a version go together: "pad", or {schema: {field: columns}} (a schema by its first digits).

    CorpusError for a map that fits no schema of the version, or names a column twice or too few of them.
    """
    robots = {}
    for part in np.unique(version.corpus.history.state.parts(version.rows)).tolist():
        segment = version.corpus.reader.segment(part)
        robots.setdefault(segment.robot, segment)
    named = _mapped(align, robots)
    places: dict[str, dict[str, np.ndarray]] = {}
    for robot, segment in robots.items():
        own = {field: np.arange(width(segment, field)) for field in fields if not field.endswith(MASK)}
        for field, columns in named.get(robot, {}).items():
            if (
                field not in own
                or sorted({*columns}) != sorted(columns)
                or len(columns) != len(own[field])
                or min(columns) < 0
            ):
                has = f"{len(own[field])} numbers" if field in own else f"no such field among {', '.join(own)}"
                raise CorpusError(
                    f"align: {robot}.{field} is mapped to {columns}; schema {robot} (task "
                    f"{segment.columns['task'][0]}) has {has}: "
                    "expected a different column, from 0 on, for each of its numbers"
                )
            own[field] = np.asarray(columns)
        places[robot] = own
    widths = {
        field: max(int(own[field.removesuffix(MASK)].max(initial=-1)) + 1 for own in places.values())
        for field in fields
    }
    return Layout(widths, places)


def _mapped(align: Any, robots: dict[str, Segment]) -> dict[str, dict[str, list[int]]]:
    """{schema: {field: columns}} by whole schema ids; nothing for "pad"."""
    if align == "pad":
        return {}
    there = ", ".join(f"{robot} ({segment.columns['task'][0]})" for robot, segment in robots.items())
    if not isinstance(align, dict) or not all(isinstance(fields, dict) for fields in align.values()):
        raise CorpusError(
            f"align={align!r}; expected pad, or {{SCHEMA: {{action: [columns]}}}} with the schemas {there}"
        )
    found = {}
    for name, fields in align.items():
        fit = [robot for robot in robots if robot.startswith(str(name))]
        if len(fit) != 1:
            raise CorpusError(f"align: {name!r} is no schema of these episodes, or several. There are: {there}")
        found[fit[0]] = {field: [int(column) for column in columns] for field, columns in fields.items()}
    return found


def width(segment: Segment, field: str) -> int:
    """Numbers in a row of a field; CorpusError names the segment's task where it has none."""
    found = segment.width(field)
    if found is None:
        there, task = ", ".join([*segment.schema["rows"], *segment.media]), segment.columns["task"][0]
        raise CorpusError(f"windows: no field {field!r} in the episodes of task {task}. There are: {there}")
    return found
