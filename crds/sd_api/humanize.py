"""Sizes, durations and progress in words for people."""

from __future__ import annotations

from sd_api.wire import Progress

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: int) -> str:
    """Return bytes in decimal units, such as 2.1 GB or 120 MB."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.0f} {_UNITS[-1]}"


def files(count: int) -> str:
    """Return a number of files in words, such as `1 file`."""
    return "1 file" if count == 1 else f"{count} files"


def duration(seconds: int) -> str:
    """Return seconds in words, in the units that matter: 10 s, 4 min, 2 h 5 min, 5 d."""
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def describe(progress: Progress) -> str:
    """Return progress without its stage, such as `42% of 2.1 GB, 120 MB/s, 10 s left`.

    Unknown values are left out. The text is empty if all are unknown.
    """
    parts = []
    total = f" of {size(progress.bytes_total)}" if progress.bytes_total else ""
    if progress.percent is not None:
        parts.append(f"{progress.percent}%{total}")
    elif progress.bytes_done is not None:
        parts.append(f"{size(progress.bytes_done)}{total}")
    if progress.bytes_per_second:
        parts.append(f"{size(progress.bytes_per_second)}/s")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return ", ".join(parts)
