"""The policy of an output folder: begin, resume, refuse, finish. Notebook 10.

The folder has best/ (the best epoch's classifier, as transformers loads it), run.json
(what ran, and how far), checkpoints/ until the run is finished, and then history.csv
and steps.csv. A run owns exactly these names.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from .batching import check_tokenizer
from .checkpoints import (
    HISTORY_COLUMNS,
    State,
    find_checkpoints,
    load_weights,
    read_checkpoint,
    read_progress,
    training_state,
    write_checkpoint,
)
from .hardware import training_device
from .model import (
    BEST_MANIFEST,
    check_model_and_tokenizer,
    class_names,
    damaged_classifier,
    load_tokenizer,
    run_facts,
    source_files,
    write_classifier,
)
from .model_card import write_card
from .plumbing import storage
from .plumbing.errors import (
    AgnewsError,
    Damaged,
    InvalidValue,
    ResumeError,
    SaveError,
    is_out_of_memory,
)
from .recipe import Recipe

CHECKPOINTS_KEPT = 2
TRAINED = WeakSet()  # models that are not as they were loaded
RESULTS = (storage.BEST, storage.HISTORY, storage.STEPS)
OUTPUTS = (*RESULTS, "test_report.json", storage.RUN_FILE)  # set aside in this order
ANOTHER_FOLDER = "Give another output folder."
START_OVER = "resume=False (agnews train --no-resume) starts over."
# The fields of the recipe that decide the course of a run.
IDENTITY_FIELDS = (
    "max_length",
    "padding",
    "group_by_length",
    "batch_size",
    "class_weights",
    "learning_rate",
    "epochs",
    "precision",
    "seed",
)


@dataclass
class Run:
    """The result of `train`, finished or not.

    Parameters
    ----------
    model : PreTrainedModel
        With the best epoch's weights, on the training device. Before the first
        validation: the current model.
    folder : Path
        The output folder.
    history : pandas.DataFrame
        One row per epoch: losses in nats, validation accuracy, rows per second.
    steps : pandas.DataFrame
        The loss of every step, in nats.
    best_epoch : int
        The epoch that was kept; 0 before the first validation.
    finished : bool
        False for a run that was stopped and can be resumed.
    """

    model: PreTrainedModel
    folder: Path
    history: pd.DataFrame
    steps: pd.DataFrame
    best_epoch: int
    finished: bool = True


class OpenRun:
    """Context manager: a run whose output folder is locked.

    Parameters
    ----------
    output_dir : str or Path
        The folder, which need not exist.
    model : PreTrainedModel
        The model to train.
    tokens : Mapping
        Split name -> tokenized split; with ``train`` and ``validation``.
    recipe : Recipe
        How to train.
    resume : {"auto", True, False}
        As for `train`.
    save_minutes : float
        Between two checkpoints.

    Attributes
    ----------
    is_finished : bool
        Whether the run that was asked for is finished already; `load` returns it.

    Raises
    ------
    ResumeError
        If the folder holds another run, or none that could be resumed.
    FolderInUse
        If another process trains into the folder.
    SaveError
        If the folder cannot be written, or holds foreign files under a name of ours.
    InvalidValue
        If an argument is out of range, or model and tokenizer do not belong together.
    """

    def __init__(
        self,
        output_dir: str | Path,
        model: PreTrainedModel,
        tokens: Mapping[str, Dataset],
        recipe: Recipe,
        resume: str | bool = "auto",
        save_minutes: float = 10.0,
    ) -> None:
        if resume not in ("auto", True, False):
            raise InvalidValue(
                f"resume is {resume!r}; it must be 'auto', True or False."
            )
        if not save_minutes > 0:
            raise InvalidValue(f"save_minutes is {save_minutes}; it must be above 0.")
        if not output_dir:
            raise InvalidValue(
                f"output_dir is {output_dir!r}; it must be the name of a folder."
            )
        with _explained(output_dir):
            self.path = Path(output_dir).expanduser()
        self.checkpoints = self.path / storage.CHECKPOINTS
        self.model = model
        self.recipe = recipe
        self.resume = resume
        self.save_minutes = save_minutes
        self.rows = len(tokens["train"])
        names = class_names(model)
        counts = {
            split: np.bincount(tokens[split]["label"][:], minlength=len(names))
            for split in ("train", "validation")
        }
        self.counts = pd.DataFrame(counts, names)  # for the model card
        # Of the file, as load_data found them
        self.text_columns = tokens["train"].features["text"].id
        self.identity = identity_of(model, tokens, recipe)
        # Now, because an hour later the Hub may be out of reach.
        source = model.name_or_path or recipe.model
        self.tokenizer = load_tokenizer(recipe.replace(model=source))
        check_model_and_tokenizer(model, self.tokenizer, recipe.max_length)
        check_tokenizer(tokens["train"], self.tokenizer, recipe)
        # Whoever loads the classifier cuts texts where this run did.
        self.tokenizer.model_max_length = recipe.max_length
        self.newest: Path | None = None  # checkpoint: to resume from, or last written
        self.is_finished = False
        self._run_id = uuid.uuid4().hex  # in run.json and in its checkpoints

    def __enter__(self):
        with ExitStack() as held, _explained(self.path):
            self._lock_and_prepare(held)
            self._choose_start()
            self._held = held.pop_all()
        self.saved_at = time.perf_counter()
        return self

    def __exit__(self, *_):
        self._held.close()
        TRAINED.add(self.model)

    def _lock_and_prepare(self, held):
        """Lock the folder and try to write, so that it fails before the first epoch."""
        source = self.model.name_or_path
        best = self.path / storage.BEST
        if best.exists() and Path(source).exists() and best.samefile(source):
            raise ResumeError(
                f"{best.as_posix()} is the model to begin with. {ANOTHER_FOLDER}"
            )
        str(self.path).encode()  # safetensors cannot write to a name without UTF-8
        self.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(storage.folder_lock(self.path))
        self.checkpoints.mkdir(exist_ok=True)
        self._stat = self.checkpoints.stat()
        held.callback(_remove_if_empty, self.checkpoints)
        # It may link to another disk, or to the checkpoints of a run that goes on.
        held.enter_context(storage.folder_lock(self.checkpoints))
        storage.remove_partial(self.path)
        storage.remove_partial(self.checkpoints)

    def _choose_start(self):
        """Look at what is in the folder: nothing, this run, or something else."""
        self._record = self._read_record()  # what run.json says
        if not self.resume:
            self._remove_checkpoints()
            return
        problem = ""
        if self._record.get("finished"):
            problem = differences(self._record["identity"], self.identity)
            # Whoever passes a classifier on may add to its model card.
            problem = problem or ", ".join(
                f"{name} is damaged or missing"
                for result in RESULTS
                for name in self._damaged(result)
                if name != storage.CARD
            )
            if not problem:
                self._remove_checkpoints(self._record["run"])
                # What is left is of another run, perhaps begun with resume=False.
                left = [
                    read_progress(path).get("identity")
                    for path in find_checkpoints(self.path)
                ]
                self.is_finished = self.identity not in left
            if self.is_finished:
                return
        self.newest = self._newest_checkpoint()
        if self.newest:
            return
        if problem:
            raise ResumeError(
                f"{self.path.as_posix()} holds a finished run that cannot be used: "
                f"{problem}. {ANOTHER_FOLDER} {START_OVER} The finished one stays "
                "until the new one is finished."
            )
        if self.resume is True or find_checkpoints(self.path):  # none can be read
            raise ResumeError(
                f"{self.path.as_posix()} holds no unfinished run that could be "
                f"resumed. If one cannot be read: close what holds it. {START_OVER}"
            )
        if self._record:
            print(
                f"note: {self.path.as_posix()} holds no whole checkpoint of its "
                "unfinished run, so it begins anew."
            )

    def _read_record(self):
        """Return what run.json says; refuse foreign files, set a damaged run aside."""
        path = self.path / storage.RUN_FILE
        present = [name for name in OUTPUTS if os.path.lexists(self.path / name)]
        if not present:
            return {}
        if path.is_file():
            try:
                return storage.read_record(path)
            except Damaged as error:
                if b'"checksum"' in path.read_bytes():
                    for name in present:
                        storage.set_aside(self.path / name, str(error))
                    return {}
            except InvalidValue:
                pass
        raise SaveError(
            f"{self.path.as_posix()} holds {', '.join(present)}, but no run.json "
            f"that this version can read. {ANOTHER_FOLDER} Or move them away."
        )

    def _damaged(self, name):
        """List the files of a result that are not as they were saved."""
        if name == storage.BEST:
            return damaged_classifier(self.path / name, self._record)
        wanted = self._record["files"].get(name)
        return storage.damaged_files(self.path, {name: wanted})

    def _newest_checkpoint(self):
        """Return the newest whole checkpoint; set damaged ones aside."""
        for path in find_checkpoints(self.path):
            try:
                damaged = storage.damaged_files(path)
                progress = read_progress(path)
                if damaged or not progress:
                    names = ", ".join(damaged or [storage.MANIFEST])
                    storage.set_aside(path, f"{names} is damaged")
                    continue
            except OSError as error:
                print(f"note: {path.name} cannot be read: {error}. It stays as it is.")
                continue
            if progress.get("format") != storage.FORMAT:
                raise ResumeError(
                    f"{self.path.as_posix()} holds an unfinished run of another "
                    f"version: not to be resumed. {ANOTHER_FOLDER} Or: {START_OVER}"
                )
            if other := differences(progress["identity"], self.identity):
                raise ResumeError(
                    f"{self.path.as_posix()} holds an unfinished run of another kind: "
                    f"{other}. Resume it unchanged, or give another folder. "
                    f"{START_OVER}"
                )
            self._run_id = str(progress["run"])
            return path
        return None

    def _remove_checkpoints(self, run_id=None, keep=0):
        """Delete all checkpoints, or only those of one run; keep the newest of them."""
        ours = [
            path
            for path in find_checkpoints(self.path)
            if run_id in (None, read_progress(path).get("run"))
        ]
        for path in ours[keep:]:
            storage.remove_folder(path)

    def load(self) -> Run:
        """Return the finished run in the folder, with its weights in the model.

        Returns
        -------
        Run
        """
        print(
            "This run is finished: its classifier is loaded from "
            f"{self.path.as_posix()}. {START_OVER}"
        )
        self.model.to(training_device())
        with _explained(self.path):
            load_weights(self.model, self.path / storage.BEST)
            return Run(
                self.model,
                self.path,
                _read_table(self.path / storage.HISTORY),
                _read_table(self.path / storage.STEPS),
                self._record["epoch"],
            )

    def restore(self, optimizer: torch.optim.Optimizer) -> State:
        """Return where the run is: at its beginning, or at its newest checkpoint.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Of the model. Both are changed in place if the run is resumed.

        Returns
        -------
        State
        """
        self.optimizer = optimizer
        recipe = self.recipe
        if self.newest:
            with _explained(self.newest):
                state = storage.retry_if_held(
                    read_checkpoint, self.newest, self.model, optimizer
                )
            print(f"Resuming after {state}.")
            if state.best_epoch:
                # best/ may be of a later epoch, whose checkpoint was lost.
                self._publish(state)
        else:
            state = State(self.rows, recipe.batch_size, recipe.epochs)
            if self.model in TRAINED:
                print(
                    "note: this model was trained before, and begins as it is now. For "
                    "a new one call load_model(recipe, names) again."
                )
        state.split_sizes[:1] = [[1, recipe.micro_batch_size or recipe.batch_size]]
        return state

    @property
    def is_save_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.perf_counter() - self.saved_at >= 60 * self.save_minutes

    def save(self, state: State, is_periodic: bool = False) -> None:
        """Write a checkpoint, keep the newest two, and publish a new best epoch.

        Parameters
        ----------
        state : State
            How far the run is.
        is_periodic : bool
            Whether the run goes on if this fails: the next save is not far.

        Raises
        ------
        SaveError
            If it cannot be written; the checkpoints before it stay.
        """
        try:
            self._check_folder()
            self.newest = write_checkpoint(
                self.checkpoints,
                self.model,
                training_state(self.optimizer, self.model.device),
                state,
                self._facts(),
                self._write_best,
            )
        except SaveError as error:
            if not is_periodic:
                raise
            print(f"note: {error} The run goes on; the next save tries again.")
        self._remove_checkpoints(self._run_id, keep=CHECKPOINTS_KEPT)
        if state.is_best_epoch:
            self._publish(state)
        self.saved_at = time.perf_counter()
        state.lap()  # saving is no training time

    @contextmanager
    def saved_if_memory_runs_out(self, state: State) -> Iterator[None]:
        """Context manager: save before an error for lack of memory goes on.

        Parameters
        ----------
        state : State
            How far the run is.
        """
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                self.save(state)
            raise

    def _check_folder(self):
        """Check that the folder is still there, and still the one that is locked."""
        with suppress(OSError):
            if os.path.samestat(self.checkpoints.stat(), self._stat):
                return
        raise SaveError(f"{self.checkpoints} was deleted or renamed. Put it back.")

    def _facts(self):
        """Return what each record of this run says."""
        return {
            "format": storage.FORMAT,
            "run": self._run_id,
            "identity": self.identity,
            "recipe": self.recipe.to_dict(absolute_paths=True),
            "text_columns": self.text_columns,
        }

    def _write_best(self, state, path):
        """Write the best classifier so far; before the first validation the model."""
        if state.is_best_epoch or not state.best_epoch:
            write_classifier(self.model, self.tokenizer, path)
            write_card(
                path, self.recipe, self.counts, state.best_epoch, state.best_report
            )
        else:
            # A copy, not a link: damage to one checkpoint spares the other.
            shutil.copytree(self.newest / storage.BEST, path, dirs_exist_ok=True)

    def _publish(self, state, run=None):
        """Write best/ and run.json; with a finished `run` the tables, too.

        A finished classifier is replaced only by a finished one.
        """
        if self._record.get("finished") and run is None:
            return
        texts = {}
        if run:
            texts[storage.HISTORY] = run.history.to_csv()
            texts[storage.STEPS] = run.steps.to_csv()
        facts = self._facts() | {
            "steps": len(state.losses),
            "epoch": state.best_epoch,
            "files": {n: storage.sha256_of_text(text) for n, text in texts.items()},
            "finished": run is not None,
        }
        for name in (storage.RUN_FILE, *texts):
            if (path := self.path / name).exists():
                storage.move(path, path)  # refused now, before anything is replaced
        if not self._record:
            # First, so that a run that dies in here knows best/ as its own.
            self._write_record(facts)
        for name in (storage.BEST, *texts):
            self._make_way(name)
        best = storage.write_folder(
            self.path / storage.BEST, partial(self._write_best, state)
        )
        with _explained(best):
            facts["files"][BEST_MANIFEST] = storage.sha256(best / storage.MANIFEST)
        # Before the tables, so that a run that dies in here knows them as its own.
        self._write_record(facts)
        for name, text in texts.items():
            storage.save_text(self.path / name, text)

    def _make_way(self, name):
        """Set aside what somebody changed, or put into the place of a file of ours."""
        path = self.path / name
        with _explained(path):
            if not (self._damaged(name) and os.path.lexists(path)):
                return
        storage.set_aside(path, "it was changed since it was saved")

    def _write_record(self, facts):
        storage.write_record(self.path / storage.RUN_FILE, facts)
        self._record = facts

    def save_and_stop(self, state: State) -> Run:
        """Save, say how to resume and how long the whole run takes.

        Parameters
        ----------
        state : State
            How far the run is.

        Returns
        -------
        Run
            The run so far.
        """
        self.save(state)
        if not state.best_epoch:  # so that there is something to look at
            self._publish(state)
        print(
            f"Stopped after {state}; saved in {self.path.as_posix()}. To resume, call "
            "train() again, or run: agnews train --resume --output-dir "
            f'"{self.path.as_posix()}"\n{state.estimate()}'
        )
        return self._result(state, finished=False)

    def finish(self, state: State) -> Run:
        """Publish the finished run and delete its checkpoints.

        Parameters
        ----------
        state : State
            After the last epoch.

        Returns
        -------
        Run
        """
        self._check_folder()
        run = self._result(state, finished=True)
        self._publish(state, run)
        self._remove_checkpoints(self._run_id)
        return run

    def _result(self, state, finished):
        """Return the run so far, with the best epoch's weights in the model."""
        if state.best_epoch and not state.is_best_epoch:
            load_weights(self.model, self.newest / storage.BEST)
        history = pd.DataFrame(state.history, columns=HISTORY_COLUMNS)
        numbers = pd.RangeIndex(1, len(state.losses) + 1, name="step")
        return Run(
            self.model,
            self.path,
            history.set_index("epoch"),
            pd.DataFrame({"loss": state.losses}, index=numbers, dtype=float),
            state.best_epoch,
            finished,
        )


def recipe_of_run(folder: str | Path) -> Recipe:
    """Return the recipe of the unfinished run in a folder, or of the finished one.

    Parameters
    ----------
    folder : str or Path
        A run's output folder.

    Returns
    -------
    Recipe

    Raises
    ------
    ResumeError
        If it holds neither.
    """
    for path in find_checkpoints(folder):
        if isinstance(values := read_progress(path).get("recipe"), dict):
            return Recipe.from_dict(values)
    facts = run_facts(folder)
    if not facts.get("finished"):
        raise ResumeError(f"{folder} holds no run that could be resumed.")
    return Recipe.from_dict(facts["recipe"])


def identity_of(
    model: PreTrainedModel, tokens: Mapping[str, Dataset], recipe: Recipe
) -> dict:
    """Return what decides the course of a run; only an equal one can be resumed.

    Parameters
    ----------
    model : PreTrainedModel
        Identified by its files, not by its weights: those of a run that is to be
        resumed have moved.
    tokens : Mapping
        Split name -> tokenized split.
    recipe : Recipe
        How to train.

    Returns
    -------
    dict
    """
    values = {name: getattr(recipe, name) for name in IDENTITY_FIELDS}
    for name in ("train", "validation"):
        split = tokens[name]
        values[f"checksum of the {name} rows"] = _digest(
            [split["input_ids"][:], split["label"][:]]
        )
    files = [
        # Not its bytes: lines end otherwise on Windows.
        storage.read_json(path) if path.suffix == ".json" else storage.sha256(path)
        for path in source_files(model.name_or_path)
    ]
    # repr() has all shapes.
    values["checksum of the model"] = _digest([repr(model), *files])
    values["checksum of the frozen parameters"] = _digest(
        [name for name, w in model.named_parameters() if not w.requires_grad]
    )
    values["classes"] = ", ".join(class_names(model))
    return values


def differences(theirs: Mapping, ours: Mapping) -> str:
    """Return what two identities differ in, in words.

    Parameters
    ----------
    theirs : Mapping
        From `identity_of`: of the run in the folder.
    ours : Mapping
        Of the run that was asked for.

    Returns
    -------
    str
        Empty if they are equal.
    """
    return "; ".join(
        f"the {name.removeprefix('checksum of the ')} changed since that run began"
        if name.startswith("checksum of")
        else f"{name} is {theirs.get(name)} there and {value} here"
        for name, value in ours.items()
        if theirs.get(name) != value
    )


def _read_table(path):
    """Read history.csv or steps.csv; read as numbers, pandas 2 loses the last digit."""
    return pd.read_csv(path, index_col=0, dtype=str).astype(float).rename(index=int)


def _digest(values):
    return storage.sha256_of_text(repr(values))[:16]


@contextmanager
def _explained(path):
    """Context manager: turn whatever goes wrong with a folder into one clear line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AgnewsError) or is_out_of_memory(error):
            raise
        problem = str(error).partition("\n")[0]
        raise SaveError(
            f"{path} cannot be used: {problem}. Close what holds it. {ANOTHER_FOLDER}"
        ) from error


def _remove_if_empty(folder):
    with suppress(OSError):  # a run that was begun in its place has its lock in there
        folder.rmdir()
