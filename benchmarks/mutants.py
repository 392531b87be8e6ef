"""Would a test notice? Changes the packages in one place, and runs the tests for it.

    python benchmarks/mutants.py            8 to 18 minutes; writes mutants.json
    python benchmarks/mutants.py batching   files with this in the name; writes nothing

Each mutant of `mutant_list.py` is one change: an operator, a constant, a line that is
gone. The test that it names must fail with it. Mutants that survive are printed: they
want a sharper test or, if the change changes nothing, one line that says why. All tests
are run first without a change, and must pass.

They run in copies of the repository, two at once, in processes forked from one that has
only imported the libraries. A test that does not end is stopped after `SECONDS`.
"""

import argparse
import ast
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where this is run as a script
from benchmarks.mutant_list import MUTANTS  # noqa: E402

AT_ONCE = 2
SECONDS = 120
LOG = "pytest.log"
KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"
OPTIONS = ["-x", "-q", "-o", "addopts=", "--hypothesis-seed=0"]
OPTIONS += ["-p", "no:nbval", "-p", "no:cacheprovider", "-p", "no:warnings"]
# What the tests import, and what no mutant changes.
LIBRARIES = [
    "datasets",
    "hypothesis",
    "nbval.plugin",
    "pandas",
    "scipy.stats",
    "sklearn.metrics",
    "sklearn.model_selection",
    "torch._subclasses.fake_tensor",
    "torch.utils.flop_counter",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.distilbert.modeling_distilbert",
    "transformers.pipelines",
]


@dataclass(frozen=True)
class Mutant:
    """One change, and the test that should notice it.

    file : relative to the root. old : stands in it exactly once. test : as pytest calls
    it. why : why no test can notice the change; empty if one must.
    """

    file: str
    old: str
    new: str
    test: str
    why: str = ""

    def __str__(self):
        return f"{self.file}: {self.old!r} -> {self.new!r}"

    def changed(self, text: str) -> str:
        """Return the text of the file with the change."""
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self}: the old text is there {found} times, not once")
        return text.replace(self.old, self.new)

    def apply(self, root: Path) -> bytes:
        """Change the file in `root`; return what it was."""
        before = (root / self.file).read_bytes()
        text = self.changed(before.decode())
        ast.parse(text)  # or every test would fail with it
        (root / self.file).write_bytes(text.encode())
        return before


def listed() -> list[Mutant]:
    """Return all mutants of `mutant_list.py`."""
    return [
        Mutant(file, old, new, f"{tests_file}::{name}", *why)
        for (file, tests_file), tests in MUTANTS.items()
        for name, changes in tests.items()
        for old, new, *why in changes
    ]


def copy_repository(root: Path, target: Path) -> Path:
    """Copy what git knows, and what is new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
    for name in filter(None, done.stdout.decode().split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target / name)
    return target


def processes(libraries: list[str] = LIBRARIES):
    """Return processes that start quickly, where the system can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(libraries)
    return context


def run_pytest(root: str, tests: list[str], log: str) -> None:
    """In a process of its own: run tests in a copy, and exit with pytest's code."""
    # As in the background. And Ctrl-C is for the program that started this.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.chdir(root)
    sys.path.insert(0, root)
    # A cached module could be one from before the change, of the same size and second.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    import pytest

    with (
        open(log, "w", encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        code = pytest.main([*OPTIONS, *tests])
    sys.exit(code)


def outcome(context, root: Path, tests: list[str], seconds: float = SECONDS) -> str:
    """Run tests in a copy; say what came of it."""
    log = root / LOG
    log.unlink(missing_ok=True)
    child = context.Process(target=run_pytest, args=(str(root), tests, str(log)))
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
        return TIMED_OUT
    told = log.read_text(encoding="utf-8", errors="replace")
    # An error of pytest, tests that cannot be imported, or none. (2 is Ctrl-C in one.)
    if child.exitcode in (3, 4, 5):
        raise RuntimeError(f"{' '.join(tests)} cannot be run:\n{told[-2000:]}")
    return KILLED if child.exitcode else SURVIVED


def campaign(
    root: Path, mutants: list[Mutant], context, seconds: float = SECONDS
) -> dict[Mutant, str]:
    """Run the test of each mutant with its change; say what came of it."""
    check_names(root, mutants)
    copies = SimpleQueue()  # those that nobody uses

    def unchanged(tests: list[str]) -> None:
        copy = copies.get()
        try:
            if outcome(context, copy, tests, 10 * seconds) != SURVIVED:
                log = (copy / LOG).read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"Without a change:\n{log[-2000:]}")
        finally:
            copies.put(copy)

    def changed(mutant: Mutant) -> str:
        copy = copies.get()
        try:
            before = mutant.apply(copy)
            try:
                return outcome(context, copy, [mutant.test], seconds)
            finally:
                (copy / mutant.file).write_bytes(before)
        finally:
            copies.put(copy)

    tests = sorted({mutant.test for mutant in mutants})
    by_file = [list(some) for _, some in groupby(tests, key=file_of)]
    with tempfile.TemporaryDirectory() as home, ThreadPool(AT_ONCE) as pool:
        for number in range(AT_ONCE):
            copies.put(copy_repository(root, Path(home) / str(number)))
        pool.map(unchanged, by_file, 1)
        found = pool.imap(changed, mutants)
        return dict(zip(mutants, tqdm(found, total=len(mutants), unit="mutant")))


def file_of(test: str) -> str:
    return test.partition("::")[0]


def check_names(root: Path, mutants: list[Mutant]) -> None:
    """Raise ValueError unless the tests of the mutants are there."""
    there = set()
    for file in {file_of(mutant.test) for mutant in mutants}:
        nodes = ast.parse((root / file).read_bytes()).body
        there |= {f"{file}::{getattr(node, 'name', '')}" for node in nodes}
    if missing := {mutant.test.partition("[")[0] for mutant in mutants} - there:
        raise ValueError(f"No such test: {', '.join(sorted(missing))}")


def summary(found: dict[Mutant, str], seconds: float) -> dict:
    """Count; an explained mutant is one that survived and says why."""
    counts = Counter(found.values())
    survivors = [mutant for mutant in found if found[mutant] == SURVIVED]
    return {
        "mutants": len(found),
        KILLED: counts[KILLED],
        TIMED_OUT: counts[TIMED_OUT],
        "explained": {str(mutant): mutant.why for mutant in survivors if mutant.why},
        SURVIVED: [str(mutant) for mutant in survivors if not mutant.why],
        "files": len({mutant.file for mutant in found}),
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="", help="of the files' names")
    part = parser.parse_args().part
    mutants = [mutant for mutant in listed() if part in mutant.file]
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.perf_counter()
    found = campaign(ROOT, mutants, processes())
    told = summary(found, time.perf_counter() - started)
    for mutant, result in found.items():
        if result == SURVIVED:
            print(f"{mutant}\n    {mutant.why or f'SURVIVED {mutant.test}'}")
        elif mutant.why:
            print(f"{mutant}\n    is {result}, although: {mutant.why}")
    print(
        f"{told['mutants']} mutants in {told['files']} files: {told[KILLED]} killed, "
        f"{told[TIMED_OUT]} timed out (killed, too), {len(told['explained'])} "
        f"explained, {len(told[SURVIVED])} survived; {told['seconds']} s"
    )
    if not part:
        text = json.dumps(told, indent=2)
        Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    sys.exit(bool(told[SURVIVED]))


if __name__ == "__main__":
    main()
