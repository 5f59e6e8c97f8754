"""How many processes of this machine may work at a time."""

import os
import sys
from pathlib import Path
from typing import Final

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Return how many cores this process may use: by affinity, and by its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_cores(_CGROUP_LIMIT)))


def _cgroup_cores(limit: Path) -> int:
    """Return the cores that a container's CPU quota pays for (cgroup v2's "quota period")."""
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return sys.maxsize
