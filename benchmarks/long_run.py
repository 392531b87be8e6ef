"""One long run, interrupted four times on purpose: `mini` on all rows of a folder of AG News, four epochs.

    AGNEWS_DATA=folder python benchmarks/long_run.py --work some/folder

On two cores and 40,000 rows it takes about an hour and a half, prints a table and writes long_run.json and
.png. Stop it whenever you like: the same command goes on. On the way the run gets a SIGTERM, a ``kill -9``,
the end of its terminal, and one flipped bit in its newest checkpoint. After each epoch it is tested, which
changes nothing: no random number is drawn. Needs a POSIX system.
"""

import argparse
import json
import os
import pty  # noqa: TID251 - a terminal that can be closed
import select
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

HERE = Path(__file__)
SIGKILL = getattr(signal, "SIGKILL", None)
EVERY = 50  # steps between two lines of the log
# What happens to the run, and after which share of its steps.
FAULTS = {"SIGTERM": 0.15, "kill -9": 0.35, "closed terminal": 0.55, "bit flipped": 0.8}


def log(work: Path, event: str, **values) -> None:
    """Add a line to the log of the run, from which all figures are made."""
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")


def read_log(work: Path) -> list[dict]:
    path = work / "log.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def folder_mb(folder: Path) -> float:
    return (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    )


# ---- the run itself, in a process of its own


def test(model, rows, recipe) -> dict:
    from agnews_helpers import calibration, calibration_error, evaluate

    report = evaluate(model, rows, recipe)
    return report.to_dict() | {
        "calibration_error": calibration_error(calibration(report.answers))
    }


def run(work: Path) -> None:
    """Begin the run or go on with it, and log its steps and tests."""
    from agnews_helpers import (
        load_data,
        load_model,
        load_tokenizer,
        recipe_for_this_machine,
        tokenize,
        train,
        training,
    )
    from agnews_helpers.checkpoints import State

    recipe = recipe_for_this_machine(profile="offline", data=os.environ["AGNEWS_DATA"])
    tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
    count, end_epoch, evaluate = State.count, State.end_epoch, training.evaluate
    here, tested = psutil.Process(), {}

    def counted(state, loss):
        count(state, loss)
        done = len(state.losses)
        if len(state.sitting) == 1 or done % EVERY == 0 or done == state.all_steps:
            newest = state.losses[-EVERY:]
            size = {"rows": state.rows, "batch_size": state.batch_size}
            figures = size | {
                "rss_mb": here.memory_info().rss / 1e6,
                "loss": sum(newest) / len(newest),
            }
            log(
                work,
                "step",
                step=done,
                of=state.all_steps,
                epoch=state.epoch,
                **figures,
            )

    def evaluated(model, rows, recipe):
        report = evaluate(model, rows, recipe)
        tested.update(test(model, tokens["test"], recipe))
        return report

    def ended(state, report):
        log(work, "tested", epoch=state.epoch, **tested)
        return end_epoch(state, report)

    State.count, State.end_epoch, training.evaluate = counted, ended, evaluated
    done = train(load_model(recipe), tokens, recipe, work / "run")
    if done.finished:
        log(work, "finished", **test(done.model, tokens["test"], recipe))
        best = {
            "best_epoch": done.best_epoch,
            "seconds": done.seconds,
            "disk_mb": folder_mb(done.folder),
        }
        log(work, "best", **best, history=done.history.reset_index().to_dict("records"))


def baseline(work: Path) -> None:
    """TF-IDF and logistic regression on the same rows, as in notebook 01."""
    from learning_curve import linear

    from agnews_helpers import load_data, recipe_for_this_machine

    recipe = recipe_for_this_machine(profile="offline", data=os.environ["AGNEWS_DATA"])
    news = load_data(recipe)
    log(
        work,
        "baseline",
        **linear(recipe, {"train": news["train"], "validation": news["test"]}),
    )


# ---- who drives it


class Terminal:
    """The run in a terminal of its own, whose text goes into output.txt. Closing it sends SIGHUP."""

    def __init__(self, work: Path):
        self.output = work / "output.txt"
        command = [sys.executable, str(HERE.resolve()), "--work", str(work), "--run"]
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            for number in (signal.SIGHUP, signal.SIGINT):  # noqa: TID251 - else ignored for ever, as under nohup
                signal.signal(number, signal.SIG_DFL)
            os.execv(sys.executable, command)
        self.status = None

    def listen(self, seconds: float) -> bool:
        """Take what it writes for so long. False when it has ended."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.status is None:
            if (
                self.terminal is not None
                and select.select([self.terminal], [], [], min(left, 0.5))[0]
            ):
                try:
                    with self.output.open("ab") as file:
                        file.write(os.read(self.terminal, 65536))
                except OSError:  # the other end is gone
                    self.close()
            if self.terminal is None:
                time.sleep(0.2)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status is None

    def close(self) -> None:
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None

    def end(self, how: str) -> int:
        """End the run in this way; returns its exit status."""
        if how == "closed terminal":
            self.close()
        elif self.status is None:
            os.kill(self.pid, SIGKILL if how == "kill -9" else signal.SIGTERM)
        if self.listen(600):
            raise TimeoutError(f"{how}: still running after ten minutes")
        self.close()
        return self.status


def flip_a_bit(folder: Path) -> str:
    """Flip the lowest bit of the byte in the middle of the newest checkpoint's weights."""
    from agnews_helpers.checkpoints import find_checkpoints

    newest = find_checkpoints(folder)[0]
    with (newest / "model.safetensors").open("r+b") as file:
        middle = file.seek(0, os.SEEK_END) // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    return newest.name


def drive(work: Path) -> None:
    """Start the run until it is finished; each fault once, as soon as its step is there."""
    while True:
        lines = read_log(work)
        if any(line["event"] == "best" for line in lines):
            return
        happened = {line["name"] for line in lines if line["event"] == "fault"}
        waiting = [name for name in FAULTS if name not in happened]
        log(work, "start")
        run = Terminal(work)
        try:
            while run.listen(2):
                steps = [
                    line
                    for line in read_log(work)[len(lines) :]
                    if line["event"] == "step"
                ]
                if (
                    not waiting
                    or not steps
                    or steps[-1]["step"] < FAULTS[waiting[0]] * steps[-1]["of"]
                ):
                    continue
                name, disk = waiting[0], folder_mb(work / "run")
                status = run.end(name)
                checkpoint = flip_a_bit(work / "run") if name == "bit flipped" else None
                log(
                    work,
                    "fault",
                    name=name,
                    exit=status,
                    disk_mb=disk,
                    checkpoint=checkpoint,
                )
                print(
                    f"{name} at step {steps[-1]['step']:,}: exit status {status}",
                    flush=True,
                )
                break
            else:
                if run.status:
                    sys.exit(f"the run ended with {run.status}: see {run.output}")
        finally:
            run.end(
                "SIGTERM"
            )  # where this program itself is ended: the run saves, and goes on next time


def figures_of(lines: list[dict]) -> dict:
    """Everything that is told about the run, from its log."""
    pace, interruptions, before, new_sitting = [], [], None, False
    for line in lines:
        if line["event"] == "fault":
            told = {key: line[key] for key in ("name", "exit", "disk_mb")}
            interruptions.append(told | {"step": before["step"]})
        if line["event"] == "step":
            if new_sitting:  # after a fault, or after this program itself was ended
                if interruptions:
                    interruptions[-1].setdefault("continued_after", line["step"] - 1)
            elif (
                line["epoch"] == before["epoch"]
            ):  # else a validation and a test lie between
                speed = (
                    line["batch_size"]
                    * (line["step"] - before["step"])
                    / (line["time"] - before["time"])
                )
                told = {
                    "step": line["step"],
                    "rows_per_second": round(speed, 2),
                    "rss_mb": line["rss_mb"],
                }
                pace.append(told | {"loss": round(line["loss"], 4)})
            before = line
        new_sitting = (
            line["event"] == "start" or new_sitting and line["event"] != "step"
        )
    tests = {line["epoch"]: line for line in lines if line["event"] == "tested"}
    names = ("rows", "accuracy", "interval", "macro_f1", "loss", "calibration_error")
    best = next(line for line in lines if line["event"] == "best")
    linear = next((line for line in lines if line["event"] == "baseline"), {})
    return {
        "train_rows": before["rows"],
        "steps": before["of"],
        "minutes": round(best["seconds"] / 60, 1),
        "best_epoch": best["best_epoch"],
        "disk_mb_finished": round(best["disk_mb"], 1),
        "history": best["history"],
        "tested": [
            {"epoch": epoch} | {name: line[name] for name in names}
            for epoch, line in tests.items()
        ],
        "interruptions": interruptions,
        "tfidf_accuracy": linear.get("accuracy"),
        "pace": pace,
    }


def draw(figures: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from agnews_helpers.plots import BLUE, GREEN, ORANGE

    pace = pd.DataFrame(figures["pace"])
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    smooth = pace.groupby(pace["step"] // 250 * 250).median()
    panels[0].plot(smooth.index, smooth["loss"], color=BLUE)
    panels[0].set(title="Training loss", ylabel="nats")
    panels[1].plot(smooth.index, smooth["rows_per_second"], color=GREEN)
    panels[1].set(title="Speed", ylabel="rows per second")
    panels[2].plot(smooth.index, smooth["rss_mb"], color=ORANGE)
    panels[2].set(title="Memory (after each line a new process)", ylabel="MB")
    for axes in panels:
        axes.set_xlabel("step")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
        for fault in figures["interruptions"]:
            axes.axvline(fault["step"], color="grey", linewidth=0.8, linestyle=":")
    for fault in figures["interruptions"]:
        place = fault["step"], panels[1].get_ylim()[1] * 0.04
        panels[1].annotate(
            fault["name"], place, rotation=90, ha="right", fontsize=8, color="dimgrey"
        )
    figure.savefig(path, dpi=110)


def tell(figures: dict) -> None:
    print(
        f"\n{figures['train_rows']:,} rows, {figures['steps']:,} steps, {figures['minutes']} minutes"
    )
    tests = pd.DataFrame(figures["tested"]).set_index("epoch")
    print(tests.to_string(float_format="{:.4f}".format))
    print(
        f"kept: epoch {figures['best_epoch']}; TF-IDF on the same rows: {figures['tfidf_accuracy']:.4f}"
    )
    interruptions = pd.DataFrame(figures["interruptions"])
    interruptions["steps_twice"] = (
        interruptions["step"] - interruptions["continued_after"]
    ).clip(lower=0)
    print(interruptions.to_string(index=False))
    pace = pd.DataFrame(figures["pace"])
    tenths = pace.groupby(10 * pace["step"] // (figures["steps"] + 1))[
        ["rows_per_second", "rss_mb"]
    ].median()
    print(tenths.rename_axis("tenth of the run").round(1).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for the run and its log"
    )
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--try",
        dest="trial",
        action="store_true",
        help="write no figures beside this file",
    )
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # not the run's, which has its own
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    if options.run:
        return run(work)
    drive(work)
    if not any(line["event"] == "baseline" for line in read_log(work)):
        baseline(work)
    figures = figures_of(read_log(work))
    target = (work if options.trial else HERE.parent) / HERE.name
    target.with_suffix(".json").write_text(
        json.dumps(figures, indent=1) + "\n", encoding="utf-8"
    )
    draw(figures, target.with_suffix(".png"))
    tell(figures)


if __name__ == "__main__":
    main()
