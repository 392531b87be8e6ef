"""One long run, interrupted four times on purpose.

`mini` is trained for four epochs on all rows of a folder with AG News.

    AGNEWS_DATA=folder python benchmarks/long_run.py --work some/folder

With 40,000 rows, drawn from AG News' training split (CONTRIBUTING.md says how), it
takes about an hour and a half on two cores, prints a table and writes long_run.json and
.png. Stop it at any time: the same command resumes it. On the way the run gets a
SIGTERM and a ``kill -9``, its terminal is closed, and one bit of its newest checkpoint
is flipped after another SIGTERM. After each epoch the model is tested, which does not
change the run: evaluation draws no random numbers. Needs a POSIX system.
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
EVERY = 50
# fault -> after which share of the run's steps
FAULTS = {"SIGTERM": 0.15, "kill -9": 0.35, "closed terminal": 0.55, "bit flipped": 0.8}


def log(work: Path, event: str, **values) -> None:
    """Add a line to the run's log, from which all figures are made."""
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")


def read_log(work: Path) -> list[dict]:
    path = work / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def folder_mb(folder: Path) -> float:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes) / 1e6


# ---- the run itself, in its own process


def calibration_error(answers) -> float:
    """Mean distance of confidence and share right, in ten groups of equal size."""
    import numpy as np

    ranked = answers.sort_values("confidence", kind="stable")
    excess = ranked["confidence"] - (ranked["true"] == ranked["predicted"])
    groups = np.array_split(excess.to_numpy(), 10)
    return float(sum(abs(group.sum()) for group in groups) / len(ranked))


def test(model, split, recipe) -> dict:
    """Return the figures of `evaluate`, and the calibration error."""
    from agnews_helpers import evaluate

    report = evaluate(model, split, recipe)
    return report.to_dict() | {"calibration_error": calibration_error(report.answers)}


def run(work: Path, every: int) -> None:
    """Start or resume the run, and log its tests and each `every` of its steps."""
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
    add_step = State.add_step
    add_epoch = State.add_epoch
    evaluate = training.evaluate
    process = psutil.Process()
    tested = {}

    def log_step(state, loss):
        add_step(state, loss)
        step = len(state.losses)
        is_first = len(state.step_seconds) == 1  # of this process
        if is_first or step % every == 0 or step == state.total_steps:
            newest = state.losses[-every:]
            log(
                work,
                "step",
                step=step,
                of=state.total_steps,
                epoch=state.epoch,
                rows=state.rows,
                batch_size=state.batch_size,
                rss_mb=process.memory_info().rss / 1e6,
                loss=sum(newest) / len(newest),
            )

    def validate_and_test(model, split, recipe):
        report = evaluate(model, split, recipe)
        tested.update(test(model, tokens["test"], recipe))
        return report

    def log_epoch(state, report):
        seconds = state.epoch_seconds + state.lap()  # training and validation
        log(work, "tested", epoch=state.epoch, seconds=seconds, **tested)
        return add_epoch(state, report)

    State.add_step = log_step
    State.add_epoch = log_epoch
    training.evaluate = validate_and_test
    done = train(load_model(recipe), tokens, recipe, work / "run")
    if done.finished:
        log(work, "finished", **test(done.model, tokens["test"], recipe))
        best = {
            "best_epoch": done.best_epoch,
            "disk_mb": folder_mb(done.folder),
        }
        log(work, "best", **best, history=done.history.reset_index().to_dict("records"))


def baseline(work: Path) -> None:
    """Log the accuracy of notebook 01's baseline on the same rows."""
    from learning_curve import linear

    from agnews_helpers import load_data, recipe_for_this_machine

    recipe = recipe_for_this_machine(profile="offline", data=os.environ["AGNEWS_DATA"])
    news = load_data(recipe)
    splits = {"train": news["train"], "validation": news["test"]}
    log(work, "baseline", **linear(recipe, splits))


# ---- the process that starts it and interrupts it


class Terminal:
    """The run in its own terminal, whose text goes into output.txt.

    Closing the terminal sends SIGHUP.
    """

    def __init__(self, work: Path, every: int):
        self.output = work / "output.txt"
        options = ["--work", str(work), "--every", str(every), "--run"]
        command = [sys.executable, str(HERE.resolve()), *options]
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            # Under nohup both would be ignored, and the new process inherits that.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: TID251
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, command)
        self.status = None

    def listen(self, seconds: float) -> bool:
        """Copy its output for this many seconds. Return False if it has ended."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.status is None:
            if (
                self.terminal is not None
                and select.select([self.terminal], [], [], min(left, 0.5))[0]
            ):
                try:
                    with self.output.open("ab") as file:
                        file.write(os.read(self.terminal, 65536))
                except OSError:  # the other end is closed
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
        """End the run in this way, and return its exit status."""
        if how == "closed terminal":
            self.close()
        elif self.status is None:
            os.kill(self.pid, SIGKILL if how == "kill -9" else signal.SIGTERM)
        if self.listen(600):
            raise TimeoutError(f"{how}: still running after ten minutes")
        self.close()
        return self.status


def flip_a_bit(folder: Path) -> str:
    """Flip one bit in the middle of the newest checkpoint's weights."""
    from agnews_helpers.checkpoints import find_checkpoints

    newest = find_checkpoints(folder)[0]
    with (newest / "model.safetensors").open("r+b") as file:
        middle = file.seek(0, os.SEEK_END) // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    return newest.name


def drive(work: Path, every: int) -> None:
    """Restart the run until it is finished; cause each fault once, at its step."""
    while True:
        lines = read_log(work)
        if any(line["event"] == "best" for line in lines):
            return
        happened = {line["name"] for line in lines if line["event"] == "fault"}
        waiting = [name for name in FAULTS if name not in happened]
        log(work, "start")
        run = Terminal(work, every)
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
            run.end("SIGTERM")  # if this program itself is ended: so the run is saved


def figures_of(lines: list[dict]) -> dict:
    """Compute all figures of the run from its log."""
    pace = []
    interruptions = []
    before = None  # the step logged before
    new_process = False
    for line in lines:
        if line["event"] == "fault":
            fault = {key: line[key] for key in ("name", "exit", "disk_mb")}
            interruptions.append(fault | {"step": before["step"]})
        if line["event"] == "start":
            new_process = True
        if line["event"] != "step":
            continue
        if new_process:  # after a fault, or after this program itself was ended
            if interruptions:
                interruptions[-1].setdefault("continued_after", line["step"] - 1)
        # Between two epochs lies a validation, whose time does not count.
        elif line["epoch"] == before["epoch"]:
            rows = line["batch_size"] * (line["step"] - before["step"])
            speed = rows / (line["time"] - before["time"])
            pace.append(
                {
                    "step": line["step"],
                    "rows_per_second": round(speed, 2),
                    "rss_mb": line["rss_mb"],
                    "loss": round(line["loss"], 4),
                }
            )
        before = line
        new_process = False
    tests = {line["epoch"]: line for line in lines if line["event"] == "tested"}
    names = ("rows", "accuracy", "interval", "macro_f1", "loss", "calibration_error")
    best = next(line for line in lines if line["event"] == "best")
    linear = next((line for line in lines if line["event"] == "baseline"), {})
    return {
        "train_rows": before["rows"],
        "steps": before["of"],
        "minutes": round(sum(line["seconds"] for line in tests.values()) / 60, 1),
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
    plt.rcParams["font.size"] = 13  # readable on a phone, too
    figure, panels = plt.subplots(
        3, 1, figsize=(7, 8.4), sharex=True, layout="constrained"
    )
    smooth = pace.groupby(pace["step"] // 250 * 250).median()
    panels[0].plot(smooth.index, smooth["loss"], color=BLUE)
    panels[0].set(ylabel="training loss in nats")
    panels[1].plot(smooth.index, smooth["rows_per_second"], color=GREEN)
    panels[1].set(ylabel="rows per second")
    panels[2].plot(smooth.index, smooth["rss_mb"], color=ORANGE)
    panels[2].set(ylabel="memory in MB", xlabel="step")
    for axes in panels:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
        for fault in figures["interruptions"]:
            axes.axvline(fault["step"], color="grey", linewidth=0.8, linestyle=":")
    for fault in figures["interruptions"]:
        place = fault["step"], panels[1].get_ylim()[1] * 0.04
        look = {"rotation": 90, "ha": "right", "fontsize": 12, "color": "dimgrey"}
        panels[1].annotate(fault["name"], place, **look)
    figure.savefig(path, dpi=160)


def tell(figures: dict) -> None:
    print(
        f"\n{figures['train_rows']:,} rows, {figures['steps']:,} steps, "
        f"{figures['minutes']} minutes"
    )
    tests = pd.DataFrame(figures["tested"]).set_index("epoch")
    print(tests.to_string(float_format="{:.4f}".format))
    print(
        f"best: epoch {figures['best_epoch']}; TF-IDF on the same rows: "
        f"{figures['tfidf_accuracy']:.4f}"
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
    parser.add_argument(
        "--every", type=int, default=EVERY, help="steps between two lines of the log"
    )
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--try",
        dest="trial",
        action="store_true",
        help="write the figures into the work folder, not beside this file",
    )
    options = parser.parse_args()
    # The run itself handles the signal in its own way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    if options.run:
        return run(work, options.every)
    drive(work, options.every)
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
