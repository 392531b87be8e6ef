"""The ``agnews`` command: doctor, budget, train, evaluate, predict, notebooks."""

import argparse
import atexit
import os
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

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


def main(arguments: list[str] | None = None) -> int:
    """Run one command, write its figures where ``--json`` says, and return the exit status.

    0 is success, 1 a finding or failure, 2 wrong input or a run that cannot go on (said in one line, no
    traceback), 130 a run that was interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if (stream := getattr(sys, name)) is None:  # whoever started us has closed it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - to the end of the process
        elif mode == "w" and hasattr(
            stream, "reconfigure"
        ):  # Windows' pipes and consoles lack most letters
            stream.reconfigure(errors="replace")
    try:
        for name in (
            "json",
            "picture",
            "output",
        ):  # what is written at the end is tried now
            if path := getattr(options, name, None):
                if name == "json" and (
                    path.suffix.lower() != ".json"
                    or path.name.lower() in RESERVED_NAMES
                ):
                    raise InvalidValue(
                        f"--json is {path}; it must end in .json, and be no file of a run."
                    )
                try_file(path)
        code, figures = options.run(
            options
        )  # each command returns its exit status and its figures
        if options.json and figures:
            write_json(options.json, figures)
            print(f"figures in {options.json}")
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # who read the output is gone: say nothing more, also not at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt:
        print(f"agnews {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (AgnewsError, OSError) as error:
        print(f"agnews {options.command}: {error}", file=sys.stderr)
        return 2
    return code


def _path(text: str) -> Path:
    """A path of the command line: `~` is the home, also where the shell left it as it was."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text).expanduser()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(
            2,
            f"{self.prog}: {message}; see {self.prog} --help (-- goes before a text with a dash)\n",
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "agnews", description="Fine-tune DistilBERT on AG News; see README.md."
    )
    parser.add_argument("--version", action="version", version=f"agnews {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    figures, folder = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    path, place = ({"type": _path, "metavar": name} for name in ("FILE", "DIR"))
    number = {"type": float, "metavar": "NUMBER"}
    figures.add_argument("--json", **path, help="write the figures to FILE")
    where = "where the trained classifier is (default: %(default)s)"
    folder.add_argument(
        "--output-dir", **place, default=Path("runs/agnews"), help=where
    )

    def command(name, run, summary, *parents):
        sub = commands.add_parser(
            name, help=summary, description=summary, parents=[figures, *parents]
        )
        sub.set_defaults(run=run)
        return sub.add_argument

    command(
        "doctor", _doctor, "say what this machine is and which profile it would run"
    )
    add = command(
        "budget",
        _budget,
        "say whether a training step fits a card",
        _recipe_flags(BUDGET_FIELDS),
    )
    add(
        "--card",
        metavar="NAME",
        help="such as 'GTX 1650 Ti' (default: the one found, else the GTX 1650 Ti)",
    )
    add(
        "--vram-gib",
        **number,
        help="memory of a card that is not in the list, or instead of --card's own",
    )
    here = "windows" if os.name == "nt" else "linux-desktop"
    add(
        "--system",
        default=here,
        help="windows, linux-desktop; no screen: linux (default: %(default)s)",
    )
    add("--attention", default="sdpa", help="sdpa or eager (default: %(default)s)")
    flag = argparse.BooleanOptionalAction
    add(
        "--table",
        action=flag,
        default=True,
        help="look for the largest batch of each length (default: yes)",
    )
    add("--picture", **path, help="draw the bars of several lengths to FILE")
    add = command(
        "train",
        _train,
        "train a classifier, keep the best epoch",
        folder,
        _recipe_flags(TRAIN_FIELDS),
    )
    add(
        "--resume",
        action=flag,
        help="continue the output folder's unfinished run; or discard it and begin",
    )
    add(
        "--steps",
        type=int,
        metavar="NUMBER",
        help="stop after so many steps; --resume goes on from there",
    )
    add(
        "--checkpoint-minutes",
        default=10.0,
        **number,
        help="between two saves (default: %(default)s)",
    )
    command(
        "evaluate",
        _evaluate,
        "test a trained classifier",
        folder,
        _recipe_flags(EVALUATE_FIELDS),
    )
    add = command("predict", _predict, "label texts with a trained classifier", folder)
    add(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="a text, or - for each line of the input that has one",
    )
    add(
        "--file", **path, help="label the rows of a .csv, .tsv, .jsonl or .parquet file"
    )
    add("--output", **path, help="a new CSV file for them")
    add("--text-columns", metavar="A,B", help="which of its columns are text")
    add = command(
        "notebooks", _notebooks, "run the notebooks top to bottom, as .ipynb and .html"
    )
    add(
        "--source",
        **place,
        help="where they are (default: notebooks, else those that came with this)",
    )
    add(
        "--target",
        **place,
        default=Path("build/notebooks"),
        help="where to put them (default: %(default)s)",
    )
    return parser


def _recipe_flags(names: list[str]) -> argparse.ArgumentParser:
    """A parent parser with a flag for each of these fields of `Recipe`."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group(
        "recipe", "what is left out stays as the profile, or the run, has it"
    )
    for item in fields(Recipe):
        if item.name in names:
            kind = (get_args(item.type) or [item.type])[
                0
            ]  # where None is possible, too
            value = dict(type=kind, metavar="TEXT" if kind is str else "NUMBER")
            how = dict(action=argparse.BooleanOptionalAction) if kind is bool else value
            group.add_argument(
                "--" + item.name.replace("_", "-"), help=ALLOWED[item.name][1], **how
            )
    return parser


def _flags(options) -> dict:
    """The recipe's fields that were given on the command line."""
    return {
        name: value
        for name in TRAIN_FIELDS
        if (value := getattr(options, name, None)) is not None
    }


def _doctor(options) -> tuple[int, dict]:
    from . import doctor, hardware

    checks, figures = list(doctor.broken_imports()), {}
    if not checks:
        recipe = doctor.recipe_or_default()
        figures |= {"recipe": asdict(recipe), "reason": recipe.reason}
        print(f"{hardware.describe_machine()}\n{recipe.describe()}\n")
        checks = doctor.examine(recipe)
    print(*checks, sep="\n")
    failed = [check.name for check in checks if check.ok is False]
    print(f"\nNot ready: {', '.join(failed)}." if failed else "\nReady.")
    return 1 if failed else 0, figures | {"checks": [asdict(check) for check in checks]}


def _draw_picture(path: Path, card, system: str, config, recipe: Recipe) -> None:
    from . import hardware, plots
    from .vram.budget import LENGTHS, budget_table
    from .vram.report import options_of

    plots.plt.switch_backend("Agg")  # draws without a screen
    lengths = [n for n in LENGTHS if n < recipe.max_length] + [recipe.max_length]
    table = budget_table(
        config,
        recipe.batch_size,
        lengths,
        card,
        system,
        options_of(recipe, card, "sdpa"),
    )
    note = f"Predicted. A bar above its line spills (Windows) or is out of memory.\nCard: {card.source}."
    taken = {
        system: hardware.SYSTEMS_GIB[system][1] for system in sorted({"linux", system})
    }
    step = f"{Path(recipe.model).name}, batch size {recipe.batch_size}, {recipe.precision}, Adam"
    plots.gpu_picture(card, table, note, taken, f"{step}: one training step").savefig(
        path, dpi=110
    )
    print(f"picture of the {card.name} in {path}")


def _budget(options) -> tuple[int, dict]:
    from .hardware import GTX_1650_TI, Card, check_precision, find_card, this_card
    from .vram.report import as_text, card_report
    from .vram.trace import config_for

    recipe = Recipe(**_flags(options))
    if options.picture and options.picture.suffix.lower() not in (
        ".png",
        ".pdf",
        ".svg",
    ):
        raise InvalidValue(
            f"--picture is {options.picture}; it must end in .png, .pdf or .svg."
        )
    card = (
        this_card() or GTX_1650_TI if options.card is None else find_card(options.card)
    )
    if (gib := options.vram_gib) is not None:
        if not 0 < gib <= 1024:
            raise InvalidValue(
                f"--vram-gib is {gib:g}; it must be above 0 and at most 1024."
            )
        card = (
            card
            if options.card
            else Card("a card", gib, (7, 5), 0, source="only its memory was given")
        )
        card = replace(card, name=f"{card.name} with {gib:g} GiB", vram_gib=gib)
    if (
        options.card or gib is None
    ):  # of a card without a name nobody knows what it can do
        check_precision(recipe.precision, "cuda", card)
    config = config_for(recipe.model)
    figures = card_report(
        config, recipe, card, options.system, options.attention, options.table
    )
    print(as_text(figures))
    if options.picture:
        _draw_picture(options.picture, card, options.system, config, recipe)
    return 0, figures


def _train(options) -> tuple[int, dict]:
    from . import batching, checkpoints, data, evaluation, hardware, model, training

    folder, resume, flags = options.output_dir, options.resume, _flags(options)
    if resume is None and checkpoints.checkpoints_in(folder):
        choice = "Continue it with --resume, or discard it with --no-resume."
        raise ResumeError(f"{folder} holds an unfinished run. {choice}")
    begun = (
        checkpoints.recipe_of_run(folder).replace(**flags) if resume else None
    )  # goes on as it was begun
    recipe = begun or recipe_for_this_machine(**flags)
    here = hardware.process_state()
    here.print(recipe.describe())  # of several processes the first
    atexit.register(
        here.destroy_process_group
    )  # else its threads may still run when Python ends
    tokens = batching.tokenize(
        data.load_data(recipe), model.load_tokenizer(recipe), recipe
    )
    if cut := sum(
        split["length"][:].count(recipe.max_length) for split in tokens.values()
    ):
        here.print(
            f"note: {cut:,} texts have {recipe.max_length} tokens or more; what is beyond is not read."
        )
    names, how = (
        tokens["train"].features["label"].names,
        "auto" if resume is None else resume,
    )
    fresh = model.load_model(recipe, names)
    run = training.train(
        fresh, tokens, recipe, folder, how, options.steps, options.checkpoint_minutes
    )
    if not run.finished:
        return INTERRUPTED if options.steps is None else 0, {}
    report = evaluation.evaluate(run.model, tokens["test"], recipe)
    if not here.is_main_process:
        return 0, {}
    print(run.history.round(4).to_string())
    report.save(run.folder / "test_report.json")
    print(f"test: {report}")
    print(
        f"epoch {run.best_epoch} kept in {folder}, {run.seconds / 60:.1f} minutes of training"
    )
    figures = {
        "recipe": asdict(recipe),
        "history": run.history.reset_index().to_dict("records"),
    }
    return 0, figures | {
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
        "test": report.to_dict(),
    }


def _evaluate(options) -> tuple[int, dict]:
    from . import batching, data, evaluation, hardware, model

    classifier, tokenizer = model.load_classifier(options.output_dir)
    flags, begun = _flags(options), model.run_facts(options.output_dir).get("recipe")
    if (
        begun and "profile" not in flags
    ):  # the data and the length of the classifier's own run
        recipe = Recipe.from_dict(begun).replace(**environment_overrides() | flags)
    else:
        recipe = recipe_for_this_machine(**flags)
    model.check_model_and_tokenizer(classifier, tokenizer, recipe.max_length)
    print(recipe.describe())
    rows = data.load_test(recipe, model.class_names(classifier))
    test = batching.tokenize(rows, tokenizer, recipe)
    report = evaluation.evaluate(
        classifier.to(hardware.process_state().device), test, recipe
    )
    print(
        f"test: {report}",
        report.per_class.round(3).to_string(),
        report.confusion.to_string(),
        sep="\n",
    )
    return 0, {"recipe": asdict(recipe), "test": report.to_dict()}


def _predict(options: argparse.Namespace) -> tuple[int, dict]:
    """Label texts, the lines of the standard input, or the rows of a file."""
    from .prediction import classify

    texts = options.texts
    given = [bool(texts), bool(options.file), bool(options.output)]
    is_mixed = "-" in texts and len(texts) > 1
    if is_mixed or given not in ([True, False, False], [False, True, True]):
        raise InvalidValue(
            "Give texts, or - alone for the lines of the input, or --file and --output."
        )
    if options.file:
        return 0, _label_file(options)
    if texts == ["-"]:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:  # the input was empty
        return 0, {"predictions": []}
    answers = classify(texts, options.output_dir)
    names = answers.columns[2:]
    for text, label, *probabilities in answers.itertuples(index=False, name=None):
        # Nothing that is printed may steer a terminal.
        shown = "".join(char if char.isprintable() else " " for char in text)
        by_class = [f"{name} {p:.3f}" for name, p in zip(names, probabilities)]
        print(f"{label:9} {shown}\n{'':9} {', '.join(by_class)}")
    return 0, {"predictions": answers.to_dict("records")}


def _label_file(options: argparse.Namespace) -> dict:
    """Write all columns of a file, and the label and confidence of each row."""
    import pandas as pd

    from .plumbing.tables import read_texts
    from .prediction import classify

    target = options.output
    if os.path.lexists(target) or target.suffix.lower() != ".csv":
        raise SaveError(f"{target} must be the name of a new file that ends in .csv.")
    read = read_texts(options.file, text_columns=options.text_columns, labelled=False)
    print(" · ".join([options.file.name, *read.layout]))
    answers = classify(read.texts, options.output_dir)
    confidence = answers.iloc[:, 2:].max(axis=1).round(4)
    rows = list(read.table.records.values())
    table = pd.DataFrame(rows, columns=read.table.header, dtype=object)
    added = {"label": answers.iloc[:, 1], "confidence": confidence}
    for name, values in added.items():
        while name in table.columns:
            name = f"predicted_{name}"
        table[name] = values
    save_text(target, table.to_csv(index=False, lineterminator="\n"))
    print(f"{len(table):,} rows labelled in {target}")
    return {"rows": len(table)}


def _notebooks(options) -> tuple[int, dict]:
    from .running import run_notebooks

    ours = Path(
        __file__
    ).parent  # in a wheel they lie in the package, in a checkout beside it
    places = [Path("notebooks"), ours / "notebooks", ours.parent / "notebooks"]
    found = next(
        (place for place in places if any(place.glob("[0-9]*.ipynb"))), places[0]
    )
    figures = run_notebooks(options.source or found, options.target)
    return 0 if all(notebook["ok"] for notebook in figures["notebooks"]) else 1, figures
