"""Run all notebooks in the size, and with the data, that their readers have.

    python -m tests.rehearsal.rehearse --rows 120000 7600

A stand-in for the Hub on loopback serves made-up rows in the shape of AG News, and a
tiny DistilBERT, under the real names.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.hub_server import make_repositories, serve
from tests.rehearsal.ag_news_shape import make_rows
from tests.tiny import tiny_model_folder

ROOT = Path(__file__).resolve().parents[2]
OWN_WORDS = "refund parcel invoice login delay colour battery damaged thanks urgent"


@contextmanager
def stand_in_hub(folder: Path, train_rows: int, test_rows: int):
    """Context manager: the address of a Hub with a tiny DistilBERT and made-up news."""
    train = make_rows(train_rows, seed=1)
    test = make_rows(test_rows, seed=2, repeats_of=train["text"])
    make_repositories(folder, {"train": train, "test": test})
    with serve(folder, seconds=3600, requests=4000) as hub:
        yield hub.address


def reader(address: str, folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a reader who has set these variables, and no others.

    Returns
    -------
    dict
        Its Hub is at `address`, and its cache in `folder`.
    """
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("AGNEWS_", "HF_"))}
    own = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "home"),
        "NO_PROXY": "*",
        "PYTHONPATH": str(ROOT),
    }
    return kept | own | variables


def run(address: str, folder: Path, *flags: str, **variables: str):
    """Run the notebooks in `folder`, as a reader who has set these variables.

    Returns
    -------
    subprocess.CompletedProcess
        Of `run_notebooks`, which takes the flags.
    """
    work = folder / "work"
    work.mkdir()
    command = [sys.executable, "-m", "tests.rehearsal.run_notebooks", *flags]
    return subprocess.run(
        command,
        cwd=work,
        env=reader(address, folder, MPLBACKEND="agg", **variables),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )


def own_texts(folder: Path, classes: int) -> Path:
    """Write a folder of texts of so many classes: 60 rows of each, and 10 for the test.

    Returns
    -------
    Path
        The folder.
    """
    rng = np.random.default_rng(1)
    folder.mkdir()
    for split, rows in (("train", 60), ("test", 10)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "text"])
            for row in range(rows * classes):
                name = f"Topic {row % classes}"
                words = [*rng.choice(OWN_WORDS.split(), rng.integers(5, 40)), name]
                writer.writerow([name, " ".join(rng.permutation(words))])
    return folder


def other_head(folder: Path, classes: int) -> Path:
    """Save a tiny model with a head for other classes.

    Returns
    -------
    Path
        The folder.
    """
    names = [f"class {i}" for i in range(classes)]
    labels = {name: i for i, name in enumerate(names)}
    return tiny_model_folder(folder, id2label=dict(enumerate(names)), label2id=labels)


def main() -> int:
    """Rehearse the profiles that need the Hub; the exit status counts failures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs=2, default=(120_000, 7_600))
    parser.add_argument("--profiles", nargs="*", default=["laptop", "full"])
    options, flags = parser.parse_known_args()
    failed = 0
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        stand_in_hub(Path(folder) / "hub", *options.rows) as address,
    ):
        for profile in options.profiles:
            room = Path(folder) / profile
            room.mkdir()
            print(f"profile {profile}, {options.rows[0]:,} rows", flush=True)
            done = run(address, room, *flags, AGNEWS_PROFILE=profile)
            print(done.stdout)
            failed += done.returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
