"""What do more processes cost and bring if the batch stays at 8 rows?

    python benchmarks/scaling.py

Measured on this processor, and computed for eight GPUs. About three minutes. It prints
two tables and writes scaling.json.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from agnews_helpers import Recipe, config_for, load_model, training_step
from vram_budget.step_time import SHARE_OF_PEAK, step_work

DISTILBERT = 66_956_548  # parameters, with 4 labels


def mini_parameters() -> int:
    model = load_model(Recipe(profile="offline", model="mini", data="sample"))
    return sum(parameter.numel() for parameter in model.parameters())


def traffic(processes: int, parameters: int) -> float:
    """Return the MB that each of n processes sends per step.

    In a ring, each process sends each gradient of 4 bytes 2 (n - 1) / n times.
    """
    return 2 * (processes - 1) / processes * 4 * parameters / 1e6


def measured(processes: int) -> dict:
    """Measure the milliseconds of a step of `mini`, with one thread per process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        launch = [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_machines",
            "1",
            "--num_processes",
            str(processes),
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            port,
        ]
        run = [
            "-m",
            "agnews_helpers",
            "train",
            "--train-rows",
            "200",
            "--test-rows",
            "20",
            "--epochs",
            "1",
            "--output-dir",
            folder,
        ]
        environment = {
            **os.environ,
            "AGNEWS_PROFILE": "offline",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        subprocess.run(
            [sys.executable, *(launch if processes > 1 else []), *run],
            env=environment,
            check=True,
            capture_output=True,
        )
        history = pd.read_csv(Path(folder) / "history.csv")
    return {
        "processes": processes,
        "rows_each": 8 / processes,
        "ms_a_step": 8e3 / history["rows_per_second"][0],
        "sent_mb": traffic(processes, mini_parameters()),
    }


def arithmetic() -> pd.DataFrame:
    """Estimate a step of DistilBERT on T4 cards (8.1 TFLOP/s, 320 GB/s).

    64 tokens per row. Compute as in `vram_budget.step_time`, traffic over the slowest
    link.
    """
    config, lines = config_for(), []
    for name, gpus, link in (
        ("1 GPU", 1, None),
        ("8 GPUs, one machine, PCIe 3.0 x16, 12 GB/s", 8, 12e9),
        ("8 GPUs, two machines, 10 Gbit/s Ethernet, 1.25 GB/s", 8, 1.25e9),
    ):
        flops, moved = step_work(training_step(), config, max(1, 8 // gpus), 64)
        compute = flops / (SHARE_OF_PEAK * 8.1e12) + moved / 320e9
        sent = traffic(gpus, DISTILBERT)
        passed = sent * 1e6 / link if link else 0.0
        lines.append(
            {
                "machines": name,
                "compute_ms": 1e3 * compute,
                "sent_mb": sent,
                "traffic_ms": 1e3 * passed,
                "step_ms": 1e3 * (compute + passed),
            }
        )
    table = pd.DataFrame(lines)
    return table.assign(times_as_fast=table["step_ms"][0] / table["step_ms"])


def main() -> None:
    here = pd.DataFrame([measured(processes) for processes in (1, 2, 4)])
    there = arithmetic()
    print(
        here.round(1).to_string(index=False),
        "\n\nby arithmetic, not measured:\n",
        there.round(2).to_string(index=False),
        sep="",
    )
    figures = {
        "measured_here": here.round(2).to_dict("records"),
        "by_arithmetic": there.round(3).to_dict("records"),
    }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
