"""The answers of ``agnews budget``: one dict of figures, and the same as text. Notebook 05."""

import shlex
from dataclasses import asdict

from tqdm.auto import tqdm

from ..batching import tokenize
from ..data import load_data
from ..hardware import CONTEXT_MIB, SYSTEMS_GIB, Card
from ..model import load_tokenizer
from ..recipe import Recipe
from .budget import LENGTHS, largest_batch, levers, step_budget
from .time import full_run_hours
from .trace import StepOptions, config_for

LONGEST_ROW = 358  # tokens, of 40,000 rows of AG News
VERDICTS = {
    "fits": "it fits",
    "out of memory": "it ends out of memory",
    "spills": "it spills: no error, but slow, for Windows puts the rest into the computer's memory",
}


def card_report(config, recipe: Recipe, card: Card, system: str, attention="sdpa", table=True) -> dict:
    """Everything that ``agnews budget`` says about a recipe on a card, as plain values. Memory in MiB.

    config : as for `config_for`. table : whether to look for the largest batch of five lengths. Errors as for
    `step_budget`. A bar shows how far it is.
    """
    config, options, size = config_for(config), options_of(recipe, card, attention), recipe.batch_size
    tokens = [n for n in sorted({*LENGTHS, LONGEST_ROW, recipe.max_length}) if n <= recipe.max_length]
    figures = {"card": card.name, "vram_gib": card.vram_gib, "system": system, "attention": attention}
    figures |= {"precision": options.precision, "batch_size": size, "length": recipe.max_length}
    figures |= {"here": card.free_mib is not None, "epochs": recipe.epochs, "largest_batch": {}}
    with tqdm(total=3 + len(tokens) * table, desc="trace steps", leave=False) as bar:
        figures |= asdict(step_budget(config, size, recipe.max_length, options, card, system))
        bar.update()
        figures["hours"] = full_run_hours(config, epoch_lengths(recipe), recipe, card)
        bar.update()
        changes = levers(config, size, recipe.max_length, options, card, system)
        figures["levers"] = changes.reset_index().replace({float("nan"): None}).to_dict("records")
        bar.update()
        for length in tokens * table:
            figures["largest_batch"][length] = list(largest_batch(config, length, options, card, system))
            bar.update()
    return figures | {"command": command_of(recipe)}


def command_of(recipe: Recipe) -> str:
    """``agnews train`` with a flag for whatever differs from the recipe's defaults."""
    flags, plain = [], asdict(Recipe())
    for name, value in asdict(recipe).items():
        if value != plain[name]:
            name = name.replace("_", "-")
            flags.append(f"--no-{name}" if value is False else f"--{name} {shlex.quote(str(value))}")
    return " ".join(["agnews train", *flags]).replace(" True", "")


def options_of(recipe: Recipe, card: Card, attention: str) -> StepOptions:
    """How a recipe's step is run on a card."""
    how = dict(precision=recipe.precision, capability=card.capability, attention=attention)
    parts = dict(micro_batch_size=recipe.micro_batch_size, checkpointing=recipe.gradient_checkpointing)
    return StepOptions(**how, **parts)


def epoch_lengths(recipe: Recipe) -> list[int]:
    """Tokens of each row of the sample, cut at the recipe's `max_length`: on average like AG News' rows.

    The longest row of AG News is put in, because it decides.
    """
    sample = recipe.but(data="sample", model="mini", train_rows=None, test_rows=None)
    tokens = tokenize(load_data(sample)["train"], load_tokenizer(sample), sample)
    return [*tokens["length"][:], min(LONGEST_ROW, recipe.max_length)]


def as_text(figures: dict) -> str:
    """The figures of `card_report` as people read them: the verdict, what to do, why; then two tables."""
    known, system, command = figures, figures["system"], figures["command"]
    told, hours, (worst, best) = VERDICTS[known["verdict"]], known["hours"], known["usable"]
    if known["at_best"] != known["verdict"]:
        told += f"; if {system} takes little of the card, it fits"
    changes = [row for row in known["levers"][1:] if row["saved"] is None or abs(row["saved"]) >= 1]
    flags = [row["flag"] for row in changes if row["verdict"] == "fits" and row["flag"]][:2]
    if known["verdict"] == "fits":
        flags = [""]
    follow = " or: ".join(f"{command} {flag}".strip() for flag in flags) or "agnews budget --model mini"
    source = f"an estimate: {system} takes {{}} to {{}} GiB, the CUDA context {{}} to {{}} MiB"
    source = "free on it now" if known["here"] else source.format(*SYSTEMS_GIB[system], *CONTEXT_MIB)
    time = "unknown: this card's speed is not in the list"
    if hours is not None:
        time = (
            f"about {hours:.1f} hours (an estimate): {known['epochs']} epochs of 114,000 rows like AG News'"
        )
    lines = [
        f"verdict    {told}",
        f"next       {follow}",
        f"step       {known['batch_size']} rows x {known['length']} tokens, {known['attention']} attention, "
        f"{known['precision']}",
        f"card       {known['card']}, {known['vram_gib']:.2f} GiB",
        f"left       {worst:,.0f} to {best:,.0f} MiB for PyTorch ({source})",
        f"needs      {known['reserved']:,.0f} MiB reserved; {known['allocated']:,.0f} allocated at the peak: "
        f"{known['peak']}",
        f"time       {time}",
        "\none change alone, in MiB reserved, and the flag of agnews train that makes it:",
    ]
    for row in (known["levers"][0], *changes):
        if row["reserved"] is None:
            lines.append(f"{'':11}{row['change']}: {row['verdict']}")
        else:
            line = f"{row['reserved']:>9,.0f}  {row['verdict']:14} {row['change']:34} {row['flag']}"
            lines.append(line.rstrip())
    if known["largest_batch"]:
        lines.append(
            f"\nlargest batch, at worst and at best, by tokens per row (AG News has up to {LONGEST_ROW}):"
        )
        lines += [f"{n:>9} {worst:>6,} {best:>6,}" for n, (worst, best) in known["largest_batch"].items()]
    return "\n".join(lines)
