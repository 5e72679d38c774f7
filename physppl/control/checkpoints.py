"""Episodes on disk, each written whole or not at all, so that a loop killed at any moment goes on where it was."""

import hashlib
import io
import json
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from physppl.control.episodes import Episode
from physppl.internal.errors import log
from physppl.internal.files import write
from physppl.internal.fingerprint import fingerprint

try:
    import fcntl
except ImportError:  # no such locks on Windows: two loops in one folder are then not noticed
    fcntl = None

FORMAT = 1
FIELDS = ("states", "actions", "rewards", "valid", "terminated", "failed")


class KeptEpisode(NamedTuple):
    """An episode as a loop keeps it.

    Attributes:
        episode: what happened.
        entropy: of the belief that acted, nats.
        seconds: {"plan", "fit", "compile"} so far.
    """

    episode: Episode
    entropy: float
    seconds: dict[str, float]


class Checkpoints:
    """A folder with the episodes of one loop, and a list of fingerprints of what that loop was told.

    It is this loop's until `close`, which leaving a `with` block calls.

    Raises:
        ValueError: where the folder belongs to a loop that was told something else, naming the arguments.
        RuntimeError: where another process is writing there.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115
        weakref.finalize(self, self._lock.close)
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"checkpoints: another loop is writing to {self.folder}. Wait for it, or choose another folder."
                ) from None
        told = {"format": FORMAT} | {name: fingerprint(value) for name, value in settings.items()}
        path = self.folder / "loop.json"
        if not path.exists():
            write(path, json.dumps(told, indent=1).encode())
            return
        known = json.loads(path.read_text())
        if known.get("format") != FORMAT:
            raise ValueError(f"checkpoints: {path} has format {known.get('format')}; this version reads {FORMAT}.")
        differs = [name for name in told if told[name] != known.get(name)]
        if differs:
            raise ValueError(
                f"checkpoints: {self.folder} holds the episodes of another loop: {', '.join(differs)} "
                f"{'differs' if len(differs) == 1 else 'differ'}. Pass the same arguments to go on with it, or choose "
                "another folder."
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another loop use the folder."""
        self._lock.close()

    def path(self, i: int) -> Path:
        return self.folder / f"episode_{i + 1:04d}.npz"

    def save(self, i: int, record: KeptEpisode) -> None:
        """Keeps episode i, counted from 0."""
        arrays = {name: np.asarray(getattr(record.episode, name)) for name in FIELDS}
        arrays |= {f"seconds_{name}": np.asarray(value) for name, value in record.seconds.items()}
        arrays["entropy"] = np.asarray(record.entropy)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
        write(self.path(i), hashlib.sha256(content).digest() + content)

    def load(self) -> list[KeptEpisode]:
        """All episodes from the first on without a gap.

        Raises:
            ValueError: for a file that is not as it was written, naming it.
        """
        records = []
        while (path := self.path(len(records))).exists():
            records.append(self.read(path))
        if records:
            log.info("checkpoints: going on after episode %d of %s", len(records), self.folder)
        return records

    @staticmethod
    def read(path: Path) -> KeptEpisode:
        """One file.

        Raises:
            ValueError: where it is not as it was written.
        """
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError(
                f"checkpoints: {path} is damaged: its checksum does not fit. Delete it and all later ones; "
                "the loop then repeats these episodes."
            )
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
            seconds = {n.removeprefix("seconds_"): float(arrays[n]) for n in arrays if n.startswith("seconds_")}
            return KeptEpisode(Episode(*(arrays[name] for name in FIELDS)), float(arrays["entropy"]), seconds)
