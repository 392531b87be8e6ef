"""The answers of ``agnews budget``: one dict of figures, and the same as text. Notebook 05."""

import shlex
from dataclasses import asdict

from tqdm.auto import tqdm

from ..hardware import CONTEXT_MIB, SYSTEMS_GIB, Card
from ..recipe import Recipe
from .budget import LENGTHS, largest_batch, memory_savings, step_budget
from .time import full_run_hours
from .trace import StepOptions, config_for

# Tokens of 40,000 rows of AG News: the middle of each twentieth, the shortest first; and the longest row
ROWS = (28, 34, 38, 40, 42, 44, 46, 47, 49, 50, 52, 53, 55, 57, 58, 61, 64, 67, 75, 109)
LONGEST_ROW = 358
VERDICTS = {"fits": "it fits", "out of memory": "it does not fit: out of memory"}
VERDICTS["spills"] = (
    "it spills: no error, but slow, for Windows puts the rest into the computer's memory"
)
TEXT = """\
verdict    {told}
next       {follow}
step       {batch_size} rows x {length} tokens, {attention} attention, {precision}
card       {card}, {vram_gib:.2f} GiB
left       {usable[0]:,.0f} to {usable[1]:,.0f} MiB for PyTorch ({source})
needs      {reserved:,.0f} MiB reserved; {allocated:,.0f} allocated at the peak: {peak}
time       {time}

one change alone, in MiB reserved, and the flag of agnews train that makes it:"""
HOURS = "about {hours:.1f} hours (an estimate): {epochs} epochs of 114,000 rows like AG News'"
LARGEST = f"\nlargest batch, at worst and at best, by tokens per row (AG News has up to {LONGEST_ROW}):"


def card_report(
    config, recipe: Recipe, card: Card, system: str, attention="sdpa", table=True
) -> dict:
    """Everything that ``agnews budget`` says about a recipe on a card, as plain values. Memory in MiB.

    config : as for `config_for`. table : whether to look for the largest batch of each length. Errors as for
    `step_budget`. A bar shows how far it is.
    """
    config, options, size = (
        config_for(config),
        options_of(recipe, card, attention),
        recipe.batch_size,
    )
    tokens = [
        n
        for n in sorted({*LENGTHS, LONGEST_ROW, recipe.max_length})
        if n <= recipe.max_length
    ]
    figures = {
        "card": card.name,
        "vram_gib": card.vram_gib,
        "system": system,
        "attention": attention,
    }
    figures |= {
        "precision": options.precision,
        "batch_size": size,
        "length": recipe.max_length,
    }
    figures |= {
        "here": card.free_mib is not None,
        "epochs": recipe.epochs,
        "largest_batch": {},
    }
    with tqdm(total=3 + len(tokens) * table, desc="trace steps", leave=False) as bar:
        figures |= asdict(
            step_budget(config, size, recipe.max_length, options, card, system)
        )
        bar.update()
        figures["hours"] = full_run_hours(config, epoch_lengths(recipe), recipe, card)
        bar.update()
        changes = memory_savings(config, size, recipe.max_length, options, card, system)
        figures["memory_savings"] = (
            changes.reset_index().replace({float("nan"): None}).to_dict("records")
        )
        bar.update()
        for length in tokens * table:
            figures["largest_batch"][length] = list(
                largest_batch(config, length, options, card, system)
            )
            bar.update()
    return figures | {"command": command_of(recipe)}


def command_of(recipe: Recipe) -> str:
    """``agnews train`` with a flag for whatever differs from the recipe's defaults."""
    flags, plain = [], asdict(Recipe())
    for name, value in asdict(recipe).items():
        if value != plain[name]:
            name = name.replace("_", "-")
            flags.append(
                f"--no-{name}"
                if value is False
                else f"--{name} {shlex.quote(str(value))}"
            )
    return " ".join(["agnews train", *flags]).replace(" True", "")


def options_of(recipe: Recipe, card: Card, attention: str) -> StepOptions:
    """How a recipe's step is run on a card."""
    leaner = dict(
        micro_batch_size=recipe.micro_batch_size,
        checkpointing=recipe.gradient_checkpointing,
    )
    return StepOptions(
        attention, precision=recipe.precision, capability=card.capability, **leaner
    )


def epoch_lengths(recipe: Recipe) -> list[int]:
    """Tokens of a thousand rows that are as long as AG News', and of the longest, cut at `max_length`."""
    return [min(length, recipe.max_length) for length in (*ROWS * 50, LONGEST_ROW)]


def as_text(figures: dict) -> str:
    """The figures of `card_report` as people read them: the verdict, what to do, why; then two tables."""
    system, command, hours = (figures[name] for name in ("system", "command", "hours"))
    fits = figures["verdict"] == "fits"
    told = VERDICTS[figures["verdict"]] + "; agnews train then tries parts of it" * (
        not fits
    )
    if figures["at_best"] != figures["verdict"]:
        told += f"; if {system} takes little of the card, it fits"
    as_it_is, *others = figures["memory_savings"]
    changes = [row for row in others if row["saved"] is None or abs(row["saved"]) >= 1]
    flags = (
        [""]
        if fits
        else [
            row["flag"] for row in changes if row["verdict"] == "fits" and row["flag"]
        ]
    )
    smaller = "a smaller --batch-size or --max-length, or --model mini"
    follow = " or: ".join(f"{command} {flag}".strip() for flag in flags[:2]) or smaller
    takes = "an estimate: {} takes {} to {} GiB, the CUDA context {} to {} MiB"
    source = (
        "free on it now"
        if figures["here"]
        else takes.format(system, *SYSTEMS_GIB[system], *CONTEXT_MIB)
    )
    time = (
        "unknown: this card's speed is not in the list"
        if hours is None
        else HOURS.format(**figures)
    )
    lines = [TEXT.format(**figures, told=told, follow=follow, source=source, time=time)]
    for row in (as_it_is, *changes):
        mib = "" if row["reserved"] is None else f"{row['reserved']:,.0f}"
        lines.append(
            f"{mib:>9}  {row['verdict']:14} {row['change']:42} {row['flag']}".rstrip()
        )
    largest = figures["largest_batch"].items()
    lines += [LARGEST] * bool(largest) + [
        f"{n:>9} {worst:>6,} {best:>6,}" for n, (worst, best) in largest
    ]
    return "\n".join(lines)
