"""The clock that prices are read from."""

from __future__ import annotations

import time

import torch


def seconds(device: torch.device | str = "cpu") -> float:
    """Seconds on a clock that only ever goes forward; differences of it are prices.

    On one CPU thread this is processor time: what the work takes on a core of its own, whatever else the machine is doing, so
    that prices measured side by side compare. With more threads, or on another device, it is wall-clock time.
    """
    device = torch.device(device)
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
