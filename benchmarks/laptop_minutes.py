"""How long does the profile `laptop` take on this machine's CPU?

    python benchmarks/laptop_minutes.py

All ten notebooks run in the profile `laptop`, one after the other, with a stand-in for
the Hub on loopback: a DistilBERT of the real size with random weights, and made-up
rows in the shape of AG News. So the minutes are those of the real model, without its
download; what the notebooks learn is not. About an hour on two cores, with nothing else
at work. At its end it prints a table and writes laptop_minutes.json.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__)
sys.path.insert(0, str(HERE.resolve().parents[1]))

from tests.hub_server import make_repositories, serve  # noqa: E402
from tests.rehearsal.ag_news_shape import make_rows  # noqa: E402
from tests.rehearsal.rehearse import run  # noqa: E402

REAL_SIZE = dict(dim=768, n_layers=6, n_heads=12, hidden_dim=3072)
LINE = re.compile(r"^(\d\d_\w+) +([\d.]+) s", re.M)


def main(flags: list[str]) -> int:
    rows = {"train": make_rows(2000, seed=1), "test": make_rows(1000, seed=2)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        hub, room = Path(folder) / "hub", Path(folder) / "room"
        room.mkdir()
        make_repositories(hub, rows, **REAL_SIZE)
        with serve(hub, seconds=4 * 3600, requests=4000) as server:
            done = run(server.address, room, *flags, AGNEWS_PROFILE="laptop")
    print(done.stdout)
    seconds = {name: float(number) for name, number in LINE.findall(done.stdout)}
    minutes = sum(seconds.values()) / 60
    print(f"{len(seconds)} notebooks, {minutes:.0f} minutes")
    if not flags and not done.returncode:
        result = {"seconds": seconds, "threads": torch.get_num_threads()}
        text = json.dumps(result, indent=1) + "\n"
        HERE.with_suffix(".json").write_text(text, encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
