"""Windows, from any machine: what only POSIX has is found, or made to be missing."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import psutil
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from test_house import ROOT, project_files

from agnews_helpers import load_data, train
from agnews_helpers.cli import main
from agnews_helpers.data import SAMPLE
from agnews_helpers.model import load_classifier, load_model
from agnews_helpers.plumbing import storage

SHELLS = {"system", "getoutput"}  # what IPython makes of !cmd and of x = !cmd
SHELL_MAGICS = {"bash", "sh", "script", "sx", "system", "!"}
# Their `open` is no text file's.
NOT_FILES = ("os", "tarfile", "gzip", "Image", "webbrowser")


# Each rule that is on for the sake of another machine, and what it has to find. The
# banned names are in pyproject.toml; of these, one of each way to write them.
FOUND_BY_RUFF = [
    ("TID251", "import resource as r"),
    ("TID251", "from pwd import getpwnam"),
    ("TID251", "import os\n\nx = os.uname().machine"),
    ("DTZ005", "from datetime import datetime\n\ndatetime.now()"),
    ("PLW1514", "from pathlib import Path\n\nPath('a').read_text()"),
    ("S108", "x = '/tmp/a'"),
    ("S108", "x = f'/proc/{3}/stat'"),
    ("S602", "import subprocess\n\nsubprocess.run(['dir'], shell=True)"),
    ("S604", "import tools\n\ntools.call('dir', shell=True)"),
    ("S605", "import os\n\nos.system('dir')"),
    ("S607", "import subprocess\n\nsubprocess.run(['ps', '-e'])"),
    ("PLW1509", "import subprocess\n\nsubprocess.Popen(['a'], preexec_fn=print)"),
    ("PTH118", "import os\n\nos.path.join('a', 'b')"),
    (
        None,  # what is the same everywhere
        """\
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

signal.signal(getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIG_DFL)
subprocess.run([sys.executable, "-c", "pass"])
Path("a").write_text(f"{datetime.now(UTC)}: and/or", encoding="utf-8")
os.replace("a", "b")""",
    ),
]


def test_ruff_finds_what_differs_from_machine_to_machine(tmp_path):
    """With the project's own settings, in files of the package; one call for all."""
    folder = tmp_path / "agnews_helpers"
    folder.mkdir()
    for number, (_, code) in enumerate(FOUND_BY_RUFF):
        text = f'"""An example."""\n\n{code}\n'
        (folder / f"example_{number}.py").write_text(text, encoding="utf-8")
    settings = f"--config={ROOT / 'pyproject.toml'}"
    ended = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=json", settings, "."],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
    )
    found = {number: set() for number in range(len(FOUND_BY_RUFF))}
    for finding in json.loads(ended.stdout):
        found[int(Path(finding["filename"]).stem.split("_")[1])].add(finding["code"])
    for number, (rule, code) in enumerate(FOUND_BY_RUFF):
        assert rule in found[number] if rule else not found[number], code


def unseen(code):
    """What ruff does not find: IPython's shells, and guessed encodings."""
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        owner, _, last = name.rpartition(".")
        mode = keywords.get("mode") or [*call.args, ast.Constant("r")][0]
        if owner == "get_ipython()":
            runs_magic = last.startswith("run_")  # run_line_magic("sx", "ls")
            magic = ast.literal_eval(call.args[0]) if runs_magic else None
            if last in SHELLS or magic in SHELL_MAGICS:
                yield f"a shell: {ast.unparse(call)}"
        opens = last == "open" and owner not in ("", *NOT_FILES)
        reads = last in ("read_text", "write_text")
        if reads or opens and "b" not in ast.unparse(mode):
            if "encoding" not in keywords:
                yield f"{name} without encoding="


def cells(notebook):
    """A notebook's code as Python: IPython's own translation of its ! and % lines."""
    stored = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        TransformerManager().transform_cell("".join(cell["source"]))
        for cell in stored
        if cell["cell_type"] == "code"
    ]


SCRIPTS = [
    *sorted((ROOT / "agnews_helpers").rglob("*.py")),
    *sorted((ROOT / "vram_budget").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    ROOT / "conftest.py",
    ROOT / "tests" / "conftest.py",
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def test_no_shell_and_no_guessed_encoding():
    assert len(SCRIPTS) > 40
    for path in SCRIPTS:
        notebook = path.suffix == ".ipynb"
        parts = cells(path) if notebook else [path.read_text(encoding="utf-8")]
        assert not [found for code in parts for found in unseen(code)], path


def test_what_ruff_does_not_see_is_found():
    for code, count in [
        ("!ls", 1),
        ("files = !ls", 1),
        ("%%bash\nls", 1),
        ("%sx ls", 1),
        ("path.open()", 1),
        ("(folder / name).open('w')", 1),
        ("path.open(mode='a')", 1),
        ("path.read_text()", 1),
        ("path.write_text(x)", 1),
        ("%env AGNEWS_PROFILE=laptop", 0),
        ("%matplotlib inline", 0),
        ("path.open('rb')", 0),
        ("path.open(encoding='utf-8')", 0),
        ("path.write_text(x, encoding='utf-8')", 0),
        ("os.open(folder, 0)", 0),
    ]:
        python = TransformerManager().transform_cell(code)
        assert len(list(unseen(python))) == count, code


RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(\..*)?", re.I
)


def forbidden(names):
    """Those of `names` (relative, with /) that a checkout on Windows could not have."""
    seen = set()
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        bad = [part for part in PurePosixPath(name).parts if is_forbidden(part)]
        # 120: Windows' 260 less a folder deep in a home
        if bad or folded in seen or len(name) > 120:
            yield name
        seen.add(folded)


def is_forbidden(part):
    return re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', part) or RESERVED.fullmatch(part)


def test_windows_can_check_the_files_out():
    files = list(project_files())
    assert len(files) > 60 and not [path for path in files if path.is_symlink()]
    assert not list(forbidden(path.relative_to(ROOT).as_posix() for path in files))


def test_a_name_that_windows_forbids_is_found():
    for names in [
        ["a:b"],
        ["what?.py"],
        ["a\\b"],
        ["tests/con"],
        ["aux.py"],
        ["folder/Nul.txt/x"],
        ["com1.csv"],
        ["dot."],
        ["space /x"],
        ["x" * 121],
        ["README.md", "Readme.md"],
        ["\u00e4", "a\u0308"],
        ["tab\t"],
    ]:
        assert list(forbidden(names)) == names[-1:]


def test_names_that_windows_takes():
    names = [
        ".ci/run",
        "console.py",
        "com.py",
        "com10.txt",
        "a.b",
        "dir one/\u00e4 ö.csv",
    ]
    assert not list(forbidden(names))


def test_a_run_writes_only_names_that_windows_takes(recipe, tokens, tmp_path):
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=3)
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert any("checkpoints/step-" in name for name in files) and not list(
        forbidden(files)
    )


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "AGNEWS_PROFILE": "offline", **environment},
    )


def test_doctor_where_the_modules_of_posix_are_missing():
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty', 'tty',\n"
        "             'syslog', 'readline', 'curses'):\n"
        "    sys.modules[name] = None\n"
        "from agnews_helpers.cli import main\nsys.exit(main(['doctor']))"
    )
    ended = run(code)
    assert ended.returncode == 0 and "Ready." in ended.stdout, ended.stderr


def test_a_folder_is_saved_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    def open_file(path, flags):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return os.open(path, flags)

    monkeypatch.setattr(
        storage, "os", SimpleNamespace(**{**vars(os), "name": "nt", "open": open_file})
    )
    storage.write_folder(
        tmp_path / "saved",
        lambda path: (path / "a.txt").write_text("a", encoding="utf-8"),
    )
    assert storage.damaged_files(tmp_path / "saved") == []
    assert set(storage.read_json(tmp_path / "saved" / "manifest.json")) == {"a.txt"}


@pytest.mark.skipif(
    not hasattr(psutil.Process, "memory_maps"),
    reason="macOS does not say which files are mapped",
)
def test_no_file_stays_mapped_that_windows_could_then_not_replace(
    tiny, recipe, tmp_path
):
    shutil.copytree(tiny, tmp_path / "copy")
    models = (
        load_model(recipe.replace(model=str(tmp_path / "copy"))),
        *load_classifier(tmp_path / "copy"),
    )
    mapped = [
        file.path
        for file in psutil.Process().memory_maps()
        if str(tmp_path) in file.path
    ]
    assert len(models) == 3 and not mapped


C_LOCALE = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "utf-8",
}


def a_folder_of_news(folder, line_end="\n"):
    folder.mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        text = (SAMPLE / name).read_text(encoding="utf-8")
        text = text.replace('","', '","Müller: ', 1).replace("\n", line_end)
        (folder / name).write_bytes(text.encode("utf-8"))
    return folder


@pytest.mark.slow
def test_files_are_utf8_where_the_locale_is_not(tiny, tmp_path):
    code = (
        "import locale\n"
        "assert locale.getpreferredencoding() not in ('UTF-8', 'utf-8')\n"
        "from agnews_helpers.cli import main\n"
        f"out = ['--output-dir', {str(tmp_path / 'run')!r}]\n"
        "status = main(['train', '--epochs', '1', *out])\n"
        "raise SystemExit(status or main(['predict', 'Z\\xfcrich', *out]))"
    )
    ended = run(
        code,
        **C_LOCALE,
        AGNEWS_DATA=str(a_folder_of_news(tmp_path / "news")),
        AGNEWS_MODEL=str(tiny),
        AGNEWS_TRAIN_ROWS="44",
        AGNEWS_TEST_ROWS="20",
    )
    assert ended.returncode == 0 and "Z\u00fcrich" in ended.stdout, ended.stderr


def test_a_console_that_lacks_a_letter_shows_another(tiny, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["predict", "Z\u00fcrich \u6771", "--output-dir", str(tiny)]) == 0
    console.flush()
    assert "Z\u00fcrich ?" in console.buffer.getvalue().decode("cp1252")


def test_folders_with_spaces_and_umlauts(tiny, tmp_path, monkeypatch, capsys):
    place = tmp_path / "Größe und Maß"
    monkeypatch.setenv("AGNEWS_DATA", str(a_folder_of_news(place / "neue Zeitung")))
    monkeypatch.setenv("AGNEWS_MODEL", str(tiny))
    monkeypatch.setenv("AGNEWS_TRAIN_ROWS", "44")
    monkeypatch.setenv("AGNEWS_TEST_ROWS", "20")
    out = ["--output-dir", str(place / "mein Lauf é")]
    assert main(["train", "--epochs", "1", "--steps", "2", *out]) == 0
    figures = ["--json", str(place / "Zahlen ü.json")]
    assert main(["train", "--epochs", "1", "--resume", *out]) == 0
    assert (
        main(["evaluate", *figures, *out]) == 0 and main(["predict", "text", *out]) == 0
    )
    assert not capsys.readouterr().err.count("Error")


def test_a_checkout_with_crlf_has_the_same_rows(recipe, tmp_path):
    one, other = (
        load_data(recipe.replace(data=str(a_folder_of_news(tmp_path / name, end))))
        for name, end in (("lf", "\n"), ("crlf", "\r\n"))
    )
    assert all(one[split][:] == other[split][:] for split in one)


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_pip_reads_constraints_with_crlf(name, tmp_path):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    (tmp_path / name).write_bytes(
        "\r\n".join([*lines, "packaging==0.0"]).encode("utf-8")
    )
    code = (
        "from pip._internal.cli.main import main\n"
        f"constraints = {str(tmp_path / name)!r}\n"
        "dry = ['install', '--dry-run', '--no-index']\n"
        "raise SystemExit(main([*dry, '-c', constraints, 'packaging']))"
    )
    ended = run(code)
    assert ended.returncode == 1 and "packaging==0.0" in ended.stderr + ended.stdout
