"""What does a run survive? Hundreds of faults against small runs, each compared with the run that nothing disturbed.

    python benchmarks/faults.py            about ten minutes; prints a table, writes faults.json beside this file
    python benchmarks/faults.py --share 0.1   a tenth of the faults, and nothing written

Processes are killed without warning, stopped by a signal, or meet a full disk at a random moment, and are started
again until the run is done; bytes of checkpoints are flipped and files cut off; steps run out of memory.
"""
import argparse
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
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

from agnews_helpers import LABELS, Recipe, SaveError, load_agnews, load_model, tokenize, train
from agnews_helpers.batching import epoch_batches
from agnews_helpers.checkpoints import Checkpoints, Progress, unfinished
from agnews_helpers.mini import mini_tokenizer
from agnews_helpers.session import Session

FAULTS = {"killed": 200, "SIGTERM or Ctrl-C": 50, "full disk": 50, "byte flipped": 100, "file cut off": 100, "out of memory": 100}
SECONDS = 10  # a session that takes longer hangs


@dataclass
class Result:
    """Of one kind of fault: how many were tried, after how many the run went on, and what was lost for good."""

    fault: str
    tried: int = 0
    survived: int = 0
    runs: int = 0
    rows_lost: int = 0
    weights_different: int = 0
    seconds_lost: float = 0.0


class SmallRun:
    """A real run, made small: 2 layers, 32 wide, dropout on, all rows of the sample, saved after every few steps."""

    def __init__(self, home: Path, train_rows: int | None = None, epochs: int = 3, minutes: float = 0.001):
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        names = dict(id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)})
        config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, num_labels=4, **names)
        DistilBertForSequenceClassification(config).save_pretrained(home / "model")
        mini_tokenizer().save_pretrained(home / "model")
        self.recipe = Recipe(profile="offline", model=str(home / "model"), data="sample", train_rows=train_rows, epochs=epochs,
                             learning_rate=1e-3, checkpoint_minutes=minutes)
        tokens = tokenize(load_agnews(self.recipe), mini_tokenizer(), self.recipe)
        self.tokens = DatasetDict({name: tokens[name] for name in ("train", "validation")})
        self.tokens.save_to_disk(home / "tokens")
        started = time.perf_counter()
        self.reference = train(load_model(self.recipe), self.tokens, self.recipe, home / "reference")
        self.seconds = time.perf_counter() - started
        self.steps = len(self.reference.steps)

    def judge(self, folder: Path, result: Result) -> None:
        """Compare a finished run with the undisturbed one, to the last bit."""
        result.runs += 1
        one, other = (load_file(place / "model.safetensors") for place in (folder, self.reference.folder))
        same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        result.weights_different += not (same and (folder / "steps.csv").read_bytes() == (self.reference.folder / "steps.csv").read_bytes())
        result.rows_lost += self.rows_lost(folder / "rows.log")

    def rows_lost(self, log: Path) -> int:
        """Rows that a step should have had and did not, by what each step said when it was last taken."""
        taken = {}
        for line in log.read_text(encoding="utf-8").splitlines():
            step, _, rows = line.partition(" ")
            taken[int(step)] = rows.split()
        lengths, lost, step = self.tokens["train"]["length"][:], 0, 0
        for epoch in range(1, self.recipe.epochs + 1):
            for batch in epoch_batches(lengths, self.recipe, epoch):
                lost += len(set(map(str, batch)) - set(taken.get(step, [])))
                step += 1
        return lost


@contextmanager
def quiet():
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def logged(folder: Path):
    """Every step appends its number and its rows to ``rows.log``."""
    step = Session.step
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "rows.log", "a", buffering=1, encoding="utf-8") as log:
        def tell(self, batch, numbers):
            loss = step(self, batch, numbers)
            log.write(f"{len(self.progress.losses)} {' '.join(map(str, numbers))}\n")
            return loss

        Session.step = tell
        try:
            yield
        finally:
            Session.step = step


def session(recipe: Recipe, home: Path, folder: Path, ready, room: int | None = None) -> None:
    """In a process of its own: train until done or until the fault. `room`: flushes to the disk before it is full."""
    with quiet():
        tokens, model = load_from_disk(home / "tokens"), load_model(recipe)
    if room is not None:
        _fill_disk(room)
    with quiet(), logged(folder):
        ready.set()
        try:
            train(model, tokens, recipe, folder)
        except SaveError:
            os._exit(28)


def _fill_disk(room: int) -> None:
    real, count = os.fsync, iter(range(room))

    def fsync(handle):
        if next(count, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    os.fsync = fsync


def disturbed(run: SmallRun, kind: str, wanted: int, chance: random.Random) -> Result:
    """Runs in processes that are killed, stopped, or meet a full disk at a random moment, until `wanted` were."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["agnews_helpers.training", "transformers.models.distilbert.modeling_distilbert", "accelerate", __name__])
    result, number = Result(kind), 0
    while result.tried < wanted:
        folder, number, started, before = run.home / f"{kind.split()[0]}-{number}", number + 1, time.perf_counter(), result.tried
        while not (folder / "steps.csv").exists():
            ready, disturb = context.Event(), result.tried < wanted
            room = chance.randrange(30) if disturb and kind == "full disk" else None
            child = context.Process(target=session, args=(run.recipe, run.home, folder, ready, room))
            child.start()
            assert ready.wait(60), "the session does not start"
            if disturb and room is None:
                child.join(chance.uniform(0, 0.6 * run.seconds))
                if child.is_alive():
                    _strike(child.pid, kind, chance)
            child.join(SECONDS + 10 * run.seconds)
            assert not child.is_alive(), "the session hangs"
            finished = (folder / "steps.csv").exists()
            if not finished:
                assert disturb, f"a run that nothing disturbed ended with {child.exitcode}"
                result.tried += 1
        result.survived += result.tried - before
        result.seconds_lost += time.perf_counter() - started - run.seconds
        run.judge(folder, result)
        shutil.rmtree(folder)
    return result


def _strike(pid: int, kind: str, chance: random.Random) -> None:
    kill = getattr(signal, "SIGKILL", signal.SIGTERM)
    try:
        os.kill(pid, kill if kind == "killed" else chance.choice([signal.SIGTERM, signal.SIGINT]))
    except ProcessLookupError:
        pass  # it was done a moment ago


def damaged(run: SmallRun, kind: str, wanted: int, chance: random.Random) -> Result:
    """Runs of which a file in a checkpoint was changed between two sessions."""
    result = Result(kind)
    for number in range(wanted):
        folder = run.home / f"damaged-{number}"
        with quiet(), logged(folder):
            train(load_model(run.recipe), run.tokens, run.recipe, folder, steps=chance.randrange(2, run.steps))
            path = chance.choice([path for path in sorted((folder / "checkpoints").rglob("*")) if path.is_file()])
            _damage(path, kind, chance)
            started = time.perf_counter()
            result.tried += 1
            train(load_model(run.recipe), run.tokens, run.recipe, folder)
        result.survived += not unfinished(folder)
        result.seconds_lost += time.perf_counter() - started
        run.judge(folder, result)
        shutil.rmtree(folder)
    return result


def _damage(path: Path, kind: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "byte flipped":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        data = data[:chance.randrange(len(data))]
    path.unlink()  # it may be linked to the classifier's own file, which is not what is damaged here
    path.write_bytes(data)


def out_of_memory(run: SmallRun, wanted: int, chance: random.Random) -> Result:
    """Steps that run out of memory at random. Without dropout, whose masks depend on the parts; weights within 1e-6.

    In float64: a sum of parts rounds differently, and where a gradient is nearly nothing, Adam makes much of that.
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
        never = train(without_dropout(), run.tokens, run.recipe, run.home / "never").model.state_dict()
    while result.tried < wanted:
        model, failures, folder = without_dropout(), 0, run.home / f"memory-{number}"
        forward = model.forward

        def fails(**batch):
            nonlocal failures
            if model.training and len(batch["labels"]) > 1 and chance.random() < 0.1:
                failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(**batch)

        model.forward = fails
        with quiet(), logged(folder):
            done = train(model, run.tokens, run.recipe, folder)
        result.tried, number, result.runs = result.tried + failures, number + 1, result.runs + 1
        result.survived += failures * done.finished
        result.weights_different += any((weight - never[name]).abs().max() > 1e-6 for name, weight in done.model.state_dict().items())
        result.rows_lost += run.rows_lost(folder / "rows.log")
        shutil.rmtree(folder)
    return result


def cost_of_saving(home: Path) -> dict:
    """Seconds for a checkpoint of the true size (66,956,548 parameters), and its share of the default interval."""
    recipe = Recipe()
    model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=4))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    store, seconds = Checkpoints(home / "cost", {}), []
    for step in range(5):
        started = time.perf_counter()
        store.save(model, optimizer, None, Progress(losses=[0.0] * step))
        seconds.append(time.perf_counter() - started)
    size = sum(path.stat().st_size for path in store.steps()[0].iterdir())
    return {"mebibytes": round(size / 2**20), "seconds": [round(value, 2) for value in seconds],
            "share_of_interval": max(seconds) / (60 * recipe.checkpoint_minutes)}


def campaign(share: float, home: Path, seed: int = 0, only: str | None = None) -> list[Result]:
    """All kinds of faults, or one, `share` of the numbers in `FAULTS`."""
    counts = {kind: max(1, round(share * count)) for kind, count in FAULTS.items() if only in (None, kind)}
    with quiet():
        long, short = SmallRun(home / "long"), SmallRun(home / "short", train_rows=44)
    results = []
    for kind, count in counts.items():
        chance = random.Random(f"{seed} {kind}")
        if kind in ("byte flipped", "file cut off"):
            results.append(damaged(short, kind, count, chance))
        elif kind == "out of memory":
            results.append(out_of_memory(short, count, chance))
        else:
            results.append(disturbed(long, kind, count, chance))
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
    parser.add_argument("--only", choices=FAULTS, help="this kind alone; its line in faults.json is replaced")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = table(campaign(options.share, Path(home), options.seed, options.only))
        cost = cost_of_saving(Path(home))
    print(f"\n{found.to_string()}\n\nA checkpoint of the true size: {cost['mebibytes']} MiB in {max(cost['seconds']):.1f} s at most, "
          f"{cost['share_of_interval']:.2%} of the default interval.")
    if options.share == 1:
        path, lines = Path(__file__).with_suffix(".json"), found.reset_index().to_dict("records")
        if options.only:
            lines = [lines[0] if line["fault"] == options.only else line for line in json.loads(path.read_text(encoding="utf-8"))["faults"]]
        path.write_text(json.dumps({"faults": lines, "cost_of_saving": cost}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
