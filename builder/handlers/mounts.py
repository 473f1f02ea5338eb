"""`RUN --mount`: every key of every type, https://docs.docker.com/reference/dockerfile/#run---mount.

All values but `from` are expanded. A key that a type can not use is an error where BuildKit has it as one, and a
warning where BuildKit passes over it in silence.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from msgspec import Struct, field

from builder.handlers import gotext
from builder.handlers.expansion import Expander, error
from builder.model import (
    CONTEXT,
    BindMount,
    CacheMount,
    Finding,
    Mount,
    Origin,
    Scope,
    SecretMount,
    SshMount,
    StageState,
    TmpfsMount,
)
from builder.origins import Use, resolve
from grammar.mounts import mount_fields
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from grammar.instructions import Run, Word

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
CACHE_NAMESPACE = "BUILDKIT_CACHE_MOUNT_NS"
"""The build argument that keeps the cache mounts of one group of builds apart from all others'."""

_NAMES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite",
}  # fmt: skip
_KEYS = (
    "type", "from", "source", "target", "readonly", "readwrite", "id", "sharing", "required", "size", "mode", "uid",
    "gid", "env", *_NAMES,
)  # fmt: skip
_ALONE = frozenset({"readonly", "readwrite", "required"})
# Keys that BuildKit takes for any type and that mean something only for these.
_MEANINGFUL = {
    "from": {"bind", "cache"}, "source": {"bind", "cache", "secret", "ssh"}, "id": {"cache", "secret", "ssh"},
    "env": {"secret"}, "readonly": {"bind", "cache"}, "readwrite": {"bind", "cache"},
}  # fmt: skip


class _Read(Struct):
    """One mount's keys as read so far. `type` counts for the keys after it, as in BuildKit."""

    word: Word
    type: str = "bind"
    values: dict[str, str] = field(default_factory=dict)
    readonly: bool | None = None
    required: bool = False


def lower_mounts(instruction: Run, state: StageState, scope: Scope, expander: Expander) -> tuple[Mount, ...]:
    """The mounts of a RUN, in order. BuildError for the first thing that is wrong with one."""
    mounts: list[Mount] = []
    agents = 0
    for word in instruction.mounts:
        read = _read(word, scope, expander)
        mounts.append(_mount(read, state, scope, agents))
        agents += read.type == "ssh"
    return tuple(mounts)


def _read(word: Word, scope: Scope, expander: Expander) -> _Read:
    read = _Read(word)
    for text in mount_fields(word.text):
        written, equals, value = text.partition("=")
        key = _NAMES.get(written.lower(), written.lower())
        if not equals:
            _alone(key, text, read, scope)
        elif key == "from":
            read.values[key] = value
        else:
            _set(key, written, expander.text(value, word.span), text, read, scope)
    _check(read, scope)
    for key in sorted(read.values.keys() & _MEANINGFUL.keys()):
        if read.type not in _MEANINGFUL[key]:
            message = f"{key} has no effect on a {read.type} mount"
            expander.findings.append(Finding("MountKeyWithoutEffect", message, word.span, scope.source))
    return read


def _alone(key: str, text: str, read: _Read, scope: Scope) -> None:
    if key not in _ALONE:
        hint = did_you_mean(key, _KEYS)
        raise error(scope, f"invalid field '{text}' must be a key=value pair", read.word.span, hint)
    if key == "required":
        _only(key, ("secret", "ssh"), read, scope)
        read.required = True
    else:
        read.readonly = key == "readonly"
        read.values[key] = "true"


def _set(key: str, written: str, value: str, text: str, read: _Read, scope: Scope) -> None:
    span = read.word.span
    match key:
        case "type":
            read.type = value.lower()
            if read.type not in TYPES:
                hint = did_you_mean(value, TYPES) or f"the types are {', '.join(TYPES)}"
                raise error(scope, f'unsupported mount type "{value}"', span, hint)
        case "readonly" | "readwrite" | "required":
            if key == "required":
                _only(key, ("secret", "ssh"), read, scope)
            try:
                truth = gotext.parse_bool(value)
            except ValueError:
                raise error(scope, f"invalid value for {written}: {value}", span, "it is true or false") from None
            if key == "required":
                read.required = truth
            else:
                read.readonly = truth == (key == "readonly")
                read.values[key] = value
        case "size":
            _only(key, ("tmpfs",), read, scope)
            try:
                read.values[key] = str(gotext.parse_size(value))
            except ValueError as failure:
                raise error(scope, f"invalid value for size: {failure}", span) from None
        case "sharing":
            read.values[key] = value.lower()
            if value.lower() not in SHARING:
                hint = did_you_mean(value, SHARING) or f"it is one of {', '.join(SHARING)}"
                raise error(scope, f'unsupported sharing value "{value}"', span, hint)
        case "mode" | "uid" | "gid":
            base = 8 if key == "mode" else 10
            if not value.isascii() or not value.isdecimal() or (base == 8 and set(value) & set("89")):
                raise error(scope, f"invalid value {value} for {key}", span, "it is an octal number" * (base == 8))
            if int(value, base) >= 1 << 32:
                raise error(scope, f"invalid value {value} for {key}: too big", span)
            read.values[key] = str(int(value, base))
        case "source" | "target" | "id" | "env":
            read.values[key] = value
        case _:
            hint = did_you_mean(key, _KEYS)
            raise error(scope, f"unexpected key '{written}' in '{text}'", span, hint)


def _only(key: str, types: tuple[str, ...], read: _Read, scope: Scope) -> None:
    if read.type not in types:
        hint = f"it is for {' and '.join(types)} mounts; write type= before it"
        raise error(scope, f"unexpected key '{key}' for mount type '{read.type}'", read.word.span, hint)


def _check(read: _Read, scope: Scope) -> None:
    """What keys may not stand together."""
    span, values = read.word.span, read.values
    if read.type in {"bind", "tmpfs"}:
        for key in ("mode", "uid", "gid"):
            if key in values:
                raise error(scope, f'{key} not allowed for "{read.type}" type mounts', span)
    if read.type == "secret":
        if values.get("from"):
            raise error(scope, "secret mount should not have a from", span)
        if "sharing" in values:
            raise error(scope, "secret mount should not define sharing", span)
        if not any(values.get(key) for key in ("source", "target", "id")):
            raise error(scope, "invalid secret mount. one of id, source, target required", span)
        if values.get("source") and values.get("id"):
            raise error(scope, "both source and id can't be set", span)
    if read.type == "ssh" and values.get("source"):
        raise error(scope, "ssh does not support source", span, "an agent is named with id=")
    if read.type != "cache" and "sharing" in values:
        raise error(scope, f"invalid cache sharing set for {read.type} mount", span, "sharing is for cache mounts")
    if read.type == "cache" and values.get("source") and not values.get("from"):
        raise error(scope, "the source of a cache mount needs a from", span, "name a stage or an image with from=")


def _mount(read: _Read, state: StageState, scope: Scope, agents: int) -> Mount:
    values, span = read.values, read.word.span
    uid, gid = int(values.get("uid", "0")), int(values.get("gid", "0"))
    match read.type:
        case "bind":
            target = _target(read, state, scope)
            source = _inside(values.get("source", ""))
            return BindMount(
                target, _origin(read, scope) or CONTEXT, source, writable=read.readonly is False, span=span
            )
        case "cache":
            target = _target(read, state, scope)
            identity = values.get("id") or posixpath.normpath(values.get("target", ""))
            namespace = scope.build_args.get(CACHE_NAMESPACE, "")
            return CacheMount(
                target=target,
                id=f"{namespace}/{identity}" if namespace else identity,
                sharing=values.get("sharing", "shared"),
                origin=_origin(read, scope),
                source=_inside(values.get("source", "")),
                mode=int(values.get("mode", str(0o755))),
                uid=uid,
                gid=gid,
                readonly=read.readonly is True,
            )
        case "tmpfs":
            return TmpfsMount(_target(read, state, scope), int(values.get("size", "0")))
        case "secret":
            return _secret(read, state, uid, gid)
        case _:
            target = values.get("target") or f"/run/buildkit/ssh_agent.{agents}"
            return SshMount(
                id=values.get("id") or "default",
                target=_joined(target, state),
                required=read.required,
                mode=int(values.get("mode", str(0o600))),
                uid=uid,
                gid=gid,
                span=span,
            )


def _secret(read: _Read, state: StageState, uid: int, gid: int) -> SecretMount:
    values = read.values
    target = values.get("target", "")
    identity = values.get("source") or values.get("id") or posixpath.basename(target.rstrip("/"))
    env = ""
    if "env" in values:
        env = values["env"] or identity
    elif not target:
        target = "/run/secrets/" + posixpath.basename(identity.rstrip("/"))
    return SecretMount(
        id=identity,
        target=_joined(target, state) if target else "",
        env=env,
        required=read.required,
        mode=int(values.get("mode", str(0o400))),
        uid=uid,
        gid=gid,
        span=read.word.span,
    )


def _origin(read: _Read, scope: Scope) -> Origin | None:
    name = read.values.get("from", "")
    if not name:
        return None
    return resolve(Use(name, read.word.span, read.values.get("target", "")), scope)


def _target(read: _Read, state: StageState, scope: Scope) -> str:
    target = _joined(read.values.get("target", ""), state)
    if target == "/":
        hint = "a mount needs target=PATH, below the root directory"
        raise error(scope, 'invalid mount target "/"', read.word.span, hint)
    return target


def _joined(target: str, state: StageState) -> str:
    return _inside(posixpath.join("/", state.config.working_dir, target))


def _inside(path: str) -> str:
    """A path as a clean absolute one that stays below the root."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")
