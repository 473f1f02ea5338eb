"""The program that runs RUNs by an OCI runtime, crun or runc: builder/sandbox.py's server with another child.

The child, process 1 of a pid namespace, mounts the root and what the RUN asks for exactly as for a RUN without a
runtime, in a mount namespace of its own, and writes a bundle beside it: config.json as the runtime specification has
it. The runtime, started in there, brings its own namespaces, /proc, masked and read-only paths, capabilities, system
call filter, host name, ids and limits. It keeps its state in the same place. So whatever happens, the end of process 1
is the end of the container and of all that was mounted or written for it: there is nothing to delete.

Cgroups are left alone: the runtime sees its cgroup file systems as read-only or not at all, and starts the command in
the builder's cgroups. The devices that a RUN may open are kept few by mounts without devices, as elsewhere.

https://github.com/opencontainers/runtime-spec/blob/v1.0.0/config.md
"""

from __future__ import annotations

import errno
import json
import marshal
import os
import resource
import stat

from builder import sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

# What crun 1.8 and runc 1.1, the oldest that are met, accept; newer ones accept it too.
VERSION = "1.0.0"

_BY_NUMBER = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
CAPABILITIES = _BY_NUMBER.split()
"""By their numbers."""

# The filters of builder/sandbox.py by the calls' names, which runtimes want: what they allow and what they refuse on
# any of their architectures. All else, clone3 and newer calls, is unknown.
_ALLOWED = """
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind
    breakpoint brk cacheflush cachestat capget capset chdir chmod chown chown32 chroot clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir
    fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area get_tls
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2
    modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address set_tls
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
    signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx
    symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname
    unlink unlinkat usr26 usr32 utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
    writev
"""
_REFUSED = """
    _sysctl acct add_key afs_syscall bdflush bpf break clock_settime clock_settime64 create_module delete_module
    fanotify_init finit_module fsconfig fsmount fsopen fspick ftime get_kernel_syms get_mempolicy getpmsg gtty
    idle init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load
    keyctl lock lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr mbind migrate_pages mount
    mount_setattr move_mount move_pages mpx nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname
    open_by_handle_at open_tree pciconfig_iobase pciconfig_read pciconfig_write perf_event_open pidfd_getfd
    pivot_root process_madvise prof profil putpmsg query_module quotactl quotactl_fd readdir reboot request_key
    security set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday sgetmask sigaction
    signal sigpending sigsuspend ssetmask stime stty swapoff swapon sysfs syslog tuxcall ulimit umount umount2
    unshare uselib userfaultfd ustat vhangup vm86 vm86old vserver
"""
_CHANGING_IDS = """
    chown chown32 fchown fchown32 fchownat lchown lchown32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid
    setuid32
"""
_ARCHITECTURES = {"x86_64": ("X86_64", "X86"), "aarch64": ("AARCH64", "ARM")}
_NO_CGROUPS = {"crun": "--cgroup-manager=disabled", "runc": "--rootless=true"}
_CONTAINER = "run"
_CGROUPS = "/sys/fs/cgroup"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Bundled(sandbox.Run):
    """One RUN by a runtime. The request's `runtime`: its name and path."""

    def start(self, filters: Sequence[bytes]) -> NoReturn:  # noqa: ARG002 - the runtime is told its own
        """Prepare, start the container, wait for its first process, end with its exit code."""
        request = self.request
        self.leave()
        self.make_root()
        self.mount_system()
        self.mount_requested()
        # The runtime reads about processes in /proc, which are those of this pid namespace.
        sandbox.attach(sandbox.filesystem("proc", (), 0), os.open("/proc", os.O_PATH | os.O_CLOEXEC))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._hide_cgroups()
        os.fchdir(self.scratch)
        folder = os.getcwd()
        status, limits = self._try_command(null)
        if status:
            os._exit(status)  # all is said
        with open("config.json", "w", encoding="utf-8") as file:
            json.dump(self._describe(f"{folder}/root", limits), file)
        os.mkdir("state", 0o700)
        reaped = self._call_runtime(folder, null, "create", "--no-new-keyring", "--pid-file", "pid", "--bundle", folder)
        with open("pid", encoding="utf-8") as file:
            first = int(file.read())
        if not request["insecure"]:
            self._refuse_devices(first)
        reaped |= self._call_runtime(folder, null, "start")
        while first not in reaped:
            pid, status = os.waitpid(-1, 0)
            reaped[pid] = status
        code = os.waitstatus_to_exitcode(reaped[first])
        os._exit(code if code >= 0 else 128 - code)

    def _try_command(self, null: int) -> tuple[int, list[tuple[str, int, int]]]:
        """Execute the command and kill it before its first instruction: the exit code if it can not be executed, or 0.

        So what is missing is told as everywhere, before a runtime wraps it in words and codes of its own. Also the
        resource limits that can be had: a runtime fails at others.
        """
        request = self.request
        reading, writing = os.pipe()
        # The command may be found, or the working directory not be one, by way of /proc.
        sandbox.attach(sandbox.filesystem("proc", (), sandbox.RDONLY), sandbox.open_in_root(self.root, "/proc"))
        pid = os.fork()
        if pid == 0:
            try:
                os.fchdir(self.root)
                os.chroot(".")
                sandbox.limit(request["ulimits"])
                # A runtime in Go may raise the number of open files, its own and the command's.
                names = {"nofile", *(name for name, _, _ in request["ulimits"])}
                limits = [(n, *resource.getrlimit(getattr(resource, f"RLIMIT_{n.upper()}"))) for n in sorted(names)]
                os.write(writing, marshal.dumps(limits))
                self.stand(null)
                sandbox.enter_folder(request["cwd"])
                self.take_ids()
                if sandbox.ask_to_be_traced():
                    sandbox.execute(request["argv"], [os.fsencode(e) for e in request["env"]])
                os._exit(0)
            except BaseException as error:
                sandbox.send_frame(self.builder, sandbox.failure(error))
            finally:
                os._exit(sandbox.FAILED)
        os.close(writing)
        with open(reading, "rb") as stream:
            said = stream.read()
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(pid, sandbox.SIGKILL)
            os.waitpid(pid, 0)
            status = 0
        shown = sandbox.open_in_root(self.root, "/proc")
        sandbox.detach(f"/proc/self/fd/{shown}")
        os.close(shown)
        return os.waitstatus_to_exitcode(status), marshal.loads(said) if said else []  # noqa: S302 - our own child

    def _hide_cgroups(self) -> None:
        """Show the runtime cgroups that it can not write to, so that it leaves none behind."""
        try:
            place = os.open(_CGROUPS, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        if self.request["runtime"][0] == "crun" and not os.path.exists(f"{_CGROUPS}/cgroup.controllers"):
            # It ends at once where it sees both versions in use.
            mount = sandbox.filesystem("tmpfs", (), sandbox.RDONLY)
        else:
            mount = sandbox.clone_tree(_CGROUPS)
            sandbox.set_attributes(mount, sandbox.RDONLY)
        sandbox.attach(mount, place)

    def _call_runtime(self, folder: str, null: int, *words: str) -> dict[int, int]:
        """Have the runtime do something to the container. Returns the statuses of other processes that ended meanwhile.

        OSError in its words when it fails.
        """
        name, path = self.request["runtime"]
        before = [
            name,
            "--root",
            f"{folder}/state",
            "--log",
            f"{folder}/log",
            "--log-format",
            "json",
            _NO_CGROUPS[name],
        ]
        pid = os.fork()
        if pid == 0:
            try:
                self.stand(null)
                environment = {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
                os.execve(path, [*before, *words, _CONTAINER], environment)  # noqa: S606 - that is the executor
            except BaseException as error:
                sandbox.send_frame(self.builder, sandbox.failure(error))
            finally:
                os._exit(sandbox.FAILED)
        reaped: dict[int, int] = {}
        while pid not in reaped:
            ended, status = os.waitpid(-1, 0)
            reaped[ended] = status
        status = os.waitstatus_to_exitcode(reaped.pop(pid))
        if status == sandbox.FAILED:
            os._exit(status)  # told already
        if status:
            raise OSError(0, self._reason() or f"{path} {words[0]} failed with exit code {status}")
        return reaped

    @staticmethod
    def _refuse_devices(pid: int) -> None:
        """Have the container's root and /dev open no devices but those mounted there: crun loses that in remounts."""
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

        def act() -> None:
            sandbox.enter_mounts(fd)
            for path in ("/", "/dev"):
                sandbox.set_attributes(os.open(path, os.O_PATH), sandbox.NODEV, recursive=False)

        error = sandbox.attempt(act)
        os.close(fd)
        if error:
            raise error

    @staticmethod
    def _reason() -> str:
        """What the runtime complained of last."""
        found = ""
        try:
            with open("log", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    said = json.loads(line)
                    found = str(said["msg"]) if said.get("level") in {"error", "fatal"} else found
        except (OSError, ValueError, KeyError):
            return found
        return found

    def _describe(self, root: str, limits: list[tuple[str, int, int]]) -> dict[str, Any]:
        """The bundle's config.json."""
        request = self.request
        environment = dict(line.split("=", 1) for line in request["env"] if "=" in line)
        # The runtime looks the program up, and knows no default.
        environment.setdefault("PATH", _PATH)
        capabilities = [f"CAP_{name}" for name in self._capabilities()]
        plain = ["nosuid", "noexec", "nodev"]
        mounts: list[dict[str, Any]] = [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": plain},
            # What is there already. Without this the runtime would make devices in it.
            {"destination": "/dev", "type": "bind", "source": f"{root}/dev", "options": ["rbind"]},
        ]
        if os.path.ismount(f"{root}/dev/mqueue"):
            mounts.append({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": plain})
        linux: dict[str, Any] = {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]}
        if not request["insecure"]:
            linux["maskedPaths"] = [f"/{name}" for name in sandbox.MASKED]
            linux["readonlyPaths"] = [f"/{name}" for name in sandbox.READ_ONLY]
            linux["seccomp"] = seccomp(os.uname().machine, request["single"])
        return {
            "ociVersion": VERSION,
            "process": {
                "terminal": False,
                "user": {"uid": request["uid"], "gid": request["gid"], "additionalGids": list(request["groups"])},
                "args": list(request["argv"]),
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": request["cwd"],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "rlimits": [
                    {"type": f"RLIMIT_{name.upper()}", "soft": soft % (1 << 64), "hard": hard % (1 << 64)}
                    for name, soft, hard in limits
                ],
                "noNewPrivileges": False,
            },
            "root": {"path": root, "readonly": False},
            "hostname": request["hostname"],
            "mounts": mounts,
            "linux": linux,
        }

    def _capabilities(self) -> list[str]:
        """The names of the RUN's capabilities, as far as this process has them."""
        with open("/proc/self/status", encoding="utf-8", errors="replace") as lines:
            bounding = next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))
        kept = bounding if self.request["insecure"] else bounding & sandbox.CAPABILITIES
        return [name for number, name in enumerate(CAPABILITIES) if kept >> number & 1]


def seccomp(machine: str, single: bool) -> dict[str, Any]:
    """The filters of builder/sandbox.py as a runtime takes them. single: pretend that ids can be changed.

    One difference: refused personalities and socket families are answered ENOSYS, since libseccomp takes no two
    actions for overlapping ranges of one argument.
    """
    allow, refuse = "SCMP_ACT_ALLOW", {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    done = {"action": "SCMP_ACT_ERRNO", "errnoRet": 0}
    allowed = set(_ALLOWED.split())
    rules: list[dict[str, Any]] = [{"names": _REFUSED.split(), **refuse}]
    bits = [1 << bit for bit in range(32) if sandbox.NAMESPACE_FLAGS >> bit & 1]
    rules.append(_rule("clone", allow, "MASKED_EQ", sandbox.NAMESPACE_FLAGS, 0))
    rules += [{**_rule("clone", "", "MASKED_EQ", bit, bit), **refuse} for bit in bits]
    rules += [_rule("personality", allow, "EQ", value) for value in sandbox.PERSONALITIES]
    alg, vsock = sandbox.AF_ALG, sandbox.AF_VSOCK
    rules += [_rule("socket", allow, "LT", alg), _rule("socket", allow, "GT", vsock)]
    rules += [_rule("socket", allow, "EQ", family) for family in range(alg + 1, vsock)]
    if single:
        changing = _CHANGING_IDS.split()
        allowed -= {*changing, "mknod", "mknodat"}
        rules.append({"names": changing, **done})
        for name, index in (("mknod", 1), ("mknodat", 2)):
            for kind in (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
                rules.append(_rule(name, allow, "MASKED_EQ", 0o170000, kind, index=index))
            for kind in (stat.S_IFCHR, stat.S_IFBLK):
                rules.append({**_rule(name, "", "MASKED_EQ", 0o170000, kind, index=index), **done})
    rules.append({"names": sorted(allowed), "action": allow})
    found = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}
    if machine in _ARCHITECTURES:
        found["architectures"] = [f"SCMP_ARCH_{name}" for name in _ARCHITECTURES[machine]]
    return found


def _rule(name: str, action: str, test: str, value: int, second: int = 0, *, index: int = 0) -> dict[str, Any]:
    argument = {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{test}"}
    return {"names": [name], "action": action, "args": [argument]}


def main(program: str = "") -> None:
    """Serve; see builder/sandbox.py."""
    sandbox.main(Bundled, program)
