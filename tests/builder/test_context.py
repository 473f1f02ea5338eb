from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from builder.context import Contexts, Directory, Unpacked, is_image, looks_like_archive, open_contexts, walk
from builder.errors import BuildError
from cache.entries import BytesContent, Entry, Kind
from grammar.ignore import Ignore

if TYPE_CHECKING:
    from collections.abc import Callable


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(name)
    return root


def names(files: Directory | Unpacked, path: bytes = b"") -> list[str]:
    return [entry.path.decode() for entry in walk(files, path)]


def ignoring(root: Path, text: str) -> Directory:
    return Directory(root, Ignore.parse(text, ".dockerignore"))


def opened(context: str, *, file: str = "", stdin: bytes = b"", here: Path, **options: object) -> Contexts:
    return open_contexts(context, file, io.BytesIO(stdin), working_dir=here, **options)  # type: ignore[arg-type]


def text_of(contexts: Contexts, path: str, name: str = "") -> str:
    files = contexts.files(name)
    entry = files.entry(path.encode())
    assert entry is not None
    assert entry.content is not None
    with entry.content.open() as stream:
        return stream.read().decode()


# ---------------------------------------------------------------- directories


def test_a_directory(tmp_path: Path) -> None:
    put(tmp_path, "a", "d/b", "d/e/", "z")
    files = Directory(tmp_path)
    assert names(files) == ["a", "d", "d/b", "d/e", "z"]
    entry = files.entry(b"d/b")
    assert entry is not None
    assert (entry.kind, entry.size, entry.uid, entry.gid) == (Kind.FILE, 3, 0, 0)
    assert files.digest(entry) == hashlib.sha256(b"d/b").hexdigest()
    assert files.entry(b"d/none") is None
    assert files.entry(b"a/none") is None
    assert files.children(b"a") == []


def test_only_what_is_asked_for_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "src/a", "node_modules/m/n", "b")
    seen: list[bytes] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or real(path))  # type: ignore[func-returns-value]
    files = ignoring(tmp_path, "node_modules")
    files.children(b"src")
    files.children(b"src")
    assert [os.path.relpath(path, os.fsencode(tmp_path)) for path in seen] == [b".", b"src"]
    assert names(files) == ["b", "src", "src/a"]
    assert len(seen) == 2


def test_symlinks_resolve_inside(tmp_path: Path) -> None:
    put(tmp_path / "ctx", "real/x", "d/")
    put(tmp_path, "secret")
    os.symlink("/real", tmp_path / "ctx" / "abs")
    os.symlink("../../secret", tmp_path / "ctx" / "d" / "up")
    os.symlink("d", tmp_path / "ctx" / "dl")
    files = Directory(tmp_path / "ctx")
    entry = files.entry(b"abs/x")
    assert entry is not None
    assert entry.path == b"real/x"
    assert files.resolve(b"abs/../d/up") == b"secret"
    assert files.entry(files.resolve(b"d/up")) is None
    assert files.resolve(b"../../real") == b"real"
    assert files.resolve(b"dl/none/../x") == b"d/x"
    assert files.children(b"abs") == []
    link = files.entry(b"abs")
    assert link is not None
    assert (link.kind, link.target) == (Kind.SYMLINK, b"/real")


def test_the_context_itself_may_be_a_symlink(tmp_path: Path) -> None:
    put(tmp_path / "real", "a")
    os.symlink("real", tmp_path / "ctx")
    assert names(Directory(tmp_path / "ctx")) == ["a"]


def test_special_files(tmp_path: Path) -> None:
    import socket

    os.mkfifo(tmp_path / "pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/sock")
        finally:
            os.close(here)
    entries = list(walk(Directory(tmp_path)))
    assert [(entry.path, entry.kind, entry.mode) for entry in entries] == [(b"pipe", Kind.FIFO, 0o640)]


def test_devices(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("device nodes need root")
    (entry,) = walk(Directory(tmp_path))
    assert (entry.kind, entry.device) == (Kind.CHARACTER, (1, 3))


def test_odd_names(tmp_path: Path) -> None:
    odd = [b"-dash", b" lead", b"a b", b"new\nline", b"\xff\xfe"]
    for name in odd:
        (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))).touch()
    assert [entry.path for entry in walk(Directory(tmp_path))] == sorted(odd)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    put(tmp_path, "secret/file")
    (tmp_path / "secret").chmod(0)
    try:
        if os.access(tmp_path / "secret", os.R_OK):
            pytest.skip("root reads everything")
        with pytest.raises(BuildError, match=r"can not read .*/secret: Permission denied"):
            names(Directory(tmp_path))
        assert names(ignoring(tmp_path, "secret")) == []
    finally:
        (tmp_path / "secret").chmod(0o700)


def test_hardlinks(tmp_path: Path) -> None:
    put(tmp_path, "a", "c")
    os.link(tmp_path / "a", tmp_path / "b")
    files = Directory(tmp_path)
    one, two, lone = walk(files)
    assert files.links(one) == files.links(two) is not None
    assert files.links(lone) is None


# ---------------------------------------------------------------- ignore files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["a.txt", "b.md", "d", "d/e", "d/e/z.txt", "d/x.txt"]),
        ("d", ["a.txt", "b.md"]),
        ("*.txt", ["b.md", "d", "d/e", "d/e/z.txt", "d/x.txt"]),
        ("**/*.txt", ["b.md", "d", "d/e"]),
        ("*\n!a.txt", ["a.txt"]),
        # A directory that is left out shows when something below it is brought back, and only then.
        ("*\n!d/x.txt", ["d", "d/x.txt"]),
        ("d\n!d/e", ["a.txt", "b.md", "d", "d/e", "d/e/z.txt"]),
        ("d\n!d/none", ["a.txt", "b.md"]),
        ("*\n!**/z.txt", ["d", "d/e", "d/e/z.txt"]),
    ],
)
def test_ignore(tmp_path: Path, text: str, expected: list[str]) -> None:
    put(tmp_path, "a.txt", "b.md", "d/x.txt", "d/e/z.txt")
    assert names(ignoring(tmp_path, text)) == expected


def test_hidden_by(tmp_path: Path) -> None:
    put(tmp_path, "d/x", "a")
    files = ignoring(tmp_path, "# first\nd\n!d/y")
    rule = files.hidden_by(b"d/x")
    assert rule is not None
    assert (rule.line, rule.text) == (2, "d")
    assert files.hidden_by(b"d/none") is None
    assert files.hidden_by(b"a") is None


# ---------------------------------------------------------------- the front door: folders


def test_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "ctx", "Dockerfile", "a", "b")
    (tmp_path / "ctx" / ".dockerignore").write_text("b\nDockerfile\n")
    with opened("ctx", here=tmp_path) as contexts:
        assert contexts.source.text == "Dockerfile"
        assert contexts.source.name.endswith("ctx/Dockerfile")
        main = contexts.files()
        assert isinstance(main, Directory)
        assert names(main) == [".dockerignore", "a"]


def test_lower_case_dockerfile(tmp_path: Path) -> None:
    put(tmp_path, "dockerfile")
    assert opened(".", here=tmp_path).source.text == "dockerfile"


def test_a_dockerfile_elsewhere_and_its_own_ignore_file(tmp_path: Path) -> None:
    put(tmp_path, "ctx/a", "ctx/b", "build/My.Dockerfile", "ctx/Dockerfile")
    (tmp_path / "ctx" / ".dockerignore").write_text("a\n")
    (tmp_path / "build" / "My.Dockerfile.dockerignore").write_text("b\nDockerfile\n")
    contexts = opened("ctx", file="build/My.Dockerfile", here=tmp_path)
    assert contexts.source.text == "build/My.Dockerfile"
    main = contexts.files()
    assert isinstance(main, Directory)
    assert names(main) == [".dockerignore", "a"]


def test_an_ignore_file_of_choice(tmp_path: Path) -> None:
    put(tmp_path, "Dockerfile", "a", ".dockerignore")
    (tmp_path / "other").write_text("Dockerfile\nother\n.dockerignore\n")
    main = opened(".", here=tmp_path, ignore_file="other").files()
    assert isinstance(main, Directory)
    assert names(main) == ["a"]
    with pytest.raises(BuildError, match="there is no ignore file othre") as caught:
        opened(".", here=tmp_path, ignore_file="othre")
    assert caught.value.hint == "did you mean other?"


def test_the_dockerfile_on_standard_input(tmp_path: Path) -> None:
    put(tmp_path, "a")
    contexts = opened(".", file="-", stdin=b"FROM scratch\n", here=tmp_path)
    assert contexts.source.text == "FROM scratch\n"
    assert text_of(contexts, "a") == "a"


@pytest.mark.parametrize(
    ("context", "file", "message", "hint"),
    [
        ("cxt", "", "the build context cxt does not exist", "did you mean ctx?"),
        ("no/where", "", "the build context no/where does not exist", "does not exist either"),
        ("file", "", "the build context file is not a directory", "-f FILE"),
        ("ctx", "ctx/Dokcerfile", "there is no Dockerfile ctx/Dokcerfile", "did you mean Dockerfile?"),
        ("bare", "app.Dockerfile", "there is no Dockerfile app.Dockerfile", "did you mean -f bare/app.Dockerfile?"),
        ("ctx", "ctx", "the Dockerfile ctx is a directory", "ctx/Dockerfile"),
        ("bare", "", "there is no Dockerfile in .*bare", "app.Dockerfile"),
        ("empty", "", "there is no Dockerfile in .*empty", "-f FILE"),
        ("-", "-", "can not both be standard input", ""),
    ],
)
def test_what_is_not_there(tmp_path: Path, context: str, file: str, message: str, hint: str) -> None:
    put(tmp_path, "ctx/Dockerfile", "file", "bare/app.Dockerfile", "bare/app.Dockerfile.dockerignore", "empty/")
    with pytest.raises(BuildError, match=message) as caught:
        opened(context, file=file, here=tmp_path)
    assert hint in caught.value.hint


# ---------------------------------------------------------------- the front door: standard input


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def tar_of(*names: str, compress: str = "") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo("./" + name)
            info.size, info.uid, info.mode = len(name), 77, 0o640
            tar.addfile(info, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("hard")
        link.type, link.linkname = tarfile.LNKTYPE, names[0]
        tar.addfile(link)
    return COMPRESS[compress](data.getvalue())


@pytest.mark.parametrize("compress", ["", "gz", "bz2", "xz"])
def test_a_tar_on_standard_input(tmp_path: Path, compress: str) -> None:
    with opened("-", stdin=tar_of("Dockerfile", "d/a", compress=compress), here=tmp_path) as contexts:
        assert contexts.source.text == "Dockerfile"
        assert text_of(contexts, "d/a") == "d/a"
        assert text_of(contexts, "d/a") == "d/a"
        main = contexts.files()
        assert isinstance(main, Unpacked)
        assert names(main) == ["Dockerfile", "d", "d/a", "hard"]
        entry, hard = main.entry(b"Dockerfile"), main.entry(b"hard")
        assert entry is not None
        assert hard is not None
        assert (entry.uid, entry.mode) == (0, 0o640)
        assert main.links(entry) == main.links(hard) is not None


def test_a_named_dockerfile_in_a_tar(tmp_path: Path) -> None:
    with opened("-", file="d/other", stdin=tar_of("d/other"), here=tmp_path) as contexts:
        assert contexts.source.text == "d/other"
    with pytest.raises(BuildError, match="there is no none in standard input") as caught:
        opened("-", file="none", stdin=tar_of("d/other"), here=tmp_path)
    assert "d, hard" in caught.value.hint


def test_a_dockerfile_on_standard_input_is_all(tmp_path: Path) -> None:
    contexts = opened("-", stdin=b"FROM scratch\nCOPY x /\n", here=put(tmp_path, "x"))
    assert contexts.source.text == "FROM scratch\nCOPY x /\n"
    assert contexts.files().children(b"") == []
    with pytest.raises(BuildError, match="-f names another one"):
        opened("-", file="x", stdin=b"FROM scratch\n", here=tmp_path)


def test_a_broken_tar_on_standard_input(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="standard input is no sound archive"):
        opened("-", stdin=tar_of("Dockerfile", "x" * 90, compress="gz")[:60], here=tmp_path)


@pytest.mark.parametrize("text", [b"", b"FROM scratch", b"FROM scratch\n" * 100, b"\x00" * 1024])
def test_what_looks_like_no_archive(text: bytes) -> None:
    assert not looks_like_archive(text)


# ---------------------------------------------------------------- named contexts


def test_named_contexts(tmp_path: Path) -> None:
    put(tmp_path, "ctx/Dockerfile", "more/one", "more/drop")
    (tmp_path / "more" / ".dockerignore").write_text("drop\n")
    named = [("extra", "more"), ("base", "docker-image://busybox")]
    contexts = opened("ctx", here=tmp_path, named=named)
    assert text_of(contexts, "one", "extra") == "more/one"
    extra = contexts.files("extra")
    assert isinstance(extra, Directory)
    assert names(extra) == [".dockerignore", "one"]
    assert contexts.files("extra") is extra
    with pytest.raises(BuildError, match="missing=moer is no directory") as caught:
        opened("ctx", here=tmp_path, named=[("missing", "moer")])
    assert caught.value.hint == "did you mean more?"
    with pytest.raises(BuildError, match="there is no build context base"):
        contexts.files("base")


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("docker-image://busybox", True),
        ("oci-layout:///dir/busybox", True),
        ("oci-layout://dir:tag", True),
        ("docker-archive://file.tar", True),
        ("host:", True),
        ("more", False),
        ("/abs/more", False),
        ("https://example.com/x.tar", False),
    ],
)
def test_is_image(value: str, image: bool) -> None:
    assert is_image(value) is image


def test_nothing_is_fetched_without_a_fetcher(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="can not be fetched here"):
        opened("https://127.0.0.1:9/x.tar", here=tmp_path)


# ---------------------------------------------------------------- trees in memory


def test_unpacked_replaces() -> None:
    files = Unpacked(
        [
            Entry(b"d/f", Kind.FILE, content=BytesContent(b"1")),
            Entry(b"d/f", Kind.SYMLINK, target=b"g"),
            Entry(b"d", Kind.DIRECTORY, 0o700),
        ]
    )
    assert [(entry.path, entry.kind) for entry in walk(files)] == [(b"d", Kind.DIRECTORY), (b"d/f", Kind.SYMLINK)]
    directory = files.entry(b"d")
    assert directory is not None
    assert directory.mode == 0o700
    with pytest.raises(BuildError, match="names no earlier file"):
        files.add(Entry(b"x", Kind.HARDLINK, target=b"none"))


# ---------------------------------------------------------------- named contexts, checked at once


@pytest.mark.parametrize(
    ("value", "message"),
    [("nosuch", "is no directory"), ("foo://bar", "of no known kind: foo"), ("f", "is no directory")],
)
def test_a_named_context_that_is_not_there_is_an_error_even_when_nothing_uses_it(
    tmp_path: Path, value: str, message: str
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "f").write_text("")
    with pytest.raises(BuildError, match=message):
        open_contexts(".", "", io.BytesIO(), named=[("x", value)], working_dir=tmp_path)
