"""The Hugging Face Hub: whether it answers, and loading with waits that end and failures told in one line."""

import functools
import os
import re
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import HubUnreachable

KNOWN = "distilbert/distilbert-base-uncased"  # surely there: asked for to see whether the Hub answers
WAIT = 10  # seconds for an answer or the next bytes; some requests of the libraries would wait for ever
TRIES = 5  # requests in a row without a usable answer; the libraries make 7 for each file
PATIENCE = 60  # seconds that a Hub with too many requests may make us wait
LATER = "Run the same again later."
# How a failure looks (what the Hub refused, else the exceptions), the reason, the remedy, and what may cure
# it: "again", or "anew", which leaves the cache aside. The first that fits counts.
FAILURES = (
    ("^error 40[13]", "{} (it wants a login)", "Set HF_TOKEN to a valid token, or unset it.", None),
    ("^error 404", "{} (there is no such thing)", "Look at the name, and at HF_ENDPOINT if it is set.", None),
    ("^error 429", "{} (too many requests)", "Wait {} seconds, or set HF_TOKEN, and run again.", None),
    ("^error", "{}", LATER, "again"),
    ("^no answer", "{}", LATER, None),
    ("No space left on device", "the disk is full", "Make room, or set HF_HOME to another disk.", None),
    ("Timeout", f"it stopped answering, {WAIT} seconds at a time", LATER, None),
    ("ConnectError", "there is no connection to it", "Look at the network, the proxy and HF_ENDPOINT.", None),
    ("RemoteProtocolError", "the connection is cut again and again", LATER, None),  # the libraries went on
    ("ReadError|Consistency check failed", "the connection was cut", LATER, "again"),
    ("", "a file is missing or damaged ({})", LATER, "anew"),
)


@dataclass(frozen=True)
class HubStatus:
    """Whether the Hub answers, whether what we need lies in its local cache, and both in words."""

    reachable: bool
    cached: bool
    reason: str

    @property
    def usable(self) -> bool:
        return self.reachable or self.cached


def hub_status(model: str, data: str) -> HubStatus:
    """Whether this model and these rows can be had from the Hub, or from what it left here before."""
    silent, cached = silence(), in_cache(model, data)
    reason = silent + ", but model and data are in its cache" if silent and cached else silent
    return HubStatus(not silent, cached, reason or "the Hugging Face Hub answers")


@functools.cache
def silence(seconds: float = 2.5) -> str:
    """Why the Hub cannot be asked; empty if it answers. Found out once per process, within `seconds`.

    A thread bounds the wait, because looking up a host name can hang for longer than any socket timeout.
    """
    from urllib import error, request  # only now: no network before it is asked

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer = ["does not answer" + (f" at {endpoint}" if "HF_ENDPOINT" in os.environ else "")]

    def ask():
        with suppress(Exception):  # no route, no such host, a broken certificate: all the same to the reader
            asked = request.Request(f"{endpoint}/{KNOWN}/resolve/main/config.json", method="HEAD")
            try:
                request.urlopen(asked, timeout=seconds).close()
                answer.clear()
            except error.HTTPError as refusal:
                answer[0] = f"answers with error {refusal.code}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return "".join(f"the Hugging Face Hub {words}" for words in answer)


def in_cache(model: str, data: str) -> bool:
    """Whether both were downloaded before, to the end."""
    from huggingface_hub import constants, try_to_load_from_cache
    from safetensors import SafetensorError, safe_open

    names = ("config.json", "tokenizer.json", "model.safetensors")
    files = [try_to_load_from_cache(model, name) for name in names]
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    written_last = (prepared / data.replace("/", "___")).rglob("dataset_info.json")
    if all(isinstance(file, str) for file in files):
        with suppress(SafetensorError, OSError):  # the file is shorter than its header says
            safe_open(files[-1], framework="numpy")
            return any(file.parent.suffix != ".incomplete" for file in written_last)
    return False


def from_hub(name: str, load, tried: str | None = None):
    """What ``load(anew)`` returns; `anew` is whether to download again what lies in the cache.

    Where a file is damaged or the failure may pass, it is tried a second time, with the cure `tried`. Where
    the Hub does not answer, nothing is asked of it, and its cache must do.

    Raises
    ------
    HubUnreachable
        The message has `name`, the file where it is known, the reason and the remedy.
    """
    silent, watch = silence(), _Watch()
    try:
        with watch.over_requests(offline=bool(silent)):
            return load(tried == "anew")
    except Exception as error:  # three libraries and what they are built on have many ways to fail
        reason, remedy, cure = watch.explain(error)
        if cure and not tried and not silent:
            print(f"note: {name}: {reason}; trying once more.")
            return from_hub(name, load, tried=cure)
        if silent:
            reason = f"{silent}, so it was looked for in its cache; {reason}"
            remedy = "Go online and run the same again."
        raise HubUnreachable(
            f"{name} cannot be loaded from the Hugging Face Hub: {reason}. {remedy} "
            "Files that arrived whole are kept. AGNEWS_PROFILE=offline needs no Hub."
        ) from error


def pretrained(auto_class, name: str | Path, **options):
    """What ``auto_class.from_pretrained`` makes of the folder `name`, or of what the Hub has by that name.

    Raises
    ------
    FileNotFoundError
        When the folder holds nothing that can be read. HubUnreachable : as of `from_hub`.
    """
    load = functools.partial(auto_class.from_pretrained, name, trust_remote_code=False, **options)
    if not Path(name).is_dir():
        shown = name if name == KNOWN else f"The model {name!r} (there is no such folder)"
        return from_hub(shown, lambda anew: load(force_download=anew))
    try:
        if not (Path(name) / "config.json").is_file():  # transformers 5.0 makes a tokenizer of nothing
            raise FileNotFoundError("it has no config.json")
        return load(local_files_only=True)
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"The folder {str(name)!r} does not hold a model that can be read ({reason[:200]}). "
            "Give another folder; AGNEWS_MODEL=mini needs none."
        ) from error


class _Watch:
    """Sees the requests of one load, ends what would take too long, and knows afterwards why it failed."""

    in_vain, file, refusal, wait = 0, "", "", PATIENCE

    @contextmanager
    def over_requests(self, offline: bool):
        from huggingface_hub import constants, get_session

        hooks, before = get_session().event_hooks, (constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET)
        hooks["request"].append(self.request)
        hooks["response"].append(self.response)
        # No argument turns off all requests, and each costs 25 s in vain. Xet makes its own, where nobody
        # sees them, and is reported to stall for ever on poor networks (xet-core issues 850 and 898).
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = offline or before[0], True
        try:
            yield
        finally:
            hooks["request"].remove(self.request)
            hooks["response"].remove(self.response)
            constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = before

    def request(self, request):
        if self.in_vain >= TRIES:
            self.refusal = self.refusal or f"no answer to {TRIES} requests in a row, the last for {self.file}"
            raise HubUnreachable(self.refusal)
        self.in_vain += 1
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), WAIT)
        if re.search("/(resolve|api)/", request.url.path):  # else it is where the Hub sent us for that file
            self.file = re.sub("^.*/resolve/[^/]+/", "", request.url.path)

    def response(self, response):
        code, headers, asked = response.status_code, response.headers, response.url.path
        if code < 400:
            self.in_vain, self.refusal = 0, ""
        elif code == 404 and (headers.get("x-error-code") == "EntryNotFound" or "/resolve/" not in asked):
            self.in_vain = 0  # libraries look for what need not be there
        else:
            self.refusal = self.refusal or f"error {code} for {self.file}"
            told = f"{headers.get('retry-after', '')} {headers.get('ratelimit', '')}"
            seconds = re.search(r"(?:^|r=0;\s*t=)(\d+)", told)
            if code == 429 and seconds and int(seconds[1]) > self.wait:
                self.wait = int(seconds[1])
                raise HubUnreachable(self.refusal)

    def explain(self, error: BaseException) -> tuple[str, str, str | None]:
        """Reason, remedy and cure: of the first refusal, else of this exception and those behind it."""
        seen = self.refusal or "".join(traceback.format_exception(error, limit=0))  # limit: no lines of code
        shown = self.refusal or " ".join(str(error.__cause__ or error).split())[:200]
        _, reason, remedy, cure = next(row for row in FAILURES if re.search(row[0], seen))
        return reason.format(shown), remedy.format(self.wait), cure
