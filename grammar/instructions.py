"""The nouns of the language: 18 instructions, a stage, a file. All frozen, none expanded.

Words are kept as written, quotes and `$` included: what they mean depends on the stage's variables, which only
lowering knows. Reference: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grammar.source import Source, Span


@dataclass(frozen=True, slots=True)
class Word:
    """One argument as written, unexpanded.

    The value of a flag has lost its quotes and escapes already: BuildKit takes them off before it expands the value. A
    flag that is true or false says `true` or `false`, whatever was written.
    """

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Pair:
    """`name=value` of ENV, LABEL or ARG, as written. `value` is None for an ARG without default."""

    name: str
    value: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document: `<<NAME`, its body, and how it was asked for.

    expand: the delimiter was not quoted, so variables in the body are expanded (COPY and ADD; a RUN leaves that to its
    shell). strip_tabs: `<<-`; `body` has the leading tabs removed already. fd: the digits before `<<`, or empty.
    raw: the text of the redirection as it stands in the line, such as `3<<-"EOF"`.
    """

    name: str
    body: str
    expand: bool
    strip_tabs: bool
    fd: str
    raw: str
    span: Span


@dataclass(frozen=True, slots=True)
class ShellForm:
    """A command for the stage's SHELL, as written, continuations joined."""

    text: str


@dataclass(frozen=True, slots=True)
class ExecForm:
    """A command as a JSON array of strings."""

    argv: tuple[str, ...]


Command = ShellForm | ExecForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has.

    span: from the keyword to the last character, heredoc bodies included. text: the logical line, continuations
    joined and comments gone, without heredoc bodies. keyword: as the user wrote it. comments: the comment lines above,
    without `#`, trimmed; an empty comment line parts them from what stands before it. empty_continuations: the lines
    that are blank inside a continuation.
    """

    span: Span
    text: str
    keyword: str
    comments: tuple[str, ...] = ()
    empty_continuations: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """FROM [--platform=P] IMAGE [AS NAME]. `name` is lower-cased; `name_as_written` is not; `as_word` is AS or as."""

    image: Word
    platform: Word | None = None
    name: str = ""
    name_as_written: str = ""
    as_word: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """ARG NAME[=DEFAULT] ..."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    """ENV NAME=VALUE ... `legacy` is the form `ENV NAME VALUE`."""

    pairs: tuple[Pair, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    """LABEL KEY=VALUE ... Keys are kept as written, too: they may be quoted and hold variables."""

    pairs: tuple[Pair, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """RUN [--mount=...] [--network=...] [--security=...] COMMAND."""

    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[Word, ...] = ()
    network: Word | None = None
    security: Word | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Instruction):
    """What COPY and ADD share. `sources` come in the order written; heredocs are their own sources, kept apart.

    json: the sources and the destination were given as a JSON array.
    """

    sources: tuple[Word, ...]
    destination: Word
    heredocs: tuple[Heredoc, ...] = ()
    json: bool = False
    chown: Word | None = None
    chmod: Word | None = None
    link: Word | None = None
    excludes: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Transfer):
    """COPY [--from=...] [--parents] SOURCE ... DESTINATION."""

    from_: Word | None = None
    parents: Word | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Transfer):
    """ADD [--checksum=...] [--keep-git-dir] [--unpack] SOURCE ... DESTINATION."""

    checksum: Word | None = None
    keep_git_dir: Word | None = None
    unpack: Word | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Instruction):
    """CMD COMMAND."""

    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Instruction):
    """ENTRYPOINT COMMAND."""

    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """HEALTHCHECK [--interval=...] ... CMD COMMAND, or HEALTHCHECK NONE (`command` is None then)."""

    command: Command | None
    interval: Word | None = None
    timeout: Word | None = None
    start_period: Word | None = None
    start_interval: Word | None = None
    retries: Word | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    """ONBUILD INSTRUCTION. `trigger` is parsed already; `trigger_text` is what the image config stores."""

    trigger: Instruction
    trigger_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    """SHELL ["program", "argument", ...]."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopsignal(Instruction):
    """STOPSIGNAL SIGNAL."""

    signal: Word


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    """USER NAME[:GROUP]."""

    user: Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    """VOLUME PATH ..., also as a JSON array."""

    paths: tuple[Word, ...]
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    """WORKDIR PATH."""

    path: Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    """EXPOSE PORT[-PORT][/PROTOCOL] ..."""

    ports: tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    """MAINTAINER NAME (deprecated)."""

    name: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows it. `index` counts from 0."""

    index: int
    from_: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """The name given with AS, lower-cased, or empty."""
        return self.from_.name


@dataclass(frozen=True, slots=True)
class Directives:
    """The parser directives of the file's head: https://docs.docker.com/reference/dockerfile/#parser-directives."""

    syntax: str = ""
    escape: str = "\\"
    check: str = ""


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed build file. `global_args` are the ARGs before the first FROM."""

    source: Source
    directives: Directives
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    trailing_comments: tuple[str, ...] = field(default=())
