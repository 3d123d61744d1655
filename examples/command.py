"""Types of arguments for the examples' command lines."""

import argparse
from collections.abc import Callable
from pathlib import Path


def folder(text: str) -> Path:
    """A folder, which need not be there, for argparse."""
    path = Path(text)
    if any(part.exists() and not part.is_dir() for part in (path, *path.parents)):
        raise argparse.ArgumentTypeError(f"invalid folder {text!r}: a file is there")
    return path


def at_least(least: int) -> Callable[[str], int]:
    """The type of whole numbers that are not smaller, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"invalid number {text!r}: must be at least {least}")
        return int(text)

    return number
