"""A stand-in for the Hugging Face Hub on loopback, for tests of downloads.

If ``HF_ENDPOINT`` names it, it answers the requests of huggingface_hub, datasets and
transformers: a file's address and size, the contents of a repository, and the files
themselves, the large ones through a redirect as on the Hub. It answers for a limited
time and a limited number of requests, and can simulate faults.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from agnews_helpers.plumbing.mini import checked_file
from agnews_helpers.recipe import HUB_DATA, HUB_MODEL, LABELS
from tests.tiny import tiny_model_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# In large-file storage: reached through a redirect, and also offered through Xet.
LARGE = (".safetensors", ".parquet")
CHUNK = 2**16
REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
FILE = re.compile(rf"/(?P<kind>datasets/)?{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)")
ABOUT = re.compile(
    rf"/api/(?P<kind>models|datasets)/{REPOSITORY}"
    rf"(?:/(?P<what>revision|tree|paths-info)/{REVISION}(?:/(?P<path>.+))?)?"
)


@dataclass
class Fault:
    """A fault of the requests whose "METHOD /path" matches `pattern`.

    times : how often it occurs; None: always.
    status : answered instead of the file, with `headers`. cut_after : the connection is
    closed after this many bytes of the body. gone : after that, the server is closed.
    """

    pattern: str
    status: int | None = None
    headers: tuple = ()
    cut_after: int | None = None
    gone: bool = False
    times: int | None = None


NOTHING_WRONG = Fault("")


class Hub:
    """The server's address, the requests so far, and the faults to simulate."""

    def __init__(self, folder: Path, requests: int):
        self.folder, self.left, self.lock = folder, requests, threading.Lock()
        self.asked: list[str] = []
        self.faults: list[Fault] = []
        self.over = threading.Event()

    def count(self, pattern: str) -> int:
        """Return how many requests matched so far."""
        return sum(re.search(pattern, asked) is not None for asked in self.asked)

    def goes_wrong(self, pattern: str, **how) -> None:
        self.faults.append(Fault(pattern, **how))

    def fault(self, request: str) -> Fault | None:
        """Record a request, and return its fault."""
        with self.lock:
            self.asked.append(request)
            self.left -= 1
            if self.left < 0:
                return Fault("", status=503)
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, request):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.form = parse_qs(
            self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        )
        self.answer()

    def answer(self):
        if self.hub.over.is_set():
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.fault(f"{self.command} {path}") or NOTHING_WRONG
        if fault.status is not None:
            return self.send(b"out of order", fault.status, dict(fault.headers))
        if found := FILE.fullmatch(path):
            return self.file(
                found["kind"] or "models/", found["repository"], found["path"], fault
            )
        if found := re.fullmatch("/large/(.+)", path):
            return self.stream(self.hub.folder / found[1], {}, fault)
        if found := ABOUT.fullmatch(path):
            return self.about(
                found["kind"],
                found["repository"],
                found["what"],
                found["path"] or "",
                fault,
            )
        self.send(b"", 404)

    def file(self, kind, repository, path, fault):
        file = self.hub.folder / kind / repository / path
        if not (self.hub.folder / kind / repository).is_dir():
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if not file.is_file():
            return self.send(
                b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha256(file)}"'}
        if file.suffix in LARGE:
            token = f"{self.hub.address}/api/{kind}{repository}/xet-read-token/{COMMIT}"
            headers |= {
                "X-Xet-Hash": _sha256(file),
                "Link": f'<{token}>; rel="xet-auth"',
                "X-Linked-Etag": headers["ETag"],
                "X-Linked-Size": str(file.stat().st_size),
                "Location": f"http://localhost:{self.server.server_port}/large/{kind}{repository}/{path}",
            }  # another host
            return self.send(b"", 302, headers)
        self.stream(file, headers, fault)

    def about(self, kind, repository, what, path, fault):
        folder = self.hub.folder / kind / repository
        if not folder.is_dir():
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        entries = [_entry(folder, item) for item in sorted(folder.rglob("*"))]
        if what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[
                0
            ].lower() in (
                "true",
                "1",
            )
            answer = [
                e
                for e in entries
                if Path(path) in Path(e["path"]).parents
                and (recursive or Path(e["path"]).parent == Path(path))
            ]
            if path and not answer:
                return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        elif what == "paths-info":
            answer = [e for e in entries if e["path"] in self.form.get("paths", [])]
        else:
            answer = {
                "id": repository,
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "tags": [],
                "downloads": 1,
                "likes": 1,
                "siblings": [
                    {"rfilename": e["path"]} for e in entries if e["type"] == "file"
                ],
            }
        self.send(
            json.dumps(answer).encode(),
            200,
            {"Content-Type": "application/json"},
            fault,
        )

    def stream(self, file, headers, fault):
        if not file.is_file():
            return self.send(b"", 404)
        size, start = file.stat().st_size, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            end = min(int(wanted[2] or size), size - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}
            size = end + 1
        with file.open("rb") as body:
            body.seek(start)
            self.send(body, 206 if wanted else 200, headers, fault, size - start)

    def send(self, body, status, headers=None, fault=NOTHING_WRONG, size=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        size = len(body) if size is None else size
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = min(n for n in (fault.cut_after, size) if n is not None)
        sent = 0
        while sent < stop:
            part = (
                body[sent : min(sent + CHUNK, stop)]
                if isinstance(body, bytes)
                else body.read(min(CHUNK, stop - sent))
            )
            self.wfile.write(part)
            sent += len(part)
        if sent < size:
            self.wfile.flush()
            if fault.gone:
                self.hub.over.set()
                self.server.shutdown()
                self.server.server_close()
            self.close_connection = True

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client was stopped
            pass

    def log_message(self, *args):
        pass


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _entry(folder: Path, item: Path) -> dict:
    entry = {
        "type": "directory" if item.is_dir() else "file",
        "path": item.relative_to(folder).as_posix(),
        "oid": COMMIT,
        "size": 0,
    }
    if item.is_file():
        entry["size"] = item.stat().st_size
        if item.suffix in LARGE:
            entry |= {
                "lfs": {
                    "oid": _sha256(item),
                    "size": entry["size"],
                    "pointerSize": 134,
                },
                "xetHash": _sha256(item),
            }
    return entry


@contextmanager
def serve(folder: Path, seconds: float = 500, requests: int = 400):
    """Context manager: a `Hub` with the repositories in `folder`.

    They are in ``models/owner/name`` and ``datasets/owner/name``. After `seconds` it
    closes, and after `requests` requests it answers only 503, so that a client that
    never gives up ends, too.
    """
    hub = Hub(folder, requests)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        type("HubHandler", (Handler,), {"hub": hub, "timeout": seconds}),
    )
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    end = threading.Timer(seconds, server.shutdown)
    end.daemon = True
    thread.start(), end.start()
    try:
        yield hub
    finally:
        hub.over.set()
        end.cancel()
        server.shutdown()
        server.server_close()
        thread.join(5)


def make_repositories(folder: Path, rows: dict, **config) -> Path:
    """Make both repositories that the profiles need, in `folder`.

    rows : for ``train`` and ``test`` a dict of ``text`` and ``label``.
    config : changes of the tiny model's configuration.
    """
    _make_model(folder / "models" / HUB_MODEL, config)
    _make_data(folder / "datasets" / HUB_DATA, rows)
    return folder


def _make_model(folder: Path, config: dict) -> None:
    """Make one like the public model: a masked language model, without a head."""
    tiny_model_folder(folder, kind="DistilBertForMaskedLM", **config)
    (folder / "vocab.txt").write_bytes(checked_file("vocab.txt").read_bytes())
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 512}', encoding="utf-8"
    )
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n# DistilBERT\n", encoding="utf-8"
    )


def _make_data(folder: Path, rows: dict) -> None:
    """Make one like the public data: a Parquet file per split, features in the card."""
    import yaml
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=list(LABELS))}
    )
    (folder / "data").mkdir(parents=True)
    splits, size = [], 0
    for name, columns in rows.items():
        split = Dataset.from_dict(columns, features=features)
        file = folder / "data" / f"{name}-00000-of-00001.parquet"
        split.to_parquet(file)
        size += file.stat().st_size
        splits.append(
            {"name": name, "num_bytes": split.data.nbytes, "num_examples": len(split)}
        )
    card = {
        "task_categories": ["text-classification"],
        "pretty_name": "AG's News Corpus",
        "dataset_info": {
            "features": [
                {"name": "text", "dtype": "string"},
                {
                    "name": "label",
                    "dtype": {
                        "class_label": {
                            "names": {str(i): name for i, name in enumerate(LABELS)}
                        }
                    },
                },
            ],
            "splits": splits,
            "download_size": size,
            "dataset_size": sum(split["num_bytes"] for split in splits),
        },
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": f"data/{name}-*"} for name in rows
                ],
            }
        ],
    }
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n# AG News\n",
        encoding="utf-8",
    )
