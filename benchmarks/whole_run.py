"""What the other scripts train with: a run of which only the result is kept."""

import tempfile

from agnews_helpers import Run, train


def whole_run(model, tokens, recipe) -> Run:
    """`train()` to its end, in a temporary folder. A run that was stopped would give half a figure: it ends
    the script."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(model, tokens, recipe, folder)
    if not run.finished:
        raise SystemExit("stopped: nothing of this run is kept")
    return run
