"""Was a killed process killed for want of memory? The kernel's own counts, before and after, are the evidence."""

from collections.abc import Mapping
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> dict[str, int]:
    """How many processes the kernel has killed for want of memory, by the file that says so: this process's control
    group (cgroup v2 or v1) and the whole host, as far as they can be read. Nothing off Linux."""
    files = [*_group_files(), Path("/proc/vmstat")]
    counts = {str(path): _count(path) for path in files}
    return {path: count for path, count in counts.items() if count is not None}


def evidence(before: Mapping[str, int]) -> str | None:
    """The first count that has risen since `before`, in words. The group's own come first: they are about us."""
    for path, count in oom_kills().items():
        if count > before.get(path, count):
            return f"oom_kill in {path} rose from {before[path]} to {count}"
    return None


def _group_files() -> list[Path]:
    """The files that count for this process's control group; cgroups(7) tells the lines of /proc/self/cgroup."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers == "":
            found.append(_CGROUPS / group.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(_CGROUPS / "memory" / group.lstrip("/") / "memory.oom_control")
    return found


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
