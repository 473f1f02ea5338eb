"""Each rule on layers at its edges, on images made by hand: what it finds, what it leaves alone, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from builder.lint.layers import BY_NAME, examine
from cache.entries import Entry, Kind
from cache.oci import RuntimeConfig
from cache.store import Store
from tests.handmade import GROUP, PASSWD, file, folder, gone, holding, link, program, subject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from builder.model import Finding

LOADER = "/lib64/ld-linux-x86-64.so.2"
KEY = b"-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n"
USERS = [holding("etc/passwd", PASSWD), holding("etc/group", GROUP)]
SH = [holding("bin/sh", program(), 0o755)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def found(store: Store, rule: str, *runs: list[Entry], **facts: Any) -> list[Finding]:
    assert rule in BY_NAME
    return [finding for finding in examine(subject(store, *runs, **facts)) if finding.rule == rule]


def brief(findings: list[Finding]) -> list[tuple[int | None, int, tuple[str, ...]]]:
    return [(finding.layer, finding.size, finding.paths) for finding in findings]


# ---------------------------------------------------------------- leftovers


@pytest.mark.parametrize(
    "path",
    [
        "tmp/a", "var/tmp/a/b", "run/x.pid", "dev/shm/x", "opt/notes.bak", "app/main.c~", "app/.main.c.swp",
        "app/a.orig", "app/a.rej", "app/.#lock", "root/.bash_history", "root/.viminfo", "root/.wget-hsts", "data/x.tmp",
        "home/app/.local/share/Trash/files/a", ".Trash-0/files/a",
    ],
)  # fmt: skip
def test_temporary_files(store: Store, path: str) -> None:
    assert brief(found(store, "TemporaryFiles", [file(path, 7)])) == [(0, 7, (path,))]


@pytest.mark.parametrize(
    "path",
    ["usr/share/doc/a.orig", "usr/lib/x/a.bak", "app/node_modules/a/b.tmp", "tmpfile", "var/tmpl/a", "app/swap.c",
     "var/lib/dpkg/status-old", "etc/passwd-", "app/template.html"],
)  # fmt: skip
def test_what_is_not_temporary(store: Store, path: str) -> None:
    assert found(store, "TemporaryFiles", [file(path, 7)]) == []


def test_a_folder_of_mktemp_is_found_and_an_empty_tmp_is_not(store: Store) -> None:
    runs = [[folder("tmp", 0o1777), folder("tmp/tmp.Xa81kQ", 0o700), folder("tmp/mount")]]
    assert brief(found(store, "TemporaryFiles", *runs)) == [(0, 0, ("tmp/tmp.Xa81kQ",))]
    assert found(store, "TemporaryFiles", *runs, [gone("tmp/tmp.Xa81kQ")]) == []


def test_a_temporary_file_that_is_deleted_later_is_told_once(store: Store) -> None:
    runs = [[file("tmp/a", 5)], [gone("tmp/a")]]
    assert [finding.rule for finding in examine(subject(store, *runs))] == ["DeletedLater"]


def test_a_temporary_file_with_a_name_elsewhere(store: Store) -> None:
    runs = [[file("opt/a", 5), link("tmp/a", "opt/a")]]
    assert brief(found(store, "TemporaryFiles", *runs)) == [(0, 5, ("opt/a",))]


@pytest.mark.parametrize(
    ("rule", "path", "hint"),
    [
        ("AptLeftovers", "var/lib/apt/lists/deb_Packages", "rm -rf /var/lib/apt/lists/*"),
        ("AptLeftovers", "var/cache/apt/archives/curl.deb", "apt-get clean"),
        ("AptLeftovers", "var/cache/apt/pkgcache.bin", "apt-get clean"),
        ("PackageCache", "var/cache/apk/APKINDEX.tar.gz", "apk add --no-cache"),
        ("PackageCache", "etc/apk/cache/a.apk", "apk add --no-cache"),
        ("PackageCache", "var/cache/dnf/a.solv", "dnf clean all"),
        ("PackageCache", "var/cache/libdnf5/a", "dnf clean all"),
        ("PackageCache", "var/cache/yum/a", "yum clean all"),
        ("PackageCache", "var/cache/zypp/a", "zypper clean"),
        ("PackageCache", "var/cache/pacman/pkg/a", "pacman -Scc"),
        ("LanguageCache", "root/.cache/pip/http/a", "target=/root/.cache/pip"),
        ("LanguageCache", "home/app/.cache/uv/a", "target=/home/app/.cache/uv"),
        ("LanguageCache", "root/.cache/go-build/a", "target=/root/.cache/go-build"),
        ("LanguageCache", "go/pkg/mod/cache/a", "target=/go/pkg/mod"),
        ("LanguageCache", "root/.npm/_cacache/a", "npm cache clean"),
        ("LanguageCache", "usr/local/share/.cache/yarn/v6/a", "yarn cache clean"),
        ("LanguageCache", "root/.cargo/registry/a", "target=/root/.cargo/registry"),
        ("LanguageCache", "usr/local/cargo/registry/a", "target=/usr/local/cargo/registry"),
        ("LanguageCache", "root/.m2/repository/a.jar", "target=/root/.m2/repository"),
        ("LanguageCache", "root/.gradle/caches/a", "target=/root/.gradle/caches"),
        ("LanguageCache", "opt/conda/pkgs/a", "conda clean"),
        ("LanguageCache", "root/.nuget/packages/a", "target=/root/.nuget/packages"),
        ("LanguageCache", "root/.cache/huggingface/hub/a", "target=/root/.cache/huggingface/hub"),
        ("LanguageCache", "app/target/release/deps/a.rlib", "target=/app/target/release/deps"),
        ("LanguageCache", "root/.pnpm-store/a", "pnpm store prune"),
    ],
)
def test_caches(store: Store, rule: str, path: str, hint: str) -> None:
    (finding,) = found(store, rule, [file(path, 70_000)])
    assert (finding.size, finding.paths) == (70_000, (path,))
    assert hint in finding.hint
    assert found(store, rule, [file(path, 100)]) == []


def test_what_packages_leave_anyway_is_no_warning(store: Store) -> None:
    old = [file("var/cache/debconf/templates.dat-old", 700_000)]
    (finding,) = found(store, "AptLeftovers", old)
    assert (finding.severity.value, "debconf/*-old" in finding.hint) == ("info", True)
    (finding,) = found(store, "TemporaryFiles", [file("run/adduser", 0)])
    assert finding.severity.value == "info"
    runs = [[file("var/lib/dpkg/status", 200_000)], [file("var/lib/dpkg/status", 210_000)]]
    (finding,) = found(store, "RewrittenFiles", *runs)
    assert (finding.severity.value, finding.size) == ("info", 200_000)
    assert found(store, "DeletedLater", [file("var/lib/apt/lists/lock", 0)], [gone("var/lib/apt/lists/lock")]) == []


def test_a_host_key_is_told_once(store: Store) -> None:
    runs = [[holding("etc/ssh/ssh_host_rsa_key", KEY)]]
    assert [finding.rule for finding in examine(subject(store, *runs))] == ["HostFiles"]
    assert len(found(store, "SecretInFile", *runs, [gone("etc/ssh/ssh_host_rsa_key")])) == 1


def test_models_and_browsers_are_wanted_as_often_as_not(store: Store) -> None:
    (finding,) = found(store, "LanguageCache", [file("root/.cache/huggingface/hub/a", 70_000)])
    assert finding.severity.value == "info"


def test_logs_weigh_by_their_bytes(store: Store) -> None:
    small, large = found(store, "LogFiles", [file("var/log/a", 10)], [file("var/log/lastlog", 1 << 20)])
    assert (small.severity.value, small.size) == ("info", 10)
    assert (large.severity.value, large.size) == ("warning", 1 << 20)
    assert "--no-log-init" in large.hint
    assert found(store, "LogFiles", [file("var/log/empty", 0)]) == []


def test_core_dumps_by_what_they_are(store: Store) -> None:
    data = program(kind=4)
    assert brief(found(store, "CoreDumps", [holding("app/memory", data)])) == [(0, len(data), ("app/memory",))]
    assert found(store, "CoreDumps", [holding("usr/bin/core", program(), 0o755), file("app/core.c", 3)]) == []
    assert len(found(store, "CoreDumps", [file("hs_err_pid1.log", 3), file("core.17", 3)])) == 1


# ---------------------------------------------------------------- waste


def test_times_alone(store: Store) -> None:
    later = Entry(b"a", Kind.FILE, 0o644, size=5000, mtime_ns=10**9, content=file("a", 5000).content)
    (finding,) = found(store, "MetadataRewrite", [file("a", 5000)], [later])
    assert "to change nothing but times" in finding.message


@pytest.mark.parametrize(
    ("facts", "what", "flags"),
    [({"mode": 0o600}, "mode", "--chmod"), ({"uid": 5}, "owner", "--chown"),
     ({"uid": 5, "mode": 0o600}, "owner and mode", "--chown --chmod")],
)  # fmt: skip
def test_a_copy_could_have_done_it(store: Store, facts: dict[str, Any], what: str, flags: str) -> None:
    (finding,) = found(
        store, "MetadataRewrite", [file("a", 5000)], [file("a", 5000, **facts)], lines=["COPY a /", "RUN chmod"]
    )
    assert f"to change {what}:" in finding.message
    assert finding.hint.startswith(f"COPY {flags} in layer 0")


def test_a_small_rewrite_is_no_warning(store: Store) -> None:
    assert found(store, "RewrittenFiles", [file("etc/passwd", 100)], [file("etc/passwd", 120)]) == []
    (finding,) = found(store, "RewrittenFiles", [file("a", 5000)], [file("a", 5001)])
    assert (finding.severity.value, finding.size) == ("info", 5000)
    (finding,) = found(store, "RewrittenFiles", [file("a", 70_000)], [file("a", 70_001)])
    assert (finding.severity.value, finding.size) == ("warning", 70_000)


def test_hard_links_are_no_duplicates(store: Store) -> None:
    assert found(store, "DuplicateFiles", [file("a", 70_000), link("b", "a")]) == []
    assert brief(found(store, "DuplicateFiles", [file("a", 70_000), file("b", 70_000), file("c", 70_000)])) == [
        (0, 140_000, ("b", "c"))
    ]


def test_a_layer_of_folders_times_is_empty(store: Store) -> None:
    runs = [[folder("d"), file("d/a", 1)], [folder("d")]]
    assert [finding.layer for finding in found(store, "EmptyLayer", *runs)] == [1]
    assert found(store, "EmptyLayer", *runs[:1], [folder("d", 0o700)]) == []
    assert found(store, "EmptyLayer", *runs[:1], [folder("e")]) == []
    assert found(store, "EmptyLayer", *runs, lines=["RUN a", "WORKDIR /d"]) == []


# ---------------------------------------------------------------- secrets


def test_a_key_that_is_deleted_later_is_still_there(store: Store) -> None:
    (finding,) = found(store, "SecretInFile", [holding("root/key", KEY)], [gone("root/key")])
    assert (finding.severity.value, finding.layer, finding.paths) == ("error", 0, ("root/key",))
    assert "removes it from sight" in finding.message
    assert "MIIEv" not in repr(finding)


def test_files_that_are_there_for_a_secret(store: Store) -> None:
    for path in ("root/.ssh/id_ed25519", "root/.aws/credentials", "root/.kube/config", "home/app/.pgpass"):
        (finding,) = found(store, "SecretInFile", [holding(path, b"x = 1\n")])
        assert finding.paths == (path,)
    for path in ("root/.ssh/id_ed25519.pub", "root/.npmrc", "root/.docker/config.json"):
        assert found(store, "SecretInFile", [holding(path, b"x = 1\n")]) == []


def test_a_key_with_a_passphrase_is_a_warning(store: Store) -> None:
    locked = KEY.replace(b"RSA", b"ENCRYPTED")
    assert [finding.severity.value for finding in found(store, "SecretInFile", [holding("k", locked)])] == ["warning"]


def test_the_bases_keys_are_its_own(store: Store) -> None:
    assert found(store, "SecretInFile", [holding("root/key", KEY)], [file("a", 1)], base=1) == []


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("ENV DB_PASSWORD=hunter22", RuntimeConfig(env=("DB_PASSWORD=hunter22",))),
        ("ENV URL=postgres://me:hunter22@db/x", RuntimeConfig(env=("URL=postgres://me:hunter22@db/x",))),
        ("ENV X=AKIAQ2W3E4R5T6Y7U8I9", RuntimeConfig(env=("X=AKIAQ2W3E4R5T6Y7U8I9",))),
        ("LABEL api-token=abcdef123", RuntimeConfig(labels=(("api-token", "abcdef123"),))),
        ('CMD ["serve" "--password=hunter22"]', RuntimeConfig(cmd=("serve", "--password=hunter22"))),
        ("RUN |1 GIT_TOKEN=abcdef123 /bin/sh -c true", RuntimeConfig()),
        ("RUN /bin/sh -c git clone https://me:hunter22@example.com/x", RuntimeConfig()),
    ],
)
def test_secrets_in_metadata(store: Store, line: str, config: RuntimeConfig) -> None:
    (finding,) = found(store, "SecretInMetadata", lines=[line], config=config)
    assert finding.severity.value == "error"
    assert "hunter22" not in finding.message
    assert "abcdef" not in finding.message


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("ENV PASSWORD_FILE=/run/secrets/x", RuntimeConfig(env=("PASSWORD_FILE=/run/secrets/x",))),
        ("ENV DB_PASSWORD=", RuntimeConfig(env=("DB_PASSWORD=",))),
        ("ENV TOKEN_URL=https://example.com/token", RuntimeConfig(env=("TOKEN_URL=https://example.com/token",))),
        ("ENV MONKEY=business", RuntimeConfig(env=("MONKEY=business",))),
        ("ENV GPG_KEY_ID=A035C8C19219BA821ECEA86B64E628F8", RuntimeConfig(env=("GPG_KEY_ID=A035C8C1",))),
        ("RUN |1 GIT_TOKEN=*** /bin/sh -c true", RuntimeConfig()),
        ("RUN /bin/sh -c mysql --password=$PASSWORD", RuntimeConfig()),
        ("RUN /bin/sh -c true", RuntimeConfig(env=("DB_PASSWORD=of-the-base",))),
    ],
)
def test_what_is_no_secret_in_metadata(store: Store, line: str, config: RuntimeConfig) -> None:
    assert found(store, "SecretInMetadata", lines=[line], config=config) == []


# ---------------------------------------------------------------- permissions


def test_set_id_bits_and_capabilities(store: Store) -> None:
    cap = Entry(b"usr/bin/ping", Kind.FILE, 0o755, size=1, xattrs=(("security.capability", b"\1"),),
                content=file("a", 1).content)  # fmt: skip
    usual, odd = found(store, "SetuidFiles", [cap, file("usr/bin/su", 3, mode=0o4755)], [file("app/x", 3, mode=0o2755)])
    assert (usual.severity.value, usual.paths) == ("info", ("usr/bin/su", "usr/bin/ping"))
    assert (odd.severity.value, odd.paths) == ("warning", ("app/x",))


def test_set_id_bits_of_the_base_are_known(store: Store) -> None:
    runs = [[file("bin/su", 3, mode=0o4755)], [file("bin/su", 4, mode=0o4755)]]
    assert found(store, "SetuidFiles", *runs, base=1) == []
    assert found(store, "SetuidFiles", [folder("var/mail", 0o2775)]) == []


def test_world_writable(store: Store) -> None:
    runs = [[folder("d", 0o777), folder("tmp", 0o1777), file("d/a", 1, mode=0o666), link("l", "d", Kind.SYMLINK)]]
    (finding,) = found(store, "WorldWritable", *runs)
    assert finding.paths == ("d", "d/a")
    assert found(store, "WorldWritable", *runs, [folder("d", 0o755), gone("d/a")]) == []
    assert found(store, "WorldWritable", *runs, [folder("d", 0o777)], base=1) == []


def test_owners_without_a_name(store: Store) -> None:
    (finding,) = found(store, "OrphanOwners", USERS, [file("a", 1, uid=4711, gid=0), file("b", 1, uid=1000, gid=50)])
    assert (finding.layer, finding.paths) == (1, ("a",))
    assert found(store, "OrphanOwners", [file("a", 1, uid=4711)]) == [], "an image without users has no names at all"
    run_as = RuntimeConfig(user="4711:4711")
    assert found(store, "OrphanOwners", USERS, [file("a", 1, uid=4711, gid=4711)], config=run_as) == []
    (high,) = found(store, "OrphanOwners", USERS, [file("a", 1, uid=165_536)])
    assert "65535" in high.hint


# ---------------------------------------------------------------- starting


def start(store: Store, entries: list[Entry], **facts: Any) -> str:
    """What is said of ENTRYPOINT ["run"], or of what `facts` give; empty for nothing."""
    config = RuntimeConfig(**{"entrypoint": ("run",), **facts})
    architecture = "amd64"
    lines = ["RUN make", "ENTRYPOINT", "CMD"]
    return "\n".join(
        f"{finding.severity.value}: {finding.message}\n{finding.hint}"
        for finding in found(
            store, "CommandCanNotStart", entries, config=config, lines=lines, architecture=architecture
        )
    )


@pytest.mark.parametrize(
    ("entries", "facts", "expected"),
    [
        pytest.param([holding("usr/bin/run", program(), 0o755)], {}, "", id="static program"),
        pytest.param([holding("usr/bin/run", program(LOADER), 0o755), file(LOADER[1:], 1, mode=0o755)], {}, "",
                     id="dynamic program"),
        pytest.param([holding("usr/bin/run", program(LOADER), 0o755)], {},
                     f"its loader {LOADER} is not in the image", id="no loader"),
        pytest.param([holding("bin/run", program(machine=183), 0o755)], {},
                     "it is a program for arm64, and the image is for amd64", id="other processor"),
        pytest.param([holding("bin/run", program(machine=3), 0o755)], {}, "", id="i386 on amd64"),
        pytest.param([holding("bin/run", program())], {}, "it has no x bit", id="no x bit"),
        pytest.param([holding("opt/run", program(), 0o755)], {}, "it is in no folder of PATH", id="not on PATH"),
        pytest.param([holding("opt/run", program(), 0o755)], {}, "did you mean /opt/run?", id="a hint where it is"),
        pytest.param([holding("opt/run", program(), 0o755)], {"env": ("PATH=/bin:/opt",)}, "", id="PATH of ENV"),
        pytest.param([holding("opt/run", program(), 0o755)], {"entrypoint": ("./run",), "working_dir": "/opt"}, "",
                     id="relative to WORKDIR"),
        pytest.param([holding("opt/run", program(), 0o755)], {"entrypoint": ("./run",)}, "there is no such file",
                     id="not in WORKDIR"),
        pytest.param([folder("bin/run")], {"entrypoint": ("/bin/run",)}, "it is a folder", id="folder"),
        pytest.param([holding("opt/x", program(), 0o755), link("bin/run", "../opt/x", Kind.SYMLINK)], {}, "",
                     id="link"),
        pytest.param([link("bin/run", "../opt/x", Kind.SYMLINK)], {"entrypoint": ("/bin/run",)},
                     "there is no such file", id="broken link"),
        pytest.param([holding("bin/run", b"#!/bin/sh\n", 0o755), *SH], {}, "", id="script"),
        pytest.param([holding("bin/run", b"#!/bin/bash\n", 0o755), *SH], {},
                     "its interpreter /bin/bash: there is no such file", id="no interpreter"),
        pytest.param([holding("bin/run", b"#!/usr/bin/env python3\n", 0o755), holding("usr/bin/env", program(), 0o755)],
                     {}, "its interpreter python3: it is in no folder of PATH", id="env without it"),
        pytest.param([holding("bin/run", b"#!/usr/bin/env -S A=1 sh -e\n", 0o755), *SH,
                      holding("usr/bin/env", program(), 0o755)], {}, "", id="env with flags"),
        pytest.param([holding("bin/run", b"#!/bin/sh\r\necho\r\n", 0o755), *SH], {}, "ends as on Windows", id="crlf"),
        pytest.param([holding("bin/run", b"#!\n", 0o755)], {}, "exec format error", id="nothing after #!"),
        pytest.param([holding("bin/run", b"echo hello\n", 0o755)], {}, "exec format error", id="no #! line"),
        pytest.param([holding("bin/run", b"#!/bin/run\n", 0o755)], {}, "never come to a program", id="itself"),
        pytest.param([holding("bin/run", program(kind=1), 0o755)], {}, "object file", id="object file"),
        pytest.param(SH, {"entrypoint": ("/bin/sh", "-c", "exec serve --port 1")},
                     "warning: ENTRYPOINT can not start serve", id="shell form"),
        pytest.param(SH, {"entrypoint": ("/bin/sh", "-c", "A=1 echo hi && serve")}, "", id="builtin"),
        pytest.param(SH, {"entrypoint": ("/bin/sh", "-c", "$PROGRAM x")}, "", id="variable"),
        pytest.param(SH, {"entrypoint": ("/bin/sh", "-c", "if x; then y; fi")}, "", id="script text"),
        pytest.param(SH, {"entrypoint": ("sh", "run.sh")}, "can not start run.sh: there is no such file",
                     id="script of a shell"),
        pytest.param([*SH, holding("run.sh", b"#!/bin/sh\r\n")], {"entrypoint": ("sh", "/run.sh")},
                     "its lines end as on Windows", id="crlf script of a shell"),
        pytest.param([], {"entrypoint": ("/bin/sh", "-c", "x")}, "can not start /bin/sh", id="no shell"),
        pytest.param([], {"entrypoint": None, "cmd": ("serve -x",)}, "each word is a string of its own", id="one word"),
        pytest.param([], {"entrypoint": None}, "", id="nothing to start"),
    ],
)  # fmt: skip
def test_starting(store: Store, entries: list[Entry], facts: dict[str, Any], expected: str) -> None:
    said = start(store, entries, **facts)
    assert (expected in said) if expected else not said, said


def test_the_command_of_a_base_is_its_own(store: Store) -> None:
    config = RuntimeConfig(cmd=("nothing",))
    assert found(store, "CommandCanNotStart", [file("a", 1)], [file("b", 1)], base=1, config=config) == []


def test_another_systems_image_is_left_alone(store: Store) -> None:
    config = RuntimeConfig(entrypoint=("run",))
    said = found(store, "CommandCanNotStart", [holding("bin/run", program(), 0o755)], config=config,
                 architecture="arm64", lines=["RUN x", "ENTRYPOINT"])  # fmt: skip
    assert "is a program for amd64, and the image is for arm64" in said[0].message


def test_users(store: Store) -> None:
    (finding,) = found(store, "UnknownUser", USERS, config=RuntimeConfig(user="web"), lines=["RUN x", "USER web"])
    assert "unable to find user web" in finding.message
    for user in ("app", "1000", "4711", "root", "app:staff", ""):
        assert found(store, "UnknownUser", USERS, config=RuntimeConfig(user=user), lines=["RUN x", "USER"]) == []


@pytest.mark.parametrize(
    ("entries", "user", "expected"),
    [
        ([folder("srv")], "app", ""),
        ([folder("srv", 0o700)], "app", "USER app may not enter /srv"),
        ([folder("srv", 0o700)], "", ""),
        ([folder("srv", 0o700, 1000)], "app", ""),
        ([folder("srv", 0o750, 0, 50)], "app", ""),
        ([folder("srv", 0o705, 0, 50)], "app", "may not enter"),
        ([file("srv", 1)], "", "WORKDIR /srv is no folder"),
        ([], "", "WORKDIR /srv is not there at the end"),
    ],
)
def test_workdirs(store: Store, entries: list[Entry], user: str, expected: str) -> None:
    config = RuntimeConfig(user=user, working_dir="/srv")
    said = found(store, "MissingWorkdir", [*USERS, *entries], config=config, lines=["RUN x", "WORKDIR /srv"])
    assert expected in said[0].message if expected else said == []


def test_ports(store: Store) -> None:
    def said(user: str, *ports: str) -> list[Finding]:
        config = RuntimeConfig(user=user, exposed_ports=ports)
        return found(store, "PrivilegedPort", USERS, config=config, lines=["RUN x", "EXPOSE"])

    assert len(said("app", "80/tcp", "8080/tcp")) == 1
    assert said("app", "8080/tcp") == said("", "80/tcp") == said("0:0", "80/tcp") == []


# ---------------------------------------------------------------- what does not belong there


def test_version_control(store: Store) -> None:
    runs = [[file("app/.git/HEAD", 5), file("app/.git/objects/a", 7), file("app/.gitignore", 1), file("lib/.svn/x", 2)]]
    (finding,) = found(store, "VersionControl", *runs, lines=["COPY . /app"])
    assert (finding.size, "/app/.git and /lib/.svn" in finding.message) == (14, True)
    assert finding.hint == "add **/.git and **/.svn to .dockerignore"
    (finding,) = found(store, "VersionControl", *runs, lines=["RUN git clone"])
    assert "in the same RUN" in finding.hint


def test_files_of_the_build(store: Store) -> None:
    runs = [[file("app/.env", 5), file("app/Dockerfile", 7), file("app/.env.example", 1), file("app/compose.yaml", 1)]]
    (finding,) = found(store, "BuildFiles", *runs, lines=["COPY . /app"])
    assert finding.paths == ("app/Dockerfile", "app/.env", "app/compose.yaml")
    assert found(store, "BuildFiles", *runs, lines=["RUN make"]) == []


def test_files_of_one_host(store: Store) -> None:
    keys = [holding("etc/ssh/ssh_host_rsa_key", KEY), file("etc/ssh/ssh_host_rsa_key.pub", 9)]
    assert [finding.severity.value for finding in found(store, "HostFiles", keys)] == ["error"]
    assert [finding.severity.value for finding in found(store, "HostFiles", [file("etc/machine-id", 33)])] == [
        "warning"
    ]
    assert found(store, "HostFiles", [holding("etc/machine-id", b"uninitialized\n"), file("etc/hostname", 0)]) == []


def test_compilers(store: Store) -> None:
    runs = [[file("usr/bin/x86_64-linux-gnu-gcc-12", 6 << 20), file("usr/include/a.h", 5 << 20), file("usr/bin/a", 5)]]
    assert [finding.size for finding in found(store, "ToolchainLeft", *runs)] == [11 << 20]
    assert found(store, "ToolchainLeft", [file("usr/include/a.h", 5)]) == []


def test_debugging_information(store: Store) -> None:
    (finding,) = found(store, "UnstrippedPrograms", [holding("usr/bin/a", program(debug=1 << 20), 0o755)])
    assert finding.size == 1 << 20
    assert found(store, "UnstrippedPrograms", [holding("usr/bin/a", program(debug=5), 0o755)]) == []


def test_links(store: Store) -> None:
    links = [
        link("a", "nothing", Kind.SYMLINK), link("b", "etc", Kind.SYMLINK), link("c", "/proc/self/x", Kind.SYMLINK),
        link("d", "d", Kind.SYMLINK), link("e", "/var/run/x", Kind.SYMLINK), folder("etc"),
    ]  # fmt: skip
    (finding,) = found(store, "BrokenLinks", links)
    assert finding.paths == ("a", "d")
    assert "/a -> nothing" in finding.message


def test_compiled_python(store: Store) -> None:
    runs = [[file("app/__pycache__/a.pyc", 2 << 20)]]
    assert [finding.size for finding in found(store, "PythonBytecode", *runs)] == [2 << 20]
    assert found(store, "PythonBytecode", [file("usr/lib/python3/__pycache__/a.pyc", 2 << 20)]) == []


# ---------------------------------------------------------------- all of them


def test_names_and_aliases_are_each_one_rules() -> None:
    names = list(BY_NAME)
    aliases = [alias for rule in BY_NAME.values() for alias in rule.aliases]
    assert len(set(names)) == len(names)
    assert len(set(aliases)) == len(aliases)
    assert BY_NAME["AptLeftovers"].aliases == ("DL3009",)


def test_findings_are_values(store: Store) -> None:
    runs = [[file("tmp/a", 5), file("d/b", 9)], [gone("d")]]
    assert examine(subject(store, *runs)) == examine(subject(store, *runs))
