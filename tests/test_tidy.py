"""What a machine can check of the house rules; see CONTRIBUTING.md and docs/architecture.md."""

import ast
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("schemas", "producers", "stream_processors", "sinks", "deploy")
#: Whom each room may import beside itself.
MAY_IMPORT = {
    "schemas": set[str](),
    "producers": {"schemas"},
    "stream_processors": {"schemas"},
    "sinks": {"schemas"},
    "deploy": {"schemas", "producers", "stream_processors", "sinks"},
}
LINE_MAX = 100
#: What a line tells the tools does not count, as with ruff.
PRAGMA = re.compile(r"\s*# (noqa|type: ignore).*")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
README_LINES_MAX = 150

#: Folders that no commit holds, for checkouts without git.
UNTRACKED = re.compile(
    r"(^|/)(\.git|\.venv[^/]*|\.?[a-z_]*cache[a-z_]*|\.hypothesis|dist|build)(/|$)"
)


def tracked() -> list[Path]:
    """Every file that is, or would be, in a commit."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        paths = [ROOT / name for name in found.stdout.split("\0") if name]
    else:
        paths = [
            Path(folder) / name
            for folder, _, names in os.walk(ROOT)
            for name in names
            if not UNTRACKED.search(str((Path(folder) / name).relative_to(ROOT)))
        ]
    return sorted(path for path in paths if path.is_file())


def modules(*folders: str) -> list[Path]:
    """Python files below some folders."""
    return [
        path
        for path in tracked()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders
    ]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length without docstring of every function."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield node.name, length


def test_nothing_hides_the_other_rooms_of_the_namespace() -> None:
    assert [room for room in ROOMS if (ROOT / room / "trailweave" / "__init__.py").exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_holds_its_package_and_says_that_it_is_typed(room: str) -> None:
    package = ROOT / room / "trailweave" / room

    assert (package / "__init__.py").is_file()
    assert (package / "py.typed").is_file()
    assert [path.name for path in (ROOT / room).glob("*.py")] == []


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(room)
        for name in _imports(path)
        if name.startswith("trailweave.") and name.split(".")[1] not in allowed
    ]

    assert wrong == []


def test_only_one_module_imports_faust() -> None:
    faust = {path.name for path in modules(*ROOMS) if "faust" in set(_imports(path))}

    assert faust <= {"watch.py"}


def test_an_agents_process_needs_three_packages_only() -> None:
    # Lazy imports are inside functions; at the top only the base dependencies may stand.
    base = {"confluent_kafka", "fastavro", "rfc8785", "trailweave"} | sys.stdlib_module_names
    optional = {"registry.py"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("schemas", "producers")
        if path.name not in optional
        for node in ast.parse(path.read_text("utf-8")).body
        for name in _top_names(node)
        if name not in base
    ]

    assert wrong == []


def _top_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module.split(".")[0]]
    return []


def test_lines_functions_and_modules_stay_short() -> None:
    wrong = []
    for path in modules(*ROOMS, "tests"):
        name, lines = path.relative_to(ROOT), path.read_text("utf-8").split("\n")
        texts = [PRAGMA.sub("", line) for line in lines]
        wrong += [f"{name}:{n + 1} is long" for n, text in enumerate(texts) if len(text) > LINE_MAX]
        if len(lines) > MODULE_LINES_MAX:
            wrong.append(f"{name} has {len(lines)} lines")
        wrong += [
            f"{name}: {function} has {length} lines"
            for function, length in _functions(path)
            if length > FUNCTION_LINES_MAX
        ]

    assert wrong == []


def test_nothing_is_left_to_do_later() -> None:
    # Put together here, so that this file passes.
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in modules(*ROOMS, "tests")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if marks.search(line)
    ]

    assert wrong == []


def test_every_schema_has_an_example_and_a_topic() -> None:
    from trailweave.schemas.topics import load_topics

    package = ROOT / "schemas" / "trailweave" / "schemas"
    schemas = {path.stem for path in (package / "avro").glob("*.avsc")} - {"envelope"}
    carried = [schema for topic in load_topics() for schema in topic.schemas]

    assert {path.stem for path in (package / "examples").glob("*.json")} == schemas
    assert sorted(carried) == sorted(schemas)


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    # Put together here, so that this file passes.
    homes = "|".join(("ro" + "ot", "ho" + "me", "Us" + "ers", "wo" + "rk", "op" + "t"))
    hosts = ("py" + "pi.org", "python" + "hosted.org", "mav" + "en.org", "apache.org/mav" + "en2")
    pattern = re.compile(rf"(?<![\w.~$}}/-])/(?:{homes})/\w|" + "|".join(map(re.escape, hosts)))
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found.group()}"
        for path in tracked()
        if path.suffix not in (".png", ".ico", ".woff2")
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if (found := pattern.search(line))
    ]

    assert wrong == []


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_holds_versions_and_hashes_only(lock: str) -> None:
    lines = (ROOT / lock).read_text("utf-8").splitlines()
    pin = re.compile(r"[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")

    assert [line for line in lines if not pin.fullmatch(line)] == []


def test_both_locks_have_the_same_versions() -> None:
    locks = [
        set(re.findall(r"^\S+==\S+", (ROOT / name).read_text("utf-8"), re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    ]

    assert locks[0] - locks[1] == set()


# --- documents -------------------------------------------------------------------------------


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES_MAX


def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    # A title alone has nothing to show yet.
    assert blocks or len(text.splitlines()) < 5
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own


def test_every_relative_link_leads_somewhere() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
        if not (path.parent / target).exists()
    ]

    assert wrong == []


def _documented() -> str:
    return "\n".join(path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md"))


def _commands(command: click.Command, name: str) -> Iterator[str]:
    yield name
    if isinstance(command, click.Group):
        context = click.Context(command)
        for part in command.list_commands(context):
            found = command.get_command(context, part)
            assert found is not None
            yield from _commands(found, f"{name} {part}")


def test_every_command_is_in_the_docs() -> None:
    from trailweave.deploy.commands.root import root

    text = _documented()

    assert [name for name in _commands(root, "trailweave") if name not in text] == []


def test_every_setting_is_in_the_docs() -> None:
    from trailweave.deploy.settings import Settings

    text = _documented()
    settings = Settings()
    wrong = []
    for section in dataclasses.fields(settings):
        value = getattr(settings, section.name)
        if f"[{section.name}]" not in text:
            wrong.append(f"[{section.name}]")
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            wrong += [n for n in (f"{section.name}.{n}" for n in names) if f"`{n}`" not in text]

    assert wrong == []


def test_every_metric_is_in_the_docs() -> None:
    from trailweave.sinks.metrics import LoadMetrics
    from trailweave.stream_processors.metrics import JoinMetrics

    text = _documented()
    registries = [JoinMetrics().registry, LoadMetrics().registry]
    names = [metric.name for registry in registries for metric in registry.collect()]

    assert [name for name in names if f"`{name}`" not in text] == []


# --- the package -----------------------------------------------------------------------------


def _build(kind: str, source: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


def test_a_wheel_built_through_the_sdist_holds_everything(tmp_path: Path) -> None:
    # A copy, for a build reads the whole tree, and others may be writing to it.
    source = tmp_path / "source"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    with tarfile.open(_build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(_build("wheel", unpacked, tmp_path / "wheel")) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
        script = wheel.read(entry_points).decode()

    ours = {
        str(path.relative_to(source / room))
        for room in ROOMS
        for path in (source / room / "trailweave").rglob("*")
        if path.is_file()
    }
    assert held == ours
    assert {f"trailweave/{room}/py.typed" for room in ROOMS} <= held
    assert "trailweave = trailweave.deploy.cli:main" in script
