"""Is the time of a step predicted well? Six shapes on this processor.

The prediction uses the measured speed and bandwidth of this machine.

    python benchmarks/step_time.py

takes about a minute, prints a table and writes step_time.json beside this file. The
same arithmetic estimates the hours on a graphics card (``agnews budget``), from its
published figures.
"""

import json
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from agnews_helpers import Recipe, load_model, training_step
from vram_budget import StepOptions, step_work

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


def main() -> None:
    model = load_model(Recipe(profile="offline", model="mini"))
    options, lines = StepOptions(attention="eager"), []
    for rows, length in SHAPES:
        # Measured again for each shape, because the machine's speed drifts.
        speed, moved = product_speed(model), bandwidth()
        flops, bytes_moved = step_work(
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
    median = table["error"].abs().median()
    print(
        table.to_string(
            index=False,
            float_format="{:.1f}".format,
            formatters={"error": "{:+.1%}".format},
        ),
        f"\n\nmedian error {median:.1%}",
    )
    figures = {"shapes": table.round(4).to_dict("records"), "median_error": median}
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
