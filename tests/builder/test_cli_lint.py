"""`pybuild lint` as a user calls it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from builder.cli import run
from builder.cli.surroundings import Surroundings
from tests.building import write

ROOT = Path(__file__).resolve().parents[2]
GOOD = 'FROM debian:12\nWORKDIR /app\nCOPY app.py .\nUSER 1000\nCMD ["python3", "app.py"]\n'
BAD = "FROM debian:12\nRUN sudo true\n"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def lint(*words: str, stdin: bytes = b"", path: str = "") -> Ended:
    """The command in this process, without a store; PATH is empty unless a test gives one."""
    out, err = io.StringIO(), io.StringIO()
    environ = {"PATH": path, "PYBUILD_ROOT": "/nonexistent/store"}
    code = run(["lint", *words], Surroundings(environ, io.BytesIO(stdin), out, err))
    assert "Traceback" not in err.getvalue()
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a repository's root."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {".dockerignore": ".git\n"})
    return tmp_path


def rules(ended: Ended) -> list[tuple[str, int | None]]:
    return [(each["rule"], each.get("line")) for each in json.loads(ended.out)["findings"]]


# ---------------------------------------------------------------- what is meant


def test_a_folder_a_file_and_standard_input(here: Path) -> None:
    write(here, {"Dockerfile": BAD, "sub/Dockerfile": GOOD, "sub/Other": BAD})
    assert lint().code == 1
    assert lint(".").code == 1
    assert lint("sub").code == 0
    assert lint("sub/Other").code == 1
    assert lint("sub", "-f", "sub/Other").code == 1
    assert lint("-", stdin=BAD.encode()).code == 1
    assert lint(".", "-f", "-", stdin=GOOD.encode()).code == 0
    assert not (Path("/nonexistent")).exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere",), 2, "there is no folder, Dockerfile or image nowhere"),
        (("Dockerfil",), 2, "did you mean Dockerfile?"),
        (("",), 2, "the path is empty"),
        (("Dockerfile", "-f", "Dockerfile"), 2, "-f names another one"),
        (("empty",), 1, "there is no Dockerfile in empty"),
        ((".", "--format=srif"), 2, "did you mean sarif?"),
        ((".", "--select=SudoInRum"), 2, "did you mean SudoInRun?"),
        ((".", "--ignore=Nonsense"), 2, "there is no rule Nonsense"),
        ((".", "--severity=SudoInRun"), 2, "has no level"),
        ((".", "--severity=SudoInRun=bad"), 2, "'bad' is no severity"),
        ((".", "--fail-on=often"), 2, "'often' is no threshold"),
        ((".", "--config=none.toml"), 2, "none.toml: No such file or directory"),
        ((".", "--config=Dockerfile"), 2, "it is read as TOML"),
        ((".", "--config=plain.toml"), 2, "plain.toml has no settings of pybuild lint"),
        (("--explain=SudoInRum",), 2, "did you mean SudoInRun?"),
        ((".", "-o", "no/such/folder"), 2, "no/such/folder: No such file or directory"),
        ((".", "more"), 2, "takes at most 1 argument"),
        ((".", "--selct=x"), 2, "did you mean --select?"),
    ],
)
def test_what_can_not_be_understood(here: Path, words: tuple[str, ...], code: int, message: str) -> None:
    write(here, {"Dockerfile": GOOD, "plain.toml": "", "empty/": ""})
    ended = lint(*words)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err


# ---------------------------------------------------------------- exit codes and output


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ((), 1),
        (("--fail-on=error",), 0),
        (("--fail-on=never",), 0),
        (("--severity=DL3004=error", "--fail-on=error"), 1),
        (("--severity=SudoInRun=info",), 0),
        (("--severity=SudoInRun=info", "--fail-on=info"), 1),
        (("--ignore=DL3004",), 0),
        (("--select=LatestBase",), 0),
        (("--select=LatestBase,DL3004",), 1),
    ],
)
def test_exit_codes(here: Path, flags: tuple[str, ...], code: int) -> None:
    write(here, {"Dockerfile": BAD})
    assert lint(*flags).code == code


def test_text(here: Path) -> None:
    write(here, {"Dockerfile": BAD})
    assert lint().out == (
        "warning: SudoInRun: sudo is used in a RUN\n"
        " --> Dockerfile:2:5\n"
        "  |\n"
        "2 | RUN sudo true\n"
        "  |     ^^^^\n"
        "hint: leave it out; USER root above and USER NAME below change who runs it\n"
        "\n"
        "Dockerfile: 1 warning\n"
    )
    write(here, {"Dockerfile": GOOD})
    assert lint().out == "Dockerfile: nothing to say\n"


@pytest.mark.parametrize("form", ["text", "json", "sarif", "github", "gitlab", "junit", "checkstyle"])
def test_a_file_gets_what_the_screen_would(here: Path, form: str) -> None:
    write(here, {"Dockerfile": BAD})
    shown = lint("--format", form)
    ended = lint("--format", form, "-o", "out")
    assert (shown.code, ended.code, ended.out) == (1, 1, "")
    assert ended.err == "Dockerfile: 1 warning\n"
    assert (here / "out").read_text().rstrip("\n") == shown.out.rstrip("\n")


def test_the_rules_and_their_pages(here: Path) -> None:
    table = lint("--rules").out
    assert "SudoInRun" in table
    assert [line.split()[1] for line in table.splitlines() if line.startswith("UnpinnedSystemPackage")] == ["off"]
    page = lint("--explain", "DL3004").out
    assert page.startswith("SudoInRun (warning), also DL3004\n\nSudo should not be used.\n\nWhy: ")
    assert "DownloadPiped" in lint("--explain=DL4006").out
    assert "PipeHidesFailure" in lint("--explain=DL4006").out
    assert "are an error of the build itself" in lint("--explain=dl3021").out
    assert "https://www.shellcheck.net/wiki/SC2086" in lint("--explain=sc2086").out
    assert lint("--explain=JSONArgsRecommended").out.endswith("/rule/json-args-recommended/\n")


# ---------------------------------------------------------------- configuration


def test_the_nearest_configuration_counts(here: Path) -> None:
    write(here, {
        "a/b/Dockerfile": BAD,
        "pyproject.toml": "[tool.pybuild.lint]\nignore = ['SudoInRun']\n",
        "a/pyproject.toml": "[project]\nname = 'x'\n",
    })  # fmt: skip
    assert lint("a/b").code == 0
    write(here, {"a/.pybuild.toml": "[lint]\nseverity = {SudoInRun = 'error'}\n"})
    assert "error: SudoInRun" in lint("a/b").out
    write(here, {"a/b/.git/": ""})
    assert "warning: SudoInRun" in lint("a/b").out, "nothing above the repository counts"
    assert "error: SudoInRun" in lint("a/b", "--config=a/.pybuild.toml").out


def test_a_mistake_in_the_configuration_is_told_with_its_file(here: Path) -> None:
    write(here, {"Dockerfile": GOOD, ".pybuild.toml": "[lint]\nignore = ['SudoInRum']\n"})
    ended = lint()
    assert ended.code == 2
    assert ".pybuild.toml: there is no rule SudoInRum" in ended.err
    assert "did you mean SudoInRun?" in ended.err


def test_registries_and_labels(here: Path) -> None:
    write(here, {
        "Dockerfile": "FROM quay.io/a:1\nLABEL org.example.url=nowhere x=1\n",
        ".pybuild.toml": "[lint]\ntrusted-registries = ['docker.io', '*.example.com']\nstrict-labels = true\n"
        "required-labels = {'org.example.url' = 'url', 'org.example.hash' = 'hash'}\n",
    })  # fmt: skip
    assert rules(lint("--format=json")) == [
        ("RequiredLabelMissing", 1), ("UntrustedRegistry", 1), ("InvalidLabelValue", 2), ("SuperfluousLabel", 2),
    ]  # fmt: skip
    write(here, {"Dockerfile": "FROM a:1\nFROM docker.io/b:1\nFROM r.example.com/c:1\n"})
    found = [rule for rule, _ in rules(lint("--format=json"))]
    assert "UntrustedRegistry" not in found


# ---------------------------------------------------------------- files that can not be built


def test_a_file_that_does_not_parse_gets_the_rules_that_can_run(here: Path) -> None:
    write(here, {"Dockerfile": "FROM debian\nRNU true\nRUN sudo true\nCOPY x\nUSER root\n"})
    ended = lint("--format=json")
    assert ended.code == 1
    assert rules(ended) == [
        ("DoesNotBuild", 2), ("DoesNotBuild", 4), ("UntaggedBase", 1), ("SudoInRun", 3),
    ]  # fmt: skip
    assert "did you mean RUN?" in lint().out


def test_a_file_without_a_base_gets_them_too(here: Path) -> None:
    write(here, {"Dockerfile": "FROM\nRUN sudo true\n"})
    assert rules(lint("--format=json")) == [("DoesNotBuild", 1), ("SudoInRun", 2)]
    write(here, {"Dockerfile": ""})
    assert rules(lint("--format=json")) == [("DoesNotBuild", 1)]


def test_a_file_that_can_not_be_planned_gets_them_too(here: Path) -> None:
    write(here, {"Dockerfile": "FROM a:1 AS x\nRUN sudo true\nFROM x\nCOPY --from=2 /a /\nEXPOSE 99999\n"})
    assert ("SudoInRun", 2) in rules(lint("--format=json"))
    assert lint("--format=json").code == 1


def test_a_broken_ignore_file_is_told_and_the_rules_run(here: Path) -> None:
    write(here, {"Dockerfile": BAD, ".dockerignore": "x\n!\n"})
    ended = lint("--format=json")
    assert ended.code == 1
    first = json.loads(ended.out)["findings"][0]
    assert (first["file"], first["rule"], first["line"]) == (".dockerignore", "DoesNotBuild", 2)
    assert ("SudoInRun", 2) in rules(ended)


def test_the_threshold_does_not_hide_a_mistake(here: Path) -> None:
    write(here, {"Dockerfile": "FROM a:1\nNONSENSE\n"})
    assert lint("--fail-on=error").code == 1


# ---------------------------------------------------------------- shellcheck


needs_shellcheck = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")


def checked(here: Path, text: str, *flags: str) -> list[tuple[str, int, int, int]]:
    write(here, {"Dockerfile": text})
    found = shutil.which("shellcheck")
    assert found is not None
    ended = lint("--format=json", "--select=ShellCheck", *flags, path=str(Path(found).parent))
    return [
        (each["rule"], each["line"], each["column"], each["endColumn"]) for each in json.loads(ended.out)["findings"]
    ]


@needs_shellcheck
def test_shellcheck_finds_the_place_over_continuations(here: Path) -> None:
    text = "FROM a:1\nRUN --network=none true && \\\n  # a comment\n\techo $unquoted && \\\n    echo $(id) $x\n"
    found = checked(here, text)
    assert ("SC2086", 4, 7, 16) in found
    assert ("SC2046", 5, 10, 15) in found


@needs_shellcheck
def test_shellcheck_reads_here_documents(here: Path) -> None:
    text = "FROM a:1\nRUN <<-EOF\n\ttrue\n\tread x\n\techo $x\nEOF\nRUN cat <<A >/a; read y; echo $y\n$z\nA\n"
    found = checked(here, text)
    assert ("SC2086", 5, 7, 9) in found
    assert ("SC2086", 7, 31, 33) in found


@needs_shellcheck
def test_shellcheck_knows_the_shell(here: Path) -> None:
    line = "RUN [[ a == b ]]\n"
    assert [found[0] for found in checked(here, f"FROM a:1\n{line}")].count("SC3010") == 1
    assert "SC3010" not in {found[0] for found in checked(here, f'FROM a:1\nSHELL ["/bin/bash", "-c"]\n{line}')}
    assert "SC3010" not in {found[0] for found in checked(here, f"# hadolint shell=bash\nFROM a:1\n{line}")}
    assert "SC3010" not in {found[0] for found in checked(here, f"FROM a:1\n# hadolint shell=bash\n{line}")}
    assert "SC3010" not in {found[0] for found in checked(here, "FROM a:1\nRUN <<E\n#!/bin/bash\n[[ a == b ]]\nE\n")}
    assert checked(here, 'FROM a:1\nSHELL ["pwsh"]\nRUN [[ a == b ]]\n') == []
    assert checked(here, "FROM a:1\nRUN <<E\n#!/usr/bin/env python3\nx = [[1]]\nE\n") == []


@needs_shellcheck
def test_shellcheck_knows_the_variables(here: Path) -> None:
    text = 'FROM a:1\nENV some=1\nARG other\nRUN echo "$some$other$neither"\n'
    assert checked(here, text) == [("SC2154", 4, 22, 30)]


@needs_shellcheck
def test_shellcheck_can_be_silenced_and_left_out(here: Path) -> None:
    text = "FROM a:1\n# hadolint ignore=SC2086\nRUN read -r x; echo $x\n"
    assert "SC2086" not in {found[0] for found in checked(here, text)}
    assert "SC2086" in {found[0] for found in checked(here, text.replace("SC2086", "SC2000"))}
    assert checked(here, text.replace("SC2086", "SC2000"), "--ignore=SC2086,SC2000") == []
    write(here, {".pybuild.toml": "[lint]\nshellcheck = false\n"})
    assert checked(here, "FROM a:1\nRUN read -r x; echo $x\n") == []


def test_a_shellcheck_that_does_not_work_is_told(here: Path) -> None:
    write(here, {"Dockerfile": "FROM a:1\nRUN true\n", "bin/shellcheck": "#!/bin/sh\necho broken >&2\nexit 3\n"})
    (here / "bin/shellcheck").chmod(0o755)
    ended = lint(path=str(here / "bin"))
    assert ended.code == 1
    assert "ended with status 3: broken" in ended.err
    assert lint("--ignore=ShellCheck", path=str(here / "bin")).code == 0


# ---------------------------------------------------------------- examples


@pytest.mark.parametrize("name", ["hello", "python-web", "c-multistage"])
def test_the_examples_are_clean(name: str) -> None:
    ended = lint(str(ROOT / "examples" / name), "--format=json")
    found = [each for each in json.loads(ended.out)["findings"] if each["severity"] != "info"]
    assert found == []
    assert ended.code == 0


# ---------------------------------------------------------------- fixes


class Terminal(io.BytesIO):
    """Standard input that somebody sits at."""

    def isatty(self) -> bool:
        return True


MENDABLE = "FROM debian:12\r\nCMD server\r\n"
MENDED = b'FROM debian:12\r\nCMD ["server"]\r\n'


def asked(answer: bytes, *words: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    code = run(["lint", *words], Surroundings({}, Terminal(answer), out, err))
    return Ended(code, out.getvalue(), err.getvalue())


def test_a_diff_writes_nothing_and_can_be_applied(here: Path) -> None:
    write(here, {"Dockerfile": MENDABLE, ".dockerignore": "", "node_modules/x": ""})
    write(here, {"Dockerfile": MENDABLE.replace("CMD", "COPY . /\r\nCMD")})
    ended = lint("--diff")
    assert ended.code == 1
    assert (here / "Dockerfile").read_bytes() == MENDABLE.replace("CMD", "COPY . /\r\nCMD").encode()
    (here / ".dockerignore").unlink()
    text = lint("--diff").out
    assert "--- /dev/null\n+++ b/.dockerignore\n" in text
    if shutil.which("git"):
        shutil.rmtree(here / ".git")
        subprocess.run(["git", "init", "-q", "."], check=True, cwd=here)
        diff = lint("--diff").out
        done = subprocess.run(["git", "apply"], input=diff.encode() + b"\n", cwd=here, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b'CMD ["server"]\r\n' in (here / "Dockerfile").read_bytes()
        assert (here / ".dockerignore").read_text() == ".git\nnode_modules\n"
        assert lint("--diff") == Ended(0, "", "")


def test_a_fix_is_shown_and_asked_for(here: Path) -> None:
    write(here, {"Dockerfile": MENDABLE})
    ended = asked(b"n\n", "--fix")
    assert (ended.code, (here / "Dockerfile").read_bytes()) == (1, MENDABLE.encode())
    assert '+CMD ["server"]' in ended.err
    assert "Write Dockerfile? [y/N] nothing was written" in ended.err
    assert "JSONArgsRecommended" in ended.out
    ended = asked(b"y\n", "--fix")
    assert (ended.code, (here / "Dockerfile").read_bytes()) == (0, MENDED)
    assert "mended 1 finding\n" in ended.err
    assert ended.out == "Dockerfile: nothing to say\n"
    assert asked(b"", "--fix").err == "nothing to mend\n"


def test_a_fix_keeps_mode_and_links(here: Path) -> None:
    write(here, {"real/file": MENDABLE})
    (here / "real/file").chmod(0o640)
    (here / "Dockerfile").symlink_to("real/file")
    assert lint("--fix", "--yes").code == 0
    assert (here / "Dockerfile").is_symlink()
    assert (here / "real/file").read_bytes() == MENDED
    assert (here / "real/file").stat().st_mode & 0o7777 == 0o640
    assert sorted(path.name for path in (here / "real").iterdir()) == ["file"]


def test_a_fix_of_some_rules_only(here: Path) -> None:
    write(here, {"Dockerfile": "FROM debian:12\nENV A b\nCMD server\n"})
    assert lint("--fix", "-y", "--select=LegacyKeyValueFormat").code == 0
    assert (here / "Dockerfile").read_text() == "FROM debian:12\nENV A=b\nCMD server\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fix",), "there is no terminal"),
        (("--fix", "--diff"), "leave out one of them"),
        (("--fix", "--yes", "-f", "-"), "the Dockerfile is standard input"),
        (("--fix", "--yes", "-"), "the Dockerfile is standard input"),
    ],
)
def test_what_can_not_be_fixed(here: Path, words: tuple[str, ...], message: str) -> None:
    write(here, {"Dockerfile": MENDABLE})
    ended = lint(*words, stdin=MENDABLE.encode())
    assert ended.code == 2
    assert message in ended.err
    assert (here / "Dockerfile").read_bytes() == MENDABLE.encode()
    assert '+CMD ["server"]' in lint("--diff", "-", stdin=MENDABLE.encode()).out


def test_a_file_that_changes_meanwhile_is_left_alone(here: Path) -> None:
    write(here, {"Dockerfile": MENDABLE})

    class Changing(Terminal):
        def readline(self, *_: object) -> bytes:
            (here / "Dockerfile").write_text("FROM other:1\n")
            return b"y\n"

    err = io.StringIO()
    assert run(["lint", "--fix"], Surroundings({}, Changing(), io.StringIO(), err)) == 2
    assert "has changed in the meantime" in err.getvalue()
    assert (here / "Dockerfile").read_text() == "FROM other:1\n"


def test_the_configuration_of_hadolint_counts_where_there_is_none_of_ours(here: Path) -> None:
    write(here, {"Dockerfile": BAD, ".hadolint.yaml": "ignored: [DL3004]\n"})
    assert lint() == Ended(0, "Dockerfile: nothing to say\n", "")
    write(here, {".hadolint.yaml": "ignored: &a [DL3004]\n"})
    ended = lint()
    assert ended.code == 1
    assert ended.err.startswith("note: .hadolint.yaml:1: this can not be read; nothing of it counts: ")
    write(here, {".pybuild.toml": "[lint]\nseverity = {SudoInRun = 'info'}\n"})
    assert lint().code == 0
