"""The most memory that a piece of work took, where the system can tell (Linux)."""

from pathlib import Path


def reset_peak() -> bool:
    """Starts a new peak of this process's resident memory; False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak_mb() is not None


def peak_mb() -> float | None:
    """The largest resident memory since the reset, in MB (VmHWM), with all that the process holds."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
