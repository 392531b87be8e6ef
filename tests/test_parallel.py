"""Several processes take the steps of one: the reader's command, on the CPU (gloo)."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil  # comes with accelerate
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight

from agnews_helpers import forward_backward, load_model, make_loader
from agnews_helpers.checkpoints import find_checkpoints
from agnews_helpers.cli import main
from agnews_helpers.plumbing import memory, processes
from agnews_helpers.plumbing.memory import in_parts
from agnews_helpers.plumbing.processes import my_share
from agnews_helpers.training import class_weights
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A tiny model without dropout, whose masks depend on how rows are dealt out."""
    none = dict(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    return tiny_model_folder(tmp_path_factory.mktemp("calm") / "model", **none)


def command(model, folder, processes, *more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        port,
    ]  # it has no --multi_cpu
    run = [
        "-m",
        "agnews_helpers",
        "train",
        "--model",
        str(model),
        "--train-rows",
        "45",
        "--test-rows",
        "20",
        "--epochs",
        "2",
        "--batch-size",
        "7",
        "--learning-rate",
        "1e-3",
        "--output-dir",
        str(folder),
        *more,
    ]
    return [sys.executable, *(launch if processes > 1 else []), *run]


def launch(*arguments):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )


@pytest.fixture(scope="module")
def one(calm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    done = launch(calm, folder / "run", 1)
    assert done.returncode == 0, done.stderr
    return folder


def losses(folder):
    return pd.read_csv(folder / "run" / "steps.csv", index_col=0)["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("--micro-batch-size", "3")]
)  # of 4 and 3 rows: two parts and one
def test_two_processes_take_the_steps_of_one(calm, one, tmp_path, more):
    done = launch(calm, tmp_path / "run", 2, *more)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("profile    offline") == 1
        and done.stdout.count("test: accuracy") == 1
    )
    assert len(losses(one)) == len(losses(tmp_path)) == 12  # 41 rows
    assert (losses(one) - losses(tmp_path)).abs().max() < 1e-5
    figures = [
        json.loads((folder / "run" / "test_report.json").read_text(encoding="utf-8"))
        for folder in (one, tmp_path)
    ]
    assert figures[0]["confusion"] == figures[1]["confusion"]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], abs=1e-4)
    weights = [
        load_file(folder / "run" / "best" / "model.safetensors")
        for folder in (one, tmp_path)
    ]
    assert all(
        (weights[0][name] - weights[1][name]).abs().max() < 1e-3 for name in weights[0]
    )


@pytest.mark.slow
def test_two_processes_resume_exactly(tiny, tmp_path, capsys):
    whole = launch(tiny, tmp_path / "whole" / "run", 2)  # dropout on
    stopped = launch(tiny, tmp_path / "parts" / "run", 2, "--steps", "7")
    assert whole.returncode == stopped.returncode == 0, whole.stderr + stopped.stderr
    assert "Stopped after step 7 of 12" in stopped.stdout and find_checkpoints(
        tmp_path / "parts" / "run"
    )
    assert (
        main(["train", "--resume", "--output-dir", str(tmp_path / "parts" / "run")])
        == 2
    )  # one process
    assert "processes is 2 there and 1 here" in capsys.readouterr().err
    resumed = launch(tiny, tmp_path / "parts" / "run", 2, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "whole").equals(losses(tmp_path / "parts"))
    weights = [
        load_file(tmp_path / name / "run" / "best" / "model.safetensors")
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix", reason="the launcher words a killed process by its signal"
)
def test_if_one_is_killed_both_stop(tiny, tmp_path):
    arguments = command(tiny, tmp_path / "run", 2, "--epochs", "4000")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as launcher:
        for _ in range(900):
            if (tmp_path / "run" / "run.json").exists():
                break
            time.sleep(0.1)
        children = psutil.Process(launcher.pid).children()
        assert len(children) == 2
        children[1].kill()
        _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and re.search(
        r"SIGKILL|exitcode *: -9|Signal 9", errors
    ), errors
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def step_for(model, split, recipe):
    """The step of a run that is not half precision."""
    weights = class_weights(model, split, recipe)
    return partial(forward_backward, class_weights=weights)


def test_a_weighted_loss_is_the_same_in_parts_and_shared_by_processes(
    tokens, recipe, monkeypatch
):
    weighted = recipe.replace(class_weights="balanced")
    model = load_model(weighted).eval()
    step = step_for(model, tokens["train"], weighted)
    rows = 7
    [batch] = make_loader(tokens["train"], [list(range(rows))], weighted)

    def loss_of(share, split_sizes=()):
        model.zero_grad()
        loss = in_parts(step, model, share, list(split_sizes), rows).item()
        return loss, model.classifier.weight.grad.clone()

    whole, gradient = loss_of(batch)
    parts, gradient_of_parts = loss_of(batch, [[1, 2]])
    assert parts == pytest.approx(whole, abs=1e-6)
    assert torch.allclose(gradient, gradient_of_parts, atol=1e-6)

    shared = []
    monkeypatch.setattr(memory, "world_size", lambda: 2)
    for rank in (0, 1):
        process = SimpleNamespace(
            process_index=rank, num_processes=2, device=torch.device("cpu")
        )
        monkeypatch.setattr(processes, "process_state", lambda process=process: process)
        shared.append(loss_of(my_share(batch)))
    losses, gradients = zip(*shared)
    assert sum(losses) / 2 == pytest.approx(whole, abs=1e-6)
    assert torch.allclose(sum(gradients) / 2, gradient, atol=1e-6)


def test_class_weights_are_those_of_scikit_learn(recipe):
    labels = [0] * 8 + [1] * 4 + [2] * 2 + [3]
    rows = Dataset.from_dict({"text": ["a"] * 15, "label": labels})
    model = load_model(recipe)
    assert step_for(model, rows, recipe).keywords["class_weights"] is None
    balanced = step_for(model, rows, recipe.replace(class_weights="balanced"))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    found = balanced.keywords["class_weights"].tolist()
    assert found == pytest.approx(expected.tolist())


def test_the_process_group_is_destroyed_before_python_ends(tiny, tmp_path, monkeypatch):
    at_exit = []
    monkeypatch.setattr("agnews_helpers.cli.atexit.register", at_exit.append)
    run = [
        str(tmp_path / "run"),
        "--model",
        str(tiny),
        "--train-rows",
        "45",
        "--steps",
        "1",
    ]
    assert main(["train", "--output-dir", *run]) == 0
    assert [call.__name__ for call in at_exit] == ["destroy_process_group"]
