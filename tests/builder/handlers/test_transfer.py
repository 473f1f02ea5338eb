"""COPY, ADD and WORKDIR as FileSteps."""

from __future__ import annotations

import pytest

from builder.errors import BuildError
from builder.handlers import initial_state, lower_all
from builder.model import CONTEXT, FileStep, GitSource, InlineSource, Lowered, Origin, PathSource, UrlSource
from builder.plan import plan
from builder.remotes import is_git, is_url
from grammar.parser import parse
from grammar.source import Source

SUM = "sha256:" + "a" * 64


def last(body: str, head: str = "", contexts: tuple[str, ...] = ()) -> Lowered:
    found = plan(parse(Source("Dockerfile", f"{head}FROM scratch\n{body}\n")), contexts=contexts)
    scope = found.scope(found.target)
    return lower_all(found.stages[-1].instructions, initial_state(None, scope), scope)[-1]


def step(body: str, head: str = "", contexts: tuple[str, ...] = ()) -> FileStep:
    found = last(body, head, contexts).step
    assert isinstance(found, FileStep)
    return found


def refused(body: str) -> BuildError:
    with pytest.raises(BuildError) as caught:
        last(body)
    assert caught.value.span is not None
    return caught.value


def patterns(found: FileStep) -> list[str]:
    return [source.pattern for source in found.sources if isinstance(source, PathSource)]


# ---------------------------------------------------------------- COPY


@pytest.mark.parametrize(
    ("workdir", "written", "destination", "into"),
    [
        ("/", "/a", "/a", False), ("/", "/a/", "/a", True), ("/", "/a/.", "/a", True), ("/w", ".", "/w", True),
        ("/w", "./", "/w", True), ("/w", "b", "/w/b", False), ("/w", "b/", "/w/b", True), ("/w", "../b", "/b", False),
        ("/w", "../../..", "/", False), ("/w", "/", "/", True), ("//x///y/", "z", "/x/y/z", False),
        ("/w", "''", "/w", True), ("/w", "//a", "/a", False),
    ],
)  # fmt: skip
def test_destinations(workdir: str, written: str, destination: str, into: bool) -> None:
    found = step(f"WORKDIR {workdir}\nCOPY a {written}")
    assert (found.destination, found.into) == (destination, into)


def test_copy() -> None:
    line = last("ENV S=a U=9\nCOPY --chown=$U:g --chmod=0750 --exclude=*.$S ${S}.txt 'b' /d/")
    found = line.step
    assert isinstance(found, FileStep)
    assert found.origin == CONTEXT
    assert patterns(found) == ["a.txt", "b"]
    assert (found.chown, found.chmod, found.unpack, found.link) == ("9:g", "0750", False, False)
    assert found.excludes == ("*.$S",)


def test_copy_history() -> None:
    line = last("ENV N=a\nCOPY --parents --chmod=600 --chown=1:2 $N ?.md /d-${N}/")
    assert line.created_by == "COPY --parents --chown=1:2 --chmod=600 a ?.md /d-a/ # buildkit"
    assert line.title == "COPY --parents --chmod=600 --chown=1:2 $N ?.md /d-${N}/"


def test_json_form_is_expanded_too() -> None:
    assert patterns(step('ENV N=a\nCOPY ["$N b.txt", "/d/"]')) == ["a b.txt"]


def test_origins() -> None:
    assert step("COPY --from=busybox /a /a").origin == Origin(image="busybox")
    assert step("COPY --from=busybox /a /a", contexts=("busybox",)).origin == Origin(context="busybox")
    assert step("COPY --from=base /a /a", head="FROM busybox AS base\n").origin == Origin(stage=0)
    assert step("COPY --from=0 /a /a", head="FROM busybox AS base\n").origin == Origin(stage=0)
    assert step("COPY --from=$B /a /a", head="ARG B=base\nFROM busybox AS base\n").origin == Origin(stage=0)


def test_link() -> None:
    assert step("COPY --link a /a").link
    assert not step("COPY --link=false a /a").link
    assert not step("COPY --link --chmod=600 a /a").link
    assert not step("COPY --parents=false a /a").parents


def test_heredocs() -> None:
    body = "ENV E=x\nCOPY <<one file <<'two' /d/\n$E \"$E\" \\$E\none\n$E\ntwo"
    found = step(body)
    assert found.sources[1:] == (InlineSource("one", b'x "x" $E\n'), InlineSource("two", b"$E\n"))
    assert last(body).created_by == "COPY file <<one <<two /d/ # buildkit"


@pytest.mark.parametrize(
    "mode", ["0", "644", "07777", "u=rwX,go=rX", "+x", "-r", "g=u", "a+X", "u+s,g+x", "+t", "u=rw,g=r,o="]
)
def test_modes(mode: str) -> None:
    assert step(f"COPY --chmod={mode} a /a").chmod == mode


@pytest.mark.parametrize("mode", ["10000", "8", "999", "-1", "rwx", "u=q", "u~x", "u+x,", "0x1"])
def test_modes_refused(mode: str) -> None:
    assert "invalid chmod parameter" in refused(f"COPY --chmod={mode} a /a").message


def test_copy_takes_no_remote_source() -> None:
    assert "URL" in refused("COPY https://example.com/a /a").message
    assert "git" in refused("COPY https://example.com/a.git /a").message
    assert "git" in refused("COPY git@example.com:a/b /a").message


def test_quotes_that_do_not_match() -> None:
    assert "double-quote" in refused('COPY "with blank" /d/').message


def test_secrets_are_masked_in_history() -> None:
    line = last("ARG API_TOKEN=hunter2\nADD https://u:$API_TOKEN@h/f /$API_TOKEN")
    assert line.created_by == "ADD https://u:***@h/f /*** # buildkit"
    assert line.secrets == {"hunter2"}
    assert "hunter2" not in line.title
    assert last("ARG API_TOKEN=a\nCOPY a /a").created_by == "COPY a /a # buildkit"


# ---------------------------------------------------------------- ADD


def test_add() -> None:
    found = step("ADD a.tar /d/")
    assert found.unpack is None
    assert step("ADD --unpack=false a.tar /d/").unpack is False
    assert step("ADD --unpack https://h/a.tar /d/").unpack is True


def test_add_remote() -> None:
    (url,) = step(f"ARG H=https://h\nADD --checksum={SUM} $H/f /f").sources
    assert isinstance(url, UrlSource)
    assert (url.url, url.checksum) == ("https://h/f", SUM)
    (git,) = step("ADD --keep-git-dir https://h/r.git#v1:sub /src").sources
    assert isinstance(git, GitSource)
    assert (git.url, git.keep_git_dir, git.checksum) == ("https://h/r.git#v1:sub", True, "")
    (query,) = step("ADD https://h/r.git?ref=v1&keep-git-dir&commit=0123abc /src").sources
    assert isinstance(query, GitSource)
    assert (query.keep_git_dir, query.checksum) == (True, "0123abc")


@pytest.mark.parametrize(
    ("text", "git", "url"),
    [
        ("https://h/a.git", True, False), ("https://h/a.git#v1", True, False), ("https://h/a.git?ref=x", True, False),
        ("http://h/a", False, True), ("https://h/", False, True), ("git://h/a", True, False),
        ("ssh://git@h/a", True, False), ("git@h:a/b.git", True, False), ("github.com/a/b", False, False),
        ("a@b", False, False), ("./a@b:c", False, False), ("ftp://h/a", False, False), ("a.git", False, False),
        ("https://h/a.gitx", False, True),
    ],
)  # fmt: skip
def test_what_is_remote(text: str, git: bool, url: bool) -> None:
    assert (is_git(text), is_url(text)) == (git, url)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"ADD --checksum={SUM} a /a", "checksum requires HTTP"),
        (f"ADD --checksum={SUM} https://h/a https://h/b /a/", "multiple sources"),
        ("ADD --checksum=md5:7e55db001d319a94b0b713529a756623 https://h/f /f", "unsupported digest algorithm"),
        ("ADD --checksum=sha256:12 https://h/f /f", "invalid checksum"),
        ("ADD --checksum=zz https://h/f.git /f", "invalid checksum"),
        ("ADD --keep-git-dir=false https://h/f.git?keep-git-dir=1 /f", "inconsistent keep-git-dir"),
        ("ADD https://h/f.git?rf=1 /f", "unexpected query 'rf'"),
        ("ADD https://h/f.git?ref=1&ref=2 /f", "multiple values"),
        ("ADD https://h/f.git?ref= /f", "no value"),
        ("ADD https://h/f.git?tag=1&branch=2 /f", "branch conflicts with tag"),
        ("ADD https://h/f.git?mtime=never /f", "mtime"),
        ("ADD --checksum=0123abc https://h/f.git?commit=9999999 /f", "checksum mismatch"),
    ],
)
def test_add_refuses(body: str, message: str) -> None:
    assert message in refused(body).message


# ---------------------------------------------------------------- WORKDIR


@pytest.mark.parametrize(
    ("first", "second", "working_dir"),
    [
        ("/a", "b", "/a/b"),
        ("/a", "/c", "/c"),
        ("/a/b", "./c/../d", "/a/b/d"),
        ("/a", "..", "/"),
        ("/a", "../../..", "/"),
    ],
)
def test_workdir(first: str, second: str, working_dir: str) -> None:
    assert last(f"WORKDIR {first}\nWORKDIR {second}").state.config.working_dir == working_dir


def test_workdir_makes_the_directory_as_the_current_user() -> None:
    assert step("USER daemon\nWORKDIR /made/deep/") == FileStep(
        origin=CONTEXT, sources=(), destination="/made/deep", into=True, chown="daemon"
    )
    line = last("WORKDIR /made/deep/")
    assert line.created_by == "WORKDIR /made/deep/"
    assert line.state.config.working_dir == "/made/deep/"


def test_the_root_is_there_already() -> None:
    assert last("WORKDIR /").step is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COPY --exclude=$X a /", "--exclude=$X is not expanded: a variable in it is a plain text"),
        ("ADD --keep-git-dir=true a /", "--keep-git-dir has no effect: no source is a git repository"),
    ],
)
def test_what_has_no_effect_is_said(line: str, message: str) -> None:
    assert [finding.message for finding in last(line).findings] == [message]
    assert not last("ADD --keep-git-dir=true --exclude=x https://h/r.git /").findings
