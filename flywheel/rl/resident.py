"""Offline data that stays where it is learnt from: every transition made once and kept on the device."""

from __future__ import annotations

import numpy as np
import torch

from flywheel.rl.source import Offline

ROOM = 1 << 30  # bytes that transitions may take in memory; on a GPU, half of what is free


class Resident(Offline):
    """`Offline` with its transitions on `device`; a batch is one index sent there, and the same to the last bit."""

    def __init__(self, *args, device: str = "cpu", **kwargs):
        self.device = device
        super().__init__(*args, **kwargs)

    def use(self, windows, pools: dict[str, np.ndarray]) -> None:
        super().use(windows, pools)
        self.kept = {
            name: {k: v.to(self.device) for k, v in super(Resident, self)._take(name, np.arange(len(pool))).items()}
            for name, pool in self.pools.items()
        }

    def _take(self, name: str, flat: np.ndarray) -> dict[str, torch.Tensor]:
        index = torch.from_numpy(flat).to(self.device, non_blocking=True)
        return {k: v.index_select(0, index) for k, v in self.kept[name].items()}


def offline(windows, pools: dict[str, np.ndarray], mixture, *, device: str, **drawn) -> Offline:
    """A `Resident` source where the transitions fit the room there is, else one that gathers each batch from the cache."""
    columns, To, Ta = windows.columns, drawn["obs_steps"], drawn["action_steps"]
    obs, action = (columns[k].stop - columns[k].start for k in ("obs.state", "action"))
    steps = sum(int(windows.length[which].sum()) for which in pools.values())
    room = torch.cuda.mem_get_info()[0] // 2 if device.startswith("cuda") else ROOM
    if steps * 4 * (2 * To * obs + 2 * Ta * action + 3) > room:
        return Offline(windows, pools, mixture, **drawn)
    return Resident(windows, pools, mixture, device=device, **drawn)
