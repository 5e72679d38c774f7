"""Files that are there whole, or not at all."""

import contextlib
import glob
import os
import time
from pathlib import Path

STALE = 3600.0  # s after which a draft is nobody's


def write(path: Path, content: bytes) -> None:
    """The file with this content, or the one that was there: never a part of it, whenever the process dies."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.draft"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
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
