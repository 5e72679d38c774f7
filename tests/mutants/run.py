"""Plant the faults of faults.toml one at a time in a copy of the tree, and see which test catches each.

python tests/mutants/run.py [--list] [TEXT ...]: those whose name or file contains one of the texts, by default all.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 600  # s, for the tests of one fault; for all of them without a fault ten times that


@dataclass(frozen=True)
class Fault:
    """One fault of the list.

    Attributes:
        name: what it does, in a few words.
        file: that it is planted in.
        before, after: text that stands exactly once in the file, and what replaces it.
        tests: pytest files or test ids, of which one must fail.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def planted(self, root: Path) -> str:
        """The file's text with the fault.

        Raises:
            ValueError: where the text to replace is not there exactly once, or what replaces it is not Python.
        """
        text = (root / self.file).read_text()
        if (count := text.count(self.before)) != 1:
            raise ValueError(f"{self.name}: {self.before!r} stands {count} times in {self.file}; it must stand once.")
        text = text.replace(self.before, self.after)
        try:
            compile(text, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.name}: {self.after!r} makes {self.file} no Python: {error}.") from None
        return text

    def missing(self, root: Path) -> list[str]:
        """Tests that are not there."""
        return [test for test in self.tests if not _stands(root, *test.split("::"))]


def _stands(root: Path, file: str, name: str = "") -> bool:
    path = root / file
    return path.is_file() and (not name or f"def {name.split('[')[0]}(" in path.read_text())


def faults(texts: list[str] | None = None) -> list[Fault]:
    """The list, or the faults whose name or file contains one of the texts."""
    listed = tomllib.loads((ROOT / "tests/mutants/faults.toml").read_text())["fault"]
    found = [Fault(**{**fault, "tests": tuple(fault["tests"])}) for fault in listed]
    return [fault for fault in found if not texts or any(t in f"{fault.file} {fault.name}" for t in texts)]


def copy(folder: Path) -> None:
    """The tree as it stands, without what git ignores; links stay links."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def run(folder: Path, tests: list[str], cache: Path, limit: float = LIMIT) -> tuple[str, str]:
    """(how tests ended there: passed, failed, time limit or error; the first that failed, or what pytest said).

    Programs that a fault leaves as they are are compiled once for all faults.
    """
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
    settings = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    options = {"cwd": folder, "env": os.environ | settings, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, timeout=limit, **options)
    except subprocess.TimeoutExpired:
        return "time limit", f"after {limit:g} s"
    if done.returncode == 0:
        return "passed", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "failed", failed[1]
    return "error", done.stdout[-3000:] + done.stderr[-1000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--list", action="store_true", help="show the faults and plant none")
    options = parser.parse_args()
    chosen = faults(options.texts)
    if not chosen:
        parser.error(f"no fault has one of {options.texts} in its name or file; see --list.")
    for fault in chosen:
        fault.planted(ROOT)
        if options.list:
            print(f"{fault.file}: {fault.name}\n    {fault.before}\n    {fault.after}\n    {', '.join(fault.tests)}")
    if options.list:
        return 0
    with tempfile.TemporaryDirectory(prefix="physppl-mutants-") as place:
        folder, cache, well = Path(place) / "tree", Path(place) / "compiled", True
        copy(folder)
        start = time.perf_counter()
        ended, test = run(folder, sorted({test for fault in chosen for test in fault.tests}), cache, 10 * LIMIT)
        print(f"{ended:10}{time.perf_counter() - start:7.1f} s  without a fault  {test}", flush=True)
        if ended != "passed":
            return 2
        for fault in chosen:
            path, start = folder / fault.file, time.perf_counter()
            whole = path.read_text()
            # Bytecode is told apart by seconds: no run is so short that a file could change twice within one.
            path.write_text(fault.planted(folder))
            ended, test = run(folder, list(fault.tests), cache)
            path.write_text(whole)
            well &= ended == "failed"
            verdict = {"failed": "caught", "passed": "MISSED"}.get(ended, ended.upper())
            print(f"{verdict:10}{time.perf_counter() - start:7.1f} s  {fault.file}: {fault.name}  {test}", flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
