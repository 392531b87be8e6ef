"""Run the notebooks top to bottom, and keep them as .ipynb and .html: ``make run``."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .plumbing.storage import read_json, save_text
from .profiles import recipe_for_this_machine

ENDINGS = (".ipynb", ".html")
REPORT = Path("runs/agnews/test_report.json")  # written by the notebook that trains


def run_notebooks(source: Path, target: Path) -> dict[str, Any]:
    """Execute every notebook of `source` into `target`, and print a summary.

    Each notebook prints one line. One that fails is kept up to its error, and the next
    one still runs. Existing files with these names are moved to a time-stamped folder.

    Parameters
    ----------
    source : Path
        The folder with the notebooks; their names begin with a digit.
    target : Path
        The folder for the executed notebooks. Created if it is missing.

    Returns
    -------
    dict
        ``profile`` (str), ``minutes`` (float), ``notebooks`` (a list of dicts with
        ``name``, ``ok`` and ``seconds``), and ``accuracy`` (float, of the test rows) if
        the classifier was trained and tested.

    Raises
    ------
    FileNotFoundError
        If `source` holds no notebook, or is `target`.
    """
    notebooks = sorted(source.glob("[0-9]*.ipynb"))
    if not notebooks or source.resolve() == target.resolve():
        raise FileNotFoundError(
            f"{source} holds no numbered notebook, or is --target. Give --source."
        )
    recipe = recipe_for_this_machine()
    print(f"{recipe.describe()}\nfrom       {source}", flush=True)
    target.mkdir(parents=True, exist_ok=True)
    _move_aside(target, [path.stem for path in notebooks])
    results = []
    for number, path in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {path.stem:24}", end=" ", flush=True)
        results.append(_run_notebook(path, target))
    minutes = round(sum(result["seconds"] for result in results) / 60, 2)
    figures = {"profile": recipe.profile, "minutes": minutes, "notebooks": results}
    accuracy = "none: the training notebook did not run to its end"
    if (target / REPORT).is_file():
        figures["accuracy"] = read_json(target / REPORT)["accuracy"]
        accuracy = f"{figures['accuracy']:.1%} on the test rows"
    failed = [result["name"] for result in results if not result["ok"]]
    print(f"\naccuracy   {accuracy}\ntime       {minutes:.1f} minutes")
    print(f"notebooks  {target}/*.ipynb, the same as pages in {target}/*.html")
    print(f"FAILED     {', '.join(failed)}" if failed else "all ran to the end")
    return figures


def _move_aside(target: Path, names: list[str]) -> None:
    """Move what earlier runs left in `target` to a time-stamped folder."""
    aside = target / f"until-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    written = ["runs"] + [f"{name}{end}" for name in names for end in ENDINGS]
    for name in written:
        if (target / name).exists():
            aside.mkdir(exist_ok=True)
            (target / name).rename(aside / name)
    if aside.exists():
        print(f"Earlier results in {target} were moved to {aside}.", flush=True)


def _run_notebook(path: Path, target: Path) -> dict[str, Any]:
    """Execute one notebook, print whether it ran to its end, and return the figures."""
    start = time.perf_counter()
    error = ""
    try:
        _execute(path, target)
    except Exception as failure:  # a cell, its kernel, or a file that is no notebook
        error = str(failure) or type(failure).__name__
    seconds = round(time.perf_counter() - start, 1)
    print(f"{'FAILED' if error else 'ok':6} {seconds:5.0f} s\n{error}".rstrip())
    return {"name": path.stem, "ok": not error, "seconds": seconds}


def _execute(path: Path, target: Path) -> None:
    """Run a notebook in `target`, and save it there even if it fails."""
    import nbformat
    from nbclient import execute
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    options = ["--log-level=ERROR"]  # otherwise kernels warn into our progress lines
    try:
        execute(notebook, str(target), kernel_name="python3", extra_arguments=options)
    finally:
        page, _ = HTMLExporter().from_notebook_node(notebook)
        save_text(target / path.name, nbformat.writes(notebook))
        save_text(target / f"{path.stem}.html", page)
