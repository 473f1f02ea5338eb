"""Numbers as people read them: sizes and ages in docker's words. Pure."""

from __future__ import annotations


def human_size(size: float, digits: int = 3) -> str:
    """A number of bytes as docker writes it: `0B`, `7.8kB`, `124MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.{digits}g}{unit}" if size < 1000 else f"{size:.0f}{unit}"
        size /= 1000
    raise AssertionError(size)


def human_age(seconds: float) -> str:
    """A span of time as docker writes it: `About a minute`, `3 days`."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{int(seconds)} second" + "s" * (int(seconds) != 1)
    minutes, hours = int(seconds / 60), round(seconds / 3600)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for most, divisor, unit in ((48, 1, "hours"), (336, 24, "days"), (1440, 168, "weeks"), (17520, 720, "months")):
        if hours < most:
            return f"{hours // divisor} {unit}"
    return f"{hours // 8760} years"


def human_seconds(seconds: float) -> str:
    """How long something took: `0.4s`, `2m 03s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m {rest:02}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02}m"
