"""What does a run survive? Hundreds of faults, each compared with an undisturbed run.

    python benchmarks/faults.py               about half an hour; writes faults.json
    python benchmarks/faults.py --share 0.1   a tenth of the faults; writes nothing
    python benchmarks/faults.py --bits        every bit of run.json, about two minutes
    python benchmarks/faults.py --windows     files held by others, about half an hour;
                                              their clock is simulated, but for a few

Processes are killed at every single file operation of a run in turn. Others are killed,
stopped by a signal or by two, or meet a full disk at a random moment, and are started
again until the run is done; bytes of checkpoints are flipped and files cut off; steps,
or parts of a step, run out of memory. Files of a run are forged, its folder is renamed,
checkpoints of another run are copied into it, and foreign files lie under its names:
what is not the run's own is compared before and after.
"""

import argparse
import copy
import errno
import gc
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from datasets import DatasetDict, load_from_disk
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from agnews_helpers import (
    Recipe,
    SaveError,
    classify,
    load_data,
    load_model,
    load_tokenizer,
    tokenize,
    train,
    training,
)
from agnews_helpers.batching import epoch_batches
from agnews_helpers.checkpoints import State, find_checkpoints
from agnews_helpers.model import run_facts
from agnews_helpers.plumbing import storage
from agnews_helpers.plumbing.errors import AgnewsError
from agnews_helpers.plumbing.interrupts import StopSignal
from agnews_helpers.runs import OpenRun, recipe_of_run

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # where this is run as a script
from tests.tiny import tiny_model_folder  # noqa: E402
from tests.windows_shim import windows  # noqa: E402

SWEEP = "killed at each file operation"
FLIPPED = "bit of a record flipped"
FAULTS = {
    SWEEP: None,
    "killed": 200,
    "signal": 50,
    "full disk": 50,
    "byte flipped": 100,
    "file cut off": 100,
    "out of memory": 100,
    "out of memory between two parts": 50,
    "two presses of stop": 50,
    "forged run.json": 150,
    "forged manifest": 100,
    "forged progress.json": 150,
    FLIPPED: 150,
    "folder renamed": 30,
    "another run's checkpoints": 50,
    "foreign under a name of ours": 300,
}
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP")
    if hasattr(signal, name)
]
HOLDS = (0.2, 2, 20)  # seconds that a file is held
TOO_LONG = 60  # nobody waits for it
REALLY = 89  # every so many operations are also tried on the true clock
MEMORY = Path("/", "dev", "shm")  # a folder in memory, where the system has it
SECONDS = 60  # a session that takes longer hangs, also on a machine that is at work


@dataclass
class Result:
    """Of one kind of fault: how many were tried, and what they did.

    survived : faults after which the run went on. refused : those told in one clear
    line, an AgnewsError. tracebacks : any other error. damage : files that are not the
    run's and were changed or deleted. runs : runs in which they happened.
    rows_lost : rows that a step should have had. weights_different : runs that ended
    with other weights or losses. left_over : files. intact_deleted : faults after which
    a whole checkpoint was gone. seconds_lost : over all runs.
    """

    fault: str
    tried: int = 0
    survived: int = 0
    refused: int = 0
    tracebacks: int = 0
    damage: int = 0
    runs: int = 0
    rows_lost: int = 0
    weights_different: int = 0
    left_over: int = 0
    intact_deleted: int = 0
    seconds_lost: float = 0.0


class SmallRun:
    """A real run, made small: 2 layers, 32 wide, dropout on, saved every few steps."""

    def __init__(
        self,
        home: Path,
        train_rows: int | None = None,
        epochs: int = 3,
        minutes: float = 0.001,
    ):
        self.home, self.minutes = home, minutes
        home.mkdir(parents=True, exist_ok=True)
        model = str(tiny_model_folder(home / "model"))
        self.recipe = Recipe(
            profile="offline",
            model=model,
            data="sample",
            train_rows=train_rows,
            epochs=epochs,
            learning_rate=1e-3,
        )
        tokens = tokenize(
            load_data(self.recipe), load_tokenizer(self.recipe), self.recipe
        )
        self.tokens = DatasetDict(
            {name: tokens[name] for name in ("train", "validation")}
        )
        self.tokens.save_to_disk(home / "tokens")
        started = time.perf_counter()
        self.reference = train(
            load_model(self.recipe),
            self.tokens,
            self.recipe,
            home / "reference",
            save_minutes=minutes,
        )
        self.seconds = time.perf_counter() - started
        self.steps = len(self.reference.steps)

    def judge(self, folder: Path, result: Result) -> None:
        """Compare a finished run with the undisturbed one; look for leftover files."""
        result.runs += 1
        one, other = (
            load_file(place / storage.BEST / "model.safetensors")
            for place in (folder, self.reference.folder)
        )
        same = one.keys() == other.keys() and all(
            torch.equal(one[name], other[name]) for name in one
        )
        steps = [
            (place / "steps.csv").read_bytes()
            for place in (folder, self.reference.folder)
        ]
        result.weights_different += not (same and steps[0] == steps[1])
        if (folder / "rows.log").exists():
            result.rows_lost += self.rows_lost(folder / "rows.log")
        names = {path.name for path in self.reference.folder.iterdir()} | {"rows.log"}
        extra = [
            path
            for path in folder.rglob("*")
            if path.parent == folder
            and path.name not in names
            or storage.PARTIAL in path.name
        ]
        extra = [
            path
            for path in extra
            if path.name != "checkpoints"
            or not all(storage.SET_ASIDE_SUFFIX in kept.name for kept in path.iterdir())
        ]
        result.left_over += len(extra)

    def rows_lost(self, log: Path) -> int:
        """Count the rows that a step should have had, when it was last taken."""
        taken = {}
        for line in log.read_text(encoding="utf-8").splitlines():
            step, _, rows = line.partition(" ")
            taken[int(step)] = rows.split()
        lengths, lost, step = self.tokens["train"]["length"][:], 0, 0
        for epoch in range(1, self.recipe.epochs + 1):
            for batch in epoch_batches(lengths, self.recipe, epoch):
                step += 1
                lost += len(set(map(str, batch)) - set(taken.get(step, [])))
        return lost


@contextmanager
def quiet():
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


@contextmanager
def logged(folder: Path):
    """Every step that was taken appends its number and its rows to ``rows.log``."""
    progress_bar = training.progress_bar
    add_step = State.add_step
    taken = []
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "rows.log", "a", buffering=1, encoding="utf-8") as log:

        def noted_batches(*arguments):
            for indices, batch in progress_bar(*arguments):
                taken[:] = indices
                yield indices, batch

        def logged_step(state, loss):  # before anything is saved
            add_step(state, loss)
            log.write(f"{len(state.losses)} {' '.join(map(str, taken))}\n")

        training.progress_bar = noted_batches
        State.add_step = logged_step
        try:
            yield
        finally:
            training.progress_bar = progress_bar
            State.add_step = add_step


def session(
    run, folder: Path, ready, room: int | None = None, operation: int | None = None
) -> None:
    """Train in a process of its own until the end or the fault.

    room : flushes to the disk before it is full. operation : on a file, before which
    the process is killed; 0 counts them.
    """
    recipe, home, minutes = run
    StopSignal.GRACE_SECONDS = 0.05  # so that a second signal counts
    with quiet():
        tokens, model = load_from_disk(home / "tokens"), load_model(recipe)
    if room is not None:
        _fill_disk(room)
    if operation is not None:
        minutes, asked = 60.0, iter(range(1, 10**6))
        OpenRun.is_save_due = property(lambda _: next(asked) in (3, 8))
    with quiet(), logged(folder):
        ready.set()
        counted = (
            [0] if operation is None else _kill_before(operation, folder.resolve())
        )
        try:
            train(model, tokens, recipe, folder, save_minutes=minutes)
        except SaveError:
            os._exit(28)
    if operation == 0:
        (home / "operations").write_text(str(counted[0]), encoding="utf-8")


def _kill_before(operation: int, folder: Path) -> list[int]:
    """Count the operations on a folder's files; end the process before one of them."""
    counted, place = [0], str(folder)
    names = {
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.chmod",
        "shutil.rmtree",
        "shutil.copyfile",
    }
    sync = os.fsync

    def count():
        counted[0] += 1
        if counted[0] == operation:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    def watch(event, arguments):
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if (
                writes
                and str(arguments[0]).startswith(place)
                and not str(arguments[0]).endswith("rows.log")
            ):
                count()
        elif event in names:
            count()

    def fsync(handle):
        count()
        sync(handle)

    os.fsync = fsync
    sys.addaudithook(watch)
    return counted


def sweep(run: SmallRun, every: int = 1) -> Result:
    """Kill a run before each of its operations on files, then let it end.

    every : 2 takes every second operation, and so on.
    """
    result, context, before = Result(SWEEP), _processes(), 0
    _session(context, run, run.home / "counted", operation=0)
    operations = int((run.home / "operations").read_text(encoding="utf-8"))
    for operation in range(1, operations + 1, every):
        folder, started = run.home / f"operation-{operation}", time.perf_counter()
        _session(context, run, folder, operation=operation)
        result.tried += 1
        intact = _intact_steps(folder)
        result.intact_deleted += intact < before
        before = intact
        _session(context, run, folder)
        result.survived += _finished(folder)
        result.seconds_lost += time.perf_counter() - started - run.seconds
        run.judge(folder, result)
        shutil.rmtree(folder)
    return result


def _finished(folder: Path) -> bool:
    return folder.exists() and bool(run_facts(folder).get("finished"))


def _intact_steps(folder: Path) -> int:
    """Count the steps of the newest whole checkpoint, or of the whole finished run."""
    facts = run_facts(folder) if folder.exists() else {}
    if facts.get("finished") and not storage.damaged_files(folder, facts["files"]):
        return facts["steps"]
    whole = [
        path for path in find_checkpoints(folder) if not storage.damaged_files(path)
    ]
    return (
        len(storage.read_json(whole[0] / "progress.json")["state"]["losses"])
        if whole
        else 0
    )


def _processes():
    """Return processes that start quickly: forked from one that has only imported."""
    method = (
        "forkserver"
        if "forkserver" in multiprocessing.get_all_start_methods()
        else "spawn"
    )
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        preload = [
            "agnews_helpers.training",
            "transformers.models.distilbert.modeling_distilbert",
            __name__,
        ]
        context.set_forkserver_preload(preload)
    return context


def _session(context, run: SmallRun, folder: Path, strike=None, **fault) -> int:
    """Return the exit code of one process; `strike` gets it once it trains."""
    ready = context.Event()
    child = context.Process(
        target=session,
        args=((run.recipe, run.home, run.minutes), folder, ready),
        kwargs=fault,
    )
    child.start()
    assert ready.wait(60), "the session does not start"
    if strike:
        strike(child)
    child.join(SECONDS + 10 * run.seconds)
    assert not child.is_alive(), "the session hangs"
    return child.exitcode


def _fill_disk(room: int) -> None:
    real, count = os.fsync, iter(range(room))

    def fsync(handle):
        if next(count, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    os.fsync = fsync


def disturbed(run: SmallRun, kind: str, wanted: int, chance: random.Random) -> Result:
    """Kill or stop runs, or fill their disk, at a random moment, `wanted` times."""

    def strike(child):
        child.join(chance.uniform(0, 0.6 * run.seconds))
        number = (
            getattr(signal, "SIGKILL", signal.SIGTERM)
            if kind == "killed"
            else chance.choice(SIGNALS)
        )
        for _ in range(2 if kind == "two presses of stop" else 1):
            if child.is_alive():
                os.kill(child.pid, number)
            child.join(chance.uniform(0, 0.3) if kind == "two presses of stop" else 0)

    result, context, number = Result(kind), _processes(), 0
    while result.tried < wanted:
        folder, number, started, before = (
            run.home / f"{kind.split()[0]}-{number}",
            number + 1,
            time.perf_counter(),
            result.tried,
        )
        intact, has_ended = 0, False
        while not has_ended:
            disturb = result.tried < wanted
            full = disturb and kind == "full disk"
            code = _session(
                context,
                run,
                folder,
                strike if disturb and not full else None,
                room=chance.randrange(60) if full else None,
            )
            # A run killed while it finishes leaves the rest to the next process.
            has_ended = code == 0 and _finished(folder)
            if not has_ended:
                assert disturb, "a run that nothing disturbed did not end"
                result.tried += 1
            result.intact_deleted += _intact_steps(folder) < intact
            intact = _intact_steps(folder)
        result.survived += result.tried - before
        result.seconds_lost += time.perf_counter() - started - run.seconds
        run.judge(folder, result)
        shutil.rmtree(folder)
    return result


def damaged(run: SmallRun, kind: str, wanted: int, chance: random.Random) -> Result:
    """Change a file in a checkpoint between two sessions of a run."""
    result = Result(kind)
    for number in range(wanted):
        folder = run.home / f"damaged-{number}"
        with quiet(), logged(folder):
            train(
                load_model(run.recipe),
                run.tokens,
                run.recipe,
                folder,
                steps=chance.randrange(2, run.steps),
            )
            path = chance.choice(
                [
                    path
                    for path in sorted((folder / "checkpoints").rglob("*"))
                    if path.is_file()
                ]
            )
            _damage(path, kind, chance)
            started = time.perf_counter()
            result.tried += 1
            train(load_model(run.recipe), run.tokens, run.recipe, folder)
        result.survived += _finished(folder)
        result.seconds_lost += time.perf_counter() - started
        run.judge(folder, result)
        shutil.rmtree(folder)
    return result


def _damage(path: Path, kind: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "byte flipped":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        data = data[: chance.randrange(len(data))]
    path.write_bytes(data)


def out_of_memory(
    run: SmallRun, kind: str, wanted: int, chance: random.Random
) -> Result:
    """Let steps run out of memory at random; the weights must agree within 1e-6.

    Between two parts: the first part of a batch has left its gradients. Without
    dropout, whose masks depend on the parts. In float64, because a sum of parts rounds
    differently, and Adam amplifies that if a gradient is almost zero.
    """

    def without_dropout():
        model = load_model(run.recipe).double()
        for layer in model.modules():
            for name in ("p", "dropout_p"):
                if isinstance(getattr(layer, name, None), float):
                    setattr(layer, name, 0.0)
        return model

    between = kind == "out of memory between two parts"
    fails = _fails_between_parts if between else _fails_at_random
    recipe = run.recipe.replace(micro_batch_size=4 if between else None)
    result, number = Result(kind), 0
    with quiet():
        never = train(
            without_dropout(), run.tokens, run.recipe, run.home / "never"
        ).model.state_dict()
    while result.tried < wanted:
        model, folder = without_dropout(), run.home / f"memory-{number}"
        failed = fails(model, chance)
        with quiet(), logged(folder):
            done = train(model, run.tokens, recipe, folder)
        result.tried, number, result.runs = (
            result.tried + len(failed),
            number + 1,
            result.runs + 1,
        )
        result.survived += len(failed) * done.finished
        result.weights_different += any(
            (weight - never[name]).abs().max() > 1e-6
            for name, weight in done.model.state_dict().items()
        )
        result.rows_lost += run.rows_lost(folder / "rows.log")
        shutil.rmtree(folder)
    return result


def _fails_at_random(model, chance: random.Random) -> list[int]:
    """Let a tenth of all batches of more than one row fail; list their rows."""
    forward, failed = model.forward, []

    def fails(**batch):
        rows = len(batch["input_ids"])
        if model.training and rows > 1 and chance.random() < 0.1:
            failed.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**batch)

    model.forward = fails
    return failed


def _fails_between_parts(model, chance: random.Random) -> list[int]:
    """Let a part fail in its backward pass, after another one had its own."""
    forward, failed, seen = model.forward, [], []
    last = model.classifier.weight

    def fails(**batch):
        output = forward(**batch)
        rows = len(batch["input_ids"])
        started = last.grad is not None and bool(last.grad.any())
        if model.training and rows > 1 and started and chance.random() < 0.3:
            where = chance.choice([output.logits, *seen])
            where.register_hook(out_of_memory)
            failed.append(rows)
        return output

    def out_of_memory(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def keep(module, arguments, output):
        seen[:] = [arguments[0]] if arguments[0].requires_grad else []

    model.pre_classifier.register_forward_hook(keep)
    model.forward = fails
    return failed


class Bases:
    """Two folders to spoil copies of, and what is not ours beside and inside them."""

    def __init__(self, run: SmallRun):
        self.run, self.home, self.minutes = run, run.home / "bases", 10.0
        for steps in () if self.home.exists() else (run.steps // 2, 2):
            self.train(self.home / "stopped", steps=steps)
        shutil.copytree(
            run.reference.folder, self.home / "finished", dirs_exist_ok=True
        )

    def train(self, folder: Path, resume: str | bool = "auto", **options):
        """Train with the arguments of the undisturbed run."""
        recipe = options.pop("recipe", self.run.recipe)
        with quiet():
            return train(
                load_model(recipe),
                self.run.tokens,
                recipe,
                folder,
                resume,
                **{"save_minutes": self.minutes} | options,
            )

    @contextmanager
    def copied(self, base: str):
        """Yield a copy of "stopped", of "finished" or of an "empty" folder."""
        with tempfile.TemporaryDirectory(dir=self.home) as place:
            folder = Path(place) / "run"
            if base != "empty":
                shutil.copytree(self.home / base, folder)
            for name in (
                "victims/known.txt",
                "run/thesis.txt",
                "run/checkpoints/my.txt",
            ):
                path = Path(place) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"foreign")
            yield folder

    def attempt(
        self, folder: Path, result: Result, resume: str | bool, same: bool = False
    ) -> None:
        """Train, resume and classify; then judge what became of the folder.

        same : whether the recipe in the folder is that of the run, or cannot be read.
        """
        place, recipe = folder.parent, self.run.recipe
        foreign, judged = _foreign(place), Result("")

        def resumed():
            assert recipe_of_run(folder) == recipe or not same, "another recipe"

        started = time.perf_counter()
        outcomes = [
            _outcome(classify, ["Stocks fall"], folder),
            _outcome(resumed),
            _outcome(self.train, folder, resume),
        ]
        result.seconds_lost += time.perf_counter() - started
        result.tried += 1
        result.tracebacks += outcomes.count("traceback")
        result.refused += outcomes[-1] == "refused"
        result.damage += sum(not _is_there(place, *item) for item in foreign.items())
        if outcomes[-1] == "done":
            result.survived += 1
            self.run.judge(folder, judged)
            result.runs += 1
            result.weights_different += judged.weights_different


def _outcome(function, *arguments) -> str:
    """Call a function: "done", "refused" in words, or "traceback"."""
    try:
        with quiet():
            function(*arguments)
    except (AgnewsError, OSError) as error:  # of a file, which it names
        return "refused" if str(error) else "traceback"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"
    return "done"


def _content(path: Path) -> bytes | str | None:
    """Return a file's bytes, or where a link leads to; None for anything else."""
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else None


def _foreign(place: Path) -> dict[Path, bytes | str]:
    """Find what is not ours: links, and files that say so."""
    found = {path.relative_to(place): _content(path) for path in place.rglob("*")}
    return {
        name: content
        for name, content in found.items()
        if isinstance(content, str) or content == b"foreign"
    }


def _is_there(place: Path, name: Path, content: bytes | str) -> bool:
    """Tell whether it is where it was, or in what was set aside."""
    found = [place]
    for part in name.parts:
        kept = f"{part}{storage.SET_ASIDE_SUFFIX}"
        found = [
            path
            for parent in found
            for path in parent.glob("*")
            if path.name == part or path.name.startswith(kept)
        ]
    return any(_content(path) == content for path in found)


def _wrong_values(place: Path) -> list:
    known = place / "victims" / "known.txt"
    texts = ["", ".", "..", "a\0b", "\ud800", "\x1b[2J", "x", "C:\\Windows\\win.ini"]
    texts += ["../victims/known.txt", "..\\victims\\known.txt", str(known)]
    return [None, True, False, 0, -1, 7, 10**30, 1.5, [], [1], {}, {"a": 1}, *texts]


def _wrong_names(folder: Path) -> dict[str, str]:
    """Names that lead elsewhere, or to the user's own files: each with its checksum."""
    names = [name for name in _wrong_values(folder.parent) if isinstance(name, str)]
    names += ["thesis.txt", "../thesis.txt", "best/../../victims/known.txt"]
    return dict.fromkeys(names, storage.sha256(folder / "thesis.txt"))


def _forge(facts: dict, chance: random.Random, place: Path) -> dict:
    """Change one field, at any depth: missing, of another type, or another value."""
    facts = copy.deepcopy(facts)
    inside = facts
    while True:
        name = chance.choice([*inside])
        if not (
            isinstance(inside[name], dict) and inside[name] and chance.random() < 0.6
        ):
            break
        inside = inside[name]
    if chance.random() < 0.25:
        del inside[name]
    else:
        inside[name] = chance.choice(_wrong_values(place))
    return facts


def _forge_sums(sums: dict, chance: random.Random, folder: Path) -> dict:
    """Add names that lead elsewhere, or put them in the place of the right ones."""
    wrong = _wrong_names(folder)
    picked = chance.sample([*wrong], chance.randrange(1, 4))
    kept = sums if chance.random() < 0.6 else {}
    return {**kept, **{name: wrong[name] for name in picked}}


def spoiled(run: SmallRun, kind: str, wanted: int, chance: random.Random) -> Result:
    """Spoil copies of a stopped and of a finished run's folder, and train there."""
    bases, result = Bases(run), Result(kind)
    spoil, folders = SPOIL[kind]
    for _ in range(wanted):
        with bases.copied(chance.choice(folders)) as folder:
            with spoil(folder, chance, bases) or nullcontext():
                resume = chance.choice(["auto", "auto", True, False])
                if kind == "another run's checkpoints":
                    # False discards them. After each step older ones are deleted.
                    resume, bases.minutes = resume or True, 1e-9
                bases.attempt(folder, result, resume, kind == FLIPPED)
    return result


def _forge_record(folder, chance, _):
    facts = storage.read_record(folder / storage.RUN_FILE)
    choice = chance.random()
    if choice < 0.4:
        facts["files"] = _forge_sums(facts["files"], chance, folder)
    elif choice < 0.55:
        facts["format"] = chance.choice([1, 2, 4, 99, "3", None])
    else:
        facts = _forge(facts, chance, folder.parent)
    storage.write_record(folder / storage.RUN_FILE, facts)


def _forge_manifest(folder, chance, _):
    path = chance.choice([*folder.rglob(storage.MANIFEST)])
    sums = _forge_sums(storage.read_json(path), chance, folder)
    if chance.random() < 0.2:
        sums = chance.choice([{}, [], None, *map(lambda name: {name: 1}, sums)])
    storage.write_json(path, sums)


def _forge_progress(folder, chance, _):
    path = chance.choice(find_checkpoints(folder)) / "progress.json"
    facts = storage.read_json(path)
    state = {"state": facts.pop("state")}
    storage.write_json(path, _forge(facts, chance, folder.parent) | state)
    sums = storage.read_json(path.with_name(storage.MANIFEST))
    sums[path.name] = storage.sha256(path)
    storage.write_json(path.with_name(storage.MANIFEST), sums)


def _flip_record(folder, chance, _):
    names = (storage.RUN_FILE, storage.MANIFEST, "progress.json")
    paths = sorted(path for name in names for path in folder.rglob(name))
    _damage(chance.choice(paths), "byte flipped", chance)


def _copy_checkpoints(folder, chance, bases):
    """Of the same recipe, or of another one; between the run's own, or newer."""
    other = bases.home / chance.choice(["same", "seed", "epochs"])
    changes = {"same": {}, "seed": {"seed": 7}, "epochs": {"epochs": 5}}[other.name]
    if not other.exists():
        for steps in (1, 2, 2):
            recipe = bases.run.recipe.replace(**changes)
            bases.train(other, steps=steps, recipe=recipe)
            kept = other.with_name(f"{other.name}-kept")
            shutil.copytree(other / "checkpoints", kept, dirs_exist_ok=True)
    kept = sorted(other.with_name(f"{other.name}-kept").glob("step-*"))
    for path in chance.sample(kept, chance.randrange(1, 3)):
        number = int(path.name.split("-")[1]) + chance.choice([0, 0, 100])
        name = storage.free_name(folder / "checkpoints" / f"step-{number:08d}")
        shutil.copytree(path, name)
        if changes:  # it is somebody else's, and whole
            (name / "whose").write_bytes(b"foreign")
            sums = storage.read_json(name / storage.MANIFEST)
            sums["whose"] = storage.sha256(name / "whose")
            storage.write_json(name / storage.MANIFEST, sums)


NAMES = [
    *(".agnews.lock", "best", "checkpoints", "history.csv", "run.json", "steps.csv"),
    *("test_report.json", ".agnews-partial-best-12", ".agnews-partial-run.json"),
    *("best/config.json", "best/manifest.json", "best/model.safetensors"),
    *(f"checkpoints/{name}" for name in (".agnews.lock", "step-00000099")),
    "checkpoints/.agnews-partial-step-00000003-12",
    *(f"checkpoints/step-00000099/{name}.json" for name in ("manifest", "progress")),
    *(f"checkpoints/NEWEST/{name}.json" for name in ("manifest", "progress")),
    *(f"checkpoints/NEWEST/{name}" for name in ("model.safetensors", "state.pt")),
    *("checkpoints/NEWEST", "checkpoints/NEWEST/best"),
]


def _put_something_foreign(folder, chance, _):
    """Under a name of ours: a file, a folder, a link, a link to nothing, or closed."""
    name, newest = chance.choice(NAMES), find_checkpoints(folder)
    path = folder / name.replace(
        "NEWEST", newest[0].name if newest else "step-00000007"
    )
    kind = chance.choice(
        ["file", "folder", "link", "to a folder", "dangling", "closed"]
    )
    if kind == "closed" and path.is_file():
        return _closed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        path.rename(folder.parent / "ours")  # there may be something foreign in it
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_bytes(b"foreign")
    elif kind in ("file", "closed"):
        path.write_bytes(b"foreign")
    else:
        victims = folder.parent / "victims"
        targets = {"link": victims / "known.txt", "to a folder": victims}
        path.symlink_to(targets.get(kind, victims / "not-mounted"))
    return None


@contextmanager
def _closed(closed: Path):
    """Let a file be unreadable, also for root."""
    real = storage.retry_if_held

    def read(function, *arguments):
        path = getattr(function, "__self__", *arguments[:1] or [None])
        if function.__name__ not in ("rename", "replace") and path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return real(function, *arguments)

    storage.retry_if_held = read
    try:
        yield
    finally:
        storage.retry_if_held = real


# How a folder is spoiled, and in which states.
SPOIL = {
    "forged run.json": (_forge_record, ["stopped", "finished"]),
    "forged manifest": (_forge_manifest, ["stopped", "finished"]),
    "forged progress.json": (_forge_progress, ["stopped"]),
    FLIPPED: (_flip_record, ["stopped", "finished"]),
    "another run's checkpoints": (
        _copy_checkpoints,
        ["empty", "stopped", "stopped", "stopped", "finished"],
    ),
    "foreign under a name of ours": (
        _put_something_foreign,
        ["empty", "stopped", "finished"],
    ),
}


def renamed(run: SmallRun, kind: str, wanted: int, chance: random.Random) -> Result:
    """Rename a folder under its run; half of the time another run begins there.

    Both must end as the undisturbed one, once the folder is back in its place.
    """
    bases, result = Bases(run), Result(kind)
    for number in range(wanted):
        folder, moved = run.home / f"renamed-{number}", run.home / f"moved-{number}"
        begun = chance.choice([0, chance.randrange(1, run.steps)])
        minutes = chance.choice([run.minutes, 10.0])
        with _renamed_at(chance.randrange(1, run.steps), folder, moved, bases, begun):
            outcome = _outcome(
                lambda f, m: bases.train(f, save_minutes=m), folder, minutes
            )
        result.tried += 1
        result.refused += outcome == "refused"
        result.tracebacks += outcome == "traceback"
        for path in filter(Path.exists, (folder, moved)):
            result.survived += bases.train(path).finished and path == moved
            run.judge(path, result)
            shutil.rmtree(path)
    return result


@contextmanager
def _renamed_at(step: int, folder: Path, moved: Path, bases: Bases, begun: int):
    """Rename a run's folder after a step, and begin another run of `begun` steps."""
    add_step = State.add_step

    def rename(state, loss):
        add_step(state, loss)
        if len(state.losses) == step:
            State.add_step = add_step
            folder.rename(moved)
            if begun:
                bases.train(folder, steps=begun)

    State.add_step = rename
    try:
        yield
    finally:
        State.add_step = add_step


def sweep_bits(run: SmallRun, every: int = 1) -> dict[str, dict[str, int]]:
    """Flip each bit of run.json in turn: what would the same call find afterwards?

    The same (a finished run, or the checkpoint to resume from), a folder in which what
    the record was about is set aside and said, or a refusal in one line; and what
    `agnews train --resume` and a reader of the record would find. Anything else counts
    as "silently another". every : 2 flips every second bit, and so on.
    """
    bases = Bases(run)
    sums = lru_cache(None)(lambda path, *_: sha256(path))
    sha256 = storage.sha256

    def cached(path):
        return sums(path, path.stat().st_mtime_ns, path.stat().st_ino)

    storage.sha256 = cached
    try:
        return {
            base: _sweep_bits(run, bases, base, every)
            for base in ("stopped", "finished")
        }
    finally:
        storage.sha256 = sha256


def _sweep_bits(run, bases, base, every):
    counts = Counter()
    with bases.copied(base) as folder, quiet():
        record = folder / storage.RUN_FILE
        unopened = OpenRun(folder, load_model(run.recipe), run.tokens, run.recipe)
        names = [path for path in folder.iterdir() if path.name != "thesis.txt"]
        data = record.read_bytes()
        whole = _found(unopened, folder)
        for bit in range(0, 8 * len(data), every):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            record.write_bytes(flipped)
            for what, found in _found(unopened, folder).items():
                if found == whole[what]:
                    found = "the same"
                elif found not in (SET_ASIDE, REFUSED):
                    found = "silently another"
                counts[f"{what}: {found}"] += 1
            for path in names:
                kept = path.with_name(path.name + storage.SET_ASIDE_SUFFIX)
                if kept.exists():
                    kept.rename(path)
    return dict(counts)


SET_ASIDE, REFUSED = "set aside and said", "refused"


def _found(unopened: OpenRun, folder: Path) -> dict:
    """What three readers of run.json find in a folder."""
    return {
        "evaluate, classify": _read(run_facts, folder),
        "train --resume": _read(recipe_of_run, folder),
        "train": _start(unopened, folder),  # which may set run.json aside
    }


def _read(function, folder):
    try:
        return function(folder)
    except AgnewsError:
        return REFUSED


def _start(unopened, folder):
    """Return what the call would begin with: with what is in the folder, or anew."""
    output = io.StringIO()
    try:
        with redirect_stdout(output), copy.copy(unopened) as run:
            found = (run.is_finished, run.newest)
    except AgnewsError:
        return REFUSED
    aside = [path.name for path in folder.glob(f"*{storage.SET_ASIDE_SUFFIX}")]
    said = output.getvalue().count("cannot be used")
    # What is resumed is the newest checkpoint all the same.
    expected = (False, *find_checkpoints(folder)[:1]) if aside else found
    is_said = len(aside) == said and found == (*expected, None)[:2]
    return SET_ASIDE if aside and is_said else found


def sweep_held(
    run: SmallRun, seconds: float, every: int = 1, real_clock: bool = False
) -> dict[str, int]:
    """As on Windows another program holds a file, from each operation on in turn.

    The clock by which it lets go is simulated: the waits of `storage` turn it, and cost
    no time. With `real_clock` the waits are real.

    A run is stopped once and resumed, in an empty folder and over an older finished
    run. went_on : it ended like the undisturbed one; noted : of these, with a note that
    a periodic save failed. told : the call ended with a message that names the file and
    what to close; repeated later, it ended like the undisturbed one. unclear : with
    another message or a traceback. lost : steps that were saved before were not
    afterwards. half_replaced : a finished run whose files did not fit each other.
    damage, weights_different : as of `Result`. left_over : files. every : 2 takes every
    second operation.

    The two locks with which a call begins are not waited for. If a file is held for
    longer than it is waited for, just when a finished run takes the place of an older
    one, best/ may be new and a table old: the next call keeps what is old as set aside.
    """
    names = "operations went_on noted told unclear lost half_replaced damage"
    names += " weights_different left_over"
    bases, counts = Bases(run), Counter(dict.fromkeys(names.split(), 0))
    older = run.recipe.replace(seed=7)
    if not (bases.home / "older").exists():
        bases.train(bases.home / "older", recipe=older)
    for base in ("empty", "older"):
        with bases.copied(base) as folder, windows(folder) as machine:
            assert _stop_and_resume(bases, folder, base)[0] == "", "it ends by itself"
        for operation in range(1, machine.count + 1, every):
            counts["operations"] += 1
            with bases.copied(base) as folder:
                _hold(bases, folder, base, operation, (seconds, real_clock), counts)
    return dict(counts)


def sweep_holds(share: float) -> list[dict[str, float]]:
    """Take `share` of all operations for each of `HOLDS`, and a third for `TOO_LONG`.

    A few are tried on the true clock as well. Two sweeps at once; their files are in
    memory, if they can be.
    """
    every = max(1, round(1 / share))
    sweeps = [(seconds, every, False) for seconds in HOLDS]
    sweeps += [(TOO_LONG, 3 * every, False)]
    sweeps += [(seconds, REALLY * every, True) for seconds in HOLDS]
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        return pool.starmap(_sweep_hold, sweeps, 1)


def _sweep_hold(seconds, every, real_clock):
    torch.set_num_threads(1)
    gc.freeze()  # each run collects garbage; the libraries are none
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as home:
        with quiet():
            run = SmallRun(Path(home), train_rows=44, epochs=2)
        counts = sweep_held(run, seconds, every, real_clock)
    clock = "true" if real_clock else "simulated"
    counts = {"held_seconds": seconds, "clock": clock, **counts}
    counts["minutes_of_cpu"] = round(time.process_time() / 60, 1)
    print(counts, flush=True)
    return counts


def _hold(bases, folder, base, operation, held, counts):
    """Hold the file of one operation; judge what the run did, and repeat it."""
    foreign, result = _foreign(folder.parent), Result("")
    before = _intact_steps(folder)
    with windows(folder, operation, *held) as machine:
        message, printed = _stop_and_resume(bases, folder, base)
    counts["went_on"] += not message
    counts["noted"] += not message and "The run goes on" in printed
    if message:
        held = [machine.held, *machine.held.parents]
        inside = [str(path) for path in held if folder in path.parents]
        remedy = "lose" in message or "Wait until" in message
        is_clear = remedy and any(path in message for path in inside)
        counts["told" if is_clear else "unclear"] += 1
        counts["lost"] += before > 0 and not _intact_steps(folder)
        facts = run_facts(folder) if folder.exists() else {}
        counts["half_replaced"] += bool(
            facts.get("finished") and storage.damaged_files(folder, facts["files"])
        )
        with windows(folder):
            message, _ = _stop_and_resume(bases, folder, base)
    assert not message, message
    bases.run.judge(folder, result)
    counts["damage"] += sum(
        not _is_there(folder.parent, *item) for item in foreign.items()
    )
    counts["weights_different"] += result.weights_different
    names = {path.name for path in bases.run.reference.folder.iterdir()}
    left = {path.name for path in folder.iterdir()} - names
    left -= {"thesis.txt", "checkpoints"}  # with my.txt in it
    counts["left_over"] += len(left) + len([*folder.rglob(f"*/{storage.PARTIAL}*")])


def _stop_and_resume(bases, folder, base):
    """Train with saves, stop and resume; return what was raised and what was printed.

    What was begun is resumed, also after an error.
    """
    asked, due = iter(range(10**6)), OpenRun.is_save_due
    output, run = io.StringIO(), bases.run
    OpenRun.is_save_due = property(lambda _: next(asked) in (1, run.steps - 2))
    begun = base != "older" or find_checkpoints(folder)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            with redirect_stdout(output), redirect_stderr(nowhere):
                for resume, steps in (("auto" if begun else False, 7), ("auto", None)):
                    model = load_model(run.recipe)
                    train(model, run.tokens, run.recipe, folder, resume, steps)
    except AgnewsError as error:
        return str(error), output.getvalue()
    except Exception as error:
        return f"traceback of {type(error).__name__}: {error}", output.getvalue()
    finally:
        OpenRun.is_save_due = due
    return "", output.getvalue()


def cost_of_saving(home: Path) -> dict:
    """Measure a checkpoint of the true size (66,956,548 parameters)."""
    recipe = Recipe(model="mini")
    model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=4))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rows = DatasetDict.load_from_disk(home / "long" / "tokens")
    with OpenRun(home / "cost", model, rows, recipe) as run:
        run.restore(optimizer)
        seconds = []
        for step in range(5):
            started = time.perf_counter()
            run.save(State(8, 8, 4, losses=[0.0] * step))
            seconds.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in run.newest.iterdir())
        share = max(seconds) / (60 * run.save_minutes)
    return {
        "mebibytes": round(size / 2**20),
        "seconds": [round(value, 2) for value in seconds],
        "share_of_interval": share,
    }


def campaign(
    share: float, home: Path, seed: int = 0, only: str | None = None
) -> list[Result]:
    """Try all kinds of faults, or one: `share` of the numbers in `FAULTS`."""
    with quiet():
        long, short = (
            SmallRun(home / "long"),
            SmallRun(home / "short", train_rows=44, epochs=2),
        )
    results = []
    for kind, count in FAULTS.items():
        if only not in (None, kind):
            continue
        chance, wanted = (
            random.Random(f"{seed} {kind}"),
            max(1, round(share * (count or 0))),
        )
        if kind == SWEEP:
            results.append(sweep(short, every=max(1, round(1 / share))))
        elif kind in ("byte flipped", "file cut off"):
            results.append(damaged(short, kind, wanted, chance))
        elif kind.startswith("out of memory"):
            results.append(out_of_memory(short, kind, wanted, chance))
        elif kind in SPOIL:
            results.append(spoiled(short, kind, wanted, chance))
        elif kind == "folder renamed":
            results.append(renamed(short, kind, wanted, chance))
        else:
            results.append(disturbed(long, kind, wanted, chance))
        print(results[-1], flush=True)
    return results


def table(results: list[Result]) -> pd.DataFrame:
    frame = pd.DataFrame([asdict(result) for result in results]).set_index("fault")
    frame["seconds_lost"] = (frame["seconds_lost"] / frame["tried"]).round(2)
    return frame.rename(columns={"seconds_lost": "seconds_lost_per_fault"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        choices=FAULTS,
        help="this kind alone; its line in faults.json is replaced",
    )
    parser.add_argument(
        "--bits", action="store_true", help="flip each bit of a run.json, and no more"
    )
    parser.add_argument(
        "--windows", action="store_true", help="have files held, and no more"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        if options.bits:
            with quiet():
                run = SmallRun(Path(home), train_rows=44, epochs=2)
            counts = sweep_bits(run, every=max(1, round(1 / options.share)))
            print(json.dumps(counts, indent=2))
            results = {"bits of run.json": counts}
        elif options.windows:
            results = {"files held as on Windows": sweep_holds(options.share)}
            print(pd.DataFrame(*results.values()).to_string(index=False))
        else:
            results = _faults_and_cost(options, Path(home))
    if options.share == 1:
        path = Path(__file__).with_suffix(".json")
        before = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(before | results, indent=2), encoding="utf-8")


def _faults_and_cost(options, home: Path) -> dict:
    found = table(campaign(options.share, home, options.seed, options.only))
    cost = cost_of_saving(home)
    print(
        f"\n{found.to_string()}\n\n"
        f"A checkpoint of the true size: {cost['mebibytes']} MiB in "
        f"{max(cost['seconds']):.1f} s at most, "
        f"{cost['share_of_interval']:.2%} of the default interval."
    )
    lines = found.reset_index().to_dict("records")
    if options.only:
        path = Path(__file__).with_suffix(".json")
        before = json.loads(path.read_text(encoding="utf-8"))["faults"]
        other = {line["fault"]: line for line in before}
        lines = [*(other | {line["fault"]: line for line in lines}).values()]
    return {"faults": lines, "cost_of_saving": cost}


if __name__ == "__main__":
    main()
