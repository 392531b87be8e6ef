"""The profiles that need the Hugging Face Hub, against a stand-in, and what a reader sees when it fails."""

import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import make_repositories, serve

from agnews_helpers import Recipe
from agnews_helpers.data import SAMPLE, _read_folder
from agnews_helpers.recipe import HUB_DATA, HUB_MODEL

ROOT = Path(__file__).resolve().parent.parent
HEAVY = "HEAD .*model.safetensors$", "GET /large/.*model.safetensors$"
TRAIN = "HEAD .*train-.*parquet$", "GET /large/.*train-.*parquet$"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A tiny DistilBERT, and the sample three times over: the profile `laptop` draws 800 of 1,200 rows."""
    rows = dict(zip(("train", "test"), _read_folder(SAMPLE, Recipe())[1:]))
    rows = {
        split: {
            "text": [f"{text} ({i})" for i in range(3) for text in columns["text"]],
            "label": columns["label"] * 3,
        }
        for split, columns in rows.items()
    }
    return make_repositories(tmp_path_factory.mktemp("hub"), rows)


def train(address, home, *arguments, code="", **environment):
    """``agnews train``, as a reader starts it (or by `code`): the Hub at `address`, its cache in `home`."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGNEWS_", "HF_"))
    }
    variables |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "NO_PROXY": "*",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [
        sys.executable,
        *(["-c", code] if code else ["-m", "agnews_helpers"]),
        "train",
        "--steps",
        "1",
        "--no-resume",
        "--output-dir",
        str(home / "run"),
        *arguments,
    ]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=500, cwd=ROOT
    )


def message(done) -> str:
    """The one line with which a command ends that cannot go on."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, (
        done.stdout + done.stderr
    )
    lines = [
        line for line in done.stderr.splitlines() if line.startswith("agnews train: ")
    ]
    assert len(lines) == 1 and done.stderr.rstrip().endswith(lines[0]), done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def downloaded(repositories, tmp_path_factory):
    """A first run that decided by itself, what it asked for, and the address where nothing answers now."""
    home = tmp_path_factory.mktemp("first")
    with serve(repositories) as hub:
        done = train(hub.address, home)
    return done, hub, home


@pytest.fixture
def cache(downloaded, tmp_path):
    """A copy of the cache that the first run left."""
    return Path(
        shutil.copytree(
            downloaded[2],
            tmp_path / "home",
            symlinks=True,
            ignore=shutil.ignore_patterns("run"),
        )
    )


@pytest.mark.slow
def test_the_laptop_profile_downloads_what_it_needs(downloaded):
    done, hub, _ = downloaded
    assert done.returncode == 0, done.stderr
    assert (
        "profile    laptop (no CUDA device, and the Hugging Face Hub answers)"
        in done.stdout
    )
    assert (
        f"model      {HUB_MODEL}; data {HUB_DATA}: 800 train rows, 400 test rows"
        in done.stdout
    )
    assert "Stopped after step 1 of 380 (epoch 1 of 4)" in done.stdout
    for file in (
        "model.safetensors",
        "tokenizer.json",
        "train-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    ):
        assert hub.count(f"GET .*/resolve/.*{file}$") == 1, hub.asked
    assert hub.count("xet") == 0, hub.asked  # though the Hub offers it


@pytest.mark.parametrize(
    "profile, reason",
    [
        (
            None,
            "laptop (no CUDA device, and the Hugging Face Hub does not answer at {}, "
            "but model and data are in its cache)",
        ),
        ("full", "full (asked for by AGNEWS_PROFILE)"),
    ],
)
@pytest.mark.slow
def test_what_was_downloaded_is_used_without_a_hub(downloaded, cache, profile, reason):
    done = train(
        downloaded[1].address, cache, **{"AGNEWS_PROFILE": profile} if profile else {}
    )
    assert done.returncode == 0, done.stderr
    assert f"profile    {reason.format(downloaded[1].address)}" in done.stdout
    assert "Retrying" not in done.stderr, (
        done.stderr
    )  # nothing is asked of a Hub that is known to be silent
    assert (
        f"Stopped after step 1 of {4 * 95 if profile != 'full' else 4 * 143} (epoch 1 of 4)"
        in done.stdout
    )


@pytest.mark.slow
def test_the_full_profile_takes_all_rows(repositories, tmp_path):
    with serve(repositories) as hub:
        done = train(hub.address, tmp_path, AGNEWS_PROFILE="full")
    assert done.returncode == 0, done.stderr
    assert (
        f"data {HUB_DATA}: all train rows, all test rows" in done.stdout
        and "Stopped after step 1 of 572" in done.stdout
    )


# what goes wrong, the code with which it ends, and what is said

LONG, SHORT = (("Retry-After", "3600"),), (("Retry-After", "1"),)
FAULTS = {
    "401 for the weights": (
        [("model.safetensors", dict(status=401))],
        2,
        "error 401 for model.safetensors .it wants a login.. Set HF_TOKEN",
    ),
    "403 for the rows": (
        [("parquet", dict(status=403))],
        2,
        "error 403 for data/train-00000-of-00001.parquet .*Set HF_TOKEN",
    ),
    "404 for the data": (
        [("ag_news", dict(status=404, headers=(("X-Error-Code", "RepoNotFound"),)))],
        2,
        "error 404 for README.md .*Look at the name",
    ),
    "404 for the weights": (
        [("model.safetensors$", dict(status=404))],
        2,
        "error 404 for model.safetensors .*Look at the name",
    ),
    "429 for a moment, and a cut in the middle of the weights": (
        [
            (TRAIN[0], dict(status=429, headers=SHORT, times=2)),
            (HEAVY[1], dict(cut_after=1_000_000, times=2)),
        ],
        0,
        "",
    ),
    "429 and on": (
        [(TRAIN[0], dict(status=429, headers=SHORT))],
        2,
        "error 429 for data/train-.* Wait 60 seconds, or set HF_TOKEN",
    ),
    "429 for an hour": (
        [(HEAVY[0], dict(status=429, headers=LONG))],
        2,
        "error 429 for model.safetensors .* Wait 3600 seconds, or set HF_TOKEN",
    ),
    "500 once for the rows, and once for the weights": (
        [(TRAIN[1], dict(status=500, times=1)), (HEAVY[1], dict(status=500, times=1))],
        0,
        f"(?s)note: {HUB_DATA}: error 500 for data/train-.*; trying once more.*"
        f"note: {HUB_MODEL}: error 500 for model.safetensors; trying once more.",
    ),
    "500 and on": (
        [(HEAVY[1], dict(status=500))],
        2,
        "error 500 for model.safetensors. Run the same again later",
    ),
    "cut again and again": (
        [(TRAIN[1], dict(cut_after=0))],
        2,
        "the connection is cut again and again. Run the same again later",
    ),
    "gone in the middle of the rows": (
        [(TRAIN[1], dict(cut_after=0, gone=True))],
        2,
        "there is no connection to it. Look at the network",
    ),
    "silent in the middle of the weights": (
        [
            (HEAVY[1], dict(silent_after=1_000_000, times=1)),
            (HEAVY[1], dict(silent_after=0)),
        ],
        2,
        "it stopped answering, 10 seconds at a time",
    ),
    "silent before the list of files": (
        [("GET .*/tree/", dict(mute=True))],
        2,
        "no answer to 5 requests in a row, the last for /api/datasets/|"
        "it stopped answering, 10 seconds at a time",
    ),
    "silent after its first answer": (
        [("", dict(times=1)), ("", dict(mute=True))],
        2,
        "no answer to 5 requests in a row, the last for README.md. Run the same again later",
    ),
}


@pytest.fixture(scope="module")
def outcomes(request, repositories, tmp_path_factory):
    """How the commands of the selected cases end: side by side, since they wait most of the time."""
    names = [
        name
        for name in FAULTS
        if any(item.name.endswith(f"[{name}]") for item in request.session.items)
    ]

    def run(name):
        with serve(repositories) as hub:
            for pattern, how in FAULTS[name][0]:
                hub.goes_wrong(pattern, **how)
            return train(hub.address, tmp_path_factory.mktemp("home"))

    with ThreadPoolExecutor(5) as pool:
        return dict(zip(names, pool.map(run, names)))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_hub_that_fails_is_survived_or_explained(outcomes, fault):
    done, (_, code, words) = outcomes[fault], FAULTS[fault]
    if code == 0:
        assert done.returncode == 0, done.stderr
        assert "Stopped after step 1" in done.stdout and re.search(
            words, done.stdout
        ), done.stdout
    else:
        assert re.search(words, message(done)), message(done)
        assert (HUB_MODEL in message(done)) != (
            HUB_DATA in message(done)
        ) and "AGNEWS_PROFILE=offline and AGNEWS_MODEL=mini need no Hub." in message(
            done
        )


@pytest.mark.slow
def test_a_hub_that_refuses_from_the_start_is_explained(repositories, tmp_path):
    with serve(repositories) as hub:
        hub.goes_wrong("", status=401)
        said = message(train(hub.address, tmp_path, "--profile", "laptop"))
    assert (
        "The profile 'laptop' needs the Hugging Face Hub, and the Hugging Face Hub answers with error 401. "
        "Go online, or set AGNEWS_PROFILE=offline" in said
    )


@pytest.mark.parametrize("profile", [None, "full"])
@pytest.mark.slow
def test_a_name_that_cannot_be_looked_up_is_a_silent_hub(tmp_path, profile):
    done = train(
        "http://hub.invalid", tmp_path, **{"AGNEWS_PROFILE": profile} if profile else {}
    )
    if profile:
        assert (
            "'full' needs the Hugging Face Hub, and the Hugging Face Hub does not answer at "
            "http://hub.invalid. Go online, or set AGNEWS_PROFILE=offline"
            in message(done)
        )
    else:
        assert (
            done.returncode == 0
            and "profile    offline (the Hugging Face Hub does not answer at http://hub.invalid)"
            in done.stdout
        )


# what lies in the cache and is not what was downloaded


def shorten(file: Path) -> None:
    with file.open("r+b") as content:
        content.truncate(file.stat().st_size // 2)


@pytest.mark.parametrize(
    "rows, model",
    [("train-*.parquet", "model.safetensors"), ("*train.arrow", "tokenizer.json")],
)
@pytest.mark.slow
def test_damaged_files_are_downloaded_again(repositories, cache, rows, model):
    shorten(*cache.rglob(rows))
    shorten(*cache.rglob(model))
    if "parquet" in rows:
        shutil.rmtree(cache / "datasets")  # made from it, and would be used instead
    with serve(repositories) as hub:
        done = train(hub.address, cache)
    assert done.returncode == 0, done.stderr
    for name in (HUB_DATA, HUB_MODEL):
        assert re.search(
            rf"note: {name}: a file is missing or damaged \(.+\); trying once more\.",
            done.stdout,
        ), done.stdout
    assert (
        hub.count("GET .*/resolve/.*train-.*parquet$")
        == hub.count(f"GET .*/resolve/.*{model}$")
        == 1
    )


@pytest.mark.parametrize(
    "pattern, name", [("*train.arrow", HUB_DATA), ("tokenizer.json", HUB_MODEL)]
)
@pytest.mark.slow
def test_a_damaged_file_without_a_hub_is_explained(downloaded, cache, pattern, name):
    shorten(*cache.rglob(pattern))
    said = message(train(downloaded[1].address, cache, AGNEWS_PROFILE="laptop"))
    assert (
        f"{name} cannot be loaded" in said
        and "in its cache; a file is missing or damaged" in said
        and "Go online and run the same again." in said
    )


@pytest.mark.slow
def test_a_hub_with_a_damaged_file_is_explained_and_leaves_no_cache(
    repositories, tmp_path
):
    spoiled = Path(shutil.copytree(repositories, tmp_path / "hub"))
    shorten(next(spoiled.rglob("train-*.parquet")))
    with serve(spoiled) as hub:
        said = message(train(hub.address, tmp_path))
    assert (
        f"{HUB_DATA} cannot be loaded from the Hugging Face Hub: a file is missing or damaged ("
        in said
    )
    assert hub.count(TRAIN[1]) == 2  # at first, and once more
    assert "'laptop' needs the Hugging Face Hub" in message(
        train(hub.address, tmp_path, AGNEWS_PROFILE="laptop")
    )


@pytest.mark.slow
def test_half_a_cache_is_none(cache, monkeypatch):
    from agnews_helpers.plumbing.hub import in_cache

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(cache))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert in_cache(HUB_MODEL, HUB_DATA)
    (rows,) = (cache / "datasets").rglob("dataset_info.json")
    rows.parent.rename(rows.parent.with_suffix(".incomplete"))  # as after kill -9
    assert not in_cache(HUB_MODEL, HUB_DATA)
    rows.parent.with_suffix(".incomplete").rename(rows.parent)
    shorten(next(cache.rglob("model.safetensors")))
    assert not in_cache(HUB_MODEL, HUB_DATA)


# the real size

PEAK = """
import sys
from agnews_helpers.cli import main
code = main(sys.argv[1:])
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
except ImportError:
    import psutil
    peak = psutil.Process().memory_info().peak_wset
print("peak", peak)
sys.exit(code)
"""


@pytest.mark.slow
def test_distilbert_itself_trains_within_4_gib(tmp_path):
    rows = dict(zip(("train", "test"), _read_folder(SAMPLE, Recipe())[1:]))
    size = dict(dim=768, n_layers=6, n_heads=12, hidden_dim=3072)
    folder = make_repositories(tmp_path / "hub", rows, **size)
    weights = next(folder.rglob("model.safetensors"))
    assert weights.stat().st_size > 4 * 66_000_000
    with serve(folder) as hub:
        done = train(
            hub.address,
            tmp_path,
            "--profile",
            "full",
            "--steps",
            "3",
            "--test-rows",
            "40",
            code=PEAK,
        )
    assert done.returncode == 0, done.stderr
    assert "Stopped after step 3 of 192 (epoch 1 of 4)" in done.stdout
    assert re.search(
        r"At this pace all 4 epochs of 380 training rows take about [\d.]+ (minutes|hours)",
        done.stdout,
    )
    assert parameters(tmp_path / "run") == 66_956_548
    assert int(done.stdout.split()[-1]) < 4 * 2**30


def parameters(folder) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        return sum(
            math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()
        )
