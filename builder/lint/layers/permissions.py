"""Rules about who may do what with files: set-id bits, capabilities, what anyone may write, owners without a name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from builder.lint.layers.subject import LayerRule, by_layer, count, named, worst
from builder.model import Severity
from cache.entries import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.layers.subject import ImageSubject, Shipped
    from builder.model import Finding

_CAPABILITY = "security.capability"
_PROGRAMS = re.compile(rb"^(?:usr/)?(?:local/)?(?:s?bin|lib|libexec)/")
_STICKY = 0o1000


def _raised(item: Shipped) -> bool:
    """Whether who runs the file gets more than they have."""
    entry = item.entry
    return entry.kind is Kind.FILE and bool(entry.mode & 0o6000 or any(name == _CAPABILITY for name, _ in entry.xattrs))


def setuid_files(subject: ImageSubject) -> Iterator[Finding]:
    """Programs that raise their user's rights should be there on purpose.

    Why: a mistake in a program with a set-id bit or a file capability makes root of whoever may start it. Few images
    need any; packages bring some along.

    Bad:
        FROM base
        RUN cat /bin/busybox /bin/busybox > /tool && chmod 4755 /tool

    Good:
        FROM base
        RUN cat /bin/busybox /bin/busybox > /tool && chmod 755 /tool
    """
    before = {
        (name, item.entry.mode & 0o6000)
        for item in subject.shipped
        if not subject.layers[item.layer].own and _raised(item)
        for name in (*item.names, *(gone.path for gone in item.gone))
    }
    new = [
        item
        for item in subject.own()
        if _raised(item) and not all((name, item.entry.mode & 0o6000) in before for name in item.names)
    ]
    for number, items in by_layer(new).items():
        odd = [item for item in items if not _PROGRAMS.match(item.path)]
        message = f"{count(len(items), 'program')} with set-id bits or capabilities: {worst(odd or items)}"
        hint = "chmod a-s in the same RUN, where nobody needs it; run as the user whose rights are wanted"
        severity = Severity.WARNING if odd else Severity.INFO
        yield subject.finding(
            "SetuidFiles", message, subject.layers[number], hint, severity=severity, files=items, size=0
        )


def world_writable(subject: ImageSubject) -> Iterator[Finding]:
    """No file, and no folder without a sticky bit, should be writable for everyone.

    Why: any process in the container can then change what another one runs or reads.

    Bad:
        FROM base
        RUN mkdir /data && chmod 777 /data

    Good:
        FROM base
        RUN mkdir /data && chown app /data && chmod 755 /data
    """
    base = {
        entry.path: entry.mode
        for layer in subject.layers
        if not layer.own
        for entry in layer.entries
        if entry.kind is Kind.DIRECTORY or entry.kind is Kind.FILE
    }
    found: dict[int, set[bytes]] = {}
    for item in subject.own():
        entry = item.entry
        if entry.kind is Kind.FILE and entry.mode & 0o002 and not base.get(item.path, 0) & 0o002:
            found.setdefault(item.layer, set()).add(item.path)
    seen: set[bytes] = set()
    for layer in subject.layers:
        for entry in layer.entries:
            path = entry.path
            if not layer.own or entry.kind is not Kind.DIRECTORY or not _open(entry.mode) or path in seen:
                continue
            last = subject.files.entry(path)
            if last is not None and last.kind is Kind.DIRECTORY and _open(last.mode) and not _open(base.get(path, 0)):
                seen.add(path)
                found.setdefault(layer.number, set()).add(path)
    for number, names in sorted(found.items()):
        paths = sorted(names)
        message = f"{count(len(paths), 'path')} that everyone may write: {named(paths)}"
        hint = "give it to the user that writes there, chown and chmod o-w; a shared folder is 1777"
        yield subject.finding("WorldWritable", message, subject.layers[number], hint, paths=paths)


def _open(mode: int) -> bool:
    return bool(mode & 0o002) and not mode & _STICKY


def orphan_owners(subject: ImageSubject) -> Iterator[Finding]:
    """Files should belong to users and groups that the image knows.

    Why: an owner without a name is often the builder's own id, come along with a COPY or an archive; whoever gets that
    id later owns the files. Ids above 65535 can not be had in most user namespaces.

    Bad:
        FROM base
        RUN echo x > /data && chown 4711:4711 /data

    Good:
        FROM base
        RUN echo x > /data && chown app /data
    """
    if subject.ids is None:
        return
    users, groups = subject.ids
    config = subject.config.config.user.partition(":")
    known = {int(part) for part in (config[0], config[2]) if part.isdecimal()}
    found: dict[int, list[Shipped]] = {}
    for item in subject.own():
        entry = item.entry
        if (entry.uid not in users and entry.uid not in known) or (entry.gid not in groups and entry.gid not in known):
            found.setdefault(item.layer, []).append(item)
    for number, items in sorted(found.items()):
        owners = sorted({f"{item.entry.uid}:{item.entry.gid}" for item in items})
        message = f"{count(len(items), 'file belongs', 'files belong')} to an owner without a name, "
        message += f"{', '.join(owners[:3])}: {worst(items)}"
        high = any(max(item.entry.uid, item.entry.gid) > 0xFFFF for item in items)
        hint = "an id above 65535 can not be had in most user namespaces; " if high else ""
        hint += "COPY --chown, or tar --no-same-owner in the RUN"
        yield subject.finding(
            "OrphanOwners", message, subject.layers[number], hint, severity=Severity.INFO, files=items, size=0
        )


RULES = (
    LayerRule(
        "SetuidFiles",
        "Programs that raise their user's rights should be there on purpose.",
        setuid_files,
        Severity.INFO,
    ),
    LayerRule(
        "WorldWritable",
        "No file, and no folder without a sticky bit, should be writable for everyone.",
        world_writable,
    ),
    LayerRule(
        "OrphanOwners",
        "Files should belong to users and groups that the image knows.",
        orphan_owners,
        Severity.INFO,
    ),
)
