"""What does a bad recipe look like?

    AGNEWS_DATA=folder python benchmarks/gallery.py

One change of the recipe at a time, with three seeds each, and the loss curves. About 40
minutes on two cores for 400 rows from AG News' training split (CONTRIBUTING.md says how
to make the folder); without AGNEWS_DATA the sample is used. It prints a table and
writes gallery.json (accuracies) and agnews_helpers/gallery.csv (losses), which a
notebook draws.
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from transformers import get_linear_schedule_with_warmup

import agnews_helpers
from agnews_helpers import (
    Recipe,
    epoch_batches,
    evaluate,
    load_data,
    load_model,
    load_tokenizer,
    make_loader,
    tokenize,
)

HERE = Path(__file__)
# In the package, because the notebooks run in any folder.
CURVES = Path(agnews_helpers.__file__).with_name("gallery.csv")
SEEDS = (1, 2, 3)
# name -> what it changes of the recipe
CHANGES = {
    "the recipe": {},
    "learning rate 4e-4": {"learning_rate": 4e-4},
    "learning rate 1e-7": {"learning_rate": 1e-7},
    "shuffled labels": {"shuffled": True},
    "zero_grad forgotten": {"zero_grad": False},
    "warm-up, linear decay": {"schedule": True},
    "AdamW, weight decay 0.01": {"weight_decay": 0.01},
    "batch size 32": {"batch_size": 32},
}


def fine_tune(
    recipe, tokens, shuffled=False, zero_grad=True, schedule=False, weight_decay=None
):
    """Train in a plain PyTorch loop with one change; return model and losses."""
    rows = tokens["train"]
    if shuffled:
        labels = np.random.default_rng(recipe.seed).permutation(rows["label"][:])
        rows = rows.remove_columns("label").add_column("label", labels)
    batches = [
        epoch_batches(rows["length"][:], recipe, epoch)
        for epoch in range(1, recipe.epochs + 1)
    ]
    model, losses = load_model(recipe).train(), []
    how = dict(lr=recipe.learning_rate, fused=True)
    if weight_decay is None:
        optimizer = torch.optim.Adam(model.parameters(), **how)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), weight_decay=weight_decay, **how
        )
    steps = sum(map(len, batches))
    # Made only if it is used: it sets the learning rate to 0, where the warm-up begins.
    scheduler = (
        get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        if schedule
        else None
    )
    torch.manual_seed(recipe.seed)
    for epoch in batches:
        for batch in make_loader(rows, epoch, recipe):
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
            loss = F.cross_entropy(logits, batch["labels"])
            loss.backward()
            optimizer.step()
            if schedule:
                scheduler.step()
            if zero_grad:
                optimizer.zero_grad()
            losses.append(loss.item())
    return model, losses


def main() -> None:
    found, curves = [], []
    data = os.environ.get("AGNEWS_DATA", "sample")
    amounts = {} if data == "sample" else dict(train_rows=400, test_rows=1000)
    for seed in SEEDS:
        recipe = Recipe(
            profile="offline", model="mini", data=data, seed=seed, **amounts
        )
        tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
        for name, change in CHANGES.items():
            fields = {
                field: change[field]
                for field in ("learning_rate", "batch_size")
                if field in change
            }
            other = {
                field: value for field, value in change.items() if field not in fields
            }
            model, losses = fine_tune(recipe.replace(**fields), tokens, **other)
            report = evaluate(model, tokens["test"], recipe)
            found.append(
                {
                    "change": name,
                    "seed": seed,
                    "accuracy": report.accuracy,
                    "loss": report.loss,
                }
            )
            curves += [(name, seed, step, loss) for step, loss in enumerate(losses, 1)]
            print(f"seed {seed}  {name:26} {report}", flush=True)
    by_change = pd.DataFrame(found).groupby("change", sort=False)[["accuracy", "loss"]]
    print("\n", by_change.agg(["mean", "min", "max"]).round(3).to_string(), sep="")
    table = pd.DataFrame(curves, columns=["change", "seed", "step", "loss"])
    table = table.pivot_table(
        index=["change", "step"], columns="seed", values="loss", sort=False
    )
    table.round(3).to_csv(CURVES)
    facts = {
        "data": "the sample" if data == "sample" else "AG News rows",
        "train_rows": len(tokens["train"]),
        "test_rows": len(tokens["test"]),
        "runs": found,
    }
    HERE.with_suffix(".json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
