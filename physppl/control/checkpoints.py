"""Episodes on disk, each written atomically, so that a loop that was killed at any moment can be resumed."""

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
except ImportError:  # no such locks on Windows, where two loops in one folder go undetected
    fcntl = None

FORMAT = 1
FIELDS = ("states", "actions", "rewards", "valid", "terminated", "failed")


class KeptEpisode(NamedTuple):
    """Episode with a loop's records of it.

    Attributes:
        episode: states, actions and rewards.
        entropy: of the posterior that acted, nats.
        seconds: {"plan", "fit", "compile"} so far.
    """

    episode: Episode
    entropy: float
    seconds: dict[str, float]


class Checkpoints:
    """Folder with the episodes of one loop and the fingerprints of its settings.

    It is locked until `close`, which leaving a `with` block calls.

    Raises:
        ValueError: where the folder belongs to a loop with other settings, naming those that differ.
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
        fingerprints = {"format": FORMAT} | {name: fingerprint(value) for name, value in settings.items()}
        path = self.folder / "loop.json"
        if not path.exists():
            write(path, json.dumps(fingerprints, indent=1).encode())
            return
        stored = json.loads(path.read_text())
        if stored.get("format") != FORMAT:
            raise ValueError(f"checkpoints: {path} has format {stored.get('format')}; this version reads {FORMAT}.")
        differs = [name for name, value in fingerprints.items() if value != stored.get(name)]
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
        """Release the folder for other loops."""
        self._lock.close()

    def path(self, i: int) -> Path:
        return self.folder / f"episode_{i + 1:04d}.npz"

    def save(self, i: int, record: KeptEpisode) -> None:
        """Write episode i, counted from 0."""
        arrays = {name: np.asarray(getattr(record.episode, name)) for name in FIELDS}
        arrays |= {f"seconds_{name}": np.asarray(value) for name, value in record.seconds.items()}
        arrays["entropy"] = np.asarray(record.entropy)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
        write(self.path(i), hashlib.sha256(content).digest() + content)

    def load(self) -> list[KeptEpisode]:
        """Read all episodes from the first up to the first gap.

        Raises:
            ValueError: for a damaged file, naming it.
        """
        records = []
        while (path := self.path(len(records))).exists():
            records.append(self.read(path))
        if records:
            log.info("checkpoints: going on after episode %d of %s", len(records), self.folder)
        return records

    @staticmethod
    def read(path: Path) -> KeptEpisode:
        """Read one file.

        Raises:
            ValueError: where it is damaged.
        """
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError(
                f"checkpoints: {path} is damaged: its checksum does not match. Delete it and all later ones; "
                "the loop then repeats these episodes."
            )
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
            seconds = {n.removeprefix("seconds_"): float(arrays[n]) for n in arrays if n.startswith("seconds_")}
            return KeptEpisode(Episode(*(arrays[name] for name in FIELDS)), float(arrays["entropy"]), seconds)
