"""The ``agnews`` command: doctor, budget, train, evaluate, predict, notebooks."""
import argparse
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

from .errors import DoesNotFit, FolderInUse, NonFiniteError, SaveError
from .mini import MiniUnavailable
from .recipe import HUB_MODEL, HubUnreachable, Recipe

OUTPUT_DIR = Path("runs/agnews")
INTERRUPTED = 130  # what shells expect after Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a finding or failure, 2 wrong input or a run that cannot go on (said in one
    line, no traceback), 130 a run that was interrupted and can be continued."""
    options = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):  # Windows' pipes and old consoles lack most letters
        sys.stdout.reconfigure(errors="replace")
    try:
        return options.run(options) or 0
    except (ValueError, FileNotFoundError, HubUnreachable, MiniUnavailable, SaveError, FolderInUse, DoesNotFit, NonFiniteError) as error:
        print(f"agnews {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agnews", description="Fine-tune DistilBERT on AG News; see README.md.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, run, summary, recipe=False, folder=True):
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        if folder:
            sub.add_argument("--output-dir", type=Path, default=OUTPUT_DIR, metavar="DIR",
                             help="where the trained classifier is (default: %(default)s)")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
        if recipe:
            _add_recipe_flags(sub)
        return sub

    doctor = command("doctor", _doctor, "say what this machine is and which profile it would run", folder=False)
    doctor.add_argument("--picture", type=Path, metavar="FILE", help="draw the card's facts and memory to FILE")
    budget = command("budget", _budget, "say whether a training step fits a card, before training", recipe=True, folder=False)
    budget.add_argument("--card", metavar="NAME", help="such as 'GTX 1650 Ti' (default: the one found, else the GTX 1650 Ti)")
    budget.add_argument("--vram-gib", type=float, metavar="GIB", help="memory of a card that is not in the list")
    budget.add_argument("--system", default="windows", help="linux, linux-desktop or windows (default: %(default)s)")
    budget.add_argument("--attention", default="sdpa", help="sdpa or eager (default: %(default)s)")
    budget.add_argument("--picture", type=Path, metavar="FILE", help="draw the bars of four lengths to FILE")
    train = command("train", _train, "train the classifier, keep the best epoch, test it", recipe=True)
    train.add_argument("--resume", action=argparse.BooleanOptionalAction, default=None,
                       help="continue the unfinished run of the output folder, or discard it and begin")
    train.add_argument("--steps", type=int, metavar="INT", help="stop after so many steps; --resume goes on from there")
    command("evaluate", _evaluate, "test a trained classifier", recipe=True)
    predict = command("predict", _predict, "label texts with a trained classifier")
    predict.add_argument("texts", nargs="+", metavar="TEXT")
    notebooks = command("notebooks", _notebooks, "run the notebooks top to bottom, as .ipynb and .html", folder=False)
    notebooks.add_argument("--source", type=Path, default=Path("notebooks"), metavar="DIR", help="default: %(default)s")
    notebooks.add_argument("--target", type=Path, default=Path("build/notebooks"), metavar="DIR", help="default: %(default)s")
    return parser


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `Recipe`; what is not given stays as the profile has it."""
    group = parser.add_argument_group("recipe", "what is left out stays as the profile has it")
    for item in fields(Recipe):
        if item.name == "reason":
            continue
        flag = "--" + item.name.replace("_", "-")
        if item.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            kind = {float: float, str: str}.get(item.type, int)
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper())


def _recipe(options) -> Recipe:
    recipe = Recipe.for_this_machine(**{f.name: getattr(options, f.name, None) for f in fields(Recipe) if f.name != "reason"})
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        print(recipe.describe())
    return recipe


def _write_json(path: Path | None, figures: dict) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2), encoding="utf-8")
        print(f"figures in {path}")


def _doctor(options) -> int:
    from .doctor import cannot_load, examine, recipe_here
    from .hardware import GTX_1650_TI, describe_machine, this_card, versions

    checks, figures = cannot_load(), {"versions": versions()}
    loaded = not checks
    if loaded:
        recipe = recipe_here()
        figures |= {"recipe": recipe.to_dict(), "reason": recipe.reason}
        print(describe_machine())
        print(recipe.describe(), end="\n\n")
        checks = examine(recipe)
    print(*checks, sep="\n")
    failed = [check.name for check in checks if check.ok is False]
    print(f"\nNot ready: {', '.join(failed)}." if failed else "\nReady.")
    if options.picture and loaded:
        _draw_picture(options.picture, this_card() or GTX_1650_TI)
    _write_json(options.json, {**figures, "checks": [asdict(check) for check in checks]})
    return 1 if failed else 0


def _draw_picture(path: Path, card) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from transformers import DistilBertConfig

    from .hardware import SYSTEMS_GIB
    from .plots import gpu_picture
    from .vram.budget import budget_table

    note = ("Bars: predicted by tracing the step, not measured on the card.\nCUDA context: middle of a published range, 250 to 450 MiB.\n"
            f"Left by a system: its worst case.\nCard: {card.source}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = {system: SYSTEMS_GIB[system][1] for system in ("linux", "windows")}
    gpu_picture(card, budget_table(DistilBertConfig(num_labels=4), card=card), note, taken).savefig(path, dpi=110)
    print(f"picture of the {card.name} in {path}")


def _budget(options) -> None:
    from transformers import DistilBertConfig

    from .hardware import GTX_1650_TI, find_card, this_card
    from .mini import mini_config
    from .vram.report import as_text, card_report, other_card

    recipe = Recipe(**{f.name: value for f in fields(Recipe) if (value := getattr(options, f.name, None)) is not None})
    card = find_card(options.card) if options.card else this_card() or GTX_1650_TI
    if options.vram_gib is not None:
        card = other_card(options.vram_gib)
    shapes = {HUB_MODEL: DistilBertConfig(num_labels=4), "mini": mini_config(num_labels=4)}
    figures = card_report(shapes.get(recipe.model, recipe.model), recipe, card, options.system, options.attention)
    print(as_text(figures))
    if options.picture:
        _draw_picture(options.picture, card)
    _write_json(options.json, figures)


def _train(options) -> int | None:
    from .batching import tokenize
    from .checkpoints import unfinished
    from .data import load_agnews
    from .evaluation import evaluate
    from .hardware import processes
    from .model import load_model, load_tokenizer
    from .training import train

    recipe = _recipe(options)
    if options.resume is None and unfinished(options.output_dir):
        raise ValueError(f"{options.output_dir} holds an unfinished run. Continue it with --resume, or discard it with --no-resume.")
    with processes().main_process_first():  # of several processes, one tokenizes and the others find it in the cache
        tokens = tokenize(load_agnews(recipe), load_tokenizer(recipe), recipe)
    run = train(load_model(recipe), tokens, recipe, options.output_dir, "auto" if options.resume else False, options.steps)
    if not run.finished:
        return INTERRUPTED if options.steps is None else 0
    report = evaluate(run.model, tokens["test"], recipe)
    if not processes().is_main_process:
        return None
    print(run.history.round(4).to_string())
    report.save(run.folder / "test_report.json")
    print(f"test: {report}\nepoch {run.best_epoch} kept in {run.folder}, {run.seconds / 60:.1f} minutes of training")
    _write_json(options.json, {
        "recipe": recipe.to_dict(), "history": run.history.reset_index().to_dict("records"), "best_epoch": run.best_epoch,
        "seconds": run.seconds, "test": report.to_dict()})


def _evaluate(options) -> None:
    from .batching import tokenize
    from .checkpoints import load_classifier
    from .data import load_agnews
    from .evaluation import evaluate
    from .prediction import best_device

    recipe = _recipe(options)
    model, tokenizer = load_classifier(options.output_dir)
    test = tokenize(load_agnews(recipe)["test"], tokenizer, recipe)
    report = evaluate(model.to(best_device()), test, recipe)
    print(f"test: {report}")
    print(report.per_class.round(3).to_string())
    print(report.confusion.to_string())
    _write_json(options.json, {"recipe": recipe.to_dict(), "test": report.to_dict()})


def _predict(options) -> None:
    from .prediction import classify

    table = classify(options.texts, options.output_dir)
    for row in table.to_dict("records"):
        chances = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in ("text", "label"))
        print(f"{row['label']:9} {row['text']}\n          {chances}")
    _write_json(options.json, {"predictions": table.to_dict("records")})


def _notebooks(options) -> int:
    from .running import run_notebooks

    figures = run_notebooks(options.source, options.target)
    _write_json(options.json, figures)
    return 0 if all(notebook["ok"] for notebook in figures["notebooks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
