"""How often does the gate say yes, and what does it cost? A simulation of its test; no robot, and nothing is trained.

    python benchmarks/gate.py power        # gates of known policies: accepted share, pairs, for each design
    python benchmarks/gate.py histories    # 100 nights with one ledger: false promotions, and worse ones
    python benchmarks/gate.py ledger       # what E has to be for the t-th question

Each prints a table for docs/guard.md; `--plot FILE` draws how the probability of yes grows with pairs."""

from __future__ import annotations

import argparse
import math
import time
from statistics import NormalDist

import numpy as np

from flywheel import evalues

ROWS = [  # from, to, cap, mean pairs of the first design at rho 0 and 0.5 (a uniform mixture at E >= 20)
    (0.5, 0.5, 1000, None, None),
    (0.95, 0.95, 1000, None, None),
    (0.5, 0.6, 1000, 440, 272),
    (0.8, 0.9, 400, 202, 155),
    (0.9, 0.95, 600, 368, 330),
    (0.95, 0.98, 1000, 499, 466),
    (0.95, 0.987, 1000, 319, 276),
    (0.95, 0.99, 600, 258, 240),
]
LOOK, ALPHA, WORTH = 20, 0.05, 0.01


def cells(before: float, after: float, rho: float) -> tuple[float, float]:
    """P(won), P(lost) of a pair whose outcomes are tied by a Gaussian copula of correlation rho."""
    if not rho:
        return after * (1 - before), before * (1 - after)
    normal = NormalDist()
    a, b = normal.inv_cdf(before), normal.inv_cdf(after)
    x = np.linspace(-8, 8, 4001)
    inside = 0.5 * (1 + np.vectorize(math.erf)((b - rho * x) / math.sqrt(2 * (1 - rho * rho))))
    both = float(np.trapezoid(np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * inside * (x <= a), x))
    return after - both, before - both


def counts(won: float, lost: float, gates: int, cap: int, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """won, lost [gates, looks] at each look, and pairs [looks]."""
    at = np.unique([*range(LOOK, cap + 1, LOOK), cap])
    one = rng.multinomial(np.diff(at, prepend=0), [won, lost, 1 - won - lost], (gates, len(at))).cumsum(1)
    return one[..., 0], one[..., 1], at


def uniform(won: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """log E of a uniform mixture over theta > 1/2."""
    bets = (np.arange(100) + 0.5) / 100
    grown = [won * math.log1p(c) + lost * math.log1p(-c) for c in bets]
    return np.logaddexp.reduce(grown, axis=0) - math.log(100)


def hopeless(won: np.ndarray, lost: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Is a gain worth having excluded? [gates, looks]; what `evalues.interval` says, by its e-value."""
    return evalues.log_e(lost, won, at - won - lost, -WORTH) >= math.log(2 / ALPHA)


def played(log_e, won, lost, at, needed) -> tuple[np.ndarray, np.ndarray]:
    """accepted [gates], pairs [gates] where one stops at the first look that answers."""
    yes = log_e >= np.log(needed)
    stop = yes | hopeless(won, lost, at)
    stop[:, -1] = True
    first = stop.argmax(1)
    return yes[np.arange(len(yes)), first], at[first]


def power(gates: int, seed: int) -> None:
    """Print accepted share and mean pairs of each row, design and correlation."""
    designs = {
        "uniform mixture, E >= 20": (uniform, 20.0),
        "ours, E >= 20": (evalues.log_e, 20.0),
        "ours, first question": (evalues.log_e, evalues.needed(ALPHA, 1, 0)),
        "ours, second, the first refused": (evalues.log_e, evalues.needed(ALPHA, 2, 0)),
    }
    print(f"| from -> to, at most | {' | '.join(designs)} |\n|---|{'---|' * len(designs)}")
    for before, after, cap, *_ in ROWS:
        told: dict[str, list] = {name: [] for name in designs}
        for rho in (0.0, 0.5):
            rng = np.random.default_rng([seed, int(1000 * before), int(1000 * after), int(10 * rho)])
            won, lost, at = counts(*cells(before, after, rho), gates, cap, rng)
            for name, (test, needed) in designs.items():
                yes, pairs = played(test(won, lost), won, lost, at, needed)
                told[name].append((yes.mean(), pairs.mean()))
        cells_ = [
            " / ".join(f"{y:.3f}" for y, _ in t) + "; " + " / ".join(f"{n:.0f}" for _, n in t) for t in told.values()
        ]
        print(f"| {before:g} -> {after:g}, {cap:,} | {' | '.join(cells_)} |")


def history(nights: int, p: float, scatter: float, number: int, rng) -> dict[str, np.ndarray]:
    """`number` histories side by side: each night a candidate that scatters about what is in production asks the gate
    before this one, and this one with 1,000 and 4,000 pairs; what each promoted."""
    out = {}
    for kind, cap in (("200 pairs, McNemar", 0), ("1,000 pairs, E", 1000), ("4,000 pairs, E", 4000)):
        at_night = np.full(number, p)
        made, false, worse, spent, refused = (np.zeros(number) for _ in range(5))
        for _ in range(nights):
            new = np.clip(at_night + scatter * rng.standard_normal(number), 0.001, 0.999)
            up, down = new * (1 - at_night), at_night * (1 - new)
            if not cap:
                yes, pairs = _mcnemar(up, down, rng)
            else:
                needed = [evalues.needed(ALPHA, 1 + int(k), int(m)) for k, m in zip(refused, made, strict=True)]
                yes, pairs, weak = _ours(up, down, np.array(needed), cap, rng)
                refused += weak
            made += yes
            false += yes & (new <= at_night)
            worse += yes & (new < at_night)
            at_night = np.where(yes, new, at_night)
            spent += pairs
        out[kind] = {"made": made, "false": false, "worse": worse, "last": at_night, "pairs": spent / nights}
    return out


def _mcnemar(up: np.ndarray, down: np.ndarray, rng, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """The gate before: 200 pairs, exact McNemar test at 0.05, each night anew."""
    won = rng.binomial(n, up)
    lost = rng.binomial(n - won, np.clip(down / (1 - up), 0, 1))
    return won >= BOUNDARY[won + lost], np.full(len(up), n)


def _boundary(n: int) -> np.ndarray:
    """The fewest wins of m pairs that differ with p < alpha, for m = 0 ... n."""
    least = []
    for m in range(n + 1):
        tail, k = 0, m + 1
        while k > 0 and tail + math.comb(m, k - 1) < ALPHA * 2**m:
            k -= 1
            tail += math.comb(m, k)
        least.append(k)
    return np.array(least)


BOUNDARY = _boundary(200)


def _ours(up, down, needed, cap: int, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look by look, all histories together; those that are answered play no more: (yes, pairs, E < 1 / alpha)."""
    number = len(up)
    won, lost, pairs = (np.zeros(number, int) for _ in range(3))
    yes, going = np.zeros(number, bool), np.ones(number, bool)
    for n in range(LOOK, cap + 1, LOOK):
        k = np.flatnonzero(going)
        if not len(k):
            break
        more = rng.binomial(LOOK, up[k])
        won[k] += more
        lost[k] += rng.binomial(LOOK - more, np.clip(down[k] / (1 - up[k]), 0, 1))
        pairs[k] = n
        yes[k] = evalues.log_e(won[k], lost[k]) >= np.log(needed[k])
        going[k] = ~yes[k] & ~hopeless(won[k], lost[k], n)
    return yes, pairs, evalues.log_e(won, lost) < math.log(1 / ALPHA)


def histories(number: int, nights: int, seed: int) -> None:
    """Print what each gate does in many nights."""
    print(
        f"| candidates, {number:,} histories of {nights} nights | gate | promotions | false ones of all (FDR) | any "
        "false one | a worse one ever | last against first, mean and worst | pairs a night |\n|---|---|---|---|---|---|---|---|"
    )
    for p in (0.5, 0.9):
        for scatter in (0.0, 0.03):
            rng = np.random.default_rng([seed, int(100 * p), int(100 * scatter)])
            for kind, h in history(nights, p, scatter, number, rng).items():
                fdr = (h["false"] / np.maximum(1, h["made"])).mean()
                what = f"scatter by {100 * scatter:.0f} points" if scatter else "are equal"
                print(
                    f"| {what}, p = {p:g} | {kind} | {h['made'].mean():.2f} | {fdr:.3f} | {(h['false'] > 0).mean():.3f} | "
                    f"{(h['worse'] > 0).mean():.3f} | {(h['last'] - p).mean():+.3f}, {(h['last'] - p).min():+.3f} | "
                    f"{h['pairs'].mean():.0f} |"
                )


def ledger() -> None:
    """Print 1 / alpha_t for ranks and promotions."""
    made = (0, 1, 2, 5, 10, 30)
    print(f"| rank t | gamma_t | {' | '.join(f'{r} promoted' for r in made)} |\n|---|---|{'---|' * len(made)}")
    for t in (1, 2, 3, 5, 10, 20, 50, 100):
        needs = [f"{evalues.needed(ALPHA, t, r):,.0f}" for r in made]
        print(f"| {t} | {evalues.share(t):.4f} | {' | '.join(needs)} |")


def plot(path: str, seed: int, gates: int = 2000) -> None:
    """Draw the share of gates that said yes by so many pairs, of the first question."""
    import matplotlib

    matplotlib.use("svg" if path.endswith("svg") else "agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "flywheel"
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for before, after, *_ in ROWS:
        rng = np.random.default_rng([seed, int(1000 * before), int(1000 * after)])
        won, lost, at = counts(*cells(before, after, 0.0), gates, 1000, rng)
        yes = evalues.log_e(won, lost) >= math.log(evalues.needed(ALPHA, 1, 0))
        axes.plot(
            at,
            np.maximum.accumulate(yes, 1).mean(0),
            label=f"{before:g} → {after:g}",
            ls="-" if after > before else ":",
        )
    axes.set(xlabel="pairs", ylabel="said yes by then", xlim=(0, 1000), ylim=(0, 1))
    axes.axhline(ALPHA, color="grey", lw=0.5)
    axes.legend(loc="center right", fontsize=8, title="success", title_fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.endswith("svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("power", "histories", "ledger", "plot"))
    parser.add_argument("--gates", type=int, default=2000, help="a row of power")
    parser.add_argument("--number", type=int, default=2000, help="of histories")
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", default="docs/gate.svg", help="where `plot` draws")
    args = parser.parse_args()
    began = time.monotonic()
    if args.what == "power":
        power(args.gates, args.seed)
    elif args.what == "histories":
        histories(args.number, args.nights, args.seed)
    elif args.what == "plot":
        plot(args.plot, args.seed)
    else:
        ledger()
    print(f"\n{time.monotonic() - began:.0f} s, seed {args.seed}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
