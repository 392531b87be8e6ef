"""Train for the other scripts: only the result is kept, no folder."""

import tempfile

from agnews_helpers import Run, train


def whole_run(model, tokens, recipe) -> Run:
    """Call `train` in a temporary folder; exit if the run was stopped."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(model, tokens, recipe, folder)
    if not run.finished:
        raise SystemExit("The run was stopped; its figures would be incomplete.")
    return run
