"""Run the notebooks top to bottom and keep them as .ipynb and .html: what ``make run`` does."""

import time
from datetime import UTC, datetime
from pathlib import Path

from .plumbing.storage import read_json, save_text
from .profiles import recipe_for_this_machine

WIDGET = "application/vnd.jupyter.widget-view+json"


def run_notebooks(source: Path, target: Path) -> dict:
    """Execute every notebook of `source` into `target`, a line for each, and print a summary.

    A notebook that fails is kept as far as it came, named with its error, and the next one still runs. What
    `target` has of these names from earlier is moved into a folder with the time.
    Returned are ``profile``, ``minutes``, ``notebooks`` (name, ok, seconds), and ``accuracy`` if notebook 04
    got that far. FileNotFoundError where `source` holds no notebook, or is `target`.
    """
    notebooks = sorted(source.glob("[0-9]*.ipynb"))
    if not notebooks or source.resolve() == target.resolve():
        raise FileNotFoundError(
            f"{source} holds no numbered notebook, or is --target. Give --source."
        )
    recipe = recipe_for_this_machine()
    print(recipe.describe(), f"from       {source}", sep="\n", flush=True)
    target.mkdir(parents=True, exist_ok=True)
    runs, aside = target / "runs", target / f"until-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    pages = [
        target / (path.stem + kind)
        for path in notebooks
        for kind in (".ipynb", ".html")
    ]
    if earlier := [
        path for path in (runs, *pages) if path.exists()
    ]:  # 04 trains anew: its figures are told
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)
        print(f"What is in {target} from earlier is kept in {aside}.", flush=True)
    figures, started = {"profile": recipe.profile, "notebooks": []}, time.perf_counter()
    for number, path in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {path.stem:24}", end=" ", flush=True)
        begun, error = time.perf_counter(), None
        try:
            _execute(path, target)
        except Exception as failure:  # a cell, its kernel, or a file that is no notebook: the next one runs
            first = (
                failure.__cause__ and failure.__cause__.__context__
            )  # why it failed that cannot be saved
            error = "\n".join(
                str(one) or type(one).__name__ for one in (first, failure) if one
            )
        seconds = round(time.perf_counter() - begun, 1)
        print(
            f"FAILED {seconds:5.0f} s\n{error}"
            if error
            else f"ok     {seconds:5.0f} s",
            flush=True,
        )
        figures["notebooks"].append(
            {"name": path.stem, "ok": error is None, "seconds": seconds}
        )
    figures["minutes"] = round((time.perf_counter() - started) / 60, 2)
    report, accuracy = (
        runs / "agnews" / "test_report.json",
        "none: notebook 04 did not run to its end",
    )
    if report.is_file():
        figures["accuracy"] = read_json(report)["accuracy"]
        accuracy = (
            f"{figures['accuracy']:.1%} on the test rows\nclassifier {report.parent}"
        )
    failed = ", ".join(
        notebook["name"] for notebook in figures["notebooks"] if not notebook["ok"]
    )
    print(f"\naccuracy   {accuracy}\ntime       {figures['minutes']:.1f} minutes")
    print(f"notebooks  {target}/*.ipynb, the same as pages in {target}/*.html")
    print(
        f"FAILED     {failed}" if failed else "all notebooks ran to the end", flush=True
    )
    return figures


def _execute(path: Path, target: Path) -> None:
    """Run one notebook in `target`'s folder, and write it there as .ipynb and .html, also where it fails."""
    import nbformat
    from nbclient import execute
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    quiet = ["--log-level=ERROR"]  # else each kernel warns into our progress lines
    try:
        execute(
            notebook,
            cwd=str(target),
            timeout=None,
            kernel_name="python3",
            extra_arguments=quiet,
        )
    finally:
        save_text(target / path.name, nbformat.writes(notebook))
        for cell in (
            notebook.cells
        ):  # a progress widget needs a live kernel: it would be a hole in the page
            if cell.cell_type == "code":
                cell.outputs = [
                    output
                    for output in cell.outputs
                    if WIDGET not in output.get("data", {})
                ]
        page, _ = HTMLExporter().from_notebook_node(
            notebook, resources={"metadata": {"name": path.stem}}
        )
        save_text(target / f"{path.stem}.html", page)
