"""Blocks of environment seeds that never meet: what is learnt from, what chooses, what is reported.

    collect    0             what is learnt from: of a night retraining takes the first ones, online RL the last
    gate       100,000,000   in each night: what chooses a checkpoint on its curve, watches rounds, and compares
    report     200,000,000   what is reported, once
    question   300,000,000   the promotion gate's, from the ledger: none is asked twice

Each training seed (mod 10) moves on by 10,000,000, each night by 10,000.
"""

from __future__ import annotations

BLOCKS = {"collect": 0, "gate": 100_000_000, "report": 200_000_000, "question": 300_000_000}
NIGHT = 10_000  # seeds a night in each block
CURVE = 5_000  # within the gate's: where the seeds that choose a checkpoint on its training curve begin
SCORING = 7_500  # where those begin that watch retraining, and choose among the points of an online run
FINAL = 8_750  # and those on which what was chosen so is scored once


def seeds(block: str, args, first: int, count: int) -> list[int]:
    """`count` environment seeds of a block, from its `first` on, for this night and this training seed.

    Blocks never meet: collection from 0, gate from 100,000,000, report from 200,000,000; each night moves on by 10,000,
    each training seed (mod 10) by 10,000,000. ValueError beyond 1,000 nights or 10,000 seeds a night.
    """
    night = args.night
    if not 0 <= night < 1000 or first + count > NIGHT:
        raise ValueError(
            f"seeds: night {night}, seeds {first} to {first + count}; there are 1,000 nights of {NIGHT} each"
        )
    begin = BLOCKS[block] + (args.seed % 10 * 1000 + night) * NIGHT + first
    return list(range(begin, begin + count))


def questioned(args, first: int, count: int) -> list[int]:
    """The environment seeds of a question to the gate: `count` from `first` on, which the ledger gave to this question
    alone.

    ValueError once a store has asked its ten million.
    """
    most = 1000 * NIGHT
    if first + count > most:
        raise ValueError(
            f"seeds: this store has asked the gate for {first:,} episodes; there are {most:,}. Begin a new store"
        )
    begin = BLOCKS["question"] + args.seed % 10 * most + first
    return list(range(begin, begin + count))
