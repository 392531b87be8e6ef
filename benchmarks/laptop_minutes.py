"""How long does the profile `laptop` take on this machine's CPU?

    python benchmarks/laptop_minutes.py

`agnews notebooks` runs all ten in the profile `laptop`, one after the other, with a
stand-in for the Hub on loopback: a DistilBERT of the real size with random weights, and
made-up rows in the shape of AG News. So the minutes are those of the real model,
without its download; what the notebooks learn is not. About half an hour on two cores,
with nothing else at work. If all ran to the end, it writes laptop_minutes.json.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests.hub_server import make_repositories, serve  # noqa: E402
from tests.rehearsal.ag_news_shape import make_rows  # noqa: E402
from tests.rehearsal.rehearse import reader  # noqa: E402

REAL_SIZE = dict(dim=768, n_layers=6, n_heads=12, hidden_dim=3072)
LINE = re.compile(r"(\d\d_\w+) +ok +(\d+) s")


def run_notebooks(
    address: str, folder: Path, flags: list[str]
) -> dict[str, int] | None:
    """Run `agnews notebooks` and print its lines as they come.

    Returns
    -------
    dict
        Notebook -> seconds; None if one failed.
    """
    env = reader(address, folder, AGNEWS_PROFILE="laptop", PYTHONUNBUFFERED="1")
    command = [sys.executable, "-m", "agnews_helpers", "notebooks", *flags]
    command += ["--target", str(folder / "notebooks")]
    seconds = {}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := LINE.match(line):
                seconds[found[1]] = int(found[2])
    return None if process.returncode else seconds


def main(flags: list[str]) -> int:
    rows = {"train": make_rows(2000, seed=1), "test": make_rows(1000, seed=2)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        make_repositories(folder / "hub", rows, **REAL_SIZE)
        with serve(folder / "hub", seconds=4 * 3600, requests=4000) as hub:
            seconds = run_notebooks(hub.address, folder, flags)
    if seconds is None:
        return 1
    print(f"{len(seconds)} notebooks, {sum(seconds.values()) / 60:.0f} minutes")
    if not flags:
        result = {"seconds": seconds, "threads": torch.get_num_threads()}
        text = json.dumps(result, indent=1) + "\n"
        HERE.with_suffix(".json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
