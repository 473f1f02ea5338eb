"""The nouns of the language: 18 instructions, a stage, a file. All frozen, none expanded.

Words are kept as written, quotes and `$` included: what they mean depends on the stage's variables, which only
lowering knows. Reference: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

from msgspec import Struct

from grammar.source import Source, Span  # noqa: TC001 - reading a stored build file back resolves these names


class Word(Struct, frozen=True):
    """One argument as written, unexpanded.

    The value of a flag has lost its quotes and escapes already: BuildKit takes them off before it expands the value. A
    flag that is true or false says `true` or `false`, whatever was written.
    """

    text: str
    span: Span


class Pair(Struct, frozen=True):
    """`name=value` of ENV, LABEL or ARG, as written. `value` is None for an ARG without default."""

    name: str
    value: str | None
    span: Span


class Heredoc(Struct, frozen=True):
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


class ShellForm(Struct, frozen=True, tag=True):
    """A command for the stage's SHELL, as written, continuations joined."""

    text: str


class ExecForm(Struct, frozen=True, tag=True):
    """A command as a JSON array of strings."""

    argv: tuple[str, ...]


Command = ShellForm | ExecForm


class Instruction(Struct, frozen=True, kw_only=True, tag=True):
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


class From(Instruction, frozen=True, kw_only=True):
    """FROM [--platform=P] IMAGE [AS NAME]. `name` is lower-cased; `name_as_written` is not; `as_word` is AS or as."""

    image: Word
    platform: Word | None = None
    name: str = ""
    name_as_written: str = ""
    as_word: str = ""


class Arg(Instruction, frozen=True, kw_only=True):
    """ARG NAME[=DEFAULT] ..."""

    pairs: tuple[Pair, ...]


class Env(Instruction, frozen=True, kw_only=True):
    """ENV NAME=VALUE ... `legacy` is the form `ENV NAME VALUE`."""

    pairs: tuple[Pair, ...]
    legacy: bool = False


class Label(Instruction, frozen=True, kw_only=True):
    """LABEL KEY=VALUE ... Keys are kept as written, too: they may be quoted and hold variables."""

    pairs: tuple[Pair, ...]
    legacy: bool = False


class Run(Instruction, frozen=True, kw_only=True):
    """RUN [--mount=...] [--network=...] [--security=...] COMMAND."""

    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[Word, ...] = ()
    network: Word | None = None
    security: Word | None = None


class Transfer(Instruction, frozen=True, kw_only=True):
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


class Copy(Transfer, frozen=True, kw_only=True):
    """COPY [--from=...] [--parents] SOURCE ... DESTINATION."""

    from_: Word | None = None
    parents: Word | None = None


class Add(Transfer, frozen=True, kw_only=True):
    """ADD [--checksum=...] [--keep-git-dir] [--unpack] SOURCE ... DESTINATION."""

    checksum: Word | None = None
    keep_git_dir: Word | None = None
    unpack: Word | None = None


class Cmd(Instruction, frozen=True, kw_only=True):
    """CMD COMMAND."""

    command: Command


class Entrypoint(Instruction, frozen=True, kw_only=True):
    """ENTRYPOINT COMMAND."""

    command: Command


class Healthcheck(Instruction, frozen=True, kw_only=True):
    """HEALTHCHECK [--interval=...] ... CMD COMMAND, or HEALTHCHECK NONE (`command` is None then)."""

    command: Command | None
    interval: Word | None = None
    timeout: Word | None = None
    start_period: Word | None = None
    start_interval: Word | None = None
    retries: Word | None = None


class Onbuild(Instruction, frozen=True, kw_only=True):
    """ONBUILD INSTRUCTION. `trigger` is parsed already; `trigger_text` is what the image config stores."""

    trigger: AnyInstruction
    trigger_text: str


class Shell(Instruction, frozen=True, kw_only=True):
    """SHELL ["program", "argument", ...]."""

    argv: tuple[str, ...]


class Stopsignal(Instruction, frozen=True, kw_only=True):
    """STOPSIGNAL SIGNAL."""

    signal: Word


class User(Instruction, frozen=True, kw_only=True):
    """USER NAME[:GROUP]."""

    user: Word


class Volume(Instruction, frozen=True, kw_only=True):
    """VOLUME PATH ..., also as a JSON array."""

    paths: tuple[Word, ...]
    json: bool = False


class Workdir(Instruction, frozen=True, kw_only=True):
    """WORKDIR PATH."""

    path: Word


class Expose(Instruction, frozen=True, kw_only=True):
    """EXPOSE PORT[-PORT][/PROTOCOL] ..."""

    ports: tuple[Word, ...]


class Maintainer(Instruction, frozen=True, kw_only=True):
    """MAINTAINER NAME (deprecated)."""

    name: str


AnyInstruction = (
    Run | Copy | Add | Env | Arg | Label | Workdir | User | Cmd | Entrypoint | Expose | Volume | Healthcheck | Shell
    | Stopsignal | Onbuild | Maintainer
)  # fmt: skip
"""All that may follow a FROM."""


class Stage(Struct, frozen=True):
    """One FROM and what follows it. `index` counts from 0."""

    index: int
    from_: From
    instructions: tuple[AnyInstruction, ...]

    @property
    def name(self) -> str:
        """The name given with AS, lower-cased, or empty."""
        return self.from_.name


class Directives(Struct, frozen=True):
    """The parser directives of the file's head: https://docs.docker.com/reference/dockerfile/#parser-directives."""

    syntax: str = ""
    escape: str = "\\"
    check: str = ""


class Dockerfile(Struct, frozen=True):
    """A parsed build file. `global_args` are the ARGs before the first FROM."""

    source: Source
    directives: Directives
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    trailing_comments: tuple[str, ...] = ()
