"""The ``agnews`` command: doctor, budget, train, evaluate, predict, notebooks."""

import argparse
import atexit
import os
import sys
from dataclasses import asdict, fields, replace
from itertools import islice, tee
from pathlib import Path
from typing import get_args

import vram_budget

from . import __version__
from .plumbing.errors import AgnewsError, InvalidValue, ResumeError, SaveError
from .plumbing.storage import (
    PARTIAL,
    RESERVED_NAMES,
    retry_permission_error,
    try_file,
    write_json,
)
from .profiles import environment_overrides, recipe_for_this_machine
from .recipe import ALLOWED, Recipe

INTERRUPTED = 130  # what shells expect after Ctrl-C
CHUNK = 1_000  # texts that are in memory at a time
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
    except (AgnewsError, OSError, vram_budget.InvalidValue) as error:
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


def _predict(options) -> tuple[int, dict]:
    from .prediction import classify_lists

    ways = [bool(options.file), bool(options.texts)]
    if (
        sum(ways) != 1
        or bool(options.output) != ways[0]
        or "-" in options.texts
        and len(options.texts) > 1
    ):
        raise InvalidValue(
            "Give texts, or - alone for the lines of the input, or --file and --output."
        )
    if options.file:
        return 0, _label_file(options)
    texts, found = iter(options.texts), []
    if options.texts == ["-"]:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        texts = (line.rstrip("\n") for line in sys.stdin if line.strip())
    for table in classify_lists(
        iter(lambda: list(islice(texts, CHUNK)), []), options.output_dir
    ):
        for text, label, *chances in table.itertuples(index=False, name=None):
            chances = dict(zip(table.columns[2:], chances))
            told = ", ".join(f"{name} {chance:.3f}" for name, chance in chances.items())
            shown = "".join(
                c if c.isprintable() else " " for c in text
            )  # nothing that steers a terminal
            print(f"{label:9} {shown}\n{'':9} {told}")
            found += [{"text": text, "label": label, **chances}] if options.json else []
    return 0, {"predictions": found}


def _label_file(options) -> dict:
    """Write the rows of a file, all columns kept, with label and confidence; a chunk in memory at a time."""
    import pandas as pd
    from tqdm.auto import tqdm

    from .plumbing.tables import read_texts
    from .prediction import classify_lists

    target, partial = (
        options.output,
        options.output.with_name(PARTIAL + options.output.name),
    )
    if (
        os.path.lexists(target) or target.suffix.lower() != ".csv"
    ):  # also where it is a link to nothing
        problem = (
            "exists"
            if os.path.lexists(target)
            else "is not called .csv, which it will be"
        )
        raise SaveError(f"{target} {problem}. Give another name.")
    read = read_texts(options.file, text_columns=options.text_columns, labelled=False)
    added = ["label", "confidence"]
    while taken := {*added} & {*read.columns}:
        added = [f"predicted_{name}" if name in taken else name for name in added]
    here, there = tee(
        iter(lambda: list(islice(read.rows, CHUNK)), [])
    )  # to write, and to label
    tables = classify_lists(
        ([text for *_, text in rows] for rows in there), options.output_dir
    )
    bar = tqdm(unit="row", desc=" · ".join([options.file.name, *read.layout]))
    try:
        with bar, partial.open("w", encoding="utf-8", newline="") as file:
            for rows, table in zip(here, tables):
                written = pd.DataFrame(
                    [values for _, values, *_ in rows], None, read.columns, object
                )
                written[added[0]] = table.iloc[:, 1]
                written[added[1]] = table.iloc[:, 2:].max(axis=1).round(4)
                written.to_csv(file, index=False, header=not bar.n)
                bar.update(len(rows))
        if not bar.n:
            raise InvalidValue(f"{options.file} has no rows.")
        retry_permission_error(os.replace, partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{bar.n:,} rows labelled in {target}")
    return {"rows": bar.n}


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
