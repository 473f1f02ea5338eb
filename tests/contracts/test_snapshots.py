"""What every snapshotter does: one suite, run by each, as root and inside user namespaces.

A root is worked in by the machine's own shell, in a mount namespace where it needs one.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cache.disk import OWNER
from cache.entries import BytesContent, Entry, Kind
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.layers import write
from cache.oci import Descriptor, Layer, digest_of
from cache.snapshots import (
    DirectoryRoot,
    OverlayRoot,
    OverlaySnapshots,
    Root,
    Snapshots,
    Working,
    WorkingCopySnapshots,
)
from cache.store import Store
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = os.environ.get("PYBUILD_TEST_NAMESPACE", "")
"""Set in the runs of this file inside a user namespace: `one` id, or `many`."""

USERXATTR = NAMESPACE != ""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture(params=["overlay", "copy"])
def snapshots(request: pytest.FixtureRequest, store: Store) -> Iterator[Snapshots]:
    if os.geteuid() != 0:
        pytest.skip("needs root: to mount, or for files of several owners")
    if NAMESPACE == "many" and request.param == "copy":
        pytest.skip("the same as outside")
    made: Snapshots
    if request.param == "overlay":
        if not _overlay_works():
            pytest.skip("overlayfs can not be mounted here")
        made = OverlaySnapshots(store, userxattr=USERXATTR)
    else:
        made = WorkingCopySnapshots(store)
    yield made
    made.close()
    assert sorted(os.listdir(store.root / "tmp")) == []


def _overlay_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    script = (
        "mount -t tmpfs none /tmp && cd /tmp && mkdir l u w m && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w"
    )
    script += ",userxattr m" if USERXATTR else " m"
    return subprocess.run(["unshare", "-m", "sh", "-c", script], check=False, capture_output=True).returncode == 0


def work(root: Root, script: str) -> str:
    """Run a shell script in a root, as `RUN` would but for the chroot; what it printed."""
    mount = None
    if isinstance(root, OverlayRoot):
        mount = root.upper.parent / "mount"
        mount.mkdir()
        options = [
            "lowerdir=" + ":".join(root.lowers), f"upperdir={root.upper}", f"workdir={root.work}",
            "redirect_dir=nofollow", "metacopy=off", "index=off", *(["userxattr"] if root.userxattr else []),
        ]  # fmt: skip
        start = f"cd '{root.base}'; mount -t overlay none -o '{','.join(options)}' '{mount}'; cd '{mount}'\n"
        command = ["unshare", "-m", "sh", "-ec", start + script]
    else:
        command = ["sh", "-ec", f"cd '{root.path}'\n{script}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if mount is not None:
        mount.rmdir()
    assert done.returncode == 0, done.stderr
    return done.stdout


def file(path: str, data: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0, **more: object) -> Entry:
    return Entry(
        path.encode(),
        Kind.FILE,
        mode,
        uid,
        gid,
        len(data),
        content=BytesContent(data),
        **more,  # type: ignore[arg-type]
    )


def directory(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, mode, uid, gid)


def symlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), Kind.SYMLINK, 0o777, target=target.encode())


def gone(path: str) -> Entry:
    return Entry(path.encode(), Kind.WHITEOUT)


BASE = [
    directory("bin"), file("bin/tool", b"tool", 0o4755),
    directory("d"), file("d/a", b"a"), file("d/b", b"b"), directory("d/sub", 0o700), file("d/sub/x", b"x"),
    file("f", b"file"), symlink("l", "f"),
    directory("tmp", 0o1777),
]  # fmt: skip


@pytest.fixture
def base(store: Store) -> tuple[Layer, ...]:
    return (write(BASE, store).layer,)


def run(snapshots: Snapshots, store: Store, layers: tuple[Layer, ...], script: str) -> tuple[Layer, ...]:
    """A step: the layers with that of the script's changes on top."""
    with snapshots.prepare(layers) as working:
        work(working.root, script)
        written = write(working.changes(), store)
        working.commit(written)
        return (*layers, written.layer)


def changes(snapshots: Snapshots, layers: tuple[Layer, ...], script: str) -> list[Entry]:
    with snapshots.prepare(layers) as working:
        work(working.root, script)
        return list(working.changes())


def shown(entries: list[Entry]) -> list[str]:
    return [f"{entry.kind.name.lower()} {os.fsdecode(entry.path)}" for entry in entries]


def tree(store: Store, layers: tuple[Layer, ...]) -> dict[str, tuple[object, ...]]:
    """What the layers show by their listings."""
    return {
        os.fsdecode(e.path): (e.kind, e.mode, e.uid, e.gid, e.size, e.target, e.digest)
        for e in Tree(store, layers).walk()
    }


def disk(root: Root) -> set[str]:
    return set(work(root, "find . -mindepth 1").replace("./", "").split())


class TestPrepare:
    def test_shows_the_layers(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        upper = write([gone("d/a"), file("d/c", b"c"), gone("f"), file("new/er", b"n")], store).layer
        with snapshots.prepare((*base, upper)) as working:
            script = "cat bin/tool d/b d/c d/sub/x new/er; readlink l; stat -c %a bin/tool d/sub tmp; ls -a . d"
            assert work(working.root, script).split() == [
                "toolbcxnf", "4755", "700", "1777",
                ".:", ".", "..", "bin", "d", "l", "new", "tmp", "d:", ".", "..", "b", "c", "sub",
            ]  # fmt: skip

    def test_of_no_layers_is_empty(self, snapshots: Snapshots) -> None:
        with snapshots.prepare(()) as working:
            assert work(working.root, "ls -A; stat -c '%a %u %g' .") == "755 0 0\n"
            assert list(working.changes()) == []

    def test_roots_do_not_see_each_other(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        with snapshots.prepare(base) as one, snapshots.prepare(base) as other:
            work(one.root, "echo 1 > mine; rm f")
            assert work(other.root, "ls").split() == ["bin", "d", "f", "l", "tmp"]
            assert list(other.changes()) == []

    def test_a_root_directory_that_a_layer_describes(self, snapshots: Snapshots, store: Store) -> None:
        layers = (write([directory("", 0o751), file("a")], store).layer, write([file("b")], store).layer)
        with snapshots.prepare(layers) as working:
            assert work(working.root, "stat -c %a .") == "751\n"
            assert list(working.changes()) == []

    def test_from_several_threads_and_snapshotters_at_once(
        self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store
    ) -> None:
        layers = (*base, *(write([file(f"n{n}", b"%d" % n)], store).layer for n in range(6)))
        # One of its own shares no lock with the first, as in another process.
        other: Snapshots = (
            OverlaySnapshots(store, userxattr=USERXATTR)
            if isinstance(snapshots, OverlaySnapshots)
            else WorkingCopySnapshots(store)
        )
        failures: list[BaseException] = []

        def prepare(by: Snapshots) -> None:
            try:
                with by.prepare(layers) as working:
                    assert len(disk(working.root)) == 16
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=prepare, args=(by,)) for by in (snapshots, other) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.close()
        assert failures == []

    def test_of_a_layer_that_is_not_there(self, snapshots: Snapshots) -> None:
        nothing = digest_of(b"nothing")
        with pytest.raises(NotFoundError):
            snapshots.prepare((Layer(nothing, Descriptor("x", nothing, 7)),))

    def test_of_a_layer_that_is_not_its_diff_id(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        with pytest.raises(CorruptError):
            snapshots.prepare((Layer(digest_of(b"other"), base[0].descriptor),))

    def test_of_a_layer_that_leads_out(self, snapshots: Snapshots, store: Store) -> None:
        layer = write([Entry(b"d/../../x", Kind.FILE)], store).layer
        with pytest.raises(CorruptError):
            snapshots.prepare((layer,))

    def test_views_last_until_the_end(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        one, other = snapshots.view(base), snapshots.view(base)
        assert len(disk(one)) == len(disk(other)) == 10
        place = one.path if isinstance(one, DirectoryRoot) else one.upper
        assert place.exists()
        snapshots.close()
        assert not place.exists()


class TestChanges:
    def test_nothing(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        assert changes(snapshots, base, "cat f; ls -lR >/dev/null; stat l") == []

    def test_what_came_and_went(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        assert changes(snapshots, base, "touch tmp/x d/sub/y z; rm tmp/x d/sub/y z; mkdir e; rmdir e") == []

    def test_new_files_come_with_their_directories(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        found = changes(snapshots, base, "echo new > d/sub/n; mkdir -p m/n; ln -s ../f m/l; mkfifo -m 600 m/p")
        assert shown(found) == [
            "directory d", "directory d/sub", "file d/sub/n",
            "directory m", "symlink m/l", "directory m/n", "fifo m/p",
        ]  # fmt: skip
        assert [entry.mode for entry in found[:3]] == [0o755, 0o700, 0o644]
        assert found[4].target == b"../f"
        assert found[6].mode == 0o600

    def test_changed_files(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        found = changes(snapshots, base, "echo more >> d/a; chmod 600 f; touch -d @5 bin/tool")
        assert shown(found) == ["directory bin", "file bin/tool", "directory d", "file d/a", "file f"]
        assert (found[1].mtime_ns, found[1].mode, found[3].size, found[4].mode) == (5 * 10**9, 0o4755, 6, 0o600)
        content = found[3].content
        assert content is not None

    def test_a_change_of_equal_size_and_time(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        assert shown(changes(snapshots, base, "printf FILE > f; touch -d @0 f")) == ["file f"]

    def test_contents_are_those_of_the_root(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        with snapshots.prepare(base) as working:
            work(working.root, "printf changed > f")
            written = write(working.changes(), store)
        assert written.entries[0].digest == digest_of(b"changed").removeprefix("sha256:")

    def test_deletions(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        assert shown(changes(snapshots, base, "rm -r d/sub d/a bin f")) == [
            "whiteout bin", "directory d", "whiteout d/a", "whiteout d/sub", "whiteout f",
        ]  # fmt: skip

    def test_directories_and_files_replace_each_other(
        self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store
    ) -> None:
        layers = run(snapshots, store, base, "rm -r d f l; echo file > d; mkdir f l; echo y > f/y")
        assert {path for path in tree(store, layers) if path[0] in "dfl"} == {"d", "f", "f/y", "l"}
        with snapshots.prepare(layers) as working:
            assert work(working.root, "cat d f/y; ls -A l") == "file\ny\n"

    def test_a_directory_made_anew_hides_the_old_one(
        self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store
    ) -> None:
        layers = run(snapshots, store, base, "rm -r d; mkdir -m 700 d; echo new > d/b; mkdir d/sub")
        assert {path for path in tree(store, layers) if path.startswith("d")} == {"d", "d/b", "d/sub"}
        with snapshots.prepare(layers) as working:
            assert work(working.root, "cat d/b; ls d; ls d/sub; stat -c %a d") == "new\nb\nsub\n700\n"

    def test_a_new_directory_needs_no_mark(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        assert shown(changes(snapshots, base, "mkdir n n/o d/p")) == [
            "directory d", "directory d/p", "directory n", "directory n/o",
        ]  # fmt: skip

    def test_what_was_deleted_and_made_again(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        one = run(snapshots, store, base, "rm -r d f")
        two = run(snapshots, store, one, "mkdir d; echo again > d/a; echo again > f")
        assert {path for path in tree(store, two) if path[0] in "df"} == {"d", "d/a", "f"}
        with snapshots.prepare(two) as working:
            assert work(working.root, "cat d/a f; ls d") == "again\nagain\na\n"
        three = run(snapshots, store, two, "rm -r d")
        assert not any(path.startswith("d") for path in tree(store, three))

    def test_a_deletion_of_what_only_lower_layers_deleted(
        self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store
    ) -> None:
        one = run(snapshots, store, base, "rm f")
        assert shown(changes(snapshots, one, "touch f; rm f")) == []

    def test_hardlinks(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        with snapshots.prepare(base) as working:
            work(working.root, "echo new > n; ln n d/n2; ln n z; ln f g")
            found = list(working.changes())
            assert shown(found) == [
                "directory d", "file d/n2", "file f", "hardlink g", "hardlink n", "hardlink z",
            ]  # fmt: skip
            assert [e.target for e in found if e.kind is Kind.HARDLINK] == [b"f", b"d/n2", b"d/n2"]
            written = write(found, store)
            working.commit(written)
        with snapshots.prepare((*base, written.layer)) as working:
            assert work(working.root, "stat -c %h n f; cat z g") == "3\n2\nnew\nfile"
        view = Tree(store, (*base, written.layer))
        names = {e.path: view.links(e) for e in view.walk()}
        assert names[b"n"] == names[b"z"] == names[b"d/n2"] is not None
        assert names[b"f"] == names[b"g"] is not None

    def test_sockets_are_left_out(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        script = f"{sys.executable} -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"tmp/s\")'"
        assert changes(snapshots, base, script) == []
        layers = run(snapshots, store, base, script + "; touch tmp/t")
        with snapshots.prepare(layers) as working:
            assert work(working.root, "ls tmp") == "t\n"

    def test_odd_names_and_times(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        script = """
            name=$(printf 'raw-\\377'); echo 1 > "d/$name"; echo 2 > "$(printf 'new\\nline')"
            touch -d @-1000 d/a; touch -d '2100-01-01T00:00:00Z' d/b"""
        with snapshots.prepare(base) as working:
            work(working.root, script)
            written = write(working.changes(), store)
        found = {entry.path: entry.mtime_ns // 10**9 for entry in written.entries}
        assert b"d/raw-\xff" in found
        assert b"new\nline" in found
        assert (found[b"d/a"], found[b"d/b"]) == (-1000, 4102444800)

    def test_the_root_directory(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        found = changes(snapshots, base, "chmod 700 .")
        assert shown(found) == ["directory "]
        assert found[0].mode == 0o700
        layers = run(snapshots, store, base, "chmod 711 .; rm f")
        with snapshots.prepare(layers) as working:
            assert work(working.root, "stat -c %a .") == "711\n"
            assert list(working.changes()) == []

    def test_order_is_that_of_a_walk(self, snapshots: Snapshots) -> None:
        found = changes(snapshots, (), "mkdir -p a/b a-b; touch a/z a/b/c a.b b a-b/x")
        assert [e.path.decode() for e in found] == ["a", "a/b", "a/b/c", "a/z", "a-b", "a-b/x", "a.b", "b"]

    def test_owners(self, snapshots: Snapshots, base: tuple[Layer, ...]) -> None:
        if NAMESPACE == "one":
            pytest.skip("one id: chown fails in a RUN without the executor's filter")
        found = changes(snapshots, base, "chown 5:6 f; chown -h 7:8 l; mkdir n; chown 9:10 n")
        assert [(e.uid, e.gid) for e in found] == [(5, 6), (7, 8), (9, 10)]

    def test_owners_of_the_layers_below(self, snapshots: Snapshots, store: Store) -> None:
        layers = (write([directory("d", 0o2775, 33, 34), file("d/f", b"f", 0o6755, 1000, 2000)], store).layer,)
        found = changes(snapshots, layers, "echo more >> d/f; chmod 6755 d/f")
        assert [(e.uid, e.gid, e.mode) for e in found] == [(33, 34, 0o2775), (1000, 2000, 0o6755)]
        with snapshots.prepare(layers) as working:
            assert list(working.changes()) == []

    def test_modes_that_shut_out(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        script = "mkdir n; echo x > n/f; chmod 0 n/f n; chmod 0 d/sub"
        layers = run(snapshots, store, base, script)
        assert {p: e[1] for p, e in tree(store, layers).items() if p in {"n", "n/f", "d/sub"}} == {
            "n": 0, "n/f": 0, "d/sub": 0,
        }  # fmt: skip

    def test_attributes(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        capability = struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0)
        script = f"""{sys.executable} -c '
import os
os.setxattr("f", "user.note", b"\\xff\\0")
os.setxattr("d", "user.note", b"d")
os.setxattr("bin/tool", "security.capability", bytes.fromhex("{capability.hex()}"))'"""
        with snapshots.prepare(base) as working:
            work(working.root, script)
            written = write(working.changes(), store)
            working.commit(written)
        found = {e.path: e.xattrs for e in written.entries if e.xattrs}
        assert found == {
            b"f": (("user.note", b"\xff\0"),),
            b"d": (("user.note", b"d"),),
            b"bin/tool": (("security.capability", capability),),
        }
        layers = (*base, written.layer)
        again = f"""{sys.executable} -c '
import os
print(os.getxattr("f", "user.note"), os.getxattr("bin/tool", "security.capability").hex())'"""
        with snapshots.prepare(layers) as working:
            assert work(working.root, again).split()[1] == capability.hex()
        _forget(store, snapshots)
        with snapshots.prepare(layers) as working:
            assert work(working.root, again).split()[1] == capability.hex()
        found = {e.path: e.xattrs for e in changes(snapshots, layers, "chmod 700 d bin/tool; chmod 600 f")}
        assert [name for name, xattrs in found.items() if xattrs] == [b"bin/tool", b"d", b"f"]

    def test_device_nodes(self, snapshots: Snapshots, store: Store) -> None:
        node = Entry(b"dev/null", Kind.CHARACTER, 0o666, 0, 0, device=(1, 3))
        layers = (write([directory("dev"), node, file("dev/x")], store).layer,)
        if not NAMESPACE:
            with snapshots.prepare(layers) as working:
                assert work(working.root, "stat -c '%F %t:%T %a' dev/null") == "character special file 1:3 666\n"
            assert shown(changes(snapshots, layers, "mknod zero c 1 5")) == ["character zero"]
        found = changes(snapshots, layers, "chmod 666 dev/null; touch -d @77 dev/null")
        assert [(e.kind, e.device, e.mode) for e in found if e.path == b"dev/null"] == [(Kind.CHARACTER, (1, 3), 0o666)]

    def test_holes(self, snapshots: Snapshots, store: Store) -> None:
        layers = run(snapshots, store, (), "truncate -s 40M sparse; printf end >> sparse")
        assert tree(store, layers)["sparse"][4] == (40 << 20) + 3
        _forget(store, snapshots)
        with snapshots.prepare(layers) as working:
            size, blocks = work(working.root, "stat -c '%s %b' sparse").split()
            assert (int(size), int(blocks) < 100) == ((40 << 20) + 3, True)

    def test_marks_of_pybuild_are_never_content(self, snapshots: Snapshots, store: Store) -> None:
        layers = (write([file("f", b"x", uid=4_000_000)], store).layer,)
        (entry,) = changes(snapshots, layers, "touch -d @9 f")
        assert (entry.uid, entry.xattrs) == (4_000_000, ())
        assert OWNER not in [name for name, _ in entry.xattrs]

    def test_a_name_that_marks_a_deletion_is_refused(
        self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store
    ) -> None:
        with snapshots.prepare(base) as working:
            work(working.root, "touch d/.wh.a")
            with pytest.raises(StoreError, match=r"\.wh\."):
                write(working.changes(), store)


class TestCommit:
    def test_the_next_root_has_it(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        layers = base
        for number in range(5):
            layers = run(snapshots, store, layers, f"echo {number} >> f; rm -f n{number - 1}; touch n{number}")
        with snapshots.prepare(layers) as working:
            assert work(working.root, "cat f; ls -d n*") == "file0\n1\n2\n3\n4\nn4\n"
            assert list(working.changes()) == []

    def test_equals_what_unpacking_gives(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        layers = run(snapshots, store, base, "rm -r d/sub; mkdir d/sub; echo y > d/sub/y; rm f; mkdir f; chmod 700 bin")
        show = "find . -mindepth 1 -printf '%p %y %m %U %G %l\\n' | sort"
        with snapshots.prepare(layers) as working:
            before = work(working.root, show)
        _forget(store, snapshots)
        with snapshots.prepare(layers) as working:
            assert work(working.root, show) == before
        paths = {line.split()[0][2:] for line in before.splitlines()}
        assert paths == set(tree(store, layers))

    def test_layers_in_between_are_no_hindrance(
        self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store
    ) -> None:
        one = run(snapshots, store, base, "touch one")
        copied = (*one, write([file("copied", b"c"), gone("f")], store).layer)
        two = run(snapshots, store, copied, "cat copied > two; ! test -e f; rm copied")
        assert {"one", "two", "d/a"} <= set(tree(store, two))
        assert not {"copied", "f"} & set(tree(store, two))
        # The root that stood on `one` went on to `two`; another build goes on from `one` as well.
        assert shown(changes(snapshots, one, "rm one")) == ["whiteout one"]

    def test_the_same_twice(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        script = "echo x > x; touch -d @5 x"
        with snapshots.prepare(base) as one, snapshots.prepare(base) as other:
            both: list[Working] = [one, other]
            layers = []
            for working in both:
                work(working.root, script)
                written = write(working.changes(), store)
                working.commit(written)
                layers.append(written.layer)
        assert layers[0] == layers[1]
        with snapshots.prepare((*base, layers[0])) as working:
            assert work(working.root, "cat x") == "x\n"

    def test_discarding(self, snapshots: Snapshots, base: tuple[Layer, ...], store: Store) -> None:
        working = snapshots.prepare(base)
        work(working.root, "mkdir -p x/y; chmod 0 x; rm f")
        working.discard()
        working.discard()
        assert list((store.root / "tmp").iterdir()) == []
        with snapshots.prepare(base) as again:
            assert list(again.changes()) == []


def _forget(store: Store, snapshots: Snapshots) -> None:
    """Have all roots made from the layers again."""
    if isinstance(snapshots, WorkingCopySnapshots):
        snapshots.close()
    for path in (store.root / "snapshots").iterdir():
        if not path.name.startswith("."):
            shutil.rmtree(path)


# ---------------------------------------------------------------- overlay alone


@pytest.fixture
def overlay(store: Store) -> Iterator[OverlaySnapshots]:
    if os.geteuid() != 0 or not _overlay_works():
        pytest.skip("needs to mount overlayfs")
    made = OverlaySnapshots(store, userxattr=USERXATTR)
    yield made
    made.close()


def test_a_layers_directory_is_made_once(overlay: OverlaySnapshots, base: tuple[Layer, ...], store: Store) -> None:
    overlay.materialise(base)
    (place,) = [path for path in (store.root / "snapshots").iterdir() if not path.name.startswith(".")]
    assert place.name == base[0].diff_id[7:31]
    before = place.stat()
    store.blob_path(base[0].descriptor.digest).unlink()
    overlay.materialise(base)
    assert place.stat() == before


def test_unpacking_leaves_a_listing(overlay: OverlaySnapshots, base: tuple[Layer, ...], store: Store) -> None:
    (listing,) = (store.root / "listings").iterdir()
    kept = listing.read_bytes()
    listing.unlink()
    overlay.materialise(base)
    assert listing.read_bytes() == kept


def test_as_many_layers_as_docker_takes(overlay: OverlaySnapshots, store: Store) -> None:
    layers = tuple(write([file(f"f{number}")], store).layer for number in range(127))
    with overlay.prepare(layers) as working:
        assert len(disk(working.root)) == 127
        assert isinstance(working.root, OverlayRoot)
        assert len(":".join(working.root.lowers)) < 3300


def test_a_whiteout_of_what_is_not_below_is_left_out(overlay: OverlaySnapshots, base: tuple[Layer, ...]) -> None:
    """As a mount point's stub leaves it: deleted in the root, but of no layer."""
    with overlay.prepare(base) as working:
        assert isinstance(working.root, OverlayRoot)
        os.mknod(working.root.upper / "stub", stat.S_IFCHR, 0)
        assert list(working.changes()) == []


def test_a_file_copied_up_and_left_as_it_was_is_left_out(overlay: OverlaySnapshots, base: tuple[Layer, ...]) -> None:
    assert changes(overlay, base, "chmod 644 f d/a; chmod 4755 bin/tool; chown -h 0:0 l") == []


def test_a_directory_moved_without_a_copy_is_refused(overlay: OverlaySnapshots, base: tuple[Layer, ...]) -> None:
    name = "user.overlay.redirect" if USERXATTR else "trusted.overlay.redirect"
    with overlay.prepare(base) as working:
        assert isinstance(working.root, OverlayRoot)
        (working.root.upper / "e").mkdir()
        os.setxattr(working.root.upper / "e", name, b"/d")
        with pytest.raises(StoreError, match="moved the directory"):
            list(working.changes())


def test_snapshots_of_another_kind_are_made_again(
    overlay: OverlaySnapshots, base: tuple[Layer, ...], store: Store
) -> None:
    overlay.materialise(base)
    if not USERXATTR:
        with pytest.raises(StoreError, match="another kind of user"):
            OverlaySnapshots(store, userxattr=True)
    overlay.close()
    other = OverlaySnapshots(store, userxattr=not USERXATTR)
    assert os.listdir(store.root / "snapshots") == [".kind"]
    other.close()


# ---------------------------------------------------------------- inside user namespaces


def _identity_map() -> list[str]:
    """A command's start that runs the rest in a user namespace of its own, in which every id is itself."""
    script = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
child = os.fork()
if not child:
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x20000):
        os._exit(99)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os.execvp(sys.argv[1], sys.argv[1:])
os.close(ready[1])
if os.read(ready[0], 1):
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{name}", "w") as file:
            file.write("0 0 65536")
    os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    return [sys.executable, "-c", script]


@pytest.mark.userns
@pytest.mark.slow
@pytest.mark.skipif(NAMESPACE != "", reason="runs inside")
@pytest.mark.parametrize("ids", ["one", "many"])
def test_the_suite_inside_a_user_namespace(tmp_path: Path, ids: str) -> None:
    if ids == "many":
        if os.geteuid() != 0:
            pytest.skip("needs root, to map many ids without newuidmap")
        start = _identity_map()
    else:
        start = ["unshare", "--user", "--map-root-user", "--mount"]
    place = Path(__file__)
    command: list[str | Path] = [
        *start, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", tmp_path / "inside",
        "-c", place.parents[2] / "pyproject.toml", "--rootdir", place.parents[2], place,
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=place.parents[2],
        env={**os.environ, "PYBUILD_TEST_NAMESPACE": ids, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    # The inner run's temporary folder has files that only its own root may remove.
    subprocess.run(["rm", "-rf", tmp_path / "inside"], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "overlayfs can not be mounted" not in done.stdout
    assert time.monotonic() - started < 300
