"""What this machine offers: processors by affinity and quota, and GPUs."""

import os
from collections.abc import Set
from pathlib import Path


def affinity() -> Set[int]:
    """The processors that the server may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def processors() -> int:
    """How many processors the server may use: its affinity, cut to the cgroup's quota."""
    available = len(affinity())
    return max(1, min(available, _quota(Path("/sys/fs/cgroup")) or available))


def _quota(root: Path) -> int:
    """Whole processors that the cgroup (version 2, else 1) grants, 0 for no limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 0
    if not limit.isdigit() or not period.isdigit() or int(period) == 0:
        return 0
    return max(1, int(limit) // int(period))


def gpus() -> int:
    """How many NVIDIA GPUs a worker can see, without loading a driver's library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if visible is None:
        return present
    return min(present, len([d for d in visible.split(",") if d.strip() not in ("", "-1")]))
