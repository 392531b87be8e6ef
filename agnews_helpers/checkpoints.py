"""What a training run leaves on disk: checkpoints to continue from, and a classifier's folder. Notebooks 04 and 06."""
import json
import random
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import Damaged, ResumeError
from .hub import pretrained
from .recipe import Recipe
from .storage import PARTIAL, check_folder, let_go, publish, remove, remove_partials, sha256, write_folder

RUN_FILE = "agnews_run.json"
KEEP = 2  # checkpoints, beside the best epoch's classifier
# What may differ between the two parts of a run: where things lie, what is tested later, how often is saved.
FREE_FIELDS = ("profile", "reason", "data", "train_rows", "test_rows", "checkpoint_minutes")


@dataclass
class Progress:
    """How far a run is.

    epoch : the one at work, from 1. batch : how many batches of it are done. losses : of every step, in nats.
    history : a dict for each validated epoch. best_epoch : 0 before the first validation. seconds : of
    training, in all sessions; epoch_seconds : of the epoch at work. limits : (tokens, rows) pairs: batches of
    rows this long ran out of memory and are taken in parts of so many rows.
    """

    epoch: int = 1
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    limits: list[list[int]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run: folders ``step-00000120``, and ``best-epoch-2``.

    Parameters
    ----------
    folder : where they lie. identity : what must be equal for a run to be continued, from `identity_of`.
    """

    def __init__(self, folder: Path, identity: dict):
        self.folder, self.identity = folder, identity

    def steps(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def best(self, epoch: int) -> Path:
        """Where the classifier of that epoch lies."""
        return self.folder / f"best-epoch-{epoch}"

    def save(self, model, optimizer, scaler, progress: Progress, rng: list[dict] | None = None) -> Path:
        """Write a checkpoint of this very moment; keep the newest two, and the classifiers they name.

        `rng` has the `rng_state` of each process, where there are several.

        Raises
        ------
        SaveError
            When it cannot be written; the ones before it stay.
        """
        target = self.folder / f"step-{len(progress.losses):08d}"

        def write(folder: Path) -> None:
            import torch
            from safetensors.torch import save_model

            save_model(model, folder / "model.safetensors")
            losses = torch.tensor(progress.losses, dtype=torch.float64)
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler and scaler.state_dict(), "rng": rng or [rng_state(model.device)],
                     "losses": losses}
            torch.save(state, folder / "state.pt")
            told = {**asdict(progress), "losses": len(progress.losses), "identity": self.identity}
            (folder / "progress.json").write_text(json.dumps(told, indent=2), encoding="utf-8")

        write_folder(target, write)
        self.prune(progress.best_epoch)
        return target

    def prune(self, best_epoch: int) -> None:
        """Keep the newest two checkpoints, the best epoch's classifier and those that the checkpoints name."""
        for old in self.steps()[KEEP:]:
            remove(old)
        named = {best_epoch, *map(_best_epoch, self.steps())}
        for path in self.folder.glob("best-epoch-*"):
            if int(path.name.rpartition("-")[2]) not in named:
                remove(path)

    def clear(self) -> None:
        """Take everything away: the run is finished, or not wanted any more."""
        remove(self.folder)

    def load(self, model, optimizer, scaler) -> Progress | None:
        """`restore` from the `newest` good checkpoint; None if there is none. Errors as theirs."""
        path = self.newest()
        return path and self.restore(path, model, optimizer, scaler)

    def newest(self) -> Path | None:
        """The newest good checkpoint. One that is damaged is said to be, taken away, and the one before it tried.

        Raises
        ------
        ResumeError
            When it belongs to another recipe, other data or another number of processes.
        """
        remove_partials(self.folder)
        for path in self.steps():
            try:
                check_folder(path)
                told = _told(path)
                if told["best_epoch"]:
                    check_folder(self.best(told["best_epoch"]))
            except Damaged as error:
                print(f"The checkpoint {path.name} cannot be used: {error}. Going back to the one before it.")
                remove(path)
                continue
            self._compare(told["identity"], path)
            return path
        return None

    def _compare(self, theirs: dict, path: Path) -> None:
        other = differences(theirs, self.identity)
        if other:
            raise ResumeError(f"{path.parent.parent} holds an unfinished run of another kind: {'; '.join(other)}. Continue it as it was "
                              "begun, give another output_dir, or discard it with resume=False (agnews train --no-resume).")

    @staticmethod
    def restore(path: Path, model, optimizer, scaler, process: int = 0) -> Progress:
        """Put a checkpoint into model, optimizer, scaler and the random generators of one of the processes."""
        import torch
        from safetensors.torch import load_model

        load_model(model, path / "model.safetensors", device=str(model.device))
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        _set_rng_state(state["rng"][process], model.device)
        told = {name: value for name, value in _told(path).items() if name != "identity"}
        return Progress(**told | {"losses": state["losses"].tolist()})


def unfinished(folder: str | Path) -> bool:
    """Whether an output folder holds a run that was begun and not finished."""
    return any(Path(folder).glob("checkpoints/step-*"))


def identity_of(recipe: Recipe, tokens, processes: int = 1) -> dict:
    """What decides the course of a run: the recipe's numbers, the tokens and labels, the number of processes."""
    numbers = {name: value for name, value in recipe.to_dict().items() if name not in FREE_FIELDS}
    return {**numbers, **{f"data ({name})": fingerprint(tokens[name]) for name in ("train", "validation")}, "processes": processes}


def differences(theirs: dict, ours: dict) -> list[str]:
    """What two identities differ in, each in words."""
    return [f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in dict.fromkeys([*ours, *theirs])
            if theirs.get(name) != ours.get(name)]


def fingerprint(rows) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over tokens and labels, in their order."""
    import hashlib

    table = rows.select_columns(["input_ids", "label"]).with_format("arrow")[:]
    ids = table["input_ids"].combine_chunks()
    sums = hashlib.sha256()
    for column in (ids.flatten(), ids.value_lengths(), table["label"].combine_chunks()):
        sums.update(column.to_numpy(zero_copy_only=False).astype("int64").tobytes())
    return sums.hexdigest()[:16]


def _told(path: Path) -> dict:
    return json.loads((path / "progress.json").read_text(encoding="utf-8"))


def _best_epoch(path: Path) -> int:
    """The best epoch that a checkpoint names; 0 for one that is damaged."""
    try:
        return _told(path)["best_epoch"]
    except (OSError, ValueError, KeyError):
        return 0


def rng_state(device) -> dict:
    """Python's, NumPy's and PyTorch's random generators, as plain values and tensors."""
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    state = {"python": [version, list(words), gauss], "numpy": [kind, keys.tolist(), place, has_gauss, cached], "torch": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state["device"] = getattr(torch, device.type).get_rng_state()
    return state


def _set_rng_state(state: dict, device) -> None:
    import numpy as np
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if "device" in state and device.type in ("cuda", "mps"):
        getattr(torch, device.type).set_rng_state(state["device"])


def save_classifier(model, tokenizer, folder: str | Path, recipe: Recipe, **facts) -> Path:
    """Write model (safetensors), tokenizer and ``agnews_run.json`` into `folder` and return it.

    `facts` are plain values to keep beside the recipe, such as the epoch and its validation accuracy.
    ``transformers.pipeline("text-classification", model=folder)`` loads the result. What is in the folder
    already is replaced file by file, each at once.

    Raises
    ------
    SaveError
        When the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    made = write_classifier(model, tokenizer, folder / (PARTIAL + "classifier"), recipe, **facts)
    publish(made, folder, last=RUN_FILE)
    remove(made)
    return folder


def write_classifier(model, tokenizer, folder: Path, recipe: Recipe, **facts) -> Path:
    """The same into a folder of its own, with checksums: all of it or nothing."""
    def write(path: Path) -> None:
        with _no_bars():
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        told = {"recipe": recipe.to_dict(), "sha256": sha256(path / "model.safetensors"), **facts}
        (path / RUN_FILE).write_text(json.dumps(told, indent=2), encoding="utf-8")

    return write_folder(folder, write)


def is_classifier(folder: str | Path) -> bool:
    """Whether `folder` holds a saved model."""
    return all((Path(folder) / name).is_file() for name in ("config.json", "model.safetensors"))


def load_classifier(folder: str | Path):
    """Model and tokenizer from a folder that `save_classifier` or ``save_pretrained`` wrote.

    Raises
    ------
    FileNotFoundError
        When the folder holds no saved model, or one that cannot be read.
    """
    if not is_classifier(folder):
        raise FileNotFoundError(f"{folder} holds no trained classifier (config.json and model.safetensors). "
                                f"Run notebook 04, or: agnews train --output-dir {folder}")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with _no_bars():
        model = pretrained(AutoModelForSequenceClassification, folder, dtype=torch.float32)
    return let_go(model), pretrained(AutoTokenizer, folder)


def load_into(model, folder: Path):
    """Put the weights of a saved classifier into `model`, and return it."""
    model.load_state_dict(load_classifier(folder)[0].state_dict())
    return model


@contextmanager
def _no_bars():
    """Without transformers' progress bars, which tell nothing about files that are read in under a second."""
    from transformers.utils import logging

    active = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            logging.enable_progress_bar()


def run_facts(folder: str | Path) -> dict:
    """What `save_classifier` noted about the run, or an empty dict for a model from elsewhere."""
    path = Path(folder) / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
