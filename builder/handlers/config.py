"""Instructions that only change the image's config, from ENV to MAINTAINER.

Pure; the texts of history are BuildKit's, which prints Go values.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.handlers import gotext
from builder.handlers.base import with_shell
from builder.handlers.expansion import Expander, error
from builder.model import Lowered, Scope, StageState
from cache.oci import Healthcheck as HealthcheckConfig
from cache.oci import RuntimeConfig
from grammar.durations import nanoseconds
from grammar.instructions import ExecForm
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from grammar.instructions import (
        Cmd,
        Command,
        Entrypoint,
        Env,
        Expose,
        Healthcheck,
        Label,
        Maintainer,
        Stopsignal,
        User,
        Volume,
        Word,
    )

_LAST_PORT = 65535
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_PROTOCOLS = ("tcp", "udp", "sctp")
_SIGNALS = {
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    *(f"RTMIN+{n}" for n in range(1, 16)), *(f"RTMAX-{n}" for n in range(1, 15)),
}  # fmt: skip


def _lowered(
    instruction: Env | Label | User | Expose | Volume | Stopsignal | Healthcheck | Cmd | Entrypoint | Maintainer,
    state: StageState,
    created_by: str,
    expander: Expander | None = None,
) -> Lowered:
    return Lowered(
        instruction, state, created_by=created_by, findings=tuple(expander.findings) if expander is not None else ()
    )


def lower_env(instruction: Env, state: StageState, scope: Scope) -> Lowered:
    """ENV: every value is expanded with what held before the whole line; a variable keeps its place in the list."""
    expander = Expander(state, scope)
    env = list(state.config.env)
    lines = []
    for pair, (name, value) in zip(instruction.pairs, expander.pairs(instruction.pairs), strict=True):
        if not name:
            raise error(scope, "ENV names can not be blank", pair.span)
        line = f"{name}={value}"
        at = next((i for i, old in enumerate(env) if old.partition("=")[0] == name), None)
        if at is None:
            env.append(line)
        else:
            env[at] = line
        expander.environment[name] = value
        lines.append(line)
    after = replace(
        state, config=replace(state.config, env=tuple(env)), environment=tuple(expander.environment.items())
    )
    return _lowered(instruction, after, f"ENV {' '.join(lines)}", expander)


def lower_label(instruction: Label, state: StageState, scope: Scope) -> Lowered:
    """LABEL: keys are expanded too."""
    expander = Expander(state, scope)
    pairs = expander.pairs(instruction.pairs)
    config = replace(state.config, labels=tuple({**dict(state.config.labels), **dict(pairs)}.items()))
    text = " ".join(f"{name}={value}" for name, value in pairs)
    return _lowered(instruction, replace(state, config=config), f"LABEL {text}", expander)


def lower_user(instruction: User, state: StageState, scope: Scope) -> Lowered:
    """USER: looked up only by what needs it, so a name may come into being later."""
    expander = Expander(state, scope)
    user = expander.word(instruction.user)
    return _lowered(instruction, replace(state, config=replace(state.config, user=user)), f"USER {user}", expander)


def lower_volume(instruction: Volume, state: StageState, scope: Scope) -> Lowered:
    """VOLUME: a mark in the config; what later instructions write there is kept."""
    expander = Expander(state, scope)
    paths = []
    for word in instruction.paths:
        path = expander.word(word)
        if not path.strip():
            raise error(scope, "VOLUME specified can not be an empty string", word.span)
        paths.append(path)
    volumes = tuple(dict.fromkeys((*state.config.volumes, *paths)))
    after = replace(state, config=replace(state.config, volumes=volumes))
    return _lowered(instruction, after, f"VOLUME {gotext.plain_list(paths)}", expander)


def lower_stopsignal(instruction: Stopsignal, state: StageState, scope: Scope) -> Lowered:
    """STOPSIGNAL: a number other than 0, or a name with or without SIG."""
    expander = Expander(state, scope)
    signal = expander.word(instruction.signal)
    number = re.fullmatch(r"[+-]?\d+", signal)
    name = signal.upper().removeprefix("SIG")
    if int(signal) == 0 if number else name not in _SIGNALS:
        hint = (
            did_you_mean(signal, (f"SIG{known}" for known in _SIGNALS), ignore_case=True)
            or "use a name such as SIGTERM, or a number"
        )
        raise error(scope, f"invalid signal: {signal}", instruction.signal.span, hint)
    after = replace(state, config=replace(state.config, stop_signal=signal))
    return _lowered(instruction, after, f"STOPSIGNAL {signal}", expander)


def lower_maintainer(instruction: Maintainer, state: StageState, scope: Scope) -> Lowered:
    """MAINTAINER: the image's author; not expanded."""
    del scope
    return _lowered(instruction, replace(state, author=instruction.name), f"MAINTAINER {instruction.name}")


def lower_cmd(instruction: Cmd, state: StageState, scope: Scope) -> Lowered:
    """CMD: the last one counts. ArgsEscaped is set as BuildKit does, for Docker's sake."""
    del scope
    argv = _argv(instruction.command, state.config)
    after = replace(state, config=replace(state.config, cmd=argv or None, args_escaped=True), cmd_set=True)
    return _lowered(instruction, after, f"CMD {gotext.quoted_list(argv)}")


def lower_entrypoint(instruction: Entrypoint, state: StageState, scope: Scope) -> Lowered:
    """ENTRYPOINT: drops a CMD that comes from the base, since it was meant for another program."""
    del scope
    argv = _argv(instruction.command, state.config)
    cmd = state.config.cmd if state.cmd_set else None
    after = replace(state, config=replace(state.config, entrypoint=argv or None, cmd=cmd))
    return _lowered(instruction, after, f"ENTRYPOINT {gotext.quoted_list(argv)}")


def _argv(command: Command, config: RuntimeConfig) -> tuple[str, ...]:
    return command.argv if isinstance(command, ExecForm) else with_shell(command.text, config)


# ---------------------------------------------------------------- HEALTHCHECK


def lower_healthcheck(instruction: Healthcheck, state: StageState, scope: Scope) -> Lowered:
    """HEALTHCHECK: a shell form is kept as it is, the container's runtime gives it to the image's shell."""
    del scope
    match instruction.command:
        case None:
            check = HealthcheckConfig(test=("NONE",))
        case command:
            check = HealthcheckConfig(
                test=("CMD", *command.argv) if isinstance(command, ExecForm) else ("CMD-SHELL", command.text),
                interval=_interval(instruction.interval),
                timeout=_interval(instruction.timeout),
                start_period=_interval(instruction.start_period),
                start_interval=_interval(instruction.start_interval),
                retries=int(instruction.retries.text or 0) if instruction.retries else 0,
            )
    text = (
        f"HEALTHCHECK {{Test:{gotext.plain_list(check.test)} Interval:{gotext.duration(check.interval)} "
        f"Timeout:{gotext.duration(check.timeout)} StartPeriod:{gotext.duration(check.start_period)} "
        f"StartInterval:{gotext.duration(check.start_interval)} Retries:{check.retries}}}"
    )
    return _lowered(instruction, replace(state, config=replace(state.config, healthcheck=check)), text)


def _interval(word: Word | None) -> int:
    return nanoseconds(word.text) if word is not None and word.text else 0


# ---------------------------------------------------------------- EXPOSE


def lower_expose(instruction: Expose, state: StageState, scope: Scope) -> Lowered:
    """EXPOSE: words are sorted as written, as BuildKit's parser does, then expanded and split; ranges become ports."""
    expander = Expander(state, scope)
    ports: list[str] = []
    for word in sorted(instruction.ports, key=lambda word: word.text):
        for spec in expander.split(word):
            ports += _ports(spec, word, scope)
    exposed = tuple(dict.fromkeys((*state.config.exposed_ports, *ports)))
    after = replace(state, config=replace(state.config, exposed_ports=exposed))
    return _lowered(instruction, after, f"EXPOSE {gotext.plain_list(ports)}", expander)


def _ports(spec: str, word: Word, scope: Scope) -> list[str]:
    """`[ip:][host:]port[-port][/protocol]` as a list of `port/protocol`; address and host port have to be valid."""
    head, _, container = spec.rpartition(":")
    address, _, host = head.rpartition(":")
    if not container or container.startswith("/"):
        raise error(scope, f"invalid port: {spec!r}: no port specified", word.span)
    numbers, _, protocol = container.partition("/")
    if protocol.lower() not in {"", *_PROTOCOLS}:
        hint = did_you_mean(protocol, _PROTOCOLS) or "a protocol is tcp, udp or sctp"
        raise error(scope, f"invalid port: {spec!r}: invalid proto: {protocol}", word.span, hint)
    if address:
        import ipaddress

        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise error(scope, f"invalid IP address: {address}", word.span) from None
    first, last = _range(numbers, "containerPort", word, scope)
    if host:
        first_host, last_host = _range(host, "hostPort", word, scope)
        if last - first not in {0, last_host - first_host}:
            msg = f"invalid ranges specified for container and host Ports: {numbers} and {host}"
            raise error(scope, msg, word.span)
    return [f"{port}/{protocol.lower() or 'tcp'}" for port in range(first, last + 1)]


def _range(text: str, what: str, word: Word, scope: Scope) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    first = int(found[1]) if found else -1
    last = int(found[2] or found[1]) if found else -1
    if not 0 <= first <= last <= _LAST_PORT:
        hint = f"ports go from 0 to {_LAST_PORT}, a range from the lower one to the higher one"
        raise error(scope, f"invalid {what}: {text}", word.span, hint)
    return first, last
