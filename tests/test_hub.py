"""The profiles that need the Hugging Face Hub, against a stand-in, and its failures."""

import errno
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hub_server import make_repositories, serve

from agnews_helpers import HubUnreachable, Recipe
from agnews_helpers.data import read_source
from agnews_helpers.plumbing import hub as hub_module
from agnews_helpers.plumbing.hub import FILES, in_cache
from agnews_helpers.recipe import HUB_DATA, HUB_MODEL

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "GET /large/.*model.safetensors$"
ROWS = "GET /large/.*train-.*parquet$"
NO_CARD = f"no CUDA device (PyTorch's CUDA: {torch.version.cuda})"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A tiny DistilBERT, and the sample's rows three times.

    The profile `laptop` draws 800 of these 1,200 rows.
    """
    frames = read_source(Recipe(data="sample")).usable()
    rows = {split: frame.to_dict("list") for split, frame in frames.items()}
    rows = {
        split: {
            "text": [f"{text} ({i})" for i in range(3) for text in columns["text"]],
            "label": columns["label"] * 3,
        }
        for split, columns in rows.items()
    }
    return make_repositories(tmp_path_factory.mktemp("hub"), rows)


def train(address, home, *arguments, code="", **environment):
    """Run ``agnews train`` as a reader does, or run `code`.

    The Hub is at `address`, and its cache is in `home`.
    """
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
    """A first run without a profile, its requests, and an address that is now dead."""
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
        f"profile    laptop ({NO_CARD}, and the Hugging Face Hub answers)"
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "profile, reason",
    [
        (
            None,
            f"laptop ({NO_CARD}, and the Hugging Face Hub does not answer at {{}}, "
            "but model and data are in its cache)",
        ),
        ("full", "full (asked for by AGNEWS_PROFILE)"),
    ],
)
def test_what_was_downloaded_is_used_without_a_hub(downloaded, cache, profile, reason):
    done = train(
        downloaded[1].address, cache, **{"AGNEWS_PROFILE": profile} if profile else {}
    )
    assert done.returncode == 0, done.stderr
    assert f"profile    {reason.format(downloaded[1].address)}" in done.stdout
    assert "Retrying" not in done.stderr, (
        done.stderr
    )  # nothing is asked of a Hub that is known to be silent
    steps = 4 * 143 if profile == "full" else 4 * 95
    assert f"Stopped after step 1 of {steps} (epoch 1 of 4)" in done.stdout


@pytest.mark.slow
def test_hf_hub_offline_uses_the_cache(downloaded, cache):
    done = train(downloaded[1].address, cache, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "HF_HUB_OFFLINE is set, but model and data are in its cache" in done.stdout


@pytest.mark.slow
def test_the_full_profile_takes_all_rows(repositories, tmp_path):
    with serve(repositories) as hub:
        done = train(hub.address, tmp_path, AGNEWS_PROFILE="full")
    assert done.returncode == 0, done.stderr
    assert (
        f"data {HUB_DATA}: all train rows, all test rows" in done.stdout
        and "Stopped after step 1 of 572" in done.stdout
    )


# what goes wrong, the exit status, and what is said

REFUSED = "Client error '{}' for url '.*{}'. {}"
NOT_THERE = (("X-Error-Code", "RepoNotFound"),)
SOON = (("Retry-After", "1"),)
FAULTS = {
    "401 for the weights": (
        [("model.safetensors", dict(status=401))],
        2,
        REFUSED.format(
            "401 Unauthorized", "/model.safetensors", "Check the name, HF_TOKEN"
        ),
    ),
    "404 for the data": (
        [("ag_news", dict(status=404, headers=NOT_THERE))],
        2,
        REFUSED.format("404 Not Found", "/train-.*parquet", "Check the name"),
    ),
    "404 for the weights": (
        [("model.safetensors$", dict(status=404))],
        2,
        "does not appear to have a file named .*model.safetensors. Check the name",
    ),
    "500 for the weights": (
        [(WEIGHTS, dict(status=500))],
        2,
        "Server error '500 .*/model.safetensors'. Check the network",
    ),
    "429 for a moment, and two cuts in the middle of the weights": (
        [
            ("HEAD .*train-", dict(status=429, headers=SOON, times=1)),
            (WEIGHTS, dict(cut_after=1_000_000, times=2)),
        ],
        0,
        "",
    ),
    "cut again and again": (
        [(ROWS, dict(cut_after=0))],
        2,
        "peer closed connection .*Check the network",
    ),
    "gone in the middle of the rows": (
        [(ROWS, dict(cut_after=0, gone=True))],
        2,
        "ag_news cannot be loaded from the Hugging Face Hub: .*. Check the network",
    ),
}


@pytest.fixture(scope="module")
def outcomes(request, repositories, tmp_path_factory):
    """The results of the selected cases, run in parallel: they mostly wait."""
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

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(run, names)))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_fails_is_survived_or_explained(outcomes, fault):
    done, (_, code, words) = outcomes[fault], FAULTS[fault]
    if code == 0:
        assert done.returncode == 0, done.stderr
        assert "Stopped after step 1" in done.stdout, done.stdout
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
        "The profile 'laptop' needs the Hugging Face Hub, and the Hugging Face Hub "
        "answers with error 401. Go online (certificate: SSL_CERT_FILE; proxy: "
        "HTTPS_PROXY), or set AGNEWS_PROFILE=offline" in said
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", [None, "full"])
def test_a_name_that_cannot_be_looked_up_is_a_silent_hub(tmp_path, profile):
    done = train(
        "http://hub.invalid", tmp_path, **{"AGNEWS_PROFILE": profile} if profile else {}
    )
    if profile:
        assert (
            "'full' needs the Hugging Face Hub, and the Hugging Face Hub does not "
            "answer at http://hub.invalid. Go online (certificate: SSL_CERT_FILE; "
            "proxy: HTTPS_PROXY), or set AGNEWS_PROFILE=offline" in message(done)
        )
    else:
        assert (
            done.returncode == 0
            and "profile    offline (the Hugging Face Hub does not answer at http://hub.invalid)"
            in done.stdout
        )


@pytest.mark.parametrize(
    "error, words",
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ".*Make room, or set HF_HOME",
        ),
        (TimeoutError("timed out"), r"\(?timed out.*Check the network"),
        (
            ValueError("header too small\nmore"),
            "header too small. If a file is damaged",
        ),
        (KeyError(), "KeyError. If a file is damaged, delete its folder in "),
        (
            ImportError("\nDebertaV2Tokenizer requires the SentencePiece library"),
            "Deberta.* library. It may need: pip install sentencepiece proto",
        ),
        (
            ValueError("`tiktoken` is required"),
            "`tik.*d. It may need: pip install sentence",
        ),
    ],
)
def test_a_failure_is_one_line_with_its_remedy(error, words, monkeypatch):
    def load(local_files_only):
        assert not local_files_only
        raise RuntimeError("around it") from error

    monkeypatch.setattr(hub_module, "why_unreachable", lambda: "")
    with pytest.raises(
        HubUnreachable, match=f"^x cannot be loaded .*: {words}"
    ) as told:
        hub_module.from_hub("x", load)
    assert "\n" not in str(told.value)
    assert "AGNEWS_PROFILE=offline and AGNEWS_MODEL=mini need no Hub" in str(told.value)


# what lies in the cache and is not what was downloaded


def shorten(file: Path) -> None:
    with file.open("r+b") as content:
        content.truncate(file.stat().st_size // 2)


def without_links(cache: Path) -> dict[str, str]:
    """Have in the cache what is there on Windows, without Developer Mode."""
    for path in [path for path in cache.rglob("*") if path.is_symlink()]:
        file = path.resolve()
        path.unlink()
        file.rename(path)
    return {"HF_HUB_DISABLE_SYMLINKS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern, name, has_links",
    [
        ("train-*.parquet", HUB_DATA, True),
        ("model.safetensors", HUB_MODEL, True),
        ("model.safetensors", HUB_MODEL, False),
    ],
)
def test_a_damaged_file_is_explained(
    repositories, downloaded, cache, pattern, name, has_links
):
    """And when it was deleted as the message says, a good one takes its place."""
    variables = {} if has_links else without_links(cache)
    shorten(next(cache.rglob(pattern)))
    silent = downloaded[1].address
    offline = message(train(silent, cache, AGNEWS_PROFILE="laptop", **variables))
    assert re.search(f"{name}.* cannot be loaded .*from the cache \\(", offline)
    assert "Go online, and run the same again." in offline
    with serve(repositories) as hub:
        online = message(train(hub.address, cache, **variables))
        folder = cache / "hub"
        assert f"If a file is damaged, delete its folder in {folder}" in online
        shutil.rmtree(next(folder.glob(f"*--{name.replace('/', '--')}")))
        assert train(hub.address, cache, **variables).returncode == 0
    links = [path.is_symlink() for path in cache.rglob(pattern) if "snap" in str(path)]
    assert links == [has_links]
    done = train(silent, cache, **variables)
    assert done.returncode == 0 and "are in its cache" in done.stdout


def test_half_a_cache_is_none(tmp_path, monkeypatch):
    for kind, name in (("model", HUB_MODEL), ("dataset", HUB_DATA)):
        folder = tmp_path / f"{kind}s--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("1" * 40, encoding="utf-8")
        paths = [folder / "snapshots" / ("1" * 40) / file for file in FILES[kind]]
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for path in paths:
            assert not in_cache(name, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert in_cache(name, kind)


# the real size

PEAK = """
import sys
from agnews_helpers.cli import main
code = main(sys.argv[1:])
try:
    import resource
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
except ImportError:
    import psutil
    peak = psutil.Process().memory_info().peak_wset
print("peak", peak)
sys.exit(code)
"""


@pytest.mark.slow
def test_distilbert_itself_trains_within_4_gib(tmp_path):
    frames = read_source(Recipe(data="sample")).usable()
    rows = {split: frame.to_dict("list") for split, frame in frames.items()}
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
        r"At this pace all 4 epochs of 380 training rows take about [\d:]+ \(h:mm:ss\)",
        done.stdout,
    )
    assert parameters(tmp_path / "run") == 66_956_548
    assert int(done.stdout.split()[-1]) < 4 * 2**30


def parameters(folder) -> int:
    from safetensors import safe_open

    with safe_open(folder / "best" / "model.safetensors", framework="numpy") as weights:
        return sum(
            math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()
        )
