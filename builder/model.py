"""The nouns of a build: what was asked, what was planned, what one step does, what came out. All frozen."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from cache.oci import Descriptor, Digest, ImageConfig, Layer, Platform, RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from builder.lint.settings import Settings
    from grammar.instructions import Dockerfile, Instruction, Stage
    from grammar.source import Source, Span


# ---------------------------------------------------------------- asked


class OutputSpec(Struct, frozen=True):
    """One `--output`. type: oci, docker, local, tar or cacheonly. dest: a path, `-` for standard output, or empty."""

    type: str
    dest: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


class SecretSource(Struct, frozen=True):
    """One `--secret`: where the value lies. Exactly one of `path` and `value` is set."""

    id: str
    path: Path | None = None
    value: bytes | None = None

    def read(self) -> bytes:
        """The value. OSError when its file can not be read."""
        if self.value is not None:
            return self.value
        if self.path is None:
            raise FileNotFoundError(self.id)
        return self.path.read_bytes()

    def __repr__(self) -> str:
        # A value must not get into a message or a log by way of a repr.
        return f"SecretSource({self.id!r})"


class SshSource(Struct, frozen=True):
    """One `--ssh`: the agent's socket, or key files to serve."""

    id: str
    socket: Path | None = None
    keys: tuple[Path, ...] = ()


class RunOptions(Struct, frozen=True):
    """What the command line says for every RUN.

    hosts: (name, address). ulimits: (name, soft, hard). allow: entitlements.
    """

    network: str = "default"
    hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 64 << 20
    ulimits: tuple[tuple[str, int, int], ...] = ()
    allow: frozenset[str] = frozenset()
    hostname: str = "buildkitsandbox"


class Supplies(Struct, frozen=True):
    """What the user gave for all RUNs of a build."""

    options: RunOptions = RunOptions()
    secrets: tuple[SecretSource, ...] = ()
    ssh: tuple[SshSource, ...] = ()


class CacheUse(Struct, frozen=True):
    """How a build uses the cache, beside leaving it alone.

    from_line: steps on this line of the build file and below are done anew; 0 for none. oldest: seconds after which a
    record is a miss, None for never. required: stages all of whose steps have to be in the cache; None for every stage.
    explain: tell each part that a miss comes from. secrets: values of mounted secrets count for a RUN's key.
    """

    from_line: int = 0
    oldest: float | None = None
    required: frozenset[str] | None = frozenset()
    explain: bool = False
    secrets: bool = False


class Budget(Struct, frozen=True):
    """What an image may take, in uncompressed bytes of file contents; None for no limit.

    max_size: all layers. max_layer: each layer that is not the base's. max_waste: bytes that are shipped and not seen,
    those of the base not counted; waste_percent: the same in hundredths of what the own layers ship.
    """

    max_size: int | None = None
    max_layer: int | None = None
    max_waste: int | None = None
    waste_percent: float | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self != Budget()


class LintUse(Struct, frozen=True):
    """What is to be said of the layers that a build makes. layers: whether their rules run.

    error: a finding that is at least a warning, or what the settings say, fails the build, before any name moves. A
    budget that is overrun does so in any case. settings: of the configuration; the rules on the syntax then run, too.
    """

    layers: bool = False
    error: bool = False
    budget: Budget = Budget()
    settings: Settings | None = None


class CachePlace(Struct, frozen=True):
    """One `--cache-from` or `--cache-to`. place: a folder, or a reference in full; nothing for inline.

    mode: max for every step, min for those that the image consists of. required: a cache that can not be written fails
    the build. mounts: the folders of cache mounts are kept there, too; mounts_max: in so many bytes. keep: so many
    bytes a folder may take in all, 0 for any number. insecure: the registry's certificate is not checked, and it may
    speak plain HTTP.
    """

    type: Literal["local", "registry", "inline"]
    place: str = ""
    mode: Literal["min", "max"] = "max"
    required: bool = False
    mounts: bool = True
    mounts_max: int = 2 << 30
    keep: int = 0
    insecure: bool = False


class BuildRequest(Struct, frozen=True):
    """All that one build was asked to do; it stops at the engine, no room below receives it.

    context: a folder's path, `-`, or a URL. file: the Dockerfile's path, `-`, or empty for the context's own.
    squash: one layer of all that the build adds to its base. pull: when registries are asked for bases: missing (in the
    store), always, never.
    """

    context: str = "."
    file: str = ""
    tags: tuple[str, ...] = ()
    target: str = ""
    build_args: tuple[tuple[str, str], ...] = ()
    build_contexts: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    platform: Platform | None = None
    no_cache: bool = False
    no_cache_filter: frozenset[str] = frozenset()
    outputs: tuple[OutputSpec, ...] = ()
    secrets: tuple[SecretSource, ...] = ()
    ssh: tuple[SshSource, ...] = ()
    run: RunOptions = RunOptions()
    ignore_file: str = ""
    cache: CacheUse = CacheUse()
    lint: LintUse = LintUse()
    cache_from: tuple[CachePlace, ...] = ()
    cache_to: tuple[CachePlace, ...] = ()
    pull: str = "missing"
    squash: bool = False


# ---------------------------------------------------------------- planned


class StageBase(Struct, frozen=True):
    """FROM's first step, a fresh image or another stage, resolved: exactly one of the three is set.

    image: a reference as written, or `scratch`. stage: the index of an earlier stage. context: the name of the named
    context that stands in for the image, or for the whole stage (see `StagePlan.replaced`). platform: what is asked of
    the image; for a base that is a stage it is that stage's.
    """

    image: str = ""
    stage: int | None = None
    context: str | None = None
    platform: Platform | None = None


class StagePlan(Struct, frozen=True):
    """One stage that has to be built. `needs` are the indexes of the stages whose files or config it uses.

    triggers: the ONBUILD instructions of the base, which run first. trigger_sources: the texts that they were parsed
    from, one for each, when they come from an image; empty when they stand in the same file. replaced: a named context
    of the stage's name stands in for it, so none of its instructions count.
    """

    stage: Stage
    base: StageBase
    needs: frozenset[int] = frozenset()
    triggers: tuple[Instruction, ...] = ()
    trigger_sources: tuple[Source, ...] = ()
    replaced: bool = False

    @property
    def title(self) -> str:
        """How messages call it: its name, or `stage-N` as docker does."""
        return self.stage.name or f"stage-{self.stage.index}"

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        """What is to be lowered, in order: the triggers, then the stage's own."""
        return () if self.replaced else (*self.triggers, *self.stage.instructions)


class Scope(Struct, frozen=True):
    """What lowering one stage's instructions needs to know, besides the state so far.

    stage: the stage's index. names: stage name (lower-case) and index; of two stages of one name, the last. titles:
    how messages call each stage, by index. contexts: named contexts, by familiar image name, as the user wrote them.
    build_args: `--build-arg`. global_args: the ARGs before the first FROM and the predefined ones, with their values.
    platform: what is asked of the stage. forced_platform: what the image has to bear, whatever its base was made for;
    set for the target when the user asked for a platform. allow: entitlements granted, such as network.host.
    """

    source: Source
    stage: int
    titles: tuple[str, ...]
    names: Mapping[str, int]
    contexts: Mapping[str, str]
    build_args: Mapping[str, str]
    global_args: Mapping[str, str]
    platform: Platform
    forced_platform: Platform | None = None
    allow: frozenset[str] = frozenset()
    escape: str = "\\"

    def of(self, source: Source) -> Scope:
        """The same scope for instructions of another text: a trigger that a base image carries."""
        return replace(self, source=source, escape="\\")


class Plan(Struct, frozen=True):
    """The stages to build, in an order in which each one's needs come first, and those that nothing needs.

    target: the index of the stage asked for. scopes: one for each stage of the file, used or not, by index. platform:
    the target platform. build_args: as given. epoch: SOURCE_DATE_EPOCH in seconds, None when unset; when it names a
    source instead of a number, `epoch_source` is that source, and the plan is to be made again with the number.
    """

    dockerfile: Dockerfile
    stages: tuple[StagePlan, ...]
    target: int
    unused: tuple[StagePlan, ...] = ()
    global_args: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    scopes: tuple[Scope, ...] = ()
    platform: Platform = field(default_factory=Platform)
    build_args: tuple[tuple[str, str], ...] = ()
    epoch: int | None = None
    epoch_source: Origin | UrlSource | GitSource | None = None

    def scope(self, stage: int) -> Scope:
        """What lowering needs to know in the stage of this index."""
        return self.scopes[stage]


class Severity(enum.Enum):
    """How bad a finding is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Finding(Struct, frozen=True):
    """What a rule has to say of the build file or of the layers. rule: BuildKit's name of the check where there is one.

    related: further lines of `source` that the message speaks of. size: uncompressed bytes that are shipped in vain.
    paths: in the image, without a leading slash, the worst first. layer: the number of the layer in the image, from 0;
    None for what the text alone tells. created_by: the layer's history, where there is no build file.
    """

    rule: str
    message: str
    span: Span | None = None
    source: Source | None = None
    hint: str = ""
    severity: Severity = Severity.WARNING
    related: tuple[Span, ...] = ()
    size: int = 0
    paths: tuple[str, ...] = ()
    layer: int | None = None
    created_by: str = ""


# ---------------------------------------------------------------- lowered


class Origin(Struct, frozen=True):
    """Where a COPY, ADD or bind mount takes files from: exactly one of the three.

    context: a build context's name, empty for the main one. stage: an earlier stage's index. image: a reference.
    """

    context: str | None = None
    stage: int | None = None
    image: str | None = None


CONTEXT = Origin(context="")


class PathSource(Struct, frozen=True):
    """A path or pattern in the step's origin, expanded, as written. `span` is for messages."""

    pattern: str
    span: Span


class InlineSource(Struct, frozen=True):
    """A here-document: a regular file of this name and content."""

    name: str
    data: bytes


class UrlSource(Struct, frozen=True):
    """ADD of an http(s) URL. checksum: `sha256:...` or empty."""

    url: str
    checksum: str
    span: Span


class GitSource(Struct, frozen=True):
    """ADD of a git repository. checksum: a commit's prefix, or empty."""

    url: str
    checksum: str
    keep_git_dir: bool
    span: Span


FileSource = PathSource | InlineSource | UrlSource | GitSource


class FileStep(Struct, frozen=True):
    """COPY, ADD, or WORKDIR's mkdir: `sources` to `destination`.

    destination: absolute, expanded, cleaned; `into` says that it ended in a slash (or `.`), so it names a directory. No
    sources: the directory itself is made if missing (WORKDIR). chown: `user[:group]` as expanded, names still to be
    looked up in the parent's /etc/passwd, or empty for 0:0; for WORKDIR it is the stage's USER. chmod: octal or
    symbolic, or empty. unpack: True and False force; None unpacks local archives (ADD); COPY has False.
    """

    origin: Origin
    sources: tuple[FileSource, ...]
    destination: str
    into: bool = False
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()
    unpack: bool | None = False


class BindMount(Struct, frozen=True):
    """`--mount=type=bind`. source: a path in the origin. Writes to a writable one are discarded after the RUN."""

    target: str
    origin: Origin
    source: str = "/"
    writable: bool = False
    span: Span | None = None


class CacheMount(Struct, frozen=True):
    """`--mount=type=cache`. sharing: shared, private or locked. `origin`/`source`: initial content, or None."""

    target: str
    id: str
    sharing: str = "shared"
    origin: Origin | None = None
    source: str = "/"
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    readonly: bool = False


class TmpfsMount(Struct, frozen=True):
    """`--mount=type=tmpfs`. size: bytes, 0 for the kernel's default."""

    target: str
    size: int = 0


class SecretMount(Struct, frozen=True):
    """`--mount=type=secret`. target empty: no file. env empty: no variable."""

    id: str
    target: str = ""
    env: str = ""
    required: bool = False
    mode: int = 0o400
    uid: int = 0
    gid: int = 0
    span: Span | None = None


class SshMount(Struct, frozen=True):
    """`--mount=type=ssh`. Sets SSH_AUTH_SOCK to the target."""

    id: str
    target: str
    required: bool = False
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    span: Span | None = None


Mount = BindMount | CacheMount | TmpfsMount | SecretMount | SshMount


class RunStep(Struct, frozen=True):
    """RUN: a command in the stage's root file system.

    argv: what is executed, SHELL included. env: `NAME=value`, image variables and visible ARGs, in order. user: as USER
    has it, still to be looked up. network: default, none or host. security: sandbox or insecure. scripts: files to lay
    at a path before the command starts (heredocs with a shebang), never part of the layer. unkeyed: names in `env`
    whose values do not decide what the command makes: proxies that no ARG or ENV declares. hostname: empty for the
    default.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    cwd: str = "/"
    mounts: tuple[Mount, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    scripts: tuple[tuple[str, bytes], ...] = ()
    unkeyed: frozenset[str] = frozenset()
    hostname: str = ""


Step = FileStep | RunStep


class StageState(Struct, frozen=True):
    """What the instructions so far amount to, apart from the files.

    config: as the image will have it. platform: the one that the image will bear. args: the ARGs declared so far in
    this stage, in order of declaration, with their values (None: declared, without a value). environment: what words
    are expanded with and a RUN sees: image variables and ARGs, later declarations winning. author: MAINTAINER.
    """

    platform: Platform
    config: RuntimeConfig = RuntimeConfig()
    args: tuple[tuple[str, str | None], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    author: str = ""
    cmd_set: bool = False
    workdir_set: bool = False


class Lowered(Struct, frozen=True):
    """One instruction, lowered: the state after it, at most one step, and its line of history.

    created_by: the history line, empty for none. title: the progress line, such as `COPY . /app`. findings: warnings
    of this instruction. source: the text that the instruction stands in: the build file, or a trigger of a base image.
    secrets: values of ARGs and ENVs that look like secrets and went into the step's words: to be masked wherever the
    step is kept or shown.
    """

    instruction: Instruction
    state: StageState
    step: Step | None = None
    created_by: str = ""
    title: str = ""
    findings: tuple[Finding, ...] = ()
    source: Source | None = None
    secrets: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Lowered({self.title!r})"


# ---------------------------------------------------------------- made


class ImageResult(Struct, frozen=True):
    """A finished image: its config, layers and blobs, all of them in the store.

    inherited: so many of the lowest layers are those of the base.
    """

    id: Digest
    config: ImageConfig
    layers: tuple[Layer, ...]
    manifest: Descriptor
    inherited: int = 0


class BuildResult(Struct, frozen=True):
    """What a build made. names: the full references that point at the image now.

    written: bytes of the layers of steps that were not in the cache, uncompressed.
    """

    image: ImageResult
    names: tuple[str, ...] = ()
    steps: int = 0
    cached: int = 0
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    written: int = 0
