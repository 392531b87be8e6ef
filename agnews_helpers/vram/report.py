"""The answers of ``agnews budget``: one dict of figures, and the same as text. Notebook 05."""
from ..batching import tokenize
from ..data import load_agnews
from ..hardware import CONTEXT_MIB, GTX_1650_TI, SYSTEMS_GIB, Card, this_card
from ..mini import mini_config
from ..model import load_tokenizer
from ..recipe import Recipe
from ..roofline import full_run_hours
from .budget import largest_batch, largest_epoch_batch, levers, step_budget
from .trace import Setup

LENGTHS = (64, 128, 256, 512)


def other_card(vram_gib: float) -> Card:
    """A card of which only the memory is known.

    Raises
    ------
    ValueError
        For no memory at all.
    """
    if not vram_gib > 0:
        raise ValueError(f"--vram-gib is {vram_gib}; it must be above 0.")
    return Card(f"a card with {vram_gib:g} GiB", vram_gib, (7, 5), 0, source="only its memory was given")


def card_report(config, recipe: Recipe, card: Card, system: str, attention: str = "sdpa") -> dict:
    """Everything that ``agnews budget`` says about a recipe on a card, as plain values. Memory in MiB."""
    setup = Setup(attention=attention, precision="fp16" if recipe.precision == "fp16" else "fp32", capability=card.capability)
    budget = step_budget(config, recipe.batch_size, recipe.max_length, setup, card, system)
    lengths = epoch_lengths(recipe)
    table = levers(config, recipe.batch_size, recipe.max_length, setup, round(sum(lengths) / len(lengths)))
    return {
        "card": card.name, "vram_gib": card.vram_gib, "system": system, "system_takes_gib": list(SYSTEMS_GIB[system]),
        "context_mib": list(CONTEXT_MIB), "usable_mib": list(budget.usable), "attention": attention, "precision": setup.precision,
        "batch_size": recipe.batch_size, "length": recipe.max_length, "allocated_mib": budget.allocated,
        "reserved_mib": budget.reserved, "parts_mib": budget.parts, "peak": budget.peak, "verdict": budget.verdict,
        "largest_batch": {length: list(largest_batch(config, length, setup, card, system)) for length in LENGTHS},
        "largest_epoch_batch": largest_epoch_batch(config, lengths, setup, card, system), "longest_row": max(lengths),
        "saved_mib": table["saved"].to_dict(), "hours": full_run_hours(config, lengths, recipe, card), "epochs": recipe.epochs}


def epoch_lengths(recipe: Recipe) -> list[int]:
    """Tokens of each row of the sample, cut at the recipe's `max_length`: as long as AG News' rows on average.

    The longest of 40,000 rows of AG News has 358 tokens; it is put in, because the longest row decides.
    """
    sample = recipe.but(data="sample", model="mini", train_rows=None, test_rows=None)
    tokens = tokenize(load_agnews(sample)["train"], load_tokenizer(sample), sample)
    return [*tokens["length"][:], min(358, recipe.max_length)]


def remedies(config, recipe: Recipe, length: int) -> str:
    """For a run that is out of memory: what one row of `length` tokens is predicted to need, and what helps."""
    card = this_card()
    setup = Setup(attention="eager" if config._attn_implementation == "eager" else "sdpa",
                  precision="fp16" if recipe.precision == "fp16" else "fp32", capability=(card or GTX_1650_TI).capability)

    def need(config, tokens):
        return f"{step_budget(config, 1, tokens, setup, card or GTX_1650_TI).reserved:,.0f} MiB"

    budget = step_budget(config, 1, length, setup, card or GTX_1650_TI)
    fixed = sum(budget.parts[name] for name in ("weights", "gradients", "optimizer state"))
    shorter = max(length // 4, 3)
    there = f"; the {card.name} has {card.vram_gib * 1024:,.0f}" if card else ""
    return (f"Predicted for one row of {length} tokens: {budget.reserved:,.0f} MiB, {fixed:,.0f} of them for weights, gradients and Adam"
            f"{there}. What helps: (1) close what else uses the memory; nvidia-smi lists it, and another notebook keeps its share "
            f"until its kernel is restarted. (2) Shorter rows: Recipe(max_length={shorter}) needs {need(config, shorter)}. (3) A smaller "
            f"model: AGNEWS_MODEL=mini needs {need(mini_config(num_labels=4), length)}. What was saved is whole; resume continues it.")


def as_text(figures: dict) -> str:
    """The figures of `card_report` as a few lines and a table."""
    low, high = figures["system_takes_gib"]
    worst, best = figures["usable_mib"]
    lines = [
        f"card       {figures['card']}, {figures['vram_gib']:.2f} GiB; {figures['system']} takes {low:.2f} to {high:.2f} GiB, "
        f"the CUDA context {figures['context_mib'][0]} to {figures['context_mib'][1]} MiB",
        f"left       {worst:,.0f} to {best:,.0f} MiB for PyTorch (an estimate from reports of such cards)",
        f"step       {figures['batch_size']} rows x {figures['length']} tokens, {figures['attention']} attention, {figures['precision']}",
        f"needs      {figures['allocated_mib']:,.0f} MiB allocated, {figures['reserved_mib']:,.0f} reserved at the peak: {figures['peak']}",
        f"verdict    {figures['verdict']}",
        "time       " + ("unknown: this card's speed is not in the list" if figures["hours"] is None else
                         f"about {figures['hours']:.1f} hours for {figures['epochs']} epochs over 114,000 rows like AG News' "
                         "(an estimate from the card's published speed and bandwidth)"), "",
        "largest batch by tokens a row, in the worst and in the best case:"]
    lines += [f"  {length:>4}     {worst:>4} {best:>4}" for length, (worst, best) in figures["largest_batch"].items()]
    lines += [f"  rows of AG News padded to their batch, longest {figures['longest_row']}: {figures['largest_epoch_batch']}", "",
              "what a change alone would save, in MiB:"]
    lines += [f"  {saved:>8,.0f}   {name}" for name, saved in figures["saved_mib"].items() if saved >= 1]
    return "\n".join(lines)
