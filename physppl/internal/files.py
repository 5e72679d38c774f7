"""Atomic file writes."""

import contextlib
import glob
import os
import time
from pathlib import Path

STALE = 3600.0  # s after which no running process owns a draft


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: whenever the process dies, the file has the new content or the old, never a part."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.draft"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > STALE:
                abandoned.unlink()
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
