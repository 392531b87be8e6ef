"""The ``agnews`` command: doctor, budget, check, train, evaluate, predict and so on."""

import argparse
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryFile
from typing import get_args

from vram_budget.cards import SYSTEMS_GIB

from . import __version__
from .plumbing.errors import (
    AgnewsError,
    DataError,
    InvalidValue,
    SaveError,
)
from .plumbing.storage import save_text, write_json
from .profiles import environment_overrides, recipe_for_this_machine
from .recipe import ALLOWED, Recipe

# The fields of the recipe that a command has flags for
FIELDS = {
    "budget": (
        "model max_length padding group_by_length batch_size micro_batch_size "
        "gradient_checkpointing epochs precision"
    ).split(),
    "check": "label_column text_columns model max_length batch_size epochs".split(),
    "train": ALLOWED,
    "evaluate": (
        "data label_column text_columns test_rows max_length padding seed"
    ).split(),
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
        that cannot go on. 128 and the number of a signal, such as 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows' consoles lack most letters
            stream.reconfigure(errors="replace")
    try:
        _check_outputs(options.json, options.output, options.mistakes, options.write)
        status, figures = options.run(options)
        if options.json:
            write_json(options.json, figures)
            print(f"figures in {options.json.as_posix()}")
    except KeyboardInterrupt:
        print(f"agnews {options.command}: interrupted", file=sys.stderr)
        return 130  # what shells expect after Ctrl-C
    except Exception as error:  # nothing reaches a user as a traceback
        known = isinstance(error, (AgnewsError, OSError, ValueError))
        message = str(error) if known else f"{type(error).__name__}: {error}"
        lines = "\n".join(map(_printable, message.split("\n")))
        print(f"agnews {options.command}: {lines}", file=sys.stderr)
        return 2
    return status


def _printable(text):
    """Replace what could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _check_outputs(*paths):
    """Refuse a file that exists or could not be written, before any work."""
    for path in filter(None, paths):
        if os.path.lexists(path) or paths.count(path) > 1 or path.parent in paths:
            raise SaveError(
                f"{path} must be the name of a new file or folder, outside the others."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()


def _path(text):
    """Convert a word of the command line to a path; `~` is the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("a name is missing")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _checked(convert, is_allowed, allowed):
    """Return a function that converts a word of the command line, and checks it."""

    def value(text):
        with suppress(ValueError):
            number = convert(text)
            if is_allowed(number):
                return number
        raise argparse.ArgumentTypeError(f"{text!r} must be {allowed}")

    return value


table_path = _checked(
    _path,
    lambda path: path.suffix.lower() in (".csv", ".tsv"),
    "the name of a new file that ends in .csv or .tsv",
)
UNSURE = "unsure"  # in place of a label
# The words and flags of the commands, beside those of the recipe.
FLAGS = {
    "texts": {"nargs": "*", "metavar": "TEXT", "help": "a text; -- goes before a dash"},
    "data": {"help": "a folder with a training file, or one file"},
    "--write": {
        "type": _path,
        "help": "a new folder for the usable rows and the others",
    },
    "--card": {"help": "such as T4 (default: the one here, or the GTX 1650 Ti)"},
    "--system": {
        "choices": tuple(SYSTEMS_GIB),
        "default": "windows" if os.name == "nt" else "linux-desktop",
        "help": "linux has no screen (default: %(default)s)",
    },
    "--output-dir": {
        "type": _path,
        "default": Path("runs/agnews"),
        "help": "a folder for the classifier (default: %(default)s)",
    },
    "--model|--output-dir": {  # version 2 called it like train's
        "type": _path,
        "dest": "output_dir",
        "metavar": "DIR",
        "default": Path("runs/agnews"),
        "help": "the folder of the classifier (default: %(default)s)",
    },
    "--resume": {
        "action": argparse.BooleanOptionalAction,
        "help": "resume the folder's unfinished run; or discard it and start over",
    },
    "--steps": {
        "type": _checked(int, lambda n: n >= 1, "a whole number from 1"),
        "help": "stop after this many steps; --resume goes on from there",
    },
    "--file": {
        "type": _path,
        "help": "a .csv, .tsv, .jsonl or .parquet file of texts",
    },
    "folder": {"type": _path, "help": "a folder of your own for the notebooks"},
    "--output": {"type": table_path, "help": "a new file: its columns, and the labels"},
    "--min-confidence": {
        "type": _checked(float, lambda x: 0 <= x <= 1, "from 0 to 1, such as 0.6"),
        "default": 0.0,
        "help": f"write {UNSURE!r} where the classifier is less sure",
    },
    "--mistakes": {
        "type": table_path,
        "help": "a new CSV file for the wrong answers, the highest loss first",
    },
    "--text-columns": {"help": "which of its columns are text: A,B"},
    "--json": {"type": _path, "help": "a new file for the figures"},
    "--only": {"default": "[0-9]", "help": "the two digits of the one to run: 05"},
    "--source": {
        "type": _path,
        "help": "their folder (default: notebooks, or those that came with this)",
    },
    "--target": {
        "type": _path,
        "default": Path("build/notebooks"),
        "help": "a new folder for the results (default: %(default)s, or -2, -3, ...)",
    },
}


def _parser():
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        "agnews", description="Fine-tune DistilBERT; see README.md."
    )
    parser.add_argument("--version", action="version", version=f"agnews {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run, flags=""):
        name = run.__name__.strip("_")
        command = commands.add_parser(
            name,
            help=run.__doc__,
            description=run.__doc__,
            usage=f"agnews {name} ... (--help lists what it takes)",
            allow_abbrev=False,
        )
        command.set_defaults(run=run, json=None, output=None, mistakes=None, write=None)
        for flag in flags.split():
            command.add_argument(*flag.split("|"), **FLAGS[flag])
        if name in FIELDS:
            _add_recipe_flags(command, FIELDS[name])

    add(_doctor)
    add(_budget, "--card --system --json")
    add(_check, "data --write --json")
    add(_train, "--output-dir --resume --steps")
    add(_evaluate, "--model|--output-dir --mistakes --json")
    add(
        _predict,
        "texts --model|--output-dir --file --output --text-columns --min-confidence "
        "--json",
    )
    add(_notebooks, "--only --source --target")
    add(_lab, "folder --source")
    return parser


def _add_recipe_flags(command, names):
    """Add a flag for each of these fields of `Recipe`."""
    summary = "what is left out stays as the profile, or the run, has it"
    group = command.add_argument_group(
        "recipe", summary, argument_default=argparse.SUPPRESS
    )
    for name in names:
        kind = Recipe.__annotations__[name]
        convert = (*get_args(kind), kind)[0]  # of `int | None`: int
        options = {"type": _checked(convert, *ALLOWED[name])}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, help=ALLOWED[name][1], **options)


def _flags(options):
    """Return the fields of the recipe that were given on the command line."""
    return {name: value for name, value in vars(options).items() if name in ALLOWED}


def _doctor(options):
    """Print what this machine is, and what it lacks."""
    try:
        from . import doctor, hardware

        print(f"{hardware.describe_machine()}\n")
        checks = list(doctor.examine())
    except ImportError as error:
        print(f"[FAIL] {error}. Install the project as README.md says.")
        return 1, {}
    print(*checks, sep="\n")
    failed = [check.name for check in checks if check.ok is False]
    print(f"\nNot ready: {', '.join(failed)}." if failed else "\nReady.")
    return 1 if failed else 0, {}


def _budget(options):
    """Say whether a training step fits a card, and what else would."""
    from vram_budget.cards import GTX_1650_TI, find_card

    from .budgeting import card_report
    from .hardware import check_precision, this_card

    recipe = Recipe(**environment_overrides() | _flags(options))
    named = options.card
    card = this_card() or GTX_1650_TI if named is None else find_card(named)
    check_precision(recipe.precision, card)
    return 0, card_report(recipe, card, options.system)


def _train(options):
    """Train a classifier, or resume its training; then test it."""
    from . import batching, data, evaluation, hardware, model, runs, training
    from .checking import FEW_STEPS
    from .plumbing.interrupts import StopSignal

    folder = options.output_dir
    if options.resume:  # with the recipe that it began with
        recipe = runs.recipe_of_run(folder).replace(**_flags(options))
    else:
        recipe = recipe_for_this_machine(**_flags(options))
    print(f"device     {hardware.training_device()}\n{recipe.describe()}")
    tokens = batching.tokenize(
        data.load_data(recipe), model.load_tokenizer(recipe), recipe
    )
    run = training.train(
        model.load_model(recipe, tokens["train"].features["label"].names),
        tokens,
        recipe,
        folder,
        "auto" if options.resume is None else options.resume,
        options.steps,
    )
    if not run.finished:
        return StopSignal.number and 128 + StopSignal.number, {}
    report = evaluation.evaluate(run.model, tokens["test"], recipe)
    print(run.history.round(4).to_string())
    report.save(folder / "test_report.json")
    _print_report(report)
    n, steps = len(tokens["validation"]), len(run.steps)
    print(
        f"{n:,} validation rows chose epoch {run.best_epoch}, each of them "
        f"{1 / n:.1%} of their accuracy; it is kept in {folder.as_posix()}"
    )
    if steps < FEW_STEPS:
        print(f"note: {steps} steps are few. More rows or --epochs may help.")
    return 0, {}


def _print_report(report):
    """Print the figures of a test, for each class too."""
    print(f"test: {report.describe()}")
    if never := {*report.answers["true"]} - {*report.answers["predicted"]}:
        print(
            f"note: {', '.join(sorted(never))}: never predicted. Try more rows or "
            "--epochs, another --learning-rate (up to 1e-4), --class-weights balanced."
        )


def _evaluate(options):
    """Test a trained classifier, with the data and the length of its own run."""
    from . import batching, data, evaluation, model

    trained = evaluation.Classifier(options.output_dir)
    own = trained.recipe
    if not model.run_facts(options.output_dir):
        own = recipe_for_this_machine()
    given = environment_overrides() | _flags(options)
    place = Path(given.get("data", own.data)).expanduser()
    is_other = place.exists() and str(place.resolve()) != own.data
    if is_other:
        given = {"test_rows": None} | given  # all of them
    recipe = own.replace(**given | {"model": trained.model.name_or_path})
    model.check_model_and_tokenizer(trained.model, trained.tokenizer, recipe.max_length)
    print(recipe.describe())
    if is_other:
        rows = data.load_test(recipe, model.class_names(trained.model))
    else:
        rows = data.load_data(recipe)["test"]
    split = batching.tokenize(rows, trained.tokenizer, recipe)
    report = evaluation.evaluate(trained.model, split, recipe)
    print(f"scored: {report.rows:,} test rows of {place.name}")
    _print_report(report)
    print(report.confusion.to_string())
    if options.mistakes:
        _save_table(options.mistakes, report.worst)
        print(f"{len(report.worst):,} mistakes in {options.mistakes.as_posix()}")
    return 0, {"recipe": recipe.to_dict(), "test": report.to_dict()}


def _save_table(target, table, separator=",", mark="\ufeff"):
    """Write a table; by the mark Excel knows that it is UTF-8."""
    separator = "\t" if target.suffix.lower() == ".tsv" else separator
    text = table.to_csv(
        index=False, sep=separator, lineterminator="\r\n", float_format="%.4f"
    )
    save_text(target, mark + text)


def _predict(options):
    """Label texts, or the rows of a file."""
    files = [options.file, options.output]
    if all(files) and not options.texts:
        return 0, _label_file(options)
    is_file = any(map(os.path.isfile, options.texts))
    if any(files) or is_file or options.texts in ([], ["-"]):
        raise InvalidValue("Give texts, or --file and --output.")
    answers = _answers(options.texts, options)
    for text, label, confidence in answers.iloc[:, :3].to_numpy():
        print(f"{label:9} {confidence:.3f} {_printable(text)}")
    return 0, {"predictions": answers.to_dict("records")}


def _answers(texts, options):
    """Classify texts, with the confidence; the label is `UNSURE` where that is low."""
    from .evaluation import classify

    answers = classify(texts, options.output_dir)
    answers.insert(2, "confidence", answers.iloc[:, 2:].max(axis=1))
    answers.loc[answers["confidence"] < options.min_confidence, "label"] = UNSURE
    return answers


def _label_file(options):
    """Write a file anew, with the label and the probabilities of each row."""
    from .model import run_facts
    from .plumbing.tables import NO_TEXT, read_texts

    target = options.output
    asked = options.text_columns.split(",") if options.text_columns else []
    known = (run_facts(options.output_dir).get("text_columns") or "text").split("\n")
    read = read_texts([options.file], None, asked, labelled=False, known=known)
    print(f"{options.file.name} · {' · '.join(read.notes)}")
    if problems := read.describe_problems(but=NO_TEXT):
        raise DataError("\n".join([*problems, "Mend these rows."]))
    has_text = read.rows["problem"] == ""
    answers = _answers([*read.rows["text"][has_text]], options)
    table = read.table
    for name, values in answers.drop(columns="text").items():
        while name in table.columns:
            name = f"predicted_{name}"
        table.loc[has_text, name] = values.to_numpy()
    _save_table(
        target,
        table,
        read.separator or ",",
        "" if read.encoding == "utf-8" else "\ufeff",
    )
    counts = {
        "rows": len(answers),
        "rows_without_text": len(table) - len(answers),
        UNSURE: int((answers["label"] == UNSURE).sum()),
    }
    print(
        f"{len(answers):,} rows labelled in {target.as_posix()}, column "
        f"{table.columns[1 - answers.shape[1]]!r}, {counts[UNSURE]:,} of them "
        f"{UNSURE}; {counts['rows_without_text']:,} rows without text"
    )
    return counts


def _notebooks(options):
    """Run the notebooks of this folder, or those that came with the package."""
    from .running import run_notebooks

    failed = run_notebooks(_source(options), options.target, options.only)
    return 1 if failed else 0, {}


def _source(options):
    """Find the notebooks."""
    package = Path(__file__).parent
    # A wheel has them inside the package, a checkout beside it.
    places = [Path("notebooks"), package / "notebooks", package.parent / "notebooks"]
    return options.source or next(filter(Path.is_dir, places))


def _lab(options):
    """Copy the notebooks to a folder, unless it is there, and open JupyterLab on it."""
    from jupyterlab.labapp import main as jupyterlab

    if not options.folder.exists():
        copytree(_source(options), options.folder)
    # So that the first Ctrl-C ends it, with its kernels
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jupyterlab([str(options.folder), "--ServerApp.answer_yes=True"])
    return 0, {}


def _check(options):
    """List all that is wrong with labelled texts, and what fits them."""
    from .checking import check_data, print_check

    recipe = recipe_for_this_machine(**_flags(options))
    figures = check_data(recipe, options.write)
    print_check(figures)
    if options.write:
        print(f"usable rows and unused.csv in {options.write.as_posix()}")
    return 1 if figures["problems"] else 0, figures
