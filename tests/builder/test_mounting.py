from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cache import uses
from cache.store import Store
from tests.builder.test_cli_views import BASE, directory, file, put
from tests.building import Bench, command, mounts_below, needs_run, privileged

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS = (
    [directory(b"", 0o711), *BASE],
    [directory(b"etc", 0o700), file(b"etc/other", b"two", 0o4755, 12)],
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if privileged() is None:
        pytest.skip("needs root that may mount")
    bench = Bench(tmp_path)
    with Store.open(bench.root) as store:
        put(store, "one:1", LAYERS[0])
        put(store, "app:1", *LAYERS)
        put(store, "void:1")
    yield bench
    bench.pybuild("image", "umount", "-a", code=None)
    assert not mounts_below(tmp_path)


@pytest.mark.root
@pytest.mark.parametrize("name, files", [("app:1", {"etc", "gone"}), ("one:1", {"etc", "gone"}), ("void:1", set())])
def test_an_image_is_shown_as_it_is(bench: Bench, name: str, files: set[str]) -> None:
    place = Path(bench.pybuild("image", "mount", name).out.strip())
    assert {path.name for path in place.iterdir()} == files
    if name == "app:1":
        assert (place / "etc/name").read_text() == "one"
        status = (place / "etc/other").stat()
        assert (status.st_mode & 0o7777, status.st_uid) == (0o4755, 12)
        assert (place / "etc").stat().st_mode & 0o7777 == 0o700
        assert place.stat().st_mode & 0o7777 == 0o711
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()
    assert bench.pybuild("image", "umount", name).out == f"{place}\n"
    assert not place.exists()
    assert os.listdir(bench.root / "mounted") == []


@pytest.mark.root
def test_what_is_mounted_stays(bench: Bench) -> None:
    place = bench.folder / "mnt with blank"
    bench.pybuild("image", "mount", "app:1", str(place))
    assert bench.pybuild("image", "mount").out.splitlines()[1].endswith(str(place))
    assert bench.pybuild("image", "mount", "--format", "{{.Names}} {{.Place}}").out == f"app:1 {place}\n"
    for words in (["rmi", "app:1"], ["rmi", "-f", "app:1"]):
        done = bench.pybuild(*words, code=1)
        assert f"is mounted at {place}" in done.err
        assert f"pybuild image umount {place}" in done.err
    bench.pybuild("cache", "prune", "-y")
    bench.pybuild("image", "prune", "-af")
    assert list(bench.names()) == ["app:1"]
    assert (place / "etc/name").read_text() == "one"
    assert bench.pybuild("fsck").code == 0
    bench.pybuild("image", "mount", "app:1", str(place), code=1)
    bench.pybuild("image", "umount", str(place))
    assert place.exists()
    bench.pybuild("rmi", "app:1")
    assert os.listdir(bench.root / "snapshots") == [".kind"]


def test_the_base_of_a_running_build_stays(tmp_path: Path) -> None:
    needs_run()
    bench = Bench(tmp_path)
    bench.build("FROM base\n", {}, tag="app:1")
    build = bench.start(*bench.words("FROM app:1\nRUN sleep 60\n"), "-t", "top")
    assert build.stderr is not None
    try:
        for line in build.stderr:
            if b"step-started" in line:
                break
        done = bench.pybuild("rmi", "app:1", code=1)
        assert f"in use by a running build (process {build.pid})" in done.err
    finally:
        build.terminate()
        build.communicate(timeout=30)
    assert "Untagged: app:1" in bench.pybuild("rmi", "app:1").out


@pytest.mark.root
def test_places_that_will_not_do(bench: Bench) -> None:
    (bench.folder / "full").mkdir()
    (bench.folder / "full/x").touch()
    for place in ("full", "full/x"):
        bench.pybuild("image", "mount", "app:1", str(bench.folder / place), code=1)
    bench.pybuild("image", "mount", "nothing", code=1)
    assert "no image is mounted at" in bench.pybuild("image", "umount", "app:1", code=1).err
    bench.pybuild("image", "umount", code=2)
    assert os.listdir(bench.root / "mounted") == []
    with Store.open(bench.root) as store:
        layer = store.layers(store.image("app:1"))[1]
        store.blob_path(layer.descriptor.digest).write_bytes(b"damaged")
    bench.pybuild("image", "mount", "app:1", str(bench.folder / "new"), code=3)
    assert not (bench.folder / "new").exists()
    assert os.listdir(bench.root / "mounted") == []


@pytest.mark.root
def test_a_mount_in_use_is_told(bench: Bench) -> None:
    place = bench.pybuild("image", "mount", "app:1").out.strip()
    with open(f"{place}/etc/name"):
        done = bench.pybuild("image", "umount", place, code=1)
    assert "busy" in done.err
    assert "every shell and program" in done.err
    bench.pybuild("image", "umount", place)


@pytest.mark.root
def test_the_record_of_a_mount_that_is_gone_does_not_hold(bench: Bench) -> None:
    place = bench.pybuild("image", "mount", "app:1").out.strip()
    subprocess.run(["umount", place], check=True)
    # As if the process that mounted it had ended: here it is this one.
    for record in (bench.root / "mounted").rglob("use.json"):
        record.write_text(record.read_text().replace(f'"process": {os.getpid()}', '"process": 0'))
    assert bench.pybuild("image", "mount").out.splitlines()[1:] == []
    bench.pybuild("rmi", "app:1")
    os.rmdir(place)


def test_a_record_in_the_making_holds(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        image = store.image(put(store, "app:1", BASE))
        folder = uses.begin_mount(store)
        assert uses.mounts(store) == []
        made = uses.record_mount(store, folder, image, tmp_path, ["x" * 24])
        assert uses.mounts(store) == [made]
        assert uses.mounted_layers(store) == {"snapshots/" + "x" * 24}
        uses.discard(folder)
        assert uses.uses(store) == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="pybuild-mounting-") as name:
        yield Path(name)


@pytest.mark.userns
def test_an_ordinary_user_mounts_inside_unshare(folder: Path) -> None:
    bench = Bench(folder)
    with Store.open(bench.root) as store:
        put(store, "app:1", BASE)
    prefix: list[str] = []
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534:65534", folder], check=True)
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def pybuild(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *command(*words)], env=bench.environment | {"HOME": str(folder)}, cwd="/", capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    if subprocess.run([*prefix, "test", "-r", __file__], check=False).returncode:
        pytest.skip("another user can not read this checkout")
    done = pybuild("image", "mount", "app:1")
    assert done.returncode == 1
    assert "can not be mounted here: not root" in done.stderr
    assert "pybuild unshare" in done.stderr
    script = " ".join(command("image", "mount", "app:1", f"{folder}/m")) + f" && cat {folder}/m/etc/name"
    done = pybuild("unshare", "sh", "-c", script)
    assert done.stdout == f"{folder}/m\none", done.stderr
    assert pybuild("unshare", "sh", "-c", "exit 7").returncode == 7
    assert pybuild("unshare", "id", "-u").stdout == "0\n"
    assert "can not run nothing-such" in pybuild("unshare", "nothing-such").stderr
    # With the shell its namespace went, and the mount with it.
    assert pybuild("rmi", "app:1").returncode == 0
