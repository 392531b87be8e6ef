"""Is the time of a step predicted well? Published runs, and this processor.

    python benchmarks/step_time.py [--published]

First it compares the published runs of `published_speeds.py` with the range that
``agnews budget`` would tell for their cards. Then, unless ``--published`` is given, it
measures six shapes on this processor, whose own speed and bandwidth make the
prediction. It takes about two minutes and writes step_time.json beside this file.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from agnews_helpers import Recipe, load_model, training_step
from vram_budget import StepOptions, find_card, seconds_on, step_work

sys.path.insert(0, str(Path(__file__).parents[1]))  # where this is run as a script
from benchmarks.published_speeds import PRODUCTS, RUNS, Run  # noqa: E402

SHAPES = [(8, 32), (8, 64), (8, 96), (4, 64), (16, 64), (8, 128)]


def encoder_weights(model) -> list[torch.Tensor]:
    """Return the weights of the linear layers that every token passes."""
    return [
        layer.weight.detach()
        for layer in model.distilbert.transformer.modules()
        if isinstance(layer, torch.nn.Linear)
    ]


def product_speed(model, tokens: int = 448, seconds: float = 1.5) -> float:
    """Measure the FLOP/s of matrix products of the shapes of the model's layers.

    Of each linear layer the product of the forward and the two of the backward pass.
    """
    weights = encoder_weights(model)
    inputs = {
        size: torch.randn(tokens, size) for weight in weights for size in weight.shape
    }

    def once():
        for weight in weights:
            y, x = (inputs[size] for size in weight.shape)
            torch.mm(x, weight.t()), torch.mm(y, weight), torch.mm(y.t(), x)

    once()
    started = time.perf_counter()
    rounds = 0
    while time.perf_counter() - started < seconds:
        once()
        rounds += 1
    flops = 6 * tokens * sum(weight.numel() for weight in weights) * rounds
    return flops / (time.perf_counter() - started)


def bandwidth(mebibytes: int = 64, rounds: int = 10) -> float:
    """Measure the bytes/s of an addition: two tensors read, one written.

    They are too large for the caches.
    """
    x, y, z = (torch.ones(mebibytes * 2**18) for _ in range(3))
    torch.add(x, y, out=z)
    started = time.perf_counter()
    for _ in range(rounds):
        torch.add(x, y, out=z)
    return 3 * x.nbytes * rounds / (time.perf_counter() - started)


def step_seconds(model, rows: int, length: int, repeat: int = 7) -> float:
    """Return the median seconds of a real step, after one to warm up."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-5, fused=True)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -1] = 0
    batch = {
        "input_ids": torch.randint(1000, 20_000, (rows, length)),
        "attention_mask": mask,
        "labels": torch.arange(rows) % 4,
    }
    step, times = training_step(), []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        step(model, batch, optimizer)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def product_shares() -> pd.DataFrame:
    """Tabulate the share of its peak that each card reached in matrix products."""
    shares = {
        name: [speed / find_card(name).fp32_tflops for speed in speeds]
        for name, (_, *speeds) in PRODUCTS.items()
    }
    return pd.DataFrame.from_dict(shares, orient="index", columns=[1024, 2048, 4096])


def predicted_ms(run: Run) -> tuple[float, float]:
    """Return the milliseconds of a published run's step as we predict them."""
    options = StepOptions(attention=run.attention)
    work = step_work(training_step(), run.config, run.rows, run.length, options)
    return tuple(1e3 * each for each in seconds_on(find_card(run.card), *work))


def published_runs(runs: list[Run] = RUNS) -> pd.DataFrame:
    """Tabulate published runs with the range predicted for them."""
    lines = []
    for run in runs:
        low, high = predicted_ms(run)
        model = f"{run.config.model_type} {run.config.hidden_size}"
        lines.append(
            {
                "card": run.card,
                "run": f"{model}, {run.rows} x {run.length}",
                "measured": run.ms,
                "low": low,
                "high": high,
                "inside": low <= run.ms <= high,
                "use": run.use,
                "stated": run.stated,
                "source": run.source,
            }
        )
    return pd.DataFrame(lines)


def this_processor() -> pd.DataFrame:
    """Tabulate six shapes, predicted from this processor's own speeds and measured."""
    model = load_model(Recipe(profile="offline", model="mini"))
    options, lines = StepOptions(attention="eager"), []
    for rows, length in SHAPES:
        # Measured again for each shape, because the machine's speed drifts.
        speed, moved = product_speed(model), bandwidth()
        flops, bytes_moved, _ = step_work(
            training_step(), model.config, rows, length, options
        )
        lines.append(
            {
                "rows": rows,
                "tokens": length,
                "gflops": speed / 1e9,
                "gb_per_second": moved / 1e9,
                "predicted_ms": 1e3 * (flops / speed + bytes_moved / moved),
                "measured_ms": 1e3 * step_seconds(model, rows, length),
            }
        )
    table = pd.DataFrame(lines)
    table["error"] = table["predicted_ms"] / table["measured_ms"] - 1
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--published", action="store_true", help="leave the rest out")
    published_only = parser.parse_args().published
    file = Path(__file__).with_suffix(".json")
    figures = json.loads(file.read_text(encoding="utf-8"))
    runs = published_runs()
    print(runs.drop(columns=["stated", "source"]).round().to_string(index=False))
    counted = runs[runs["use"] != "TF32"]
    for use, some in [("all", counted), *counted.groupby("use")]:
        print(f"{use}: {some['inside'].sum()} of {len(some)} inside")
    widest = (counted["high"] / counted["low"]).max()
    print(f"widest range: a factor of {widest:.2f}\n")
    print("share of the peak in products:", product_shares().round(2), sep="\n")
    figures["published"] = runs.round(1).to_dict("records")
    if not published_only:
        table = this_processor()
        figures["shapes"] = table.round(4).to_dict("records")
        figures["median_error"] = table["error"].abs().median()
        print(table.round(2).to_string(index=False))
        print(f"\nmedian error {figures['median_error']:.1%}")
    file.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
