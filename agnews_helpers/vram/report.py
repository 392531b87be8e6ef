"""The answers of ``agnews budget``: one dict of figures, and the same as text. Notebook 05."""

from ..batching import tokenize
from ..data import load_data
from ..hardware import CONTEXT_MIB, GTX_1650_TI, SYSTEMS_GIB, Card, this_card
from ..model import load_tokenizer
from ..recipe import Recipe
from .budget import LENGTHS, largest_batch, levers, step_budget
from .time import full_run_hours
from .trace import StepOptions, config_for

LONGEST_ROW = 358  # tokens, of 40,000 rows of AG News
TEXT = """\
verdict    {batch_size} rows x {length} tokens, {attention} attention, {precision}: {told}
card       {card}, {vram_gib:.2f} GiB; {system} takes {system_takes_gib[0]:.2f} to {system_takes_gib[1]:.2f} \
GiB, the CUDA context {context_mib[0]} to {context_mib[1]} MiB
left       {usable_mib[0]:,.0f} to {usable_mib[1]:,.0f} MiB for PyTorch (an estimate from reports of such \
cards)
needs      {allocated_mib:,.0f} MiB allocated, {reserved_mib:,.0f} reserved at the peak: {peak}
time       {time}

largest batch by tokens per row (358: the longest of AG News), in the worst and in the best case:
{batches}

what a change alone would save, in MiB:
{savings}"""
VERDICTS = {"fits": "it fits", "out of memory": "out of memory"}
VERDICTS["spills"] = "it spills: no error, but slow, since Windows puts the rest into the computer's memory"
HOURS = """about {hours:.1f} hours for {epochs} epochs over 114,000 rows like AG News' (an estimate from the \
card's published speed and bandwidth)"""


def card_report(config, recipe: Recipe, card: Card, system: str, attention: str = "sdpa") -> dict:
    """Everything that ``agnews budget`` says about a recipe on a card, as plain values. Memory in MiB.

    config : as for `config_for`. Errors as for `step_budget`.
    """
    config, options = config_for(config), _options(recipe, card, attention)
    budget = step_budget(config, recipe.batch_size, recipe.max_length, options, card, system)
    lengths, table = epoch_lengths(recipe), sorted({*LENGTHS, LONGEST_ROW})
    largest = {length: list(largest_batch(config, length, options, card, system)) for length in table}
    mean = round(sum(lengths) / len(lengths))
    saved = levers(config, recipe.batch_size, recipe.max_length, options, mean)["saved"].to_dict()
    figures = {"card": card.name, "vram_gib": card.vram_gib, "system": system}
    figures |= {"system_takes_gib": list(SYSTEMS_GIB[system]), "context_mib": list(CONTEXT_MIB)}
    figures |= {"attention": attention, "precision": options.precision}
    figures |= {"batch_size": recipe.batch_size, "length": recipe.max_length}
    figures |= {"allocated_mib": budget.allocated, "reserved_mib": budget.reserved, "parts_mib": budget.parts}
    figures |= {"usable_mib": list(budget.usable), "peak": budget.peak}
    figures |= {"verdict": budget.verdict, "verdict_at_best": budget.at_best}
    hours = full_run_hours(config, lengths, recipe, card)
    return figures | {"largest_batch": largest, "saved_mib": saved, "hours": hours, "epochs": recipe.epochs}


def _options(recipe: Recipe, card: Card, attention: str) -> StepOptions:
    """How a recipe's step is run on a card."""
    precision = "fp16" if recipe.precision == "fp16" else "fp32"
    return StepOptions(attention=attention, precision=precision, capability=card.capability)


def epoch_lengths(recipe: Recipe) -> list[int]:
    """Tokens of each row of the sample, cut at the recipe's `max_length`: on average like AG News' rows.

    The longest row of AG News is put in, because it decides.
    """
    sample = recipe.but(data="sample", model="mini", train_rows=None, test_rows=None)
    tokens = tokenize(load_data(sample)["train"], load_tokenizer(sample), sample)
    return [*tokens["length"][:], min(LONGEST_ROW, recipe.max_length)]


def remedies(config, recipe: Recipe, length: int) -> str:
    """For a run out of memory: what one row of `length` tokens is predicted to need, and what would help."""
    card = this_card()
    attention = "eager" if config._attn_implementation == "eager" else "sdpa"
    options, shorter = _options(recipe, card or GTX_1650_TI, attention), max(length // 4, 3)
    cases = ((config, length), (config, shorter), ("mini", length))
    asked, less, mini = (step_budget(model, 1, tokens, options) for model, tokens in cases)
    fixed = sum(asked.parts[name] for name in ("weights", "gradients", "optimizer state"))
    there = f"; the {card.name} has {card.vram_gib * 1024:,.0f}" if card else ""
    return (
        f"Predicted for one row of {length} tokens: {asked.reserved:,.0f} MiB, {fixed:,.0f} of them for "
        f"weights, gradients and Adam{there}; with max_length={shorter}: {less.reserved:,.0f} MiB; with "
        f"AGNEWS_MODEL=mini: {mini.reserved:,.0f} MiB."
    )


def as_text(figures: dict) -> str:
    """The figures of `card_report` as a few lines and a table."""
    time = "unknown: this card's speed is not in the list" if figures["hours"] is None else HOURS
    largest, saved = figures["largest_batch"].items(), figures["saved_mib"].items()
    batches = "\n".join(f"  {length:>4}     {worst:>4} {best:>4}" for length, (worst, best) in largest)
    savings = "\n".join(f"  {mib:>8,.0f}   {name}" for name, mib in saved if mib >= 1)
    told = VERDICTS[figures["verdict"]]
    if figures["verdict_at_best"] != figures["verdict"]:
        told += f", if {figures['system']} takes as much as it may; if it takes little, it fits"
    return TEXT.format(**figures, told=told, time=time.format(**figures), batches=batches, savings=savings)
