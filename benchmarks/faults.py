"""What does a run survive? Hundreds of faults, each compared with an undisturbed run.

    python benchmarks/faults.py               about twenty minutes; writes faults.json
    python benchmarks/faults.py --share 0.1   a tenth of the faults; writes nothing

Processes are killed at every single file operation of a run in turn. Others are killed,
stopped by a signal, or meet a full disk at a random moment, and are started again until
the run is done; bytes of checkpoints are flipped and files cut off; steps run out of
memory.
"""

import argparse
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from datasets import DatasetDict, load_from_disk
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from agnews_helpers import (
    Recipe,
    SaveError,
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
from agnews_helpers.runs import OpenRun

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # where this is run as a script
from tests.tiny import tiny_model_folder  # noqa: E402

SWEEP = "killed at each file operation"
FAULTS = {
    SWEEP: None,
    "killed": 200,
    "signal": 50,
    "full disk": 50,
    "byte flipped": 100,
    "file cut off": 100,
    "out of memory": 100,
}
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP")
    if hasattr(signal, name)
]
SECONDS = 60  # a session that takes longer hangs, also on a machine that is at work


@dataclass
class Result:
    """Of one kind of fault: how many were tried, and what they did.

    survived : faults after which the run went on. runs : runs in which they happened.
    rows_lost : rows that a step should have had. weights_different : runs that ended
    with other weights or losses. left_over : files. intact_deleted : faults after which
    a whole checkpoint was gone. seconds_lost : over all runs.
    """

    fault: str
    tried: int = 0
    survived: int = 0
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
            "accelerate",
            __name__,
        ]
        context.set_forkserver_preload(preload)
    return context


def _session(context, run: SmallRun, folder: Path, strike=None, **fault) -> None:
    """One process to its end; `strike` is called with it once it trains."""
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
        if child.is_alive():
            os.kill(child.pid, number)

    result, context, number = Result(kind), _processes(), 0
    while result.tried < wanted:
        folder, number, started, before = (
            run.home / f"{kind.split()[0]}-{number}",
            number + 1,
            time.perf_counter(),
            result.tried,
        )
        intact = 0
        while not _finished(folder):
            disturb = result.tried < wanted
            full = disturb and kind == "full disk"
            _session(
                context,
                run,
                folder,
                strike if disturb and not full else None,
                room=chance.randrange(60) if full else None,
            )
            if not _finished(folder):
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


def out_of_memory(run: SmallRun, wanted: int, chance: random.Random) -> Result:
    """Let steps run out of memory at random; the weights must agree within 1e-6.

    Without dropout, whose masks depend on the parts. In float64, because a sum of parts
    rounds differently, and Adam amplifies that if a gradient is almost zero.
    """

    def without_dropout():
        model = load_model(run.recipe).double()
        for layer in model.modules():
            for name in ("p", "dropout_p"):
                if isinstance(getattr(layer, name, None), float):
                    setattr(layer, name, 0.0)
        return model

    result, number = Result("out of memory"), 0
    with quiet():
        never = train(
            without_dropout(), run.tokens, run.recipe, run.home / "never"
        ).model.state_dict()
    while result.tried < wanted:
        model, folder = without_dropout(), run.home / f"memory-{number}"
        failed = _fails_at_random(model, chance)
        with quiet(), logged(folder):
            done = train(model, run.tokens, run.recipe, folder)
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
        elif kind == "out of memory":
            results.append(out_of_memory(short, wanted, chance))
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = table(campaign(options.share, Path(home), options.seed, options.only))
        cost = cost_of_saving(Path(home))
    print(
        f"\n{found.to_string()}\n\n"
        f"A checkpoint of the true size: {cost['mebibytes']} MiB in "
        f"{max(cost['seconds']):.1f} s at most, "
        f"{cost['share_of_interval']:.2%} of the default interval."
    )
    if options.share == 1:
        path, lines = (
            Path(__file__).with_suffix(".json"),
            found.reset_index().to_dict("records"),
        )
        if options.only:
            lines = [
                lines[0] if line["fault"] == options.only else line
                for line in json.loads(path.read_text(encoding="utf-8"))["faults"]
            ]
        path.write_text(
            json.dumps({"faults": lines, "cost_of_saving": cost}, indent=2),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
