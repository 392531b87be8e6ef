"""The ``agnews`` command: doctor, budget, train, evaluate, predict, notebooks."""

import argparse
import atexit
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import vram_budget

from . import __version__
from .plumbing.errors import AgnewsError, InvalidValue, ResumeError, SaveError
from .plumbing.storage import (
    RESERVED_NAMES,
    save_text,
    try_file,
    write_json,
)
from .profiles import environment_overrides, recipe_for_this_machine
from .recipe import ALLOWED, Recipe

INTERRUPTED = 130  # what shells expect after Ctrl-C
# The fields of the recipe that a command has flags for
BUDGET_FIELDS = (
    "model max_length padding group_by_length batch_size epochs precision".split()
)
BUDGET_FIELDS += ["micro_batch_size", "gradient_checkpointing"]
EVALUATE_FIELDS = (
    "profile data label_column text_columns test_rows max_length padding seed".split()
)
TRAIN_FIELDS = [item.name for item in fields(Recipe)]


def _path(text: str) -> Path:
    """Convert a word of the command line to a path; `~` is the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text).expanduser()


# What several flags share
FILE = dict(type=_path, metavar="FILE")
FOLDER = dict(type=_path, metavar="DIR")
NUMBER = dict(type=float, metavar="NUMBER")
YES_OR_NO = dict(action=argparse.BooleanOptionalAction)
OUTPUT_DIR = dict(
    FOLDER,
    default=Path("runs/agnews"),
    help="the folder of the trained classifier (default: %(default)s)",
)
# The flags of each command beside those of the recipe, for `add_argument`
BUDGET_FLAGS = {
    "--card": dict(
        metavar="NAME",
        help="such as 'GTX 1650 Ti' (default: the one found, else the GTX 1650 Ti)",
    ),
    "--vram-gib": dict(
        NUMBER,
        help="memory of a card that is not in the list, or instead of --card's own",
    ),
    "--system": dict(
        default="windows" if os.name == "nt" else "linux-desktop",
        help="windows, linux-desktop; no screen: linux (default: %(default)s)",
    ),
    "--attention": dict(default="sdpa", help="sdpa or eager (default: %(default)s)"),
    "--table": dict(
        YES_OR_NO,
        default=True,
        help="look for the largest batch of each length (default: yes)",
    ),
}
TRAIN_FLAGS = {
    "--output-dir": OUTPUT_DIR,
    "--resume": dict(
        YES_OR_NO,
        help="resume the folder's unfinished run; or discard it and start over",
    ),
    "--steps": dict(
        type=int,
        metavar="NUMBER",
        help="stop after this many steps; --resume goes on from there",
    ),
    "--checkpoint-minutes": dict(
        NUMBER, default=10.0, help="between two saves (default: %(default)s)"
    ),
}
EVALUATE_FLAGS = {"--output-dir": OUTPUT_DIR}
PREDICT_FLAGS = {
    "texts": dict(
        nargs="*",
        metavar="TEXT",
        help="a text, or - for each line of the input that has one",
    ),
    "--output-dir": OUTPUT_DIR,
    "--file": dict(
        FILE, help="label the rows of a .csv, .tsv, .jsonl or .parquet file"
    ),
    "--output": dict(FILE, help="a new CSV file for them"),
    "--text-columns": dict(metavar="A,B", help="which of its columns are text"),
}
NOTEBOOKS_FLAGS = {
    "--source": dict(
        FOLDER, help="their folder (default: notebooks, else those that came with this)"
    ),
    "--target": dict(
        FOLDER,
        default=Path("build/notebooks"),
        help="the folder for the results (default: %(default)s)",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and write its figures to the file that ``--json`` names.

    Parameters
    ----------
    arguments : list of str, optional
        The words of the command line; None: those of this process.

    Returns
    -------
    int
        The exit status. 0: success. 1: a finding or failure. 2: wrong input or a run
        that cannot go on, told in one line. 130: interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows' consoles lack most letters
            stream.reconfigure(errors="replace")
    try:
        _check_outputs(options)
        code, figures = options.run(options)
        if options.json and figures:
            write_json(options.json, figures)
            print(f"figures in {options.json}")
    except BrokenPipeError:  # the reader closed the pipe
        return 2
    except KeyboardInterrupt:
        print(f"agnews {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (AgnewsError, OSError, vram_budget.InvalidValue) as error:
        print(f"agnews {options.command}: {error}", file=sys.stderr)
        return 2
    return code


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse a file that could not be written at the end, before any work."""
    if options.json:
        name = options.json.name.lower()
        if not name.endswith(".json") or name in RESERVED_NAMES:
            rule = "it must end in .json, and be no file of a run"
            raise InvalidValue(f"--json is {options.json}; {rule}.")
    for name in ("json", "output"):
        path = getattr(options, name, None)
        if path:
            try_file(path)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        hint = f"see {self.prog} --help (-- goes before a text with a dash)"
        self.exit(2, f"{self.prog}: {message}; {hint}\n")


def _parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    about = "Fine-tune DistilBERT on AG News; see README.md."
    parser = _Parser("agnews", description=about)
    parser.add_argument("--version", action="version", version=f"agnews {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str,
        run: Callable,
        summary: str,
        flags: dict[str, dict],
        recipe_fields: Sequence[str] = (),
    ) -> None:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        command.add_argument("--json", **FILE, help="write the figures to FILE")
        for flag, options in flags.items():
            command.add_argument(flag, **options)
        if recipe_fields:
            _add_recipe_flags(command, recipe_fields)

    summary = "say what this machine is and which profile it would run"
    add("doctor", _doctor, summary, {})
    summary = "say whether a training step fits a card"
    add("budget", _budget, summary, BUDGET_FLAGS, BUDGET_FIELDS)
    summary = "train a classifier, keep the best epoch"
    add("train", _train, summary, TRAIN_FLAGS, TRAIN_FIELDS)
    summary = "test a trained classifier"
    add("evaluate", _evaluate, summary, EVALUATE_FLAGS, EVALUATE_FIELDS)
    summary = "label texts with a trained classifier"
    add("predict", _predict, summary, PREDICT_FLAGS)
    summary = "run the notebooks top to bottom, as .ipynb and .html"
    add("notebooks", _notebooks, summary, NOTEBOOKS_FLAGS)
    return parser


def _add_recipe_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these fields of `Recipe`."""
    summary = "what is left out stays as the profile, or the run, has it"
    group = parser.add_argument_group("recipe", summary)
    for field in fields(Recipe):
        if field.name in names:
            kind = (get_args(field.type) or [field.type])[0]  # of `int | None`: int
            options = {"type": kind, "metavar": "TEXT" if kind is str else "NUMBER"}
            flag = f"--{field.name.replace('_', '-')}"
            how = YES_OR_NO if kind is bool else options
            group.add_argument(flag, help=ALLOWED[field.name][1], **how)


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the recipe that were given on the command line."""
    values = {name: getattr(options, name, None) for name in TRAIN_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _doctor(options: argparse.Namespace) -> tuple[int, dict]:
    """Print what this machine is, and what it lacks."""
    from . import doctor, hardware

    checks, figures = list(doctor.broken_imports()), {}
    if not checks:
        recipe = doctor.recipe_or_default()
        figures = {"recipe": asdict(recipe), "reason": recipe.reason}
        print(f"{hardware.describe_machine()}\n{recipe.describe()}\n")
        checks = doctor.examine(recipe)
    print(*checks, sep="\n")
    failed = [check.name for check in checks if check.ok is False]
    print(f"\nNot ready: {', '.join(failed)}." if failed else "\nReady.")
    figures["checks"] = [asdict(check) for check in checks]
    return 1 if failed else 0, figures


def _budget(options) -> tuple[int, dict]:
    from vram_budget.cards import GTX_1650_TI, Card, find_card

    from .budgeting import as_text, card_report
    from .hardware import check_precision, this_card

    recipe, gib = Recipe(**_flags(options)), options.vram_gib
    named = options.card is not None
    try:
        card = find_card(options.card) if named else this_card() or GTX_1650_TI
    except vram_budget.InvalidValue as error:
        raise InvalidValue(f"{error} Or give --vram-gib.") from error
    if gib is not None:
        if not 0 < gib <= 1024:
            raise InvalidValue(
                f"--vram-gib is {gib:g}; it must be above 0 and at most 1024."
            )
        if not named:
            source = "only its memory was given"
            card = Card("a card", gib, (7, 5), 0, source=source)
        card = replace(card, name=f"{card.name} with {gib:g} GiB", vram_gib=gib)
    if named or gib is None:  # of another card nothing is known but its memory
        check_precision(recipe.precision, "cuda", card)
    system, attention = options.system, options.attention
    figures = card_report(recipe, card, system, attention, options.table)
    print(as_text(figures))
    return 0, figures


def _train(options: argparse.Namespace) -> tuple[int, dict]:
    from . import batching, checkpoints, data, evaluation, model, runs, training
    from .plumbing.processes import process_state

    folder, resume = options.output_dir, options.resume
    flags = _flags(options)
    if resume is None and checkpoints.find_checkpoints(folder):
        raise ResumeError(
            f"{folder} holds an unfinished run. Resume it with --resume, or discard it "
            "with --no-resume."
        )
    if resume:  # with the recipe that it began with
        recipe = runs.recipe_of_run(folder).replace(**flags)
    else:
        recipe = recipe_for_this_machine(**flags)
    state = process_state()
    state.print(recipe.describe())
    # Otherwise its threads may still run when Python ends.
    atexit.register(state.destroy_process_group)
    tokens = batching.tokenize(
        data.load_data(recipe), model.load_tokenizer(recipe), recipe
    )
    lengths = [n for split in tokens.values() for n in split["length"][:]]
    if cut := lengths.count(recipe.max_length):
        state.print(
            f"note: {cut:,} texts have {recipe.max_length} tokens or more; the rest of "
            "them is not read."
        )
    run = training.train(
        model.load_model(recipe, tokens["train"].features["label"].names),
        tokens,
        recipe,
        folder,
        "auto" if resume is None else resume,
        options.steps,
        options.checkpoint_minutes,
    )
    if not run.finished:
        return INTERRUPTED if options.steps is None else 0, {}
    report = evaluation.evaluate(run.model, tokens["test"], recipe)
    if not state.is_main_process:
        return 0, {}
    print(run.history.round(4).to_string())
    report.save(folder / "test_report.json")
    print(f"test: {report}")
    minutes = run.seconds / 60
    print(f"epoch {run.best_epoch} kept in {folder}, {minutes:.1f} minutes of training")
    return 0, {
        "recipe": recipe.to_dict(),
        "history": run.history.reset_index().to_dict("records"),
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
        "test": report.to_dict(),
    }


def _evaluate(options: argparse.Namespace) -> tuple[int, dict]:
    from . import batching, data, evaluation, model
    from .plumbing.processes import process_state

    classifier, tokenizer = model.load_classifier(options.output_dir)
    flags = _flags(options)
    recipe_dict = model.run_facts(options.output_dir).get("recipe")
    if recipe_dict and "profile" not in flags:
        # The data and the length of the classifier's own run.
        own = Recipe.from_dict(recipe_dict)
        recipe = own.replace(**environment_overrides() | flags)
    else:
        recipe = recipe_for_this_machine(**flags)
    model.check_model_and_tokenizer(classifier, tokenizer, recipe.max_length)
    print(recipe.describe())
    split = batching.tokenize(data.load_data(recipe)["test"], tokenizer, recipe)
    classifier.to(process_state().device)
    report = evaluation.evaluate(classifier, split, recipe)
    print(f"test: {report}")
    print(report.per_class.round(3).to_string())
    print(report.confusion.to_string())
    return 0, {"recipe": recipe.to_dict(), "test": report.to_dict()}


def _predict(options):
    """Label texts, the lines of the standard input, or the rows of a file."""
    from .evaluation import classify

    texts = options.texts
    has_file = bool(options.file)
    is_mixed = "-" in texts and len(texts) > 1
    if is_mixed or bool(texts) == has_file or has_file != bool(options.output):
        raise InvalidValue(
            "Give texts, or - alone for the lines of the input, or --file and --output."
        )
    if options.file:
        return 0, _label_file(options)
    if texts == ["-"]:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    answers = classify(texts, options.output_dir)
    for text, label, *probabilities in answers.itertuples(index=False, name=None):
        # Nothing that is printed may steer a terminal.
        shown = "".join(char if char.isprintable() else " " for char in text)
        print(f"{label:9} {max(probabilities):.3f} {shown}")
    return 0, {"predictions": answers.to_dict("records")}


def _label_file(options):
    """Write all columns of a file, and the label and confidence of each row."""
    from .evaluation import classify
    from .plumbing.tables import read_texts

    target = options.output
    if os.path.lexists(target) or target.suffix.lower() != ".csv":
        raise SaveError(f"{target} must be the name of a new file that ends in .csv.")
    read = read_texts(options.file, text_columns=options.text_columns, labelled=False)
    print(f"{options.file.name} · {read.layout}")
    answers = classify([*read.rows["text"]], options.output_dir)
    table = read.table
    added = {
        "label": answers.iloc[:, 1],
        "confidence": answers.iloc[:, 2:].max(axis=1).round(4),
    }
    for name, values in added.items():
        while name in table.columns:
            name = f"predicted_{name}"
        table[name] = [*values]
    save_text(target, table.to_csv(index=False, lineterminator="\n"))
    print(f"{len(table):,} rows labelled in {target}")
    return {"rows": len(table)}


def _notebooks(options: argparse.Namespace) -> tuple[int, dict]:
    """Run the notebooks of this folder, else those that came with the package."""
    from .running import run_notebooks

    package = Path(__file__).parent
    # A wheel has them inside the package, a checkout beside it.
    places = [Path("notebooks"), package / "notebooks", package.parent / "notebooks"]
    found = [place for place in places if any(place.glob("[0-9]*.ipynb"))]
    source = options.source or (found or places)[0]
    figures = run_notebooks(source, options.target)
    ok = all(notebook["ok"] for notebook in figures["notebooks"])
    return 0 if ok else 1, figures
