"""A build file, a context or a base image of somebody who wants out: one test for each known way that builders let one.

Every attack knows where its victim lies on the machine, and the victim lets everybody do everything; so what keeps the
attack from it is the builder alone. Each is tried in each tier that can be had here. The pod's chroot promises less
(see the README); what only namespaces can hold is not asked of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests import building
from tests.building import archive, environment, member, write
from tests.test_tiers import BUSYBOX, emulated, missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="needs /bin/busybox (busybox-static)"),
]

TIERS = ("privileged", "rootless", "rootless-single", "pod")
CANARY = "canary-3e1fb7"
APPLETS = (
    "sh", "cat", "chmod", "cp", "dd", "echo", "env", "find", "grep", "head", "id", "kill", "ln", "ls", "mkdir", "mknod",
    "mount", "mv", "ps", "readlink", "rm", "rmdir", "sleep", "test", "touch", "tr", "true", "umount", "unshare",
)  # fmt: skip


class Outcome(NamedTuple):
    """What a hostile build came to."""

    code: int
    log: str
    image: bytes


class Attack:
    """A victim on this machine, a context beside it, and builds in one tier."""

    def __init__(self, tier: str, folder: Path) -> None:
        self.tier = tier
        self.folder = folder
        self.context = folder / "context"
        self.victim = folder / "victim"
        for place in (self.context, self.victim, self.victim / "empty"):
            place.mkdir()
            place.chmod(0o777)
        (self.victim / "canary").write_text(CANARY)
        (self.victim / "canary").chmod(0o666)
        self.before = state(self.victim)
        base = self.context / "base"
        write(base, {"etc/passwd": building.PASSWD, "etc/group": building.GROUP, "tmp/": "", "bin/": ""})
        shutil.copy(BUSYBOX, base / "bin/busybox")
        for name in APPLETS:
            (base / "bin" / name).symlink_to("busybox")

    @property
    def isolated(self) -> bool:
        """Whether the tier has namespaces."""
        return self.tier != "pod"

    def build(
        self, dockerfile: str, files: Mapping[str, str | bytes | None] | None = None, *flags: str, **environ: str
    ) -> Outcome:
        """Build `dockerfile`, in which VICTIM stands for the victim's path, twice: the second time from the cache."""
        write(self.context, {"Dockerfile": dockerfile.replace("VICTIM", str(self.victim)), **(files or {})})
        for place in self.context.rglob("*"):
            if not place.is_symlink():
                place.chmod(0o755 if place.is_dir() else place.stat().st_mode | 0o444)
        store = ["--root", str(self.folder / "store")] if self.tier == "privileged" else []
        words = [
            *emulated(self.tier), sys.executable, "-m", "builder", "build", "--progress=plain", *store, *flags,
            "-o", "type=oci,dest=-", str(self.context),
        ]  # fmt: skip
        around = environment(PYTHONDONTWRITEBYTECODE="1", **environ)
        done = subprocess.run(words, cwd="/", env=around, capture_output=True, check=False, timeout=120)
        log = done.stderr.decode("utf-8", "replace")
        assert "Traceback" not in log, log
        assert done.returncode in {0, 1, 3}, log
        return Outcome(done.returncode, log, done.stdout)

    def failed(self) -> None:
        """Nothing of the victim was touched."""
        assert state(self.victim) == self.before


def state(folder: Path) -> list[tuple[str, int, int, int, str]]:
    """Everything about the files below a folder but for times of access."""
    found = []
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found.append((str(path), status.st_mode, status.st_uid, status.st_mtime_ns, content))
    return found


def shown(outcome: Outcome) -> bool:
    """Whether the victim's secret got out: in the log, or in the image."""
    if CANARY in outcome.log:
        return True
    if not outcome.image:
        return False
    with tarfile.open(fileobj=io.BytesIO(outcome.image)) as layout:
        for blob in layout:
            stream = layout.extractfile(blob)
            if stream is None:
                continue
            data = stream.read()
            if CANARY.encode() in data:
                return True
            if data[:2] == b"\x1f\x8b":
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    for info in layer:
                        content = layer.extractfile(info) if info.isreg() else None
                        if content is not None and CANARY.encode() in content.read():
                            return True
    return False


@pytest.fixture(params=TIERS)
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    if reason := missing(request.param, run=True):
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="pybuild-hostile-") as name:
        Path(name).chmod(0o755)
        yield Attack(request.param, Path(name))


# The victim's folder is given as VICTIM. Each must leave it as it is and show nothing of it, whether the build succeeds
# or not.
PATHS = {
    "workdir-through-a-link": """
        FROM scratch
        COPY base /
        RUN ln -s VICTIM /l
        WORKDIR /l/made
        COPY f /l/made/f
        ADD members.tar /l/
        RUN rm -f /l/canary; touch /l/x; cat /l/canary
    """,
    "workdir-in-descriptors": """
        FROM scratch
        COPY base /
        RUN ln -s /proc/self/fd /fds
        WORKDIR /proc/self/fd/7/../../../../..VICTIM
        RUN cat canary; pwd; ls
        WORKDIR /fds/8
        RUN cat ../../../../../../..VICTIM/canary ; for n in 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do
    """.rstrip()
    + """ cat /proc/self/fd/$n/VICTIM/canary /proc/1/fd/$n/VICTIM/canary; done; true
    """,
    "bind-from-a-stage-through-a-link": """
        FROM scratch AS a
        COPY base /
        RUN ln -s VICTIM /out && ln -s / /root-link && mkdir /d && ln -s VICTIM /d/in
        FROM a
        RUN --mount=type=bind,from=a,source=/out,target=/m,rw cat /m/canary; rm -rf /m/canary; touch /m/x; true
    """,
    "bind-from-a-stage-through-two-links": """
        FROM scratch AS a
        COPY base /
        RUN mkdir /d && ln -s / /d/r && ln -s d/r/../../../../../..VICTIM /out
        FROM a
        RUN --mount=type=bind,from=a,source=/out,target=/m,rw cat /m/canary; rm -rf /m/canary; touch /m/x; true
    """,
    "bind-from-the-context-through-a-link": """
        FROM scratch
        COPY base /
        RUN --mount=type=bind,source=link,target=/m,rw cat /m/canary; rm -rf /m/canary; touch /m/x; true
    """,
    "bind-from-the-context-with-a-link-inside": """
        FROM scratch
        COPY base /
        RUN --mount=type=bind,target=/m,rw cat /m/link/canary; rm -rf /m/link/canary; touch /m/link/x; true
    """,
    "cache-seeded-through-a-link": """
        FROM scratch AS a
        COPY base /
        RUN ln -s VICTIM /out
        FROM a
        RUN --mount=type=cache,from=a,source=/out,target=/c cat /c/canary; rm -rf /c/canary; touch /c/x; true
    """,
    "cache-by-an-id-that-climbs": """
        FROM scratch
        COPY base /
        RUN --mount=type=cache,id=../../../../../../../..VICTIM,target=/c cat /c/canary; rm -rf /c/*; touch /c/x; true
        RUN --mount=type=cache,id=VICTIM,target=/c cat /c/canary; rm -rf /c/*; touch /c/x; true
    """,
    "targets-through-a-link": """
        FROM scratch
        COPY base /
        RUN ln -s VICTIM /m
        RUN --mount=type=cache,target=/m cat /m/canary; touch /m/x; true
        RUN --mount=type=cache,target=/m/empty touch /m/empty/x; true
        RUN --mount=type=tmpfs,target=/m/new touch /m/new/x; true
        RUN --mount=type=bind,source=f,target=/m/canary cat /m/canary; true
        RUN --mount=type=bind,source=f,target=/m/new/deep/f cat /m/new/deep/f; true
    """,
    "mount-points-swapped-for-links": """
        FROM scratch
        COPY base /
        RUN --mount=type=tmpfs,target=/a/empty mv /a /b; ln -s VICTIM /a; true
        RUN --mount=type=cache,target=/c/empty mv /c /d; ln -s VICTIM /c; true
        RUN --mount=type=bind,source=f,target=/e/canary mv /e /g; ln -s VICTIM /e; true
        RUN rm -rf /etc; ln -s VICTIM /etc; true
        RUN rm -rf /proc /sys /dev /tmp; ln -s VICTIM /proc; ln -s VICTIM /sys; ln -s VICTIM /dev; ln -s VICTIM /tmp
        RUN echo x > /dev/null; true
        RUN --mount=type=tmpfs,target=/tmp/empty touch /tmp/empty/x; true
    """,
    "a-cache-that-became-a-link": """
        FROM scratch
        COPY base /
        RUN --mount=type=cache,id=k,target=/c mkdir /c/d; rm -rf /c/d; ln -s VICTIM /c/d
        RUN --mount=type=cache,id=k,target=/c/d cat /c/d/canary; rm -rf /c/d/canary; touch /c/d/x; true
        RUN --mount=type=cache,id=k,target=/c --mount=type=tmpfs,target=/c/d/empty touch /c/d/empty/x; true
        RUN --mount=type=cache,id=k,target=/c cat /c/d/canary; touch /c/d/x; true
    """,
    "copies-through-links": """
        FROM scratch AS a
        COPY base /
        RUN ln -s VICTIM /out && ln -s VICTIM/canary /one && mkdir /d && ln -s ../../../..VICTIM/canary /d/up
        FROM a
        COPY --from=a /one /x
        COPY --from=a /out /y
        COPY --from=a /out/canary /z
        COPY --from=a /d /d2
        COPY --from=a /d/up /u
        COPY --from=a /d/*p /w
    """,
    "copies-out-of-the-context": """
        FROM scratch
        COPY base /
        COPY link/canary /x
        COPY ../victim/canary /y
        COPY one /z
    """,
    "users-of-the-host": """
        FROM scratch
        COPY base /
        RUN rm /etc/passwd /etc/group; ln -s VICTIM/passwd /etc/passwd; ln -s ../../../../../..VICTIM/group /etc/group
        COPY --chown=mallory f /x
        USER mallory
        RUN id
    """,
    "hosts-and-resolver-that-are-links": """
        FROM scratch
        COPY base /
        RUN ln -sf VICTIM/canary /etc/hosts; ln -sf ../../../..VICTIM/canary /etc/resolv.conf
        RUN cat /etc/hosts; echo x >> /etc/hosts; echo x >> /etc/resolv.conf; true
        RUN rm -rf /etc; ln -s VICTIM /etc; true
        RUN cat /etc/hosts /etc/canary; true
    """,
    "archive-members-that-climb": """
        FROM scratch
        COPY base /
        ADD evil.tar /unpacked/
        ADD through.tar /unpacked/
        RUN find /unpacked; cat /unpacked/hard /unpacked/l/canary /unpacked/soft; echo x > /unpacked/hard; true
    """,
    "volumes-and-secrets-through-links": """
        FROM scratch
        COPY base /
        RUN ln -s VICTIM /run; mkdir -p /v; ln -s VICTIM /v/l
        VOLUME /v/l
        RUN --mount=type=secret,id=s cat /run/secrets/s; true
        RUN --mount=type=secret,id=s,target=/v/l/s cat /v/l/s; true
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_no_path_leads_out(attack: Attack, name: str) -> None:
    link, passwd = attack.context / "link", attack.victim / "passwd"
    link.symlink_to(attack.victim)
    (attack.context / "one").symlink_to(attack.victim / "canary")
    passwd.write_text(f"mallory:x:4242:4242:{CANARY}:/:/bin/sh\n")
    shutil.copy(passwd, attack.victim / "group")
    attack.before = state(attack.victim)
    (attack.folder / "s").write_text("a secret")
    (attack.folder / "s").chmod(0o644)
    up = "../" * 12 + str(attack.victim).lstrip("/")
    evil = archive(
        (member(f"{up}/x"), b"evil"),
        (member(f"{attack.victim}/x"), b"evil"),
        (member("l", tarfile.SYMTYPE, linkname=str(attack.victim)), b""),
    )
    through = archive(
        (member("l", tarfile.SYMTYPE, linkname=up), b""),
        (member("l/x"), b"evil"),
        (member("l/canary"), b"evil"),
        (member("soft", tarfile.SYMTYPE, linkname=str(attack.victim / "canary")), b""),
        (member("soft"), b"evil"),
    )
    files: dict[str, str | bytes | None] = {
        "f": "f",
        "evil.tar": evil,
        "through.tar": through,
        "members.tar": archive((member("canary"), b"evil")),
    }
    lines = "\n".join(line.strip() for line in PATHS[name].strip().splitlines())
    # One failing instruction must not spare the ones below it: each is tried as the last of its own build.
    numbered = lines.split("\n")
    froms = max(number for number, line in enumerate(numbered) if line.startswith("FROM"))
    first = next((n for n, line in enumerate(numbered) if n > froms and line.startswith(("RUN --m", "COPY --f"))), None)
    texts = [lines] if first is None else ["\n".join([*numbered[:first], line]) for line in numbered[first:]]
    for text in dict.fromkeys([lines, *texts]):
        outcome = attack.build(f"{text}\n", files, f"--secret=id=s,src={attack.folder / 's'}")
        attack.failed()
        assert not shown(outcome), outcome.log


HARDLINKS = {
    "up": ("hard", "../" * 12 + "{victim}/canary"),
    "absolute": ("hard", "/{victim}/canary"),
    "through-a-link": ("hard", "l/canary"),
}


@pytest.mark.parametrize("name", HARDLINKS)
@pytest.mark.parametrize("way", ["add", "base"])
def test_hardlinks_to_outside_are_refused(attack: Attack, name: str, way: str) -> None:
    place, target = HARDLINKS[name]
    evil = archive(
        (member("l", tarfile.SYMTYPE, linkname=str(attack.victim)), b""),
        (member(place, tarfile.LNKTYPE, linkname=target.format(victim=str(attack.victim).lstrip("/"))), b""),
    )
    if way == "add":
        text = "FROM scratch\nCOPY base /\nADD evil.tar /u/\nRUN cat /u/hard; echo x > /u/hard; true\n"
        outcome = attack.build(text, {"evil.tar": evil})
    else:
        layout(attack.context / "layout", evil)
        outcome = attack.build(
            "FROM evil\nCOPY base /\nRUN cat /hard; echo x > /hard; true\n", None,
            f"--build-context=evil=oci-layout://{attack.context / 'layout'}",
        )  # fmt: skip
    attack.failed()
    assert not shown(outcome), outcome.log


def layout(folder: Path, *layers: bytes) -> None:
    """An image of hostile layers, as an OCI layout."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    diffs = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(layer, "layer.v1.tar") for layer in layers],
    }
    index = {"schemaVersion": 2, "manifests": [put(json.dumps(manifest).encode(), "manifest.v1+json")]}
    write(folder, {"oci-layout": '{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index)})


def layers_of_a_hostile_base(victim: Path) -> dict[str, list[bytes]]:
    """Layers that want to be unpacked outside."""
    up = "../" * 12 + str(victim).lstrip("/")
    link = (member("l", tarfile.SYMTYPE, linkname=str(victim)), b"")
    below = (member("l/x"), b"evil"), (member("l/canary"), b"evil")
    mark = {"SCHILY.xattr.{}.overlay.redirect": up, "SCHILY.xattr.{}.overlay.metacopy": ""}
    marks = {name.format(kind): value for kind in ("user", "trusted") for name, value in mark.items()}
    owner = {"SCHILY.xattr.user.pybuild.owner": "0:0:104755"}
    return {
        "link-then-file": [archive(link, *below)],
        "link-in-a-layer-below": [archive(link), archive(*below)],
        "link-then-whiteout": [archive(link), archive((member("l/.wh.canary"), b""))],
        "link-then-opaque": [archive(link), archive((member("l/.wh..wh..opq"), b""))],
        "members-that-climb": [archive((member(f"{up}/x"), b"evil"))],
        "whiteout-that-climbs": [archive((member("d/.wh..."), b""), (member("d/.wh..."), b""))],
        "whiteout-of-up": [archive((member(f"{up}/.wh.canary"), b""))],
        "directory-over-a-link": [archive(link), archive((member("l", tarfile.DIRTYPE, mode=0o000), b""))],
        "system-folders-that-are-links": [
            archive(*((member(name, tarfile.SYMTYPE, linkname=str(victim)), b"") for name in
                      ("proc", "sys", "dev", "run", "tmp", "var", "lib", "home", "mnt")))
        ],
        "marks-of-overlayfs": [
            archive((member("d", tarfile.DIRTYPE, pax_headers=marks), b""), (member("f", pax_headers=marks), b"x"),
                    (member("g", pax_headers=owner), b"x"))
        ],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", layers_of_a_hostile_base(Path("/v")))
def test_no_base_image_is_unpacked_elsewhere(attack: Attack, name: str) -> None:
    layout(attack.context / "layout", *layers_of_a_hostile_base(attack.victim)[name])
    context = f"--build-context=evil=oci-layout://{attack.context / 'layout'}"
    for text in (
        "FROM evil\nCOPY base/bin /bin/\nRUN cat /l/canary /d/canary /f; touch /l/x /d/x; rm -f /l/canary; true\n",
        "FROM evil\nCOPY base /l/\nADD base /tmp/\nWORKDIR /proc/x\n",
        "FROM scratch\nCOPY --from=evil / /all/\n",
        "FROM evil\nCOPY base/bin /bin/\nRUN echo x > /tmp/x; echo x > /dev/null; true\n",
    ):
        outcome = attack.build(text, None, context)
        attack.failed()
        assert not shown(outcome), outcome.log


@pytest.mark.parametrize(
    "digest", ["sha256:../../../../{canary}", "../../{canary}:x", "sha256:" + "../" * 20 + "{canary}"]
)
def test_digests_are_no_paths(attack: Attack, digest: str) -> None:
    layout(attack.context / "layout", archive((member("f"), b"x")))
    index = attack.context / "layout/index.json"
    document = json.loads(index.read_text())
    document["manifests"][0]["digest"] = digest.format(canary=str(attack.victim / "canary").lstrip("/"))
    index.write_text(json.dumps(document))
    context = f"--build-context=evil=oci-layout://{attack.context / 'layout'}"
    outcome = attack.build("FROM evil\nLABEL a=b\n", None, context)
    assert outcome.code in {1, 3}
    assert not shown(outcome), outcome.log
    attack.failed()


@pytest.mark.parametrize("link", ["a", "a/b"])
def test_files_for_a_folder_stay_in_it(attack: Attack, link: str) -> None:
    """An earlier output left a link in the folder where the next one puts a directory of that name."""
    out = attack.folder / "out"
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(attack.victim)
    for place in (out, *out.rglob("*")):
        if not place.is_symlink():
            place.chmod(0o777)
    attack.build("FROM scratch\nCOPY f /a/b/canary\nCOPY f /a/b/x\n", {"f": "evil"}, f"--output={out}")
    attack.failed()


SEEN = """
FROM scratch
COPY base /
RUN ls -a / /proc; ls VICTIM; cat VICTIM/canary /proc/*/root/VICTIM/canary; \
    cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' ' '; \
    find / -xdev -name 'pybuild.d*'; cat /proc/self/mountinfo; ls -l /proc/*/fd; true
"""


def test_nothing_of_the_machine_is_in_sight(attack: Attack) -> None:
    if not attack.isolated:
        pytest.skip("a chroot without a /proc of its own; see the README")
    outcome = attack.build(SEEN, None, HOSTILE_TEST_TOKEN=CANARY)
    assert outcome.code == 0, outcome.log
    printed = [line for line in outcome.log.splitlines() if line.startswith("#2 ") and "RUN ls" not in line]
    text = "\n".join(printed)
    assert len(printed) > 20
    assert CANARY not in text
    assert "pybuild.db" not in text
    assert "-m builder" not in text
    assert not any(" socket:" in line for line in printed)


KERNEL = {
    "core-pattern": "echo x > /proc/sys/kernel/core_pattern",
    "hostname-of-the-kernel": "echo x > /proc/sys/kernel/domainname",
    "sysrq": "echo h > /proc/sysrq-trigger",
    "uevent-helper": "echo x > /sys/kernel/uevent_helper",
    "kernel-memory": "head -c 4096 /proc/kcore | grep -c ELF",
    "kernel-keys": "test -s /proc/keys",
    "firmware": "ls /sys/firmware | grep .",
    "release-agent": "find /sys/fs/cgroup -name release_agent -exec sh -c 'echo x > {}' ';' | grep nothing",
    "a-new-cgroup": "mkdir /sys/fs/cgroup/evil",
    "mount-proc": "mkdir /p && mount -t proc proc /p",
    "mount-tmpfs": "mount -t tmpfs tmpfs /tmp",
    "remount-writable": "mount -o remount,rw /sys",
    "unmask": "umount /proc/kcore || umount /proc/sys",
    "user-namespace": "unshare -U true",
    "mount-namespace": "unshare -m true",
    "disk": "mknod /disk b 254 0 && head -c 1 /disk >/dev/null",
    "first-disk": "mknod /disk b 8 0 && head -c 1 /disk >/dev/null",
    "memory": "mknod /mem c 1 1 && head -c 1 /mem >/dev/null",
    "kernel-log": "mknod /kmsg c 1 11 && test -c /kmsg && echo x > /kmsg",
    "fuse": "mknod /fuse c 10 229 && head -c 0 /fuse && cat /fuse < /dev/null",
    "modules": "ls /lib/modules | grep .",
}


@pytest.mark.parametrize("name", KERNEL)
def test_the_kernel_is_out_of_reach(attack: Attack, name: str) -> None:
    if not attack.isolated and name not in {"mount-proc", "mount-tmpfs", "user-namespace", "mount-namespace"}:
        pytest.skip("a chroot has no device rules of its own; see the README")
    outcome = attack.build(f"FROM scratch\nCOPY base /\nRUN if {KERNEL[name]}; then echo GOT THROUGH; fi\n")
    assert outcome.code == 0, outcome.log
    assert not any(line.endswith(" GOT THROUGH") for line in outcome.log.splitlines()), outcome.log


def test_processes_can_not_be_killed_from_inside(attack: Attack) -> None:
    with subprocess.Popen(["/bin/sleep", "120"]) as bystander:
        outcome = attack.build(
            "FROM scratch\nCOPY base /\n"
            f"RUN kill -9 {bystander.pid}; kill -9 {os.getppid()}; kill -9 -1; true\nRUN echo still here\n"
        )
        alive = bystander.poll() is None
        bystander.kill()
    assert alive
    # The second line's shell itself may be among those that it killed.
    assert "still here" in outcome.log or "exit code: 137" in outcome.log, outcome.log


def test_names_and_output_do_not_act_on_the_terminal(attack: Attack) -> None:
    """A title or an excerpt is text; an escape sequence in it could rewrite what the user saw, or type for him."""
    evil = "\x1b]0;owned\x07\x1b[2J"
    outcome = attack.build(f"FROM scratch\nCOPY base /\nRUN true '{evil}'\nCOPY '{evil}missing' /\n")
    assert outcome.code == 1
    assert "\x1b]0;" not in outcome.log
    assert "\x1b[2J" not in outcome.log


def test_the_store_is_its_owner_s_alone(tmp_path: Path) -> None:
    """A set-user-id program of an image lies in the store; nobody else may come near it."""
    (tmp_path / "given").mkdir(mode=0o755)
    for store in (tmp_path / "made", tmp_path / "given"):
        subprocess.run(
            [sys.executable, "-m", "builder", "images", "--root", str(store)], env=environment(), check=True,
            capture_output=True,
        )  # fmt: skip
        assert all(place.stat().st_mode & 0o077 == 0 for place in store.iterdir() if place.is_dir())
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0


SWAP = """
FROM scratch AS base
COPY base /
FROM base AS swap
RUN --mount=type=cache,id=shared,target=/c for i in 1 2 3 4 5 6 7 8; do for j in 1 2 3 4 5 6 7 8; do \
    mkdir -p /c/d; touch /c/d/here; mv /c/d /c/o; ln -s VICTIM /c/d; rm -rf /c/d /c/o; done; done; echo swapped >/done
FROM base AS other
STEPS
FROM scratch
COPY --from=swap /done /done
COPY --from=other /bin/busybox /b
"""


@pytest.mark.slow
def test_links_that_change_under_the_builder_s_hands(attack: Attack) -> None:
    """CVE-2024-23651: one RUN swaps a folder of a cache for a link while another one's mount of it is set up."""
    steps = [
        "RUN --mount=type=cache,id=shared,target=/c --mount=type=tmpfs,target=/c/d/empty "
        f"touch /c/d/empty/x; cat /c/d/canary; touch /c/d/x{number}; rm -f /c/d/canary; true"
        for number in range(8)
    ]
    outcome = attack.build(SWAP.replace("STEPS", "\n".join(steps)))
    attack.failed()
    assert not shown(outcome), outcome.log
