"""Run the notebooks top to bottom, and keep them as .ipynb and .html: ``make run``."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import execute
from nbconvert import HTMLExporter

from .plumbing.storage import free_name, save_text


def run_notebooks(source: Path, target: Path, only: str = "[0-9]") -> list[str]:
    """Execute every notebook of `source` into `target`.

    Each notebook prints one line. One that fails is kept up to its error, and the next
    one still runs. What an earlier run left is not touched. The notebooks and their
    pages find their ``pictures`` in the target, too; ``index.html`` lists the pages.

    Parameters
    ----------
    source : Path
        The folder with the notebooks; their names begin with a digit.
    target : Path
        The folder for the executed notebooks; if it exists, one with ``-2``, ``-3``,
        ... after its name.
    only : str
        How the wanted names begin, as a pattern: ``"05"`` is one; default: all.

    Returns
    -------
    list of str
        The names of the notebooks that failed.

    Raises
    ------
    FileNotFoundError
        If `source` holds no such notebook.
    """
    notebooks = sorted(source.glob(f"{only}*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(
            f"{source} holds no notebook {only}*.ipynb. Give --source; --only takes "
            "two digits."
        )
    target = free_name(target.absolute())
    target.mkdir(parents=True)
    if (source / "pictures").is_dir():
        shutil.copytree(source / "pictures", target / "pictures")
    print(f"results in {target.as_posix()}", flush=True)
    pages = [f"- [{path.stem.replace('_', ' ')}]({path.name})" for path in notebooks]
    text = "\n".join(["# The notebooks", "", *pages])
    listed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    _save_page(listed, target / "index.html")
    failed = [path.stem for path in notebooks if not _run_notebook(path, target)]
    print(f"FAILED     {', '.join(failed)}" if failed else "all ran to the end")
    return failed


def _run_notebook(path, target):
    """Execute one notebook, print how it went, and return whether it ran to its end."""
    print(f"{path.stem:28}", end=" ", flush=True)
    start = time.perf_counter()
    error = ""
    try:
        _execute(path, target)
    except Exception as failure:  # a cell, its kernel, or a file that is no notebook
        error = str(failure) or type(failure).__name__
    seconds = time.perf_counter() - start
    print(f"{'FAILED' if error else 'ok':6} {seconds:5.0f} s\n{error}".rstrip())
    return not error


def _execute(path, target):
    """Run a notebook in `target`, and save it there even if it fails."""
    notebook = nbformat.read(path, as_version=4)
    # In the main thread nbclient would handle Ctrl-C: it ends the kernel only.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            execute,
            notebook,
            str(target),
            kernel_name="python3",
            # Otherwise kernels warn into our progress lines.
            extra_arguments=["--log-level=ERROR"],
        )
        while not running.done():
            time.sleep(0.1)  # unlike a lock, Ctrl-C interrupts it on Windows, too
    try:
        running.result()
    finally:
        save_text(target / path.name, nbformat.writes(notebook))
        _save_page(notebook, target / f"{path.stem}.html")


def _save_page(notebook, path):
    """Save a notebook as HTML, with the template in the folder ``page``."""
    here = str(Path(__file__).parent)
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[here])
    title = {"metadata": {"name": path.stem}}
    save_text(path, exporter.from_notebook_node(notebook, title)[0])
