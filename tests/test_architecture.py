"""Who may import whom, and who alone may touch what: held by reading every file of the tree.

The map is in the packages' docstrings. A failure here names the file and the import; the answer is to move code to the
room where it belongs, seldom to change this file.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("builder", "cache", "grammar")

DOORKEEPERS = {
    "lark": {"grammar/parser.py"},
    "sqlite3": {"cache/database.py"},
    "urllib3": {"builder/fetch.py", "cache/connection.py"},
    "http.client": {"builder/engines.py"},
    "ctypes": {"builder/sandbox.py"},
    "rich": {"builder/terminal.py"},
    "tarfile": {"cache/layers.py", "builder/archives.py"},
    "platformdirs": {"builder/cli/surroundings.py"},
    "isal": {"cache/compression.py"},
    "backports": {"cache/compression.py"},
    "compression": {"cache/compression.py"},
}
"""Foreign thing: the only files that may import it."""

ALLOWED = {"lark", "rich", "isal", "msgspec", "urllib3", "platformdirs"}
"""The dependencies that pyproject.toml names."""

HEAVY = (
    "argparse", "asyncio", "backports", "click", "concurrent.futures", "dataclasses", "isal", "lark", "rich", "sqlite3",
    "subprocess", "tarfile", "tempfile", "urllib3", "urllib.request", "importlib.metadata",
)  # fmt: skip
"""What the start of every command must not load."""

ORDER = (
    {"model", "errors", "sandbox"},
    {"events", "plan", "context", "executors"},
    {"handlers"},
    {"engine"},
    {"export"},
    {"cli"},
)
"""The rooms of `builder` from the bottom up; none may import one above it."""

NO_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}


class Import(NamedTuple):
    """One import statement's target, as a dotted name."""

    module: str
    line: int
    typing_only: bool


class _Finder(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[Import] = []
        self._typing = False

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._typing = True
            for child in node.body:
                self.visit(child)
            self._typing = False
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, node.lineno, self._typing) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: imports name the whole path"
        module = node.module or ""
        for alias in node.names:
            inner = f"{module}.{alias.name}"
            is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").exists() or (
                ROOT / inner.replace(".", "/")
            ).is_dir()
            self.found.append(Import(inner if is_module else module, node.lineno, self._typing))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    finder = _Finder()
    finder.visit(tree_of(path))
    return tuple(finder.found)


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def touches(module: str, thing: str) -> bool:
    return module == thing or module.startswith(f"{thing}.")


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports(path: Path) -> None:
    name, package = name_of(path), name_of(path).split("/")[0]
    wrong = []
    for item in imports_of(path):
        top = item.module.split(".")[0]
        wrong += [
            f"{name}:{item.line}: only {', '.join(sorted(keepers))} may import {thing}"
            for thing, keepers in DOORKEEPERS.items()
            if touches(item.module, thing) and name not in keepers and not item.typing_only
        ]
        if top in PACKAGES:
            if package in {"grammar", "cache"} and top != package:
                wrong.append(f"{name}:{item.line}: {package} knows nothing of {top}")
            if (
                touches(item.module, "builder.cli")
                and not name.startswith("builder/cli/")
                and name != "builder/__main__.py"
            ):
                wrong.append(f"{name}:{item.line}: nothing imports cli")
        elif top not in sys.stdlib_module_names and top not in ALLOWED:
            wrong.append(f"{name}:{item.line}: {top} is no dependency of this project")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [path for path in sources() if name_of(path).startswith("builder/")], ids=name_of)
def test_rooms_of_builder_import_downwards(path: Path) -> None:
    levels = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
    own = levels.get(module_of(path).split(".")[1] if "." in module_of(path) else "")
    if own is None:
        own = len(ORDER)
    wrong = []
    for item in imports_of(path):
        parts = item.module.split(".")
        level = levels.get(parts[1], 0) if parts[0] == "builder" and len(parts) > 1 else 0
        if level > own and not item.typing_only:
            wrong.append(f"{name_of(path)}:{item.line}: {item.module} stands above")
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_circles() -> None:
    known = {module_of(path): path for path in sources()}
    edges = {
        module: {
            item.module
            for item in imports_of(path)
            if item.module in known and item.module != module and not item.typing_only
        }
        for module, path in known.items()
    }
    # A package's own modules may import names that its __init__ defines first.
    for module, targets in edges.items():
        targets.discard(module.rpartition(".")[0])
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " imports ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                walk(target, (*trail, module))
            done.add(module)

    for module in sorted(known):
        walk(module, ())


def test_the_sandbox_stands_alone() -> None:
    path = ROOT / "builder" / "sandbox.py"
    ours = [item for item in imports_of(path) if item.module.split(".")[0] not in sys.stdlib_module_names]
    assert not ours, "builder/sandbox.py starts with the standard library alone"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_only_the_cli_prints_exits_and_reads_the_environment(path: Path) -> None:
    name = name_of(path)
    if name.startswith("builder/cli/") or name == "builder/sandbox.py":
        pytest.skip("the doorkeeper itself")
    wrong = []
    for node in ast.walk(tree_of(path)):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Call(func=ast.Name(id="print" | "input" | "exit" | "quit" as what)):
                wrong.append(f"{name}:{line}: {what}()")
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit" | "argv" | "stdin" | "stdout" | "stderr" as what):
                wrong.append(f"{name}:{line}: sys.{what}")
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" as what):
                wrong.append(f"{name}:{line}: os.{what}")
            case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {each.name for each in names}:
                wrong.append(f"{name}:{line}: the environment")
            case _:
                pass
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in sources() if name_of(p).startswith("cache/")], ids=name_of)
def test_the_cache_starts_no_program(path: Path) -> None:
    wrong = [item for item in imports_of(path) if touches(item.module, "subprocess")]
    assert not wrong, f"{name_of(path)} imports subprocess"


@pytest.mark.parametrize("path", [p for p in sources() if name_of(p).startswith("grammar/")], ids=name_of)
def test_the_grammar_is_pure(path: Path) -> None:
    foreign = {"os", "io", "pathlib", "socket", "subprocess", "threading", "time", "tempfile"}
    if name_of(path) == "grammar/parser.py":
        foreign.remove("pathlib")  # for dockerfile.lark, which lies beside it
    wrong = [item.module for item in imports_of(path) if item.module.split(".")[0] in foreign and not item.typing_only]
    assert not wrong, f"{name_of(path)} imports {wrong}"


def test_no_module_is_a_drawer() -> None:
    wrong = [name_of(path) for path in sources() if NO_NAMES & set(name_of(path).removesuffix(".py").split("/"))]
    assert not wrong, f"a module's name says what it is about: {wrong}"


def test_every_module_says_what_it_is() -> None:
    wrong = [name_of(path) for path in sources() if not ast.get_docstring(tree_of(path))]
    assert not wrong, f"without a docstring: {wrong}"


def test_the_top_level_is_fixed() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    ).stdout
    if not listed:
        pytest.skip("not a git checkout")
    found = {name.split("/")[0] for name in listed.split("\0") if name and not name.startswith(".")}
    assert found == {
        "LICENSE", "README.md", "pyproject.toml", "requirements.lock",
        "builder", "cache", "examples", "grammar", "tests",
    }  # fmt: skip


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import builder.cli", id="start"),
        pytest.param("import builder.cli.build, builder.terminal", id="build command"),
        pytest.param("import builder.cli.images", id="image commands"),
    ],
)
def test_start_loads_nothing_heavy(code: str) -> None:
    modules = loaded(code)
    assert not [heavy for heavy in HEAVY if heavy in modules]


def test_a_cached_build_loads_nothing_heavy() -> None:
    path = ROOT / "builder" / "build.py"
    assert path.exists()
    modules = loaded("import builder.cli.build, builder.build, cache.store")
    # The database is what a cached build reads.
    allowed = {"sqlite3"}
    assert not [heavy for heavy in HEAVY if heavy in modules and heavy not in allowed]
