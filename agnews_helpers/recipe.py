"""Every number of the recipe, and the three sizes in which it runs.

A profile picks model, data and amounts; nothing else in the package asks where it runs.
"""
import functools
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

LABELS = ("World", "Sports", "Business", "Sci/Tech")
HUB_MODEL = "distilbert/distilbert-base-uncased"
HUB_DATA = "fancyzhx/ag_news"

# What each profile changes; everything else is the recipe's default.
PROFILES = {
    "offline": dict(model="mini", data="sample", train_rows=None, test_rows=None),
    "laptop": dict(model=HUB_MODEL, data=HUB_DATA, train_rows=800, test_rows=400),
    "full": dict(model=HUB_MODEL, data=HUB_DATA, train_rows=None, test_rows=None),
}


class HubUnreachable(RuntimeError):
    """The Hugging Face Hub is needed, and it does not answer or does not give what is needed."""


@dataclass(frozen=True)
class Recipe:
    """The recipe of the tutorial: DistilBERT, batches of 8, Adam at 2e-5, four epochs.

    Parameters
    ----------
    model : a Hub id, a folder written by ``save_pretrained``, or ``"mini"`` (the offline model).
    data : ``"fancyzhx/ag_news"`` (the Hub), a folder with train and test files, or ``"sample"``.
    train_rows, test_rows : rows to draw, the same share from each class; None means all.
    validation_share : share of the training rows held out to choose the best epoch.
    max_length : tokens after which a text is cut; 512 is the most that DistilBERT has positions for.
    padding : ``"longest"`` pads each batch to its longest row, ``"max_length"`` every row to `max_length`.
    group_by_length : whether batches are made of rows of similar length.
    batch_size : rows in one step. Eight, because of the 4 GB of the GTX 1650 Ti (notebook 05).
    learning_rate : Adam's step size; 2e-5 as in datascience.stackexchange.com question 64583.
    epochs : passes over the whole training set; batch 8 and 4 epochs are in the grid of Turc et al. 2019.
    precision : ``"fp32"``, ``"bf16"`` or ``"fp16"``. Stay with fp32 on GTX 16xx cards, which have no tensor cores.
    checkpoint_minutes : how often a run saves where it is; a crash costs at most that much work (notebook 04).
    seed : the one source of randomness: subset, split, new weights, order of batches, dropout.

    Raises
    ------
    ValueError
        When a value is out of range; the message names the field and what is allowed.
    """

    profile: str = "full"
    model: str = HUB_MODEL
    data: str = HUB_DATA
    train_rows: int | None = None
    test_rows: int | None = None
    validation_share: float = 0.05
    max_length: int = 512
    padding: str = "longest"
    group_by_length: bool = True
    batch_size: int = 8
    learning_rate: float = 2e-5
    epochs: int = 4
    precision: str = "fp32"
    checkpoint_minutes: float = 10.0
    seed: int = 42
    reason: str = field(default="the default", compare=False)  # why this profile

    def __post_init__(self):
        def check(name, ok, allowed):
            if not ok:
                raise ValueError(f"Recipe.{name} is {getattr(self, name)!r}; it must be {allowed}.")

        def whole(value):
            return isinstance(value, int) and not isinstance(value, bool)

        check("profile", self.profile in PROFILES, f"one of {', '.join(PROFILES)}")
        for name in ("train_rows", "test_rows"):
            rows = getattr(self, name)
            check(name, rows is None or (whole(rows) and rows >= 4), "a whole number from 4 (one row a class), or None for all")
        check("validation_share", 0 < self.validation_share < 1, "between 0 and 1, both excluded")
        check("max_length", whole(self.max_length) and 3 <= self.max_length <= 512,
              "a whole number from 3 to 512 (DistilBERT has 512 positions, two are [CLS] and [SEP])")
        check("padding", self.padding in ("longest", "max_length"), "'longest' or 'max_length'")
        check("batch_size", whole(self.batch_size) and self.batch_size >= 1, "a whole number from 1")
        check("learning_rate", 0 < self.learning_rate < 1, "above 0 and below 1 (the recipe's is 2e-5)")
        check("epochs", whole(self.epochs) and self.epochs >= 1, "a whole number from 1")
        check("precision", self.precision in ("fp32", "bf16", "fp16"), "'fp32', 'bf16' or 'fp16'")
        check("checkpoint_minutes", self.checkpoint_minutes > 0, "above 0")
        check("seed", whole(self.seed) and 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")

    @classmethod
    def for_this_machine(cls, **overrides) -> "Recipe":
        """The recipe in the size that fits this machine.

        The profile is `overrides["profile"]`, else ``AGNEWS_PROFILE``, else decided here: CUDA and the
        Hub give ``full``, the Hub alone ``laptop``, neither ``offline``. Then come ``AGNEWS_MODEL``,
        ``AGNEWS_DATA``, ``AGNEWS_TRAIN_ROWS`` and ``AGNEWS_TEST_ROWS``, then `overrides` (None is ignored).

        Raises
        ------
        HubUnreachable
            When a profile that needs the Hub was asked for by name and the Hub does not answer.
        ValueError
            When a variable or an override is out of range.
        """
        overrides = {name: value for name, value in overrides.items() if value is not None}
        unknown = set(overrides) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"Recipe has no field {', '.join(sorted(unknown))}; it has {', '.join(f.name for f in fields(cls))}.")
        chosen = {**from_environment(os.environ), **overrides}
        asked = chosen.pop("profile", None) or os.environ.get("AGNEWS_PROFILE")
        if asked:
            source = "argument" if "profile" in overrides else "AGNEWS_PROFILE"
            if asked not in PROFILES:
                raise ValueError(f"{source} is {asked!r}; it must be one of {', '.join(PROFILES)}.")
            profile, reason = asked, f"asked for by {source}"
        else:
            profile, reason = _choose_profile()
        values = {**PROFILES[profile], "reason": reason, **chosen}
        if asked and {HUB_MODEL, HUB_DATA} & {values["model"], values["data"]}:
            hub = hub_status()
            if not hub.usable:
                raise HubUnreachable(
                    f"The profile '{profile}' needs the Hugging Face Hub, and {hub.reason}. Go online, or set "
                    "AGNEWS_PROFILE=offline, or point AGNEWS_MODEL and AGNEWS_DATA at local folders.")
        return cls(profile=profile, **values)

    def but(self, **changes) -> "Recipe":
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict:
        """The fields as plain values, for a JSON file."""
        return asdict(self)

    def describe(self) -> str:
        """Which profile runs and why, in three lines."""
        def rows(n):
            return "all" if n is None else f"{n:,}"
        grouped = "grouped by length, " if self.group_by_length else ""
        return (f"profile    {self.profile} ({self.reason})\n"
                f"model      {self.model}; data {_shown(self.data)}: {rows(self.train_rows)} train rows, {rows(self.test_rows)} test rows\n"
                f"training   {self.epochs} epochs, batch size {self.batch_size} ({grouped}padded to {self.padding}), "
                f"Adam {self.learning_rate:g}, {self.precision}, seed {self.seed}")


def _shown(place: str) -> str:
    """A folder by its last name only, so that no notebook stores a reader's home."""
    return Path(place).name if place not in (HUB_DATA, "sample") else place


def from_environment(environment: Mapping[str, str]) -> dict:
    """The overrides that ``AGNEWS_*`` variables ask for."""
    values = {}
    for name in ("model", "data"):
        if environment.get(f"AGNEWS_{name.upper()}"):
            values[name] = environment[f"AGNEWS_{name.upper()}"]
    for name in ("train_rows", "test_rows"):
        text = environment.get(f"AGNEWS_{name.upper()}")
        if text:
            try:
                values[name] = int(text)
            except ValueError:
                raise ValueError(f"AGNEWS_{name.upper()} is {text!r}; it must be a whole number.") from None
    return values


def _choose_profile() -> tuple[str, str]:
    """The largest profile that this machine can run, and why."""
    hub = hub_status()
    if not hub.usable:
        return "offline", hub.reason
    import torch  # only now: the answer above needs no torch

    if torch.cuda.is_available():
        return "full", f"a CUDA device is there, and {hub.reason}"
    return "laptop", f"no CUDA device, and {hub.reason}"


@dataclass(frozen=True)
class HubStatus:
    """Whether the Hub answers, whether what we need lies in its local cache, and both in words."""

    reachable: bool
    cached: bool
    reason: str

    @property
    def usable(self) -> bool:
        return self.reachable or self.cached


@functools.cache
def hub_status(seconds: float = 2.5) -> HubStatus:
    """Ask once per process whether the Hub can be used, within `seconds` whatever the network does.

    The Hub's own libraries retry for about 25 s. A thread bounds the wait here, because looking up
    a host name can hang for longer than any socket timeout.
    """
    cached = _in_hub_cache()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        reason = "HF_HUB_OFFLINE is set"
        return HubStatus(False, cached, reason + (", model and data are in its cache" if cached else ""))
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer = ["the Hugging Face Hub does not answer" + (f" at {endpoint}" if "HF_ENDPOINT" in os.environ else "")]

    def ask():
        request = urllib.request.Request(f"{endpoint}/{HUB_MODEL}/resolve/main/config.json", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answer[0] = None
        except urllib.error.HTTPError as error:
            answer[0] = f"the Hugging Face Hub answers with error {error.code}"
        except Exception:  # no route, no such host, a broken certificate: all the same to the reader
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if answer[0] is None:
        return HubStatus(True, cached, "the Hugging Face Hub answers")
    return HubStatus(False, cached, answer[0] + (", but model and data are in its cache" if cached else ""))


def _in_hub_cache() -> bool:
    """Whether the tutorial's model and data were downloaded before, to the end."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HOME
    from safetensors import SafetensorError, safe_open

    files = [try_to_load_from_cache(HUB_MODEL, name) for name in ("config.json", "tokenizer.json", "model.safetensors")]
    if not all(isinstance(file, str) for file in files):
        return False
    try:
        with safe_open(files[-1], framework="numpy"):  # which fails where the file is shorter than its header says
            pass
    except (SafetensorError, OSError):
        return False
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")) / HUB_DATA.replace("/", "___")
    return any(file.parent.suffix != ".incomplete" for file in prepared.rglob("dataset_info.json"))  # written last
