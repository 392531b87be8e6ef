"""Windows, held from anywhere: nothing in the code that only POSIX has, and runs on what can be made to look like it."""
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
from test_house import MODULES, ROOT, project_files

from agnews_helpers import Recipe, load_agnews, storage, train
from agnews_helpers.checkpoints import load_classifier
from agnews_helpers.cli import main
from agnews_helpers.data import SAMPLE
from agnews_helpers.model import load_model

POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "posix", "syslog", "readline", "curses"}
POSIX_NAMES = {
    "os": {"fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getgroups", "uname", "killpg", "getpgid", "setsid", "mkfifo",
           "chown", "lchown", "nice", "wait", "getloadavg", "sysconf", "sched_getaffinity", "sched_setaffinity", "O_DIRECTORY", "statvfs"},
    "signal": {"SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGPIPE", "SIGQUIT", "SIGXFSZ",
               "alarm", "setitimer", "pause", "pthread_kill", "sigwait"},
    "select": {"poll", "epoll", "kqueue"}, "time": {"tzset"}, "socket": {"AF_UNIX"}}
POSIX_FOLDERS = re.compile(r"/(tmp|dev|proc|sys|var|usr|etc|home|opt|root|bin)(/|$)")
POSIX_COMMANDS = {"bash", "sh", "ls", "cp", "mv", "rm", "cat", "ps", "kill", "which", "env", "nice", "grep"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "get_ipython().system", "get_ipython().getoutput"}  # IPython's !cmd is the last two
SHELL_MAGICS = {"bash", "sh", "script", "sx", "system", "!"}
NOT_FILES = ("os.open", "tarfile.", "gzip.", "Image.", "webbrowser.")  # their `open` is no text file's
LOCAL_TIME = {"time.localtime", "time.ctime", "time.asctime", "time.strftime", "time.mktime", "datetime.today", "datetime.utcnow"}


def posix_side(test):
    """Which side of an `if` Windows never enters, 'body' or 'orelse'; None if the test does not ask for the system."""
    if isinstance(test, ast.Call) and ast.unparse(test.func) == "hasattr":
        return "body"
    if isinstance(test, ast.Compare) and ast.unparse(test.left) in ("os.name", "sys.platform", "platform.system()"):
        windows = ast.literal_eval(test.comparators[0]) in ("nt", "win32", "Windows")
        return "body" if windows != isinstance(test.ops[0], ast.Eq) else "orelse"
    return None


def findings(code):
    """What in `code` does not work on Windows, or differs with a machine's language or time zone: (line, what)."""
    found = []

    def visit(node, guarded):
        found.extend((node.lineno, what) for what in [*([] if guarded else only_posix(node)), *guessed(node)])
        caught = isinstance(node, ast.Try) and any("ImportError" in ast.unparse(handler.type) for handler in node.handlers if handler.type)
        side = "body" if caught else posix_side(node.test) if isinstance(node, (ast.If, ast.IfExp)) else None
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, guarded or name == side)

    visit(ast.parse(code), False)
    return found


def only_posix(node):
    """What only POSIX has: modules, names, folders, commands, shells."""
    if isinstance(node, ast.Import):
        yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in POSIX_MODULES)
    elif isinstance(node, ast.ImportFrom):
        gone = POSIX_NAMES.get(node.module, set()) | ({"rename"} if node.module == "os" else set())
        yield from (f"from {node.module} import {alias.name}" for alias in node.names if node.module in POSIX_MODULES or alias.name in gone)
    elif isinstance(node, ast.Attribute):
        if node.attr in POSIX_NAMES.get(ast.unparse(node.value), set()):
            yield ast.unparse(node)
        if ast.unparse(node) == "os.rename":
            yield "os.rename, which fails where the target exists: os.replace"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and POSIX_FOLDERS.match(node.value):
        yield node.value
    elif isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant) and node.elts[0].value in POSIX_COMMANDS and len(node.elts) > 1:
        yield f"the command {node.elts[0].value}"
    elif isinstance(node, ast.Call):
        name, keywords = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        first = node.args[0] if node.args else None
        if name in SHELLS or keywords.get("shell", "False") != "False" or "preexec_fn" in keywords or "pass_fds" in keywords:
            yield f"a shell, or what only POSIX's processes have: {name}"
        if name.startswith("get_ipython().run_") and ast.literal_eval(first) in SHELL_MAGICS:
            yield f"a shell's magic: {ast.literal_eval(first)}"
        if name == "open" and first and any(isinstance(part, ast.Constant) and isinstance(part.value, str) and re.search(r"[/\\]", part.value) for part in ast.walk(first)):
            yield "a path put together by hand: pathlib"
        if name.endswith("NamedTemporaryFile") and "delete" not in keywords:
            yield "NamedTemporaryFile, which cannot be opened a second time: TemporaryDirectory"


def guessed(node):
    """What a machine's settings decide: the encoding of files, the time zone, the language."""
    if isinstance(node, ast.FormattedValue) and node.format_spec and ast.unparse(node.format_spec).rstrip("'\"").endswith("n"):
        yield "a number written by the locale"
    elif isinstance(node, (ast.Import, ast.ImportFrom)) and "locale" in [getattr(node, "module", None), *(alias.name for alias in node.names)]:
        yield "the locale"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"%-[dmHIMSjy]", node.value):
        yield "%- in a date"
    elif isinstance(node, ast.Call):
        name, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        last = name.rpartition(".")[2]
        place = None if name.startswith(NOT_FILES) else {"open": 0 if "." in name else 1, "NamedTemporaryFile": 0, "TemporaryFile": 0, "fdopen": 1}.get(last)
        if place is not None:
            mode = ast.unparse(keywords.get("mode") or [*node.args[place:], ast.Constant("r" if "open" in last else "b")][0])
        if (last in ("read_text", "write_text") or place is not None and "b" not in mode) and "encoding" not in keywords:
            yield f"{last} without encoding="
        zone = node.args or keywords
        if name.endswith(tuple(LOCAL_TIME)) or last == "now" and not zone or name.endswith("datetime.fromtimestamp") and len(node.args) + len(keywords) < 2:
            yield f"the machine's time zone: {name}"


def cells(notebook):
    """A notebook's code as Python: IPython's own translation of its ! and % lines."""
    stored = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [TransformerManager().transform_cell("".join(cell["source"])) for cell in stored if cell["cell_type"] == "code"]


SCRIPTS = [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "conftest.py", ROOT / "tests" / "conftest.py",
           *sorted((ROOT / "notebooks").glob("*.ipynb"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_in_the_code_needs_posix_or_guesses(path):
    parts = cells(path) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    assert not [found for code in parts for found in findings(code)]


@pytest.mark.parametrize("code", [
    "import fcntl", "import resource as r", "from pwd import getpwnam", "os.fork()", "from os import getuid", "x = os.uname().machine",
    "os.kill(pid, signal.SIGKILL)", "signal.alarm(3)", "from signal import SIGUSR1", "select.poll()", "time.tzset()",
    "Path('/tmp') / name", "x = '/dev/null'", "f'/proc/{pid}/stat'", "open(folder + '/a.txt', 'rb')", "open(f'{folder}/a', 'rb')", "open('a\\\\b', 'rb')",
    "subprocess.run('dir', shell=True)", "subprocess.run(line, shell=use)", "os.system('dir')", "subprocess.Popen(a, preexec_fn=f)", "subprocess.run(['ps', '-e'])",
    "!ls", "files = !ls", "%%bash\nls", "%sx ls", "os.rename(a, b)", "from os import rename", "tempfile.NamedTemporaryFile()",
    "open(path)", "open(path, 'w')", "open(path, mode='a')", "path.open()", "path.read_text()", "path.write_text(x)", "os.fdopen(3, 'w')",
    "NamedTemporaryFile('w', delete=False)", "datetime.now()", "datetime.datetime.fromtimestamp(3)", "time.localtime()", "time.strftime('%H')",
    "import locale", "from locale import setlocale", "f'{number:n}'", "then.strftime('%-d')",
    "if os.name == 'nt':\n    os.fork()", "if os.name != 'posix':\n    os.fork()", "if os.name == 'posix':\n    pass\nelse:\n    os.fork()",
    "try:\n    import fcntl\nexcept OSError:\n    pass", "try:\n    pass\nexcept ImportError:\n    import fcntl", "if os.name == 'posix':\n    open(path)"])
def test_what_windows_lacks_is_found(code):
    assert len(findings(TransformerManager().transform_cell(code))) == 1


@pytest.mark.parametrize("code", [
    "if os.name == 'posix':\n    import resource\n    os.getuid()", "if sys.platform != 'win32':\n    os.fork()", "os.nice(3) if hasattr(os, 'nice') else None",
    "if os.name == 'nt':\n    pass\nelse:\n    os.fork()", "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", "getattr(signal, 'SIGKILL', signal.SIGTERM)",
    "os.replace(a, b)", "open(path, 'rb')", "path.open('rb')", "open(path, encoding='utf-8')", "path.write_text(x, encoding='utf-8')", "tempfile.TemporaryFile()",
    "datetime.now(UTC)", "f'{number:,}'", "time.perf_counter()", "open(folder / 'a', 'rb')", "subprocess.run([sys.executable, '-c', 'pass'])", "'and/or'", "os.open(folder, 0)"])
def test_what_is_guarded_or_the_same_everywhere_passes(code):
    assert not findings(TransformerManager().transform_cell(code))


RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(\..*)?", re.I)


def forbidden(names):
    """Those of `names` (relative, with /) that a checkout on Windows could not have."""
    seen = set()
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        parts = PurePosixPath(name).parts
        if folded in seen or len(name) > 120 or any(re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', part) or RESERVED.fullmatch(part) for part in parts):
            yield name  # 120: Windows' 260 less a folder deep in a home
        seen.add(folded)


def test_windows_can_check_the_files_out():
    files = list(project_files())
    assert len(files) > 60 and not [path for path in files if path.is_symlink()]
    assert not list(forbidden(path.relative_to(ROOT).as_posix() for path in files))


@pytest.mark.parametrize("names", [
    ["a:b"], ["what?.py"], ["a\\b"], ["tests/con"], ["aux.py"], ["folder/Nul.txt/x"], ["com1.csv"], ["dot."], ["space /x"], ["x" * 121], ["README.md", "Readme.md"],
    ["\u00e4", "a\u0308"], ["tab\t"]])
def test_a_name_that_windows_forbids_is_found(names):
    assert list(forbidden(names)) == names[-1:]


def test_names_that_windows_takes():
    assert not list(forbidden([".ci/run", "console.py", "com.py", "com10.txt", "a.b", "dir one/\u00e4 \u00f6.csv"]))


def test_a_run_writes_only_names_that_windows_takes(recipe, tokens, tmp_path):
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=3)
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert any("checkpoints/step-" in name for name in files) and not list(forbidden(files))


def run(code, *arguments, **environment):
    return subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "AGNEWS_PROFILE": "offline", **environment})


def test_doctor_where_the_modules_of_posix_are_missing():
    code = ("import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty', 'tty', 'syslog', 'readline', 'curses'): sys.modules[name] = None\n"
            "from agnews_helpers.cli import main\nsys.exit(main(['doctor']))")
    ended = run(code)
    assert ended.returncode == 0 and "Ready." in ended.stdout, ended.stderr


def test_a_folder_is_saved_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    def open_file(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(storage, "os", SimpleNamespace(**{**vars(os), "name": "nt", "open": open_file}))
    storage.write_folder(tmp_path / "saved", lambda path: (path / "a.txt").write_text("a", encoding="utf-8"))
    assert set(storage.check_folder(tmp_path / "saved")) == {"a.txt"}


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_maps"), reason="macOS does not say which files are mapped")
def test_no_file_stays_mapped_that_windows_could_then_not_replace(tiny, recipe, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    models = load_model(recipe.but(model=str(tmp_path / "copy"))), *load_classifier(tmp_path / "copy")
    mapped = [file.path for file in psutil.Process().memory_maps() if str(tmp_path) in file.path]
    assert len(models) == 3 and not mapped


C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}


def a_folder_of_news(folder, line_end="\n"):
    folder.mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        text = (SAMPLE / name).read_text(encoding="utf-8").replace('","', '","Müller: ', 1)
        (folder / name).write_bytes(text.replace("\n", line_end).encode("utf-8"))
    return folder


def test_files_are_utf8_where_the_locale_is_not(tiny, tmp_path):
    code = ("import locale; assert locale.getpreferredencoding() not in ('UTF-8', 'utf-8')\n"
            "from agnews_helpers.cli import main\n"
            f"out = ['--output-dir', {str(tmp_path / 'run')!r}]\n"
            "raise SystemExit(main(['train', '--epochs', '1', *out]) or main(['predict', 'Z\\xfcrich', *out]))")
    ended = run(code, **C_LOCALE, AGNEWS_DATA=str(a_folder_of_news(tmp_path / "news")), AGNEWS_MODEL=str(tiny), AGNEWS_TRAIN_ROWS="44", AGNEWS_TEST_ROWS="20")
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
    assert main(["train", "--epochs", "1", "--resume", "--json", str(place / "Zahlen ü.json"), *out]) == 0
    assert main(["evaluate", *out]) == 0 and main(["predict", "text", *out]) == 0
    assert not capsys.readouterr().err.count("Error")


def test_a_checkout_with_crlf_has_the_same_rows(recipe, tmp_path):
    one, other = (load_agnews(recipe.but(data=str(a_folder_of_news(tmp_path / name, end)))) for name, end in (("lf", "\n"), ("crlf", "\r\n")))
    assert all(one[split][:] == other[split][:] for split in one)


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_pip_reads_constraints_with_crlf(name, tmp_path):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    (tmp_path / name).write_bytes("\r\n".join([*lines, "packaging==0.0"]).encode("utf-8"))
    code = f"from pip._internal.cli.main import main; raise SystemExit(main(['install', '--dry-run', '--no-index', '-c', {str(tmp_path / name)!r}, 'packaging']))"
    ended = run(code)
    assert ended.returncode == 1 and "packaging==0.0" in ended.stderr + ended.stdout
