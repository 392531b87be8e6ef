"""The Hugging Face Hub: whether it answers, and loading with waits that end and failures told in one line."""

import functools
import os
import re
import traceback
from collections import namedtuple
from contextlib import contextmanager, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

from .errors import HubUnreachable
from .storage import read_json

KNOWN = "distilbert/distilbert-base-uncased"  # surely there: asked for to see whether the Hub answers
HubStatus = namedtuple(
    "HubStatus", "usable reason"
)  # whether the Hub, or its cache, serves us, and why
WAIT = 10  # seconds for an answer or the next bytes; some requests of the libraries would wait for ever
TRIES = (
    5  # requests in a row without a usable answer; the libraries make 7 for each file
)
PATIENCE = 60  # seconds that a Hub with too many requests may make us wait
LATER = "Run the same again later."
NO_ID = re.compile(
    r"[~./\\]|\w:|.*/(.*/|$)"
)  # no id of the Hub looks like this: a path does
# Sizes of a model's config.json above which it is refused
MOST = {
    "n_layers": 1000,
    "num_hidden_layers": 1000,
    "num_labels": 10**5,
    "vocab_size": 10**7,
}
MOST |= {
    "dim": 10**5,
    "hidden_size": 10**5,
    "hidden_dim": 10**6,
    "intermediate_size": 10**6,
}
# How a failure looks (what the Hub refused, else the exceptions), the reason, the remedy, and what may cure
# it: "again", or "anew", which leaves the cache aside. The first that fits counts.
FAILURES = (
    (
        "^error 40[13]",
        "{} (it wants a login)",
        "Set HF_TOKEN to a valid token, or unset it.",
        None,
    ),
    (
        "^error 404",
        "{} (there is no such thing)",
        "Look at the name, and at HF_ENDPOINT if it is set.",
        None,
    ),
    (
        "^error 429",
        "{} (too many requests)",
        "Wait {} seconds, or set HF_TOKEN, and run again.",
        None,
    ),
    ("^error", "{}", LATER, "again"),
    ("^no answer", "{}", LATER, None),
    (
        "No space left on device",
        "the disk is full",
        "Make room, or set HF_HOME to another disk.",
        None,
    ),
    ("Timeout", f"it stopped answering, {WAIT} seconds at a time", LATER, None),
    (
        "ConnectError",
        "there is no connection to it",
        "Look at the network, the proxy and HF_ENDPOINT.",
        None,
    ),
    (
        "RemoteProtocolError",
        "the connection is cut again and again",
        LATER,
        None,
    ),  # the libraries went on
    ("ReadError|Consistency check failed", "the connection was cut", LATER, "again"),
    ("", "a file is missing or damaged ({})", LATER, "anew"),
)


def hub_status(model: str, data: str) -> HubStatus:
    """Whether this model and these rows can be had from the Hub, or from what it left here before."""
    if not (silent := why_unreachable()):
        return HubStatus(True, "the Hugging Face Hub answers")
    cached = in_cache(model, data)
    return HubStatus(cached, silent + ", but model and data are in its cache" * cached)


@functools.cache
def why_unreachable(seconds: float = 2.5) -> str:
    """Why the Hub cannot be asked; empty if it answers. Found out once per process, within `seconds`.

    A thread bounds the wait, because looking up a host name can hang for longer than any socket timeout.
    """
    from urllib import error, request  # only now: no network before it is asked

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        asked = request.Request(
            f"{endpoint}/{KNOWN}/resolve/main/config.json", method="HEAD"
        )
        with ThreadPool(1) as thread:
            thread.apply_async(request.urlopen, [asked], {"timeout": seconds}).get(
                seconds
            ).close()
        return ""
    except error.HTTPError as refusal:
        return f"the Hugging Face Hub answers with error {refusal.code}"
    except Exception:  # no route, no such host, a broken certificate, no time: all the same to the reader
        where = f" at {endpoint}" if "HF_ENDPOINT" in os.environ else ""
        return f"the Hugging Face Hub does not answer{where}"


def in_cache(model: str, data: str) -> bool:
    """Whether both were downloaded before, to the end."""
    from huggingface_hub import constants, try_to_load_from_cache
    from safetensors import SafetensorError, safe_open

    names = ("config.json", "tokenizer.json", "model.safetensors")
    files = [try_to_load_from_cache(model, name) for name in names]
    prepared = Path(
        os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    )
    written_last = (prepared / data.replace("/", "___")).rglob("dataset_info.json")
    if all(isinstance(file, str) for file in files):
        with suppress(
            SafetensorError, OSError
        ):  # the file is shorter than its header says
            safe_open(files[-1], framework="numpy")
            return any(file.parent.suffix != ".incomplete" for file in written_last)
    return False


def from_hub(name: str, load, tried: str | None = None):
    """What ``load(anew)`` returns; `anew` is whether to download again what lies in the cache.

    Where a file is damaged or the failure may pass, it is tried a second time, with the cure `tried`. Where
    the Hub does not answer, nothing is asked of it, and its cache must do. HubUnreachable has `name`, the
    file where it is known, the reason and the remedy.
    """
    silent, watch = why_unreachable(), _Watch()
    try:
        with watch.over_requests(offline=bool(silent)):
            return load(tried == "anew")
    except (
        Exception
    ) as error:  # three libraries and what they are built on have many ways to fail
        seen = watch.refusal or "".join(
            traceback.format_exception(error, limit=0)
        )  # limit: no lines of code
        shown = (
            watch.refusal
            or " ".join(str(error.__cause__ or error).split()).split(". ")[0][:200]
        )
        reason, remedy, cure = next(
            row[1:] for row in FAILURES if re.search(row[0], seen)
        )
        reason, remedy = reason.format(shown), remedy.format(watch.wait)
        if cure and not tried and not silent:
            print(f"note: {name}: {reason}; trying once more.")
            return from_hub(name, load, tried=cure)
        if silent:
            reason = f"{silent}, so it was looked for in its cache; {reason}"
            remedy = "Go online and run the same again."
        advice = "Files that arrived whole are kept. AGNEWS_PROFILE=offline and AGNEWS_MODEL=mini need no Hub."
        failed = f"{name} cannot be loaded from the Hugging Face Hub: {reason}."
        raise HubUnreachable(f"{failed} {remedy} {advice}") from error


def pretrained(auto_class, name: str | Path, **options):
    """What ``auto_class.from_pretrained`` makes of the folder `name`, or of what the Hub has by that name.

    FileNotFoundError where the folder holds nothing that can be read; HubUnreachable as of `from_hub`.
    """
    load = functools.partial(
        auto_class.from_pretrained, name, trust_remote_code=False, **options
    )
    if not Path(name).is_dir():
        if Path(name).exists() or NO_ID.match(str(name)):
            raise FileNotFoundError(
                f"There is no folder {str(name)!r}. Give another, or the id of a model."
            )
        shown = (
            name if name == KNOWN else f"The model {name!r} (there is no such folder)"
        )
        return from_hub(shown, lambda anew: load(force_download=anew))
    try:
        config = read_json(
            Path(name) / "config.json"
        )  # transformers 5.0 makes a tokenizer without one
        for size, most in MOST.items():  # before memory is taken for it
            if isinstance(found := config.get(size), int) and found > most:
                raise ValueError(
                    f"its config.json has {size} {found:,}, which cannot be meant"
                )
        return load(local_files_only=True)
    except (
        Exception
    ) as error:  # transformers, tokenizers and safetensors each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes or more classes than its config.json says"
        there = f"The folder {str(name)!r} does not hold a model that can be read ({reason[:200]})."
        raise FileNotFoundError(
            f"{there} Make it anew, or give another; AGNEWS_MODEL=mini needs none."
        ) from error


class _Watch:
    """Sees the requests of one load, ends what would take too long, and knows afterwards why it failed."""

    in_vain, file, refusal, wait = 0, "", "", PATIENCE

    @contextmanager
    def over_requests(self, offline: bool):
        from huggingface_hub import constants, get_session

        client, before = (
            get_session(),
            (constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET),
        )
        hooks = client.event_hooks
        client.event_hooks = {
            kind: [*hooks[kind], getattr(self, kind)]
            for kind in ("request", "response")
        }
        # No argument turns off all requests, and each costs 25 s in vain. Xet makes its own, where nobody
        # sees them, and is reported to stall for ever on poor networks (xet-core issues 850 and 898).
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = (
            offline or before[0],
            True,
        )
        try:
            yield
        finally:
            client.event_hooks = hooks
            constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = before

    def request(self, request):
        if self.in_vain >= TRIES:
            self.refusal = (
                self.refusal
                or f"no answer to {TRIES} requests in a row, the last for {self.file}"
            )
            raise HubUnreachable(self.refusal)
        self.in_vain += 1
        request.extensions["timeout"] = dict.fromkeys(
            ("connect", "read", "write", "pool"), WAIT
        )
        if re.search(
            "/(resolve|api)/", request.url.path
        ):  # else it is where the Hub sent us for that file
            self.file = re.sub("^.*/resolve/[^/]+/", "", request.url.path)

    def response(self, response):
        code, headers, asked = response.status_code, response.headers, response.url.path
        if code < 400:
            self.in_vain, self.refusal = 0, ""
        elif code == 404 and (
            headers.get("x-error-code") == "EntryNotFound" or "/resolve/" not in asked
        ):
            self.in_vain = 0  # libraries look for what need not be there
        else:
            self.refusal = self.refusal or f"error {code} for {self.file}"
            told = f"{headers.get('retry-after', '')} {headers.get('ratelimit', '')}"
            self.wait = max(
                [PATIENCE, *map(int, re.findall(r"(?:^|r=0;\s*t=)(\d+)", told))]
            )
            if self.wait > PATIENCE:  # the libraries would
                raise HubUnreachable(self.refusal)
