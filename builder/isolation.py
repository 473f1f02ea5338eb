"""Where this process's RUNs can run: chosen once, at its start, by trying.

The tiers are those of DESIGN: the first that works is taken. `choose` may put this very process into a user namespace,
which the kernel refuses as soon as there is a second thread, so that it comes before all else.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from builder.errors import UnsupportedError

if TYPE_CHECKING:
    from builder.executors import Executor
    from cache.snapshots import Snapshots
    from cache.store import Store

NAMESPACES = ("privileged", "rootless", "rootless-single")
CHROOT = "pod"
FILES_ONLY = "hardened"
"""The tier with nothing but files; a RUN takes proot there."""

RUNTIMES = ("crun", "runc")
"""The OCI runtimes that can run RUNs, in the tiers with namespaces."""

FORCIBLE = ("auto", "namespaces", *NAMESPACES, "chroot", "proot", *RUNTIMES)
REQUIRABLE = ("namespaces", "chroot", "proot")
"""What can be asked for as the least, the strongest first."""


class Isolation(Struct, frozen=True):
    """A chosen tier. reason: why this one and no better one. hint: what would give a better one, or empty.

    userns: this process is in a user namespace, where overlayfs keeps its marks in `user.overlay.*`. proot: the
    program that RUNs are run by in the tier with nothing else, or empty. runtime: the path of an OCI runtime that is to
    run them, or empty. network: the path of the program by which a RUN gets a network of its own, or empty; shared: why
    it is empty, so that RUNs share this machine's network.
    """

    tier: str
    reason: str
    hint: str = ""
    userns: bool = False
    proot: str = ""
    runtime: str = ""
    network: str = ""
    shared: str = "there are no namespaces in this tier"

    @property
    def mechanism(self) -> str:
        """What isolates a RUN: one of REQUIRABLE, or empty when there is no RUN. A runtime does it by namespaces."""
        if self.tier in NAMESPACES:
            return "namespaces"
        if self.tier == CHROOT:
            return "chroot"
        return "proot" if self.proot else ""

    def executor(self) -> Executor:
        """A new executor, to be closed. UnsupportedError in a tier without RUN."""
        if self.tier == CHROOT:
            from builder.executors.chroot import ChrootExecutor

            return ChrootExecutor(self.tier)
        if self.proot:
            from builder.executors.proot import ProotExecutor

            return ProotExecutor(self.tier, self.proot)
        if self.tier not in NAMESPACES:
            raise UnsupportedError(
                f"RUN can not work in tier {self.tier}: {self.reason}",
                hint=f"{self.hint}; or install proot" if self.hint else "install proot",
            )
        single = self.tier == "rootless-single"
        if self.runtime:
            from builder.executors.runtime import RuntimeExecutor

            return RuntimeExecutor(self.tier, self.runtime, userns=self.userns, single=single, network=self.network)
        from builder.executors.namespaces import NamespaceExecutor

        return NamespaceExecutor(self.tier, userns=self.userns, single=single, network=self.network)

    def snapshots(self, store: Store) -> Snapshots:
        """The snapshots that its executor can mount: an overlay where the store's file system can carry one."""
        from cache.snapshots import OverlaySnapshots, WorkingCopySnapshots

        if self.tier in NAMESPACES and self.overlay_problem(str(store.root / "tmp")) is None:
            return OverlaySnapshots(store, userxattr=self.userns)
        return WorkingCopySnapshots(store)

    def overlay_problem(self, folder: str) -> OSError | None:
        """Why no overlay can be written on the file system of a folder, or None."""
        from builder import sandbox

        return sandbox.try_overlay(folder, self.userns)


def choose(forced: str = "auto") -> Isolation:
    """Choose the tier, and enter its user namespace if it has one. Once, before any thread exists.

    forced: `auto`, `namespaces` (the best of its tiers), a tier's name, `chroot`, `proot`, or an OCI runtime's name (by
    it, in the best of those tiers). With `auto` there is always an answer: where no RUN can work, COPY, ADD and the
    rest still do, and asking for an executor says why. UnsupportedError when what was forced can not be had.
    """
    if forced not in FORCIBLE:
        raise UnsupportedError(f"isolation {forced!r} is not supported", hint=f"there are: {', '.join(FORCIBLE)}")
    if forced not in RUNTIMES:
        return _connected(_choose(forced))
    path = runtime_path(forced)
    if not path:
        raise UnsupportedError(
            f"isolation {forced} is not to be had: there is no {forced} on PATH",
            hint=f"install the package {forced}, or choose {' or '.join(n for n in RUNTIMES if n != forced)}",
        )
    found = _connected(_choose("namespaces"))
    return replace(found, reason=f"{found.reason}; RUN by {path}", runtime=path)


def _connected(found: Isolation) -> Isolation:
    """The tier with what its networks take."""
    if found.tier not in NAMESPACES:
        return found
    program, problem = connector()
    return replace(found, network=program, shared=problem)


def connector() -> tuple[str, str]:
    """The path of the program that connects a network namespace, or empty and why there is none.

    slirp4netns comes first: it is ready in a sixth of the time, and a RUN reaches this machine's own address with it as
    with docker's bridge; pasta gives that address to the RUN.
    """
    paths = (f"{folder}/{name}" for name in ("slirp4netns", "pasta") for folder in os.get_exec_path() if folder)
    program = next((path for path in paths if os.access(path, os.X_OK)), "")
    if not program:
        return "", "there is no slirp4netns or pasta on PATH"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return "", f"/dev/net/tun can not be opened: {error.strerror}"
    return program, ""


def runtime_path(name: str) -> str:
    """Where a runtime is installed, or empty. Debian keeps runc where ordinary users do not look."""
    folders = (folder for folder in (*os.get_exec_path(), "/usr/sbin", "/sbin") if folder)
    return next((path for folder in folders if os.access(path := f"{folder}/{name}", os.X_OK)), "")


def require(found: Isolation, least: str) -> None:
    """UnsupportedError unless what isolates a RUN is `least`, one of REQUIRABLE, or stronger."""
    if least not in REQUIRABLE:
        raise UnsupportedError(f"isolation {least!r} can not be required", hint=f"there are: {', '.join(REQUIRABLE)}")
    if not found.mechanism or REQUIRABLE.index(found.mechanism) > REQUIRABLE.index(least):
        what = found.mechanism or "no RUN at all"
        raise UnsupportedError(
            f"isolation by {least} is required, and here there is {what} (tier {found.tier}): {found.reason}",
            hint=found.hint,
        )


def _choose(forced: str) -> Isolation:
    if forced == "chroot":
        wanted: tuple[str, ...] = (CHROOT,)
    elif forced == "proot":
        wanted = (FILES_ONLY,)
    elif forced == "auto":
        wanted = (*NAMESPACES, CHROOT, FILES_ONLY)
    else:
        wanted = NAMESPACES if forced == "namespaces" else (forced,)
    problems: list[str] = []
    hint = ""
    if "privileged" in wanted:
        problem = _privileged_problem()
        if problem is None:
            from builder import sandbox

            inside = sandbox.in_user_namespace()
            reason = (
                "root of a user namespace with the right to mount" if inside else "real root with the right to mount"
            )
            return Isolation("privileged", reason, userns=inside)
        problems.append(problem)
    if "rootless" in wanted or "rootless-single" in wanted:
        found = _enter(wanted)
        if isinstance(found, Isolation):
            return found
        problem, hint = found
        problems.append(problem)
    if CHROOT in wanted:
        problem = _chroot_problem()
        if problem is None:
            return Isolation(CHROOT, "; ".join(("root that may chroot", *problems)), hint)
        if problem not in problems:
            problems.append(problem)
    if FILES_ONLY in wanted:
        program, problem = _proot()
        if program:
            return Isolation(FILES_ONLY, "; ".join((f"RUN by {program}", *problems)), hint, proot=program)
        problems.append(problem)
    reason = "; ".join(problems)
    if forced != "auto":
        raise UnsupportedError(f"isolation {forced} is not to be had: {reason}", hint=hint)
    return Isolation(FILES_ONLY, reason, hint)


def _privileged_problem() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    from builder import sandbox

    error = sandbox.attempt(sandbox.try_mounts)
    return f"root without the right to mount ({error.strerror})" if error else None


def _chroot_problem() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    from builder import sandbox

    error = sandbox.attempt(sandbox.try_chroot)
    return f"root that can not chroot and make device nodes ({error.strerror})" if error else None


def _proot() -> tuple[str, str]:
    """The path of a proot that works, or empty and the problem. Tracing other processes may be forbidden."""
    paths = (f"{folder}/proot" for folder in os.get_exec_path() if folder)
    program = next((path for path in paths if os.access(path, os.X_OK)), "")
    if not program:
        return "", "no proot on PATH"
    from tempfile import gettempdir

    null = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1, 2)]
    room = {"PROOT_TMP_DIR": gettempdir()}
    pid = os.posix_spawn(program, [program, sys.executable, "-I", "-S", "-c", ""], room, file_actions=null)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (
        (program, "")
        if status == 0
        else ("", f"{program} does not work (status {status}; some versions need a writable /tmp)")
    )


def _enter(wanted: tuple[str, ...]) -> Isolation | tuple[str, str]:
    """Enter a user namespace for one of the wanted tiers; else the problem and what would help."""
    from builder import sandbox

    error = sandbox.attempt(sandbox.try_user_namespace)
    if error:
        return _why_not(error)
    uids: sandbox.Ranges = ()
    gids: sandbox.Ranges = ()
    tools = None
    own = os.geteuid() == 0 and _may_map()
    lack, hint = "asked for", ""
    if "rootless" in wanted and not own:
        uids, gids = (_subordinate(f"/etc/{name}") for name in ("subuid", "subgid"))
        tools = _tools()
        lack, hint = _lack(uids, gids, tools)
        if lack and "rootless-single" not in wanted:
            return lack, hint
    problem = sandbox.enter_user_namespace(uids, gids, tools if not lack else None, own=own and "rootless" in wanted)
    if not problem:
        count = (
            "all ids of this machine" if own else f"{min(sum(n for _, n in r) for r in (uids, gids))} subordinate ids"
        )
        return Isolation("rootless", f"user namespace with {count}", userns=True)
    if "rootless-single" not in wanted:
        return problem, hint
    return Isolation("rootless-single", f"user namespace with one id: {lack or problem}", hint, userns=True)


def _may_map() -> bool:
    """Whether this process has CAP_SETGID (6), CAP_SETUID (7) and CAP_SETFCAP (31), which mapping id 0 takes."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    wanted = 1 << 6 | 1 << 7 | 1 << 31
    return effective & wanted == wanted


def _lack(
    uids: tuple[tuple[int, int], ...], gids: tuple[tuple[int, int], ...], tools: tuple[str, str] | None
) -> tuple[str, str]:
    """What is missing for more than one id, and what would help; empty when nothing is."""
    if tools is None:
        return (
            "newuidmap and newgidmap are not installed",
            "install them (Debian, Ubuntu: uidmap; Fedora: shadow-utils)",
        )
    if not uids or not gids:
        name = _user() or str(os.geteuid())
        missing = "/etc/subuid" if not uids else "/etc/subgid"
        command = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        return f"{missing} has no range for {name}", f"as root: {command}"
    return "", ""


def _tools() -> tuple[str, str] | None:
    """The paths of newuidmap and newgidmap."""
    found = []
    for name in ("newuidmap", "newgidmap"):
        paths = (f"{folder}/{name}" for folder in (*os.get_exec_path(), "/usr/bin", "/bin") if folder)
        path = next((p for p in paths if os.access(p, os.X_OK)), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def _subordinate(path: str) -> tuple[tuple[int, int], ...]:
    """The ranges of a file as subuid(5) has it, for the present user by name or number."""
    names = {_user(), str(os.geteuid())} - {""}
    ranges = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, numbers = line.strip().partition(":")
                first, _, count = numbers.partition(":")
                if name in names and first.isdecimal() and count.isdecimal() and int(count):
                    ranges.append((int(first), int(count)))
    except OSError:
        return ()
    return tuple(ranges)


_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=28633"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,`",
    ),
)


def _why_not(error: OSError) -> tuple[str, str]:
    """Why there can be no user namespace with mounts, and what would help."""
    for name, off, remedy in _SWITCHES:
        try:
            with open(f"/proc/sys/{name}", encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == off:
            return f"user namespaces are restricted by {name.replace('/', '.', 1)}={value}", f"as root: {remedy}"
    text = error.strerror or str(error)
    if "proc" in text:
        return (
            f"this container masks parts of /proc, so that a fresh one is refused ({text})",
            "start the container with --security-opt systempaths=unconfined (kubernetes: procMount: Unmasked)",
        )
    if "fsopen" in text or "ENOSYS" in text or error.errno == 38:
        return f"the kernel lacks what is needed ({text})", "Linux 5.12 or newer is needed"
    return (
        f"user namespaces with mounts are refused ({text})",
        "in a container: allow unshare and mount by its seccomp profile (docker: --security-opt seccomp=unconfined)",
    )
