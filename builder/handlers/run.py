"""RUN lowered to a RunStep: argv, environment, mounts, network, and its line of history."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.handlers.base import with_shell
from builder.handlers.expansion import Expander, error, looks_secret, masked
from builder.handlers.mounts import lower_mounts
from builder.model import (
    BindMount,
    CacheMount,
    Lowered,
    RunOptions,
    RunStep,
    Scope,
    SecretMount,
    SshMount,
    StageState,
    TmpfsMount,
)
from builder.plan import HOSTNAME, PROXIES
from grammar.instructions import ExecForm, Run

if TYPE_CHECKING:
    from builder.model import Mount
    from cache.oci import RuntimeConfig
    from grammar.instructions import Word

ENTITLEMENTS = frozenset({"network.host", "security.insecure"})
"""What a RUN gets only when the user allows it for the build: `--allow`."""

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
SCRIPTS = "/dev/pipes"
"""Where a here-document that starts with `#!` lies while it runs."""


def lower_run(instruction: Run, state: StageState, scope: Scope) -> Lowered:
    """RUN: the command itself is never expanded; the shell finds the variables in its environment."""
    expander = Expander(state, scope)
    argv, scripts = _command(instruction, state.config, scope)
    env, unkeyed = environment(state, scope)
    step = RunStep(
        argv=argv,
        env=env,
        user=state.config.user,
        cwd="/" + posixpath.normpath(posixpath.join("/", state.config.working_dir)).lstrip("/"),
        mounts=lower_mounts(instruction, state, scope, expander),
        network=_granted(instruction.network, "network", "default", scope),
        security=_granted(instruction.security, "security", "sandbox", scope),
        scripts=scripts,
        unkeyed=unkeyed,
        hostname=_hostname(scope),
    )
    created_by = f"RUN {' '.join((*_arguments(state), *argv))} # buildkit"
    return Lowered(instruction, state, step, created_by=created_by, findings=tuple(expander.findings))


def environment(state: StageState, scope: Scope) -> tuple[tuple[str, ...], frozenset[str]]:
    """What a RUN sees, as `NAME=value`, and the names of it that no ARG or ENV declares: the proxies of --build-arg."""
    values = dict(state.environment)
    declared = frozenset(values)
    for name in PROXIES:
        for spelling in (name, name.lower()):
            value = scope.build_args.get(spelling, "")
            if value:
                values |= {name: value, name.lower(): value}
    return tuple(f"{name}={value}" for name, value in values.items()), frozenset(values) - declared


def _command(
    instruction: Run, config: RuntimeConfig, scope: Scope
) -> tuple[tuple[str, ...], tuple[tuple[str, bytes], ...]]:
    """What is executed, and the scripts that it needs.

    A here-document alone is a script for the shell, or, with `#!`, for the interpreter that it names; together with
    other words it is put back behind them, for the shell to make sense of.
    """
    if isinstance(instruction.command, ExecForm):
        if not instruction.command.argv:
            raise error(scope, "RUN needs a command: the JSON array is empty", instruction.span)
        return instruction.command.argv, ()
    text = instruction.command.text
    docs = instruction.heredocs
    if not docs:
        return with_shell(text, config), ()
    if text.strip() != docs[0].raw:
        return with_shell("\n".join([text, *(doc.body + doc.name for doc in docs)]), config), ()
    if not docs[0].body.startswith("#!"):
        return with_shell(docs[0].body, config), ()
    if "/" in docs[0].name:
        msg = f"a here-document with #! can not be called {docs[0].name}: its name becomes a file's name"
        raise error(scope, msg, docs[0].span)
    path = f"{SCRIPTS}/{docs[0].name}"
    return with_shell(path, config), ((path, docs[0].body.encode("utf-8", "surrogateescape")),)


def _granted(word: Word | None, flag: str, default: str, scope: Scope) -> str:
    """The value of --network or --security, when the user has granted what it asks for."""
    if word is None:
        return default
    entitlement = f"{flag}.{word.text}"
    if entitlement in ENTITLEMENTS and entitlement not in scope.allow:
        raise error(scope, f"{entitlement} is not allowed", word.span, f"grant it with --allow {entitlement}")
    return word.text


def _hostname(scope: Scope) -> str:
    """What --build-arg BUILDKIT_SANDBOX_HOSTNAME calls the machine that a RUN sees. BuildError for what is no name."""
    name = scope.build_args.get(HOSTNAME, "")
    if name and not _HOSTNAME.fullmatch(name):
        raise BuildError(f"--build-arg {HOSTNAME}={name}: it is no host name", hint="letters, digits, '.' and '-'")
    return name


def _arguments(state: StageState) -> list[str]:
    """`|N NAME=value ...`: the ARGs in force, as docker's history has them; secrets are masked."""
    if not state.args:
        return []
    values = dict(state.environment)
    last = dict(state.args)
    pairs = ((name, values.get(name, last[name] or "")) for name in last)
    return [f"|{len(last)}", *(f"{name}={masked(name, value)}" for name, value in pairs)]


MEANING = "1"
"""Part of every key of a RunStep: to be raised when the same step sees or leaves something else than before.

`tests/builder/test_meaning.py` tells when that is.
"""


def run_parts(step: RunStep, options: RunOptions = RunOptions()) -> list[tuple[str, str]]:
    """What of the step decides what it makes, readable, without any secret in it (`run_secrets` has those).

    options: the command line's. Of --add-host the names count, the addresses do not, as in BuildKit. Cache mounts count
    by their target only, secrets and agents not by their content; proxies that nothing declares do not count. What lies
    behind bind mounts is not known here.
    """
    parts = [("RUN of pybuild", MEANING)]
    parts += [(f"argv {index}", word) for index, word in enumerate(step.argv)]
    for line in step.env:
        name, _, value = line.partition("=")
        if name not in step.unkeyed:
            parts.append((f"env {name}", masked(name, value)))
    network = step.network if step.network != "default" else options.network
    parts += [("cwd", step.cwd), ("user", step.user), ("network", network), ("security", step.security)]
    parts += [("hostname", step.hostname)] if step.hostname else []
    parts += [("hosts", " ".join(name for name, _ in options.hosts))] if options.hosts else []
    parts += [("shm size", str(options.shm_size))] if options.shm_size != RunOptions().shm_size else []
    parts += [(f"ulimit {name}", f"{soft}:{hard}") for name, soft, hard in options.ulimits]
    parts += [(f"script {path}", data.decode("utf-8", "surrogateescape")) for path, data in step.scripts]
    parts += [_mount_part(mount) for mount in step.mounts]
    return parts


def run_secrets(step: RunStep) -> list[bytes]:
    """Values that count for the cache key and may not be kept readable: `hidden` of `cache.index.key`."""
    found = []
    for line in step.env:
        name, _, value = line.partition("=")
        if name not in step.unkeyed and value and looks_secret(name):
            found.append(line.encode("utf-8", "surrogateescape"))
    return found


def _mount_part(mount: Mount) -> tuple[str, str]:
    match mount:
        case BindMount():
            origin = mount.origin
            where = origin.image or (
                f"stage {origin.stage}" if origin.stage is not None else f"context {origin.context}"
            )
            return f"mount {mount.target}", f"bind {where} {mount.source} {'rw' if mount.writable else 'ro'}"
        case CacheMount():
            access = "ro" if mount.readonly else "rw"
            return f"mount {mount.target}", f"cache {access} {mount.mode:o} {mount.uid}:{mount.gid}"
        case TmpfsMount():
            return f"mount {mount.target}", f"tmpfs {mount.size}"
        case SecretMount():
            place = " ".join(part for part in (mount.target, mount.env) if part)
            return f"mount {place}", f"secret {mount.id} {mount.mode:o} {mount.uid}:{mount.gid}"
        case SshMount():
            return f"mount {mount.target}", f"ssh {mount.id} {mount.mode:o} {mount.uid}:{mount.gid}"
