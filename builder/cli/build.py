"""`pybuild build`: flags and environment to a BuildRequest, the engine's answer to files and an exit code."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.cli.flags import FALSE, TRUE, Command, Flag, UsageError, fields, pairs
from builder.cli.opened import INSECURE, choose_isolation, open_registries, open_store, pull_policy
from builder.model import Budget, BuildRequest, CacheUse, LintUse, OutputSpec, RunOptions, SecretSource, SshSource
from builder.terminal import STYLES, progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.model import BuildResult, CachePlace
    from cache.oci import Platform
    from cache.store import Store

_NO_LIMITS = "limits on processor and memory of a RUN are not supported; limit pybuild itself, such as by systemd-run"

BUILD = Command(
    name="build",
    usage="[OPTIONS] PATH | URL | -",
    summary="Build an image from a Dockerfile. `build` may be left out: pybuild -t app:1.0 .",
    words=(1, 1),
    flags=(
        Flag("tag", "name of the image, `app` or `app:1.0`", "t", "NAME", many=True),
        Flag("file", "the Dockerfile, `-` for standard input (default: Dockerfile in the context)", "f", "PATH"),
        Flag("target", "the stage to build (default: the last)", value="STAGE"),
        Flag("build-arg", "a value for an ARG; NAME alone takes the environment's", value="NAME[=VALUE]", many=True),
        Flag(
            "build-context",
            "a named context: a folder, oci-layout://DIR[:TAG], docker-archive://FILE, docker-image://NAME, host:",
            value="NAME=SOURCE",
            many=True,
        ),
        Flag("label", "a label for the image", value="NAME=VALUE", many=True),
        Flag("no-cache", "do every step anew"),
        Flag("no-cache-filter", "do the steps of these stages anew", value="STAGE,...", many=True),
        Flag("no-cache-from", "do the steps on this line of the Dockerfile and below anew", value="LINE"),
        Flag("cache-ttl", "do steps anew that were done longer ago than this: 7d, 12h, 90m", value="TIME"),
        Flag(
            "require-cache",
            "fail at the first step, of these stages or of any, that is not in the cache",
            value="STAGE,...",
            many=True,
            bare=True,
        ),
        Flag(
            "cache-budget",
            "what the cache may take of the disk, kept at a build's end: a size, none, or auto "
            "(default: $PYBUILD_CACHE_BUDGET, else auto)",
            value="SIZE",
        ),
        Flag(
            "cache-from",
            "also take steps from there: HOST/REPOSITORY, type=registry,ref=..., type=local,src=DIR",
            value="CACHE",
            many=True,
        ),
        Flag(
            "cache-to",
            "also put steps there: HOST/REPOSITORY, type=registry,ref=..., type=local,dest=DIR, type=inline",
            value="CACHE",
            many=True,
        ),
        Flag("key-secrets", "do a RUN anew when a secret that it mounts has another value than before"),
        Flag("explain", "below each step that is not in the cache, every part that changed, old and new"),
        Flag("platform", "the platform to build for", value="OS/ARCH"),
        Flag("squash", "make one layer of all that the build adds to its base; the cache keeps the steps"),
        Flag(
            "output",
            "also write the image: type=oci|docker|tar|local,dest=PATH; type=registry; or a folder; or `-`",
            "o",
            "OUTPUT",
            True,
        ),
        Flag("push", "also put the image into the registries of its names"),
        Flag(
            "pull",
            "ask registries for base images, though the store has them; =never: not even for missing ones",
            value="WHEN",
            bare=True,
        ),
        *INSECURE,
        Flag(
            "progress", "auto, plain, tty, quiet, rawjson, none (default: $BUILDKIT_PROGRESS, else auto)", value="STYLE"
        ),
        Flag("quiet", "print nothing but the image id", "q"),
        Flag("iidfile", "write the image id to a file", value="FILE"),
        Flag("metadata-file", "write what was built to a file, as JSON", value="FILE"),
        Flag("secret", "a secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=NAME]", value="SECRET", many=True),
        Flag("ssh", "an agent or keys for RUN --mount=type=ssh: default|NAME[=SOCKET|KEY,...]", value="SSH", many=True),
        Flag("add-host", "a line of /etc/hosts in RUN", value="NAME:ADDRESS", many=True),
        Flag("network", "the network of RUN: default, none, host", value="MODE"),
        Flag("shm-size", "the size of /dev/shm in RUN (default: 64m)", value="SIZE"),
        Flag("ulimit", "a limit in RUN", value="NAME=SOFT[:HARD]", many=True),
        Flag("allow", "grant network.host or security.insecure", value="ENTITLEMENT", many=True),
        Flag("ignorefile", "the ignore file (default: <Dockerfile>.dockerignore, .dockerignore)", value="FILE"),
        Flag(
            "isolation",
            "where RUN runs: auto, namespaces, chroot, proot; privileged, rootless, rootless-single; by crun, runc",
            value="TIER",
        ),
        Flag("require-isolation", "refuse what isolates less than: namespaces, chroot, proot", value="LEAST"),
        Flag(
            "lint",
            "look into the layers, too; with =error, a warning fails the build, and no name moves",
            value="error",
            bare=True,
        ),
        Flag("max-size", "fail when the files of all layers take more: 200m, 1g", value="SIZE"),
        Flag("max-layer", "fail when those of a layer that is not the base's do", value="SIZE"),
        Flag("max-waste", "fail when more is shipped and not seen, in bytes or in percent: 10m, 5%", value="SIZE"),
        Flag("dry-run", "print the plan and what each instruction comes to; run and write nothing"),
        Flag("call", "tell instead of building: check, outline, targets; with ,format=json as JSON", value="METHOD"),
        Flag("check", "the same as --call=check: look for mistakes, build nothing"),
        Flag("load", unsupported="the image is in pybuild's store anyway; -o type=docker,dest=- | docker load"),
        Flag("annotation", value="NAME=VALUE", many=True, unsupported="annotations are not in this version"),
        Flag("attest", value="ATTESTATION", many=True, unsupported="attestations are not in this version"),
        Flag("provenance", value="MODE", unsupported="attestations are not in this version"),
        Flag("sbom", value="MODE", unsupported="attestations are not in this version"),
        Flag("policy", value="POLICY", many=True, unsupported="policies are not in this version"),
        Flag("builder", value="NAME", unsupported="there is one builder, this one: leave it out"),
        Flag("cgroup-parent", value="CGROUP", unsupported=_NO_LIMITS),
        Flag("resource", value="LIMIT", many=True, unsupported=_NO_LIMITS),
        Flag("memory", short="m", value="SIZE", unsupported=_NO_LIMITS),
        Flag("memory-swap", value="SIZE", unsupported=_NO_LIMITS),
        Flag("cpu-period", value="N", unsupported=_NO_LIMITS),
        Flag("cpu-quota", value="N", unsupported=_NO_LIMITS),
        Flag("cpu-shares", short="c", value="N", unsupported=_NO_LIMITS),
        Flag("cpuset-cpus", value="LIST", unsupported=_NO_LIMITS),
        Flag("cpuset-mems", value="LIST", unsupported=_NO_LIMITS),
        Flag("security-opt", value="OPTION", many=True, unsupported="RUN --security and --allow are there instead"),
        Flag("compress", unsupported="the context is read where it lies, not sent: leave it out"),
        Flag("rm", "as always here: no container is left behind"),
        Flag("force-rm", "as always here: none is left by a failed build either"),
    ),
    notes="""\
The image is kept in the store, under its names, as an OCI image. Standard error shows the progress; standard output is
for what was asked for: an id with -q, a tar with `-o -`.

Exit codes: 0 built, 1 the build failed, 2 wrong command line, 3 damaged store or image data,
130 Ctrl-C, 143 SIGTERM.""",
)

_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_AUTO = -1
_NETWORKS = ("default", "none", "host")
_ENTITLEMENTS = ("network.host", "security.insecure")


def build(given: Given, around: Surroundings) -> int:
    """Build. Nothing is read from the environment or the terminal below this function."""
    from builder.cli.stopping import Stop

    request = request_of(given, around.environ)
    if not given.has("pull"):
        request = replace(request, pull=pull_policy(around.environ))
    style = style_of(given, around.environ)
    if request.lint.layers:
        from builder.cli.looking import lint_use

        request = replace(request, lint=lint_use(request, around))
    limit = budget_of(given, around.environ)
    if given.on("dry-run"):
        return _dry_run(request, given, around)
    if given.has("call") or given.on("check"):
        from builder.cli.call import call, method_of

        method, form, lenient = method_of(given)
        if method != "build":
            code = call(request, method, form, around, given)
            return 0 if lenient else code
    for name in ("iidfile", "metadata-file"):
        # What an earlier build left there must not be taken for this one's.
        if given.has(name):
            Path(given.one(name)).unlink(missing_ok=True)
    # Entering a user namespace is for a process without threads; the display has one.
    isolation = choose_isolation(given.one("isolation", "auto"), given.one("require-isolation", ""))
    stop = threading.Event()
    with Stop(stop) as stopped, open_store(given, around.environ) as store:
        from builder.build import build as perform

        display = progress(
            style,
            around.stderr,
            colour=around.colour(around.stderr),
            dumb=around.environ.get("TERM", "dumb") == "dumb",
        )
        try:
            result = perform(
                request,
                store=store,
                isolation=isolation,
                report=display,
                stop=stop,
                stdin=around.stdin,
                registries=functools.cache(lambda: open_registries(given, around.environ, stop.wait)),
            )
        except Exception:
            if stopped.code is not None:
                display.close()
                return stopped.tell(around)
            raise
        finally:
            display.close()
        _write_results(given, result)
        if style == "quiet":
            around.say(result.image.id)
        # The last thing, when all that was asked for is there.
        if result.steps > result.cached:
            _keep_budget(store, limit, result.written, style, around)
    return 0


def _keep_budget(store: Store, limit: int | None, written: int, style: str, around: Surroundings) -> None:
    """Cut the cache down to its budget, and say so where there is someone to read it."""
    from cache import budget
    from cache.errors import StoreError

    most = budget.default(store) if limit == _AUTO else budget.Budget(limit)
    try:
        done = budget.keep(store, most, written)
    except StoreError:
        return  # the build is done; the next one tries again
    if done is not None and style not in {"quiet", "none", "rawjson"}:
        from builder.terminal import human_size

        count = len(done.items)
        print(
            f"the cache was over its budget: {human_size(sum(item.size for item in done.items))} of it removed, "
            f"{count} thing{'s' * (count != 1)} not used for longest",
            file=around.stderr,
        )


def budget_of(given: Given, environ: Mapping[str, str]) -> int | None:
    """How many bytes the cache may take: None for any number, `_AUTO` for what the disk's size makes of it."""
    text = given.one("cache-budget") or environ.get("PYBUILD_CACHE_BUDGET") or "auto"
    if text in {"auto", "none"}:
        return _AUTO if text == "auto" else None
    return size(text, "cache-budget")


def _dry_run(request: BuildRequest, given: Given, around: Surroundings) -> int:
    """Print the plan and the lowered steps. Needs no tier; all that it may write are bases that the store takes in."""
    from builder.build import open_request, prepare, remote_of
    from builder.cli.outline import outline
    from builder.survey import examine
    from builder.terminal import render_finding

    with open_store(given, around.environ) as store, open_request(request, store, around.stdin) as contexts:
        registries = functools.cache(lambda: open_registries(given, around.environ))
        remote = remote_of(request, store, registries, lambda _: None)
        plan, work = prepare(request, store, contexts, remote)
        examined = examine(plan, work.stages, contexts, request.lint.settings)
    around.say(outline(plan, work.stages).rstrip("\n"))
    for finding in examined.all:
        print(render_finding(finding, colour=around.colour(around.stderr)), end="", file=around.stderr)
    examined.enforce()
    return 0


# ---------------------------------------------------------------- flags to request


def style_of(given: Given, environ: Mapping[str, str]) -> str:
    """How progress is shown; -q wins."""
    if given.on("quiet"):
        return "quiet"
    style = given.one("progress") or environ.get("BUILDKIT_PROGRESS") or "auto"
    if style not in STYLES:
        raise UsageError(f"--progress {style!r} is none of {', '.join(STYLES)}", hint=_meant(style, STYLES))
    return style


def request_of(given: Given, environ: Mapping[str, str]) -> BuildRequest:
    """What was asked for, each value checked. UsageError for the first that is wrong."""
    if given.has("rm") and not given.on("rm"):
        raise UsageError("--rm=false is not supported", hint="no container is ever left behind to be kept")
    context, file = given.words[0], given.one("file")
    if context == "-" and file == "-":
        raise UsageError(
            "the context and the Dockerfile can not both come from standard input",
            hint="pybuild - < Dockerfile builds without a context; pybuild -f - . has one",
        )
    if not context:
        raise UsageError("the context is empty", hint="`.` is the current folder")
    return BuildRequest(
        context=context,
        file=file,
        tags=tuple(_image_name(tag) for tag in given.all("tag")),
        target=given.one("target"),
        build_args=build_args(given.all("build-arg"), environ),
        build_contexts=tuple(named_context(text) for text in given.all("build-context")),
        labels=tuple(_label(text) for text in given.all("label")),
        platform=platform_of(given.one("platform")),
        no_cache=given.on("no-cache"),
        no_cache_filter=frozenset(
            name for text in given.all("no-cache-filter") for name in fields(text, "no-cache-filter") if name
        ),
        outputs=_outputs(given),
        secrets=tuple(secret(text, environ) for text in given.all("secret")),
        ssh=tuple(ssh(text, environ) for text in given.all("ssh")),
        run=RunOptions(
            network=_one_of(given.one("network", "default"), "network", _NETWORKS),
            hosts=tuple(host(text) for text in given.all("add-host")),
            shm_size=size(given.one("shm-size", "64m"), "shm-size"),
            ulimits=tuple(ulimit(text) for text in given.all("ulimit")),
            allow=frozenset(
                _one_of(name, "allow", _ENTITLEMENTS) for text in given.all("allow") for name in fields(text, "allow")
            ),
        ),
        ignore_file=given.one("ignorefile"),
        cache=_cache_use(given),
        lint=_lint_use(given),
        cache_from=_places(given, "cache-from"),
        cache_to=_places(given, "cache-to"),
        pull=_pull_flag(given),
        squash=given.on("squash"),
    )


def _lint_use(given: Given) -> LintUse:
    """What --lint and the --max flags ask for."""
    asked = given.one("lint")
    if given.has("lint") and asked not in {"", "true", "false", "error"}:
        raise UsageError(f"--lint={asked}: it takes nothing, or error", hint=_meant(asked, ("error",)))
    return LintUse(given.has("lint") and asked != "false", asked == "error", sizes_of(given))


def sizes_of(given: Given) -> Budget:
    """What --max-size, --max-layer and --max-waste allow."""
    waste = given.one("max-waste")
    percent: float | None = None
    if waste.endswith("%"):
        try:
            percent = float(waste[:-1])
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:
            raise UsageError(f"--max-waste {waste!r} is no share", hint="--max-waste 5%, or 10m")
    return Budget(
        max_size=bytes_of(given, "max-size"),
        max_layer=bytes_of(given, "max-layer"),
        max_waste=None if percent is not None else bytes_of(given, "max-waste"),
        waste_percent=percent,
    )


def bytes_of(given: Given, flag: str) -> int | None:
    """The bytes of a flag that may be 0; None when it was not given."""
    if not given.has(flag):
        return None
    return 0 if given.one(flag) == "0" else size(given.one(flag), flag)


def _places(given: Given, flag: str) -> tuple[CachePlace, ...]:
    if not given.has(flag):
        return ()
    from builder.cli.places import cache_place

    return tuple(cache_place(text, flag, size) for text in given.all(flag))


def _outputs(given: Given) -> tuple[OutputSpec, ...]:
    """Every --output; --push makes one for the registry of each type=image, or one of its own, as in buildx."""
    found = [output(text) for text in given.all("output")]
    if given.on("push") and not any(spec.type == "registry" for spec in found):
        images = [spec for spec in found if spec.type == "image"]
        if not images:
            found.append(OutputSpec("registry"))
        for spec in images:
            found[found.index(spec)] = replace(spec, attributes=(*spec.attributes, ("push", "true")))
    return tuple(found)


def _pull_flag(given: Given) -> str:
    """What --pull says: docker's switch, or podman's words."""
    text = given.one("pull", "missing")
    if text in {"", *TRUE}:
        return "always"
    return "missing" if text in FALSE else _one_of(text, "pull", ("always", "missing", "never"))


def _cache_use(given: Given) -> CacheUse:
    """What --no-cache-from, --cache-ttl, --require-cache and --explain ask of the cache."""
    line = given.one("no-cache-from", "0")
    if not line.isdecimal() or (given.has("no-cache-from") and int(line) < 1):
        raise UsageError(f"--no-cache-from {line!r} is no line of the Dockerfile", hint="--no-cache-from 12")
    required: frozenset[str] | None = frozenset(
        name for text in given.all("require-cache") for name in fields(text, "require-cache") if name
    )
    if "" in given.all("require-cache"):
        required = None
    if given.has("require-cache") and given.on("no-cache"):
        raise UsageError("--require-cache and --no-cache can not both be had")
    oldest = duration(given.one("cache-ttl"), "cache-ttl") if given.has("cache-ttl") else None
    return CacheUse(int(line), oldest, required, given.on("explain"), given.on("key-secrets"))


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def duration(text: str, flag: str) -> float:
    """A span of time in seconds: numbers with units, `7d`, `1h30m`, `2w`. UsageError for anything else."""
    import re

    if not re.fullmatch(r"(?:\d+(?:\.\d+)?[smhdw])+|0", text):
        raise UsageError(f"--{flag} {text!r} is no span of time", hint="such as 7d, 12h, 1h30m, 2w")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhdw])", text))


def build_args(texts: Iterable[str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE`, or `NAME` with the environment's value; a name that the environment does not have is left unset.

    SOURCE_DATE_EPOCH is taken from the environment without being asked for, as `docker buildx build` does:
    https://reproducible-builds.org/docs/source-date-epoch/.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name:
            raise UsageError(f"--build-arg {text!r} has no name", hint="--build-arg NAME=VALUE")
        if sign:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    if environ.get("SOURCE_DATE_EPOCH"):
        found.setdefault("SOURCE_DATE_EPOCH", environ["SOURCE_DATE_EPOCH"])
    return tuple(found.items())


def output(text: str) -> OutputSpec:
    """`type=oci,dest=F,...`; a bare path is type=local, `-` a tar to standard output."""
    if text == "-":
        return OutputSpec("tar", "-")
    if not text:
        raise UsageError("--output is empty", hint="-o type=oci,dest=app.tar")
    if "=" not in text:
        return OutputSpec("local", text)
    kind, dest, attributes = "", "", []
    for key, value in pairs(text, "output"):
        if key == "type":
            kind = value
        elif key in {"dest", "destination"}:
            dest = value
        else:
            attributes.append((key, value))
    if not kind:
        raise UsageError(f"--output {text!r} has no type", hint="type=oci, docker, tar, local, image or registry")
    if kind in {"tar", "oci"} and not dest:
        dest = "-"
    return OutputSpec(kind, dest, tuple(attributes))


def secret(text: str, environ: Mapping[str, str]) -> SecretSource:
    """`id=X[,src=F|,env=E][,type=file|env]`; without either, the variable X, else the file X, as docker."""
    given = dict(pairs(text, "secret"))
    hint = "--secret id=NAME,src=FILE or id=NAME,env=VARIABLE"
    for key in given.keys() - {"id", "src", "source", "env", "type"}:
        raise UsageError(f"--secret has no key {key!r}", hint=hint)
    kind = given.get("type", "")
    if kind not in {"", "file", "env"}:
        raise UsageError(f"--secret type {kind!r} is neither file nor env", hint=hint)
    name = given.get("id", "")
    path, variable = given.get("src") or given.get("source") or "", given.get("env", "")
    if kind == "env" and not variable:
        path, variable = "", path or name
    name = name or os.path.basename(path) or variable
    if not name:
        raise UsageError(f"--secret {text!r} has no id", hint=hint)
    if path and variable:
        raise UsageError(f"--secret {name} has both a file and a variable", hint=hint)
    if not path and not variable:
        if kind != "file" and name in environ:
            variable = name
        else:
            path = name
    if variable:
        if variable not in environ:
            raise UsageError(f"--secret {name}: the environment has no {variable}")
        return SecretSource(name, value=os.fsencode(environ[variable]))
    if not os.path.isfile(path):
        raise UsageError(f"--secret {name}: there is no file {path}", hint=hint)
    return SecretSource(name, path=Path(path).absolute())


def ssh(text: str, environ: Mapping[str, str]) -> SshSource:
    """`default`, `NAME`, `NAME=SOCKET` or `NAME=KEY,KEY`."""
    name, _, rest = text.partition("=")
    paths = [path for path in fields(rest, "ssh") if path]
    if not paths:
        socket = environ.get("SSH_AUTH_SOCK", "")
        if not socket:
            raise UsageError(
                f"--ssh {text}: there is no agent, SSH_AUTH_SOCK is not set",
                hint="start ssh-agent, or --ssh default=KEY",
            )
        paths = [socket]
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"--ssh {text}: there is no {path}")
    if len(paths) == 1 and not os.path.isfile(paths[0]):
        return SshSource(name or "default", socket=Path(paths[0]).absolute())
    return SshSource(name or "default", keys=tuple(Path(path).absolute() for path in paths))


def host(text: str) -> tuple[str, str]:
    """`NAME:ADDRESS` or `NAME=ADDRESS`; the address may stand in brackets."""
    cut = min((text.index(sign) for sign in "=:" if sign in text), default=-1)
    name, address = text[:cut], text[cut + 1 :].removeprefix("[").removesuffix("]")
    if cut < 1 or not address:
        raise UsageError(f"--add-host {text!r} is not NAME:ADDRESS")
    if address == "host-gateway":
        raise UsageError("--add-host with host-gateway is not supported", hint="give an address that this machine has")
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except OSError:
            continue
        return name, address
    raise UsageError(f"--add-host {text!r}: {address!r} is not an IP address")


def size(text: str, flag: str) -> int:
    """`64m`, `1g`, `2gb`, `1024`: bytes, in powers of 1024."""
    lower = text.lower()
    unit = lower.lstrip("0123456789.")
    number = lower[: len(lower) - len(unit)]
    factor = _SIZES.get(unit.strip().removesuffix("b").removesuffix("i"))
    try:
        value = int(float(number) * (factor or 0))
    except ValueError:
        value = 0
    if value <= 0:
        raise UsageError(f"--{flag} {text!r} is not a size", hint="64m, 1g, 1048576")
    return value


def ulimit(text: str) -> tuple[str, int, int]:
    """`nofile=1024:2048`, `core=0`, `memlock=-1`."""
    name, _, limits = text.partition("=")
    soft, colon, hard = limits.partition(":")
    try:
        low = int(soft)
        high = int(hard) if colon else low
    except ValueError:
        raise UsageError(f"--ulimit {text!r} is not NAME=SOFT[:HARD]", hint="--ulimit nofile=1024:2048") from None
    if low < -1 or high < -1 or (high != -1 and (low > high or low == -1)):
        raise UsageError(f"--ulimit {text!r}: the soft limit is above the hard one")
    if name not in _ULIMITS:
        raise UsageError(f"--ulimit has no {name!r}", hint=_meant(name, _ULIMITS) or f"one of {', '.join(_ULIMITS)}")
    return name, low, high


_ULIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip


def _image_name(text: str) -> str:
    from cache.errors import StoreError
    from cache.reference import Reference

    try:
        name = Reference.parse(text)
    except StoreError as error:
        raise UsageError(f"--tag: {error.message}", hint=error.hint) from None
    if name.digest:
        raise UsageError(
            f"--tag {text!r} has a digest, which only the image itself can have", hint=f"--tag {name.name}"
        )
    return text


def named_context(text: str) -> tuple[str, str]:
    """The name and the source of one --build-context. UsageError when one is missing."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise UsageError(f"--build-context {text!r} is not NAME=SOURCE")
    return name, value


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f"--label {text!r} has no name")
    return name, value


def platform_of(text: str) -> Platform | None:
    """--platform's value in normal form; None when it was not given."""
    if not text:
        return None
    from builder.platforms import normal_platform, parse_platform
    from cache.oci import host_platform

    here = normal_platform(host_platform())
    if text == "local":
        return here
    if "," in text:
        raise UsageError("--platform takes one platform", hint="build each one by itself")
    try:
        return parse_platform(text, here)
    except ValueError as error:
        raise UsageError(f"--platform: {error}") from None


def _one_of(value: str, flag: str, known: tuple[str, ...]) -> str:
    if value not in known:
        hint = _meant(value, known) or f"it takes {', '.join(known)}"
        raise UsageError(f"--{flag} {value!r} is not supported", hint=hint)
    return value


def _meant(word: str, known: Iterable[str]) -> str:
    from grammar.suggest import did_you_mean

    return did_you_mean(word, known)


# ---------------------------------------------------------------- result to files


def _write_results(given: Given, result: BuildResult) -> None:
    """The files of --iidfile and --metadata-file, each at one stroke."""
    if given.has("iidfile"):
        _write(given.one("iidfile"), result.image.id)
    if given.has("metadata-file"):
        import json

        manifest = result.image.manifest
        document = {
            "containerimage.config.digest": result.image.id,
            "containerimage.descriptor": manifest.to_json(),
            "containerimage.digest": manifest.digest,
            "image.name": ",".join(result.names),
        }
        _write(given.one("metadata-file"), json.dumps(document, indent=2) + "\n")


def _write(name: str, text: str) -> None:
    temporary = f"{name}.{os.getpid()}"
    try:
        Path(temporary).write_text(text, encoding="utf-8")
        os.replace(temporary, name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
