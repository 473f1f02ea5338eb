"""Sources of ADD that are not files of the context: http(s) URLs and git repositories.

https://docs.docker.com/reference/dockerfile/#add: an http(s) URL is a git repository when its path ends in `.git`;
`git://`, `ssh://` and `user@host:path` always are one. The fragment is `#ref:subdir`;
the query holds the same and more.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.model import GitSource, UrlSource
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from grammar.instructions import Word
    from grammar.source import Source

_SCHEME = re.compile(r"([A-Za-z0-9]+)://")
_SCP = re.compile(r"[A-Za-z0-9_-]+@[A-Za-z0-9.-]+:[^?#]*(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?")
_SUM = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_KEYS = (
    "ref",
    "tag",
    "branch",
    "subdir",
    "checksum",
    "commit",
    "keep-git-dir",
    "submodules",
    "mtime",
    "fetch-by-commit",
)
_TRUE, _FALSE = (
    frozenset(["1", "t", "T", "TRUE", "true", "True"]),
    frozenset(["0", "f", "F", "FALSE", "false", "False"]),
)


def is_git(text: str) -> bool:
    """Whether ADD takes `text` for a git repository."""
    found = _SCHEME.match(text)
    if found is None:
        return not text.startswith(("./", "../", "github.com/")) and _SCP.fullmatch(text) is not None
    if found[1].lower() in {"git", "ssh"}:
        return True
    path = re.split(r"[?#]", text[found.end() :], maxsplit=1)[0]
    return found[1].lower() in {"http", "https"} and "/" in path and path.endswith(".git")


def is_url(text: str) -> bool:
    """Whether ADD takes `text` for a file behind http or https."""
    return text.startswith(("http://", "https://")) and not is_git(text)


def remote_source(
    word: Word, checksum: str, *, keep_git_dir: bool | None, source: Source
) -> UrlSource | GitSource | None:
    """The remote source that an expanded word names; None for a path. BuildError for a wrong checksum or query."""
    if is_url(word.text):
        if checksum and not _SUM.fullmatch(checksum):
            algorithm, colon, _ = checksum.partition(":")
            msg = f"invalid checksum {checksum!r}: "
            msg += "unsupported digest algorithm" if colon and algorithm != "sha256" else "not a sha256 digest"
            raise BuildError(msg, span=word.span, source=source, hint="write --checksum=sha256: and 64 hex digits")
        return UrlSource(word.text, checksum, word.span)
    if not is_git(word.text):
        return None
    query = _query(word, source)
    kept = query.get("keep-git-dir")
    if kept is not None:
        asked = _truth("keep-git-dir", kept, word, source)
        if keep_git_dir is not None and keep_git_dir != asked:
            raise _error("inconsistent keep-git-dir: the flag and the query say different things", word, source)
        keep_git_dir = asked
    for name in ("submodules", "fetch-by-commit"):
        if name in query:
            _truth(name, query[name], word, source)
    if query.get("mtime", "checkout") not in {"checkout", "commit"}:
        raise _error(f"invalid mtime value {query['mtime']!r}: it is checkout or commit", word, source)
    if "tag" in query and "branch" in query:
        raise _error("branch conflicts with tag", word, source)
    commit = query.get("checksum") or query.get("commit", "")
    if checksum and commit and checksum != commit:
        raise _error(f"checksum mismatch: {checksum!r} and {commit!r}", word, source)
    commit = checksum or commit
    if commit and not _COMMIT.fullmatch(commit):
        raise _error(f"invalid checksum {commit!r}: for git it is a commit's hash, or its beginning", word, source)
    return GitSource(word.text, commit, bool(keep_git_dir), word.span)


def _query(word: Word, source: Source) -> dict[str, str]:
    from urllib.parse import parse_qsl  # few builds ADD from git

    found = _SCP.fullmatch(word.text)
    text = word.text.partition("#")[0].partition("?")[2] if found is None else found["query"] or ""
    values: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in _KEYS:
            raise _error(f"unexpected query {name!r}", word, source, did_you_mean(name, _KEYS))
        if name in values:
            raise _error(f"query {name!r} has multiple values", word, source)
        if not value and name not in {"submodules", "keep-git-dir", "fetch-by-commit"}:
            raise _error(f"query {name!r} has no value", word, source)
        values[name] = value
    return values


def _truth(name: str, value: str, word: Word, source: Source) -> bool:
    if value in _FALSE:
        return False
    if value and value not in _TRUE:
        raise _error(f"invalid {name} value: {value!r}", word, source, "it is true or false")
    return True


def _error(message: str, word: Word, source: Source, hint: str = "") -> BuildError:
    return BuildError(message, span=word.span, source=source, hint=hint)
