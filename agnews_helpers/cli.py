"""The ``agnews`` command: doctor, budget, train, evaluate, predict, notebooks."""

import argparse
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

from .plumbing.errors import AgnewsError, DoesNotFit, ResumeError
from .plumbing.storage import write_json
from .recipe import Recipe, from_environment

INTERRUPTED = 130  # what shells expect after Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Run one command, write its figures where ``--json`` says, and return the exit status.

    0 is success, 1 a finding or failure, 2 wrong input or a run that cannot go on (said in one line, no
    traceback), 130 a run that was interrupted and can be continued.
    """
    options = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):  # Windows' pipes and old consoles lack most letters
        sys.stdout.reconfigure(errors="replace")
    try:
        code, figures = options.run(options)  # each command returns its exit status and its figures
        if options.json and figures:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.json, figures)
            print(f"figures in {options.json}")
    except (AgnewsError, OSError) as error:
        print(f"agnews {options.command}: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("agnews", description="Fine-tune DistilBERT on AG News; see README.md.")
    commands = parser.add_subparsers(dest="command", required=True)
    figures, folder, recipe = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    figures.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    where = "where the trained classifier is (default: %(default)s)"
    folder.add_argument("--output-dir", type=Path, default=Path("runs/agnews"), metavar="DIR", help=where)
    _add_recipe_flags(recipe)

    def command(name, run, summary, *parents):
        sub = commands.add_parser(name, help=summary, description=summary, parents=[figures, *parents])
        sub.set_defaults(run=run)
        return sub.add_argument

    add = command("doctor", _doctor, "say what this machine is and which profile it would run")
    add("--picture", type=Path, metavar="FILE", help="draw the card's facts and memory to FILE")
    add = command("budget", _budget, "say whether a training step fits a card, before training", recipe)
    add("--card", metavar="NAME", help="such as 'GTX 1650 Ti' (default: the one found, else the GTX 1650 Ti)")
    add("--vram-gib", type=float, metavar="GIB", help="memory of a card that is not in the list")
    add("--system", default="windows", help="linux, linux-desktop or windows (default: %(default)s)")
    add("--attention", default="sdpa", help="sdpa or eager (default: %(default)s)")
    add("--picture", type=Path, metavar="FILE", help="draw the bars of four lengths to FILE")
    add = command("train", _train, "train the classifier, keep the best epoch, test it", folder, recipe)
    resume = "continue the unfinished run of the output folder, as it was begun; or discard it and begin"
    add("--resume", action=argparse.BooleanOptionalAction, default=None, help=resume)
    add("--steps", type=int, metavar="INT", help="stop after so many steps; --resume goes on from there")
    often = "how often the run is saved (default: %(default)s); a crash costs at most that much work"
    add("--checkpoint-minutes", type=float, default=10.0, metavar="FLOAT", help=often)
    command("evaluate", _evaluate, "test a trained classifier", folder, recipe)
    add = command("predict", _predict, "label texts with a trained classifier", folder)
    add("texts", nargs="+", metavar="TEXT")
    add = command("notebooks", _notebooks, "run the notebooks top to bottom, as .ipynb and .html")
    add("--source", type=Path, default=Path("notebooks"), metavar="DIR", help="default: %(default)s")
    add("--target", type=Path, default=Path("build/notebooks"), metavar="DIR", help="default: %(default)s")
    return parser


def _add_recipe_flags(parser) -> None:
    """A flag for each field of `Recipe`."""
    group = parser.add_argument_group("recipe", "what is left out stays as the profile, or the run, has it")
    for item in fields(Recipe):
        kind = item.type if item.type in (float, str) else int  # where None is possible, too
        value = dict(type=kind, metavar=kind.__name__.upper())
        how = dict(action=argparse.BooleanOptionalAction) if item.type is bool else value
        group.add_argument("--" + item.name.replace("_", "-"), **how)


def _flags(options) -> dict:
    """The recipe's fields that were given on the command line."""
    return {f.name: value for f in fields(Recipe) if (value := getattr(options, f.name)) is not None}


def _described(recipe: Recipe) -> Recipe:
    """The recipe, which is printed first, so that a reader sees what runs."""
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        print(recipe.describe())
    return recipe


def _doctor(options) -> tuple[int, dict]:
    from . import doctor, hardware

    checks, figures = doctor.cannot_load(), {"versions": hardware.versions()}
    if not checks:
        recipe = doctor.recipe_here()
        figures |= {"recipe": recipe.to_dict(), "reason": recipe.reason}
        print(f"{hardware.describe_machine()}\n{recipe.describe()}\n")
        checks = doctor.examine(recipe)
    print(*checks, sep="\n")
    failed = [check.name for check in checks if check.ok is False]
    print(f"\nNot ready: {', '.join(failed)}." if failed else "\nReady.")
    if options.picture and "recipe" in figures:
        _draw_picture(options.picture, hardware.this_card() or hardware.GTX_1650_TI)
    return 1 if failed else 0, figures | {"checks": [asdict(check) for check in checks]}


def _draw_picture(path: Path, card) -> None:
    from . import hardware, plots
    from .vram.budget import budget_table
    from .vram.trace import config_for

    plots.plt.switch_backend("Agg")  # draws without a screen
    note = (
        "Bars: predicted by tracing the step, not measured on the card.\nCUDA context: middle of a published "
        f"range, 250 to 450 MiB.\nLeft by a system: its worst case.\nCard: {card.source}."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = {system: hardware.SYSTEMS_GIB[system][1] for system in ("linux", "windows")}
    plots.gpu_picture(card, budget_table(config_for(), card=card), note, taken).savefig(path, dpi=110)
    print(f"picture of the {card.name} in {path}")


def _budget(options) -> tuple[int, dict]:
    from .hardware import GTX_1650_TI, find_card, this_card
    from .vram.report import as_text, card_report, other_card
    from .vram.trace import config_for

    recipe = Recipe(**_flags(options))
    card = find_card(options.card) if options.card else this_card() or GTX_1650_TI
    if options.vram_gib is not None:
        card = other_card(options.vram_gib)
    figures = card_report(config_for(recipe.model), recipe, card, options.system, options.attention)
    print(as_text(figures))
    if options.picture:
        _draw_picture(options.picture, card)
    return 0, figures


def _train(options) -> tuple[int, dict]:
    from . import batching, checkpoints, data, evaluation, hardware, model, training

    folder, resume, flags = options.output_dir, options.resume, _flags(options)
    if resume is None and checkpoints.checkpoints_in(folder):
        choice = "Continue it with --resume, or discard it with --no-resume."
        raise ResumeError(f"{folder} holds an unfinished run. {choice}")
    begun = checkpoints.begun_with(folder).but(**flags) if resume else None  # goes on as it was begun
    recipe = _described(begun or Recipe.for_this_machine(**flags))
    with hardware.processes().main_process_first():  # of several, one tokenizes; the others find its cache
        tokens = batching.tokenize(data.load_data(recipe), model.load_tokenizer(recipe), recipe)
    fresh, how = model.load_model(recipe), "auto" if resume is None else resume
    try:
        run = training.train(fresh, tokens, recipe, folder, how, options.steps, options.checkpoint_minutes)
    except DoesNotFit as error:
        from .vram.report import remedies

        raise DoesNotFit(f"{error} {remedies(fresh.config, recipe, error.length)}", error.length) from None
    if not run.finished:
        return INTERRUPTED if options.steps is None else 0, {}
    report = evaluation.evaluate(run.model, tokens["test"], recipe)
    if not hardware.processes().is_main_process:
        return 0, {}
    print(run.history.round(4).to_string())
    report.save(run.folder / "test_report.json")
    print(f"test: {report}")
    print(f"epoch {run.best_epoch} kept in {folder}, {run.seconds / 60:.1f} minutes of training")
    figures = {"recipe": recipe.to_dict(), "history": run.history.reset_index().to_dict("records")}
    return 0, figures | {"best_epoch": run.best_epoch, "seconds": run.seconds, "test": report.to_dict()}


def _evaluate(options) -> tuple[int, dict]:
    from . import batching, data, evaluation, model, prediction

    classifier, tokenizer = model.load_classifier(options.output_dir)
    flags, begun = _flags(options), model.run_facts(options.output_dir).get("recipe")
    if begun and "profile" not in flags:  # the data and the length of the classifier's own run
        recipe = Recipe.from_dict(begun).but(**from_environment(os.environ) | flags)
    else:
        recipe = Recipe.for_this_machine(**flags)
    test = batching.tokenize(data.load_data(_described(recipe))["test"], tokenizer, recipe)
    report = evaluation.evaluate(classifier.to(prediction.best_device()), test, recipe)
    print(f"test: {report}", report.per_class.round(3).to_string(), report.confusion.to_string(), sep="\n")
    return 0, {"recipe": recipe.to_dict(), "test": report.to_dict()}


def _predict(options) -> tuple[int, dict]:
    from .prediction import classify

    table = classify(options.texts, options.output_dir)
    for row in table.to_dict("records"):
        chances = [f"{name} {value:.3f}" for name, value in row.items() if name not in ("text", "label")]
        print(f"{row['label']:9} {row['text']}\n          {', '.join(chances)}")
    return 0, {"predictions": table.to_dict("records")}


def _notebooks(options) -> tuple[int, dict]:
    from .running import run_notebooks

    figures = run_notebooks(options.source, options.target)
    return 0 if all(notebook["ok"] for notebook in figures["notebooks"]) else 1, figures
