"""Run the notebooks top to bottom and keep them as .ipynb and .html: what ``make run`` does."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from .model import run_facts
from .recipe import Recipe

WIDGET = "application/vnd.jupyter.widget-view+json"


def run_notebooks(source: Path, target: Path) -> dict:
    """Execute every notebook of `source` into `target`, a line for each, and print a summary.

    A notebook that fails is kept as far as it came, named with its error, and the next one still runs.

    Returns
    -------
    dict
        ``profile``, ``minutes``, ``notebooks`` (name, ok, seconds), and where notebook 04 got that far
        ``rows`` and ``accuracy``.

    Raises
    ------
    FileNotFoundError
        When `source` holds no notebook.
    """
    notebooks = sorted(source.glob("[0-9]*.ipynb"))
    if not notebooks:
        advice = "Run this from the project's folder, or give --source."
        raise FileNotFoundError(f"{source} holds no numbered notebook. {advice}")
    recipe = Recipe.for_this_machine()
    print(recipe.describe(), flush=True)
    target.mkdir(parents=True, exist_ok=True)
    runs, aside = target / "runs", target / f"runs-until-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    if runs.exists():  # 04 trains anew, so that the summary is of this run; an earlier one is not lost
        print(f"What is in {runs} from earlier is kept as {runs.rename(aside)}.", flush=True)
    results, started = [], time.perf_counter()
    for number, path in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {path.stem:24}", end=" ", flush=True)
        begun = time.perf_counter()
        error = _execute(path, target)
        seconds = time.perf_counter() - begun
        reason = f"\n{error}" if error else ""
        print(f"{'FAILED' if error else 'ok':6} {seconds:5.0f} s{reason}", flush=True)
        results.append({"name": path.stem, "ok": error is None, "seconds": round(seconds, 1)})
    minutes = round((time.perf_counter() - started) / 60, 2)
    figures = {"profile": recipe.profile, "minutes": minutes, "notebooks": results}
    report = runs / "agnews" / "test_report.json"
    if report.is_file():
        accuracy = json.loads(report.read_text(encoding="utf-8"))["accuracy"]
        figures |= {"rows": run_facts(report.parent).get("rows"), "accuracy": accuracy}
    _summarise(figures, recipe, target)
    return figures


def _execute(path: Path, target: Path) -> str | None:
    """Run one notebook in `target`'s folder, write .ipynb and .html; the error as text, or None."""
    import nbformat
    from nbclient import execute
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    notebook, error = nbformat.read(path, as_version=4), None
    quiet = ["--log-level=ERROR"]  # else each kernel warns into our progress lines
    try:
        execute(notebook, cwd=str(target), timeout=None, kernel_name="python3", extra_arguments=quiet)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = str(failure)
    nbformat.write(notebook, target / path.name)
    for cell in notebook.cells:  # a progress widget needs a live kernel: it would be a hole in the page
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    page, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    (target / f"{path.stem}.html").write_text(page, encoding="utf-8")
    return error


def _summarise(figures: dict, recipe: Recipe, target: Path) -> None:
    failed = [notebook["name"] for notebook in figures["notebooks"] if not notebook["ok"]]
    rows, accuracy = "unknown", "none: notebook 04 did not finish"
    if "accuracy" in figures:
        accuracy = f"{figures['accuracy']:.1%} on the test rows"
        rows = ", ".join(f"{count:,} {split}" for split, count in (figures["rows"] or {}).items())
    end = f"FAILED     {', '.join(failed)}" if failed else "all notebooks ran to the end"
    print(f"\nprofile    {recipe.profile} ({recipe.reason})\nrows       {rows}\naccuracy   {accuracy}")
    print(f"time       {figures['minutes']:.1f} minutes\nclassifier {target / 'runs' / 'agnews'}")
    print(f"notebooks  {target}/*.ipynb, the same as pages in {target}/*.html\n{end}", flush=True)
