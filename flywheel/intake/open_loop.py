"""check=replay: recordings run open-loop in the simulator, and how closely they come back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from flywheel.args import Task
from flywheel.episode import Episode
from flywheel.log import progress, say


def back(env, episodes: list[Episode], task: Task) -> list[dict[str, Any]]:
    """Replay each episode open-loop; how far it strays, by the task's `compare` (default: all columns, in their
    std)."""
    from flywheel.env.playback import replay

    rows = []
    with progress("replay", len(episodes)) as tick:
        for episode in episodes:
            seen, told_ = replay(env, episode), episode.obs["state"]
            row: dict[str, Any] = {
                "episode": episode.hash[:12],
                "demo": episode.meta.get("demo"),
                "success": seen.success,
            }
            for item in task.compare or [{"name": "state", "obs": list(range(told_.shape[1])), "std": True}]:
                columns = item["obs"] if isinstance(item["obs"], list) else [item["obs"]]
                scale = np.maximum(told_[:, columns].std(0), 1e-3) if item.get("std") else 1.0
                if item.get("peak"):
                    gap = np.abs(seen.obs[:, columns].max(0) - told_[:, columns].max(0)).max()
                    row[f"{item['name']} peak error"] = float(gap)
                else:
                    gap = np.linalg.norm((seen.obs[:, columns] - told_[:, columns]) / scale, axis=1)
                    row[f"{item['name']} median error"] = float(np.median(gap))
                    row[f"{item['name']} largest error"] = float(gap.max())
            rows.append(row)
            tick()
    return rows


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print how closely the recordings came back; the worst and the middle of each figure."""
    out: dict[str, Any] = {"episodes": len(rows), "success": Counter(bool(r["success"]) for r in rows)[True]}
    say(f"  replayed {len(rows)} open-loop; {out['success']} succeed")
    for name in rows[0]:
        if name.endswith("error"):
            values = np.array([r[name] for r in rows])
            out[name] = {"median": float(np.median(values)), "worst": float(values.max()), "all": values.tolist()}
            say(f"  {name:28} median {np.median(values):.3g}, worst {values.max():.3g}")
    return out
