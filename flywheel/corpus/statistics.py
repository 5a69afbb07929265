"""Statistics of one episode's columns in a form that merges: count, mean, M2 (sum of squared deviations), min, max.

Merging is Chan's pairwise update, so the statistics of any selection follow from those of its episodes without reading
a row:   mean = m_a + (m_b - m_a) n_b / n,   M2 = M2_a + M2_b + (m_b - m_a)^2 n_a n_b / n.
"""

from __future__ import annotations

import numpy as np

MEAN, M2, MIN, MAX = range(4)


def summarise(rows: np.ndarray) -> np.ndarray:
    """[4, D] float64 (mean, M2, min, max) of each column of `rows` [N, ...], N of at least 1."""
    columns = rows.reshape(len(rows), -1)
    with np.errstate(over="ignore"):  # numbers near the end of float64 have an infinite M2
        mean = columns.mean(axis=0, dtype=np.float64)
        centred = columns - mean
        m2 = np.einsum("nd,nd->d", centred, centred)
    return np.stack([mean, m2, columns.min(axis=0), columns.max(axis=0)])


def merge(parts: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of the union of E parts: `parts` [E, 4, D], `counts` [E] -> count, mean, M2, std, min, max ([D] each).

    ValueError for no part at all: nothing has no mean.
    """
    if len(parts) == 0:
        raise ValueError("statistics of no episode: select at least one")
    weights = np.asarray(counts, np.float64)[:, None]
    count = weights.sum()
    mean = (parts[:, MEAN] * weights).sum(axis=0) / count
    m2 = parts[:, M2].sum(axis=0) + ((parts[:, MEAN] - mean) ** 2 * weights).sum(axis=0)
    low, high = parts[:, MIN].min(axis=0), parts[:, MAX].max(axis=0)
    return {"count": int(count), "mean": mean, "M2": m2, "std": np.sqrt(m2 / count), "min": low, "max": high}
