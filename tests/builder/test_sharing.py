"""--cache-to and --cache-from, seen from the command line: two machines are two stores here, and share a folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import pytest

from builder.cli.flags import UsageError
from builder.cli.places import cache_place
from builder.errors import UnsupportedError
from builder.model import CachePlace
from tests.building import Bench, busybox, needs_run, write
from tests.registries import Handler, PlayedRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STAGES = (
    "FROM scratch AS one\nCOPY a /a\nCOPY d /d\nFROM scratch AS two\nCOPY --from=one /d /x\nCOPY a /y/a\n"
    "FROM two\nCOPY a /z/a\nWORKDIR /z\n"
)
FILES = {"a": "1", "d/b": "2", "d/c": "3"}


class Machine(Bench):
    """A store of its own, on a context that all machines have."""

    @property
    def context(self) -> Path:
        return self.folder.parent / "context"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    made = [Machine(tmp_path / name) for name in ("first", "second", "third")]
    for machine in made:
        machine.folder.mkdir()
    yield made
    for machine in made:
        machine.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def played() -> Iterator[PlayedRegistry]:
    with PlayedRegistry() as registry:
        yield registry


def to(shelf: Path, more: str = "") -> str:
    return f"--cache-to=type=local,dest={shelf}{more}"


def of(shelf: Path, more: str = "") -> str:
    return f"--cache-from=type=local,src={shelf}{more}"


def layers(store: Path) -> set[str]:
    """The blobs of a store that are compressed, so layers."""
    return {path.name for path in (store / "blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b"}


def warnings(done: object) -> list[str]:
    return [event["message"] for event in done.events if event["event"] == "warning"]  # type: ignore[attr-defined]


# ---------------------------------------------------------------- from one machine to another


def test_another_machine_takes_every_step(machines: list[Machine], shelf: Path) -> None:
    first, second, third = machines
    assert not any(first.build(STAGES, FILES, to(shelf)).cached.values())
    done = second.build(None, {}, of(shelf))
    assert all(done.cached.values())
    assert {step.reason for step in done.steps} == {f"from {shelf}"}
    assert warnings(done) == []
    assert second.image().diff_ids == first.image().diff_ids
    assert second.names() == first.names()  # with the time at which the first machine made it
    assert second.pybuild("fsck").code == 0
    # What the image has is in the second machine's own cache from then on.
    assert [step.cached for step in second.build(None, {}).steps] == [False] * 2 + [True] * 4
    assert not any(third.build(None, {}).cached.values())


def test_no_bytes_of_layers_are_fetched_before_they_are_wanted(machines: list[Machine], shelf: Path) -> None:
    first, second, _ = machines
    first.build(STAGES, FILES, to(shelf))
    done = second.build(None, {}, of(shelf), "--output=type=cacheonly", tag="")
    assert all(done.cached.values())
    assert layers(second.root) == set()
    # A COPY of another destination needs to know what lies below it, but no bytes: the listing is enough.
    text = STAGES.replace("WORKDIR /z", "COPY a /y/new")
    done = second.build(text, {}, of(shelf), "--output=type=cacheonly", tag="")
    assert [step.cached for step in done.steps] == [True] * 5 + [False]
    assert len(layers(second.root)) == 1
    # The stage that only files are copied from is not needed for the image at all.
    second.build(STAGES, {}, of(shelf))
    assert len(layers(second.root)) == 1 + 3
    assert second.pybuild("fsck").code == 0


def test_layers_that_lie_elsewhere_are_looked_into_by_their_listings(machines: list[Machine], shelf: Path) -> None:
    first, second, _ = machines
    text = "FROM scratch\nCOPY key /root/.ssh/id_rsa\n"
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ" * 20 + "\n"
    key += "-----END OPENSSH PRIVATE KEY-----\n"
    here = [event["rule"] for event in first.build(text, {"key": key}, "--lint", to(shelf)).events if "rule" in event]
    assert here
    done = second.build(None, {}, "--lint", of(shelf), "--output=type=cacheonly", tag="")
    assert [event["rule"] for event in done.events if "rule" in event] == here
    assert layers(second.root) == set()


def test_a_run_has_the_files_of_layers_that_were_elsewhere(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, _ = machines
    text = "FROM base\nCOPY a /a\nRUN cat /a > /b\n"
    first.build(text, FILES, to(shelf))
    done = second.build(text + "RUN cat /b >> /a && cat /a\n", {}, of(shelf))
    assert [step.cached for step in done.steps] == [True, True, False]
    assert done.output == "11"


def test_min_leaves_out_what_the_image_does_not_consist_of(machines: list[Machine], shelf: Path) -> None:
    first, second, _ = machines
    first.build(STAGES, FILES, to(shelf, ",mode=min"))
    assert [step.stage for step in second.build(None, {}, of(shelf)).steps if not step.cached] == ["one", "one"]


def test_steps_of_the_own_cache_are_put_there_too(machines: list[Machine], shelf: Path) -> None:
    first, second, third = machines
    first.build(STAGES, FILES)
    assert all(first.build(None, {}, to(shelf)).cached.values())
    other = shelf.with_name("other")
    # From one cache into another, without a store in between that has the layers.
    done = second.build(None, {}, of(shelf), to(other), "--output=type=cacheonly", tag="")
    assert all(done.cached.values())
    assert all(third.build(None, {}, of(other)).cached.values())


def test_what_is_there_already_is_not_sent_again(machines: list[Machine], shelf: Path) -> None:
    first, second, _ = machines
    first.build(STAGES, FILES, to(shelf))
    before = {path: path.stat().st_ino for path in shelf.rglob("*") if path.is_file()}
    done = second.build(None, {}, to(shelf), of(shelf))
    ended = [event for event in done.events if event["event"] == "export-finished"]
    assert ended[0]["what"] == f"cache {shelf}"
    assert ended[0]["size"] == 0
    # The same steps done once more make the same layers, of which no byte is sent.
    done = second.build(None, {}, to(shelf), "--no-cache", "--build-arg=SOURCE_DATE_EPOCH=1", tag="")
    assert {path: path.stat().st_ino for path in before if "blobs" in path.parts} == {
        path: number for path, number in before.items() if "blobs" in path.parts
    }


def test_a_folder_may_have_a_limit(machines: list[Machine], shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = machines
    monkeypatch.setattr("cache.shelves._GRACE", -1.0)
    first.build(STAGES, FILES, to(shelf))
    first.build(STAGES, {"a": "2"}, to(shelf, ",keep=1kb"))
    assert sum(path.stat().st_size for path in shelf.glob("*/**/*") if path.is_file()) <= 1024
    second.build(STAGES, FILES, of(shelf))


def test_a_step_that_is_done_anew_takes_the_place_of_the_old_one(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, _ = machines
    text = "FROM base\nRUN cat /proc/sys/kernel/random/uuid > /id\n"
    first.build(text, {}, to(shelf))
    first.build(text, {}, to(shelf), "--no-cache")
    assert second.build(text, {}, of(shelf)).steps[0].cached
    assert second.image().text("/id") == first.image().text("/id")


def test_the_time_to_live_counts_from_when_a_step_was_done(machines: list[Machine], shelf: Path) -> None:
    first, second, third = machines
    first.build(STAGES, FILES, to(shelf))
    for path in (shelf / "sheets").glob("step-*"):
        sheet = json.loads(path.read_text())
        record = json.loads(sheet["annotations"]["pybuild.step"])
        record["written"] -= 7200
        sheet["annotations"]["pybuild.step"] = json.dumps(record)
        path.write_text(json.dumps(sheet))
    assert all(second.build(None, {}, of(shelf), "--cache-ttl=3h").cached.values())
    done = second.build(None, {}, "--cache-ttl=1h")
    assert done.steps[2].reason == "made 2 hours ago, more than 1 hour"
    done = third.build(None, {}, of(shelf), "--cache-ttl=1h")
    assert not any(done.cached.values())
    assert done.steps[0].reason == "made 2 hours ago, more than 1 hour"


def test_a_required_cache_may_be_elsewhere(machines: list[Machine], shelf: Path) -> None:
    first, second, _ = machines
    first.build(STAGES, FILES, to(shelf))
    second.build(None, {}, of(shelf), "--require-cache")
    second.build(None, {"a": "2"}, of(shelf), "--require-cache", code=1)


def test_steps_before_the_one_that_failed_are_kept(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, _ = machines
    text = "FROM base\nRUN echo 1 > /a\nRUN test -e {}\n"
    first.build(text.format("/none"), {}, to(shelf), code=1)
    assert second.build(text.format("/a"), {}, of(shelf)).steps[0].cached


def test_a_miss_on_a_fresh_machine_is_explained_by_what_others_have_done(
    machines: list[Machine], shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = machines
    first.build(STAGES, {**FILES, "caf\udce9": "x"}, to(shelf))
    (first.context / "d/c").chmod(0o755)
    done = second.build(None, {"a": "2"}, of(shelf), "--explain")
    assert [step.reason for step in done.steps[:2]] == ["a: content changed", "d/c: mode 644 → 755 and 1 more"]
    for path in (shelf / "sheets").glob("place-*"):
        path.write_bytes(b"{}")
    assert third.build(None, {}, of(shelf)).steps[0].reason == "first build"


def test_a_secret_is_in_no_cache(machines: list[Machine], shelf: Path) -> None:
    text = "FROM scratch\nARG API_TOKEN\nCOPY a /$API_TOKEN-x\nARG OTHER\nCOPY a /b\n"
    machines[0].build(text, FILES, to(shelf), "--build-arg=API_TOKEN=hunter2")
    import zlib

    for path in shelf.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if data[:2] == b"\x1f\x8b" and b"API_TOKEN" not in data:
                data = zlib.decompress(data, 31)
            if b'"parts"' in data:
                assert b"hunter2" not in data


# ---------------------------------------------------------------- caches that fail


def test_a_cache_that_is_not_there_is_warned_of(machines: list[Machine], shelf: Path) -> None:
    done = machines[0].build(STAGES, FILES, of(shelf))
    assert warnings(done) == [f"--cache-from: there is no folder {shelf}; nothing is taken from it"]
    # The one that the build itself makes is not missed.
    assert warnings(machines[0].build(None, {}, of(shelf), to(shelf))) == []


def test_a_cache_that_can_not_be_written_is_warned_of_once(machines: list[Machine], shelf: Path) -> None:
    shelf.write_text("no folder")
    done = machines[0].build(STAGES, FILES, to(shelf))
    assert len(warnings(done)) == 1
    assert warnings(done)[0].startswith(f"nothing more is put into the cache {shelf}: can not write ")
    done = machines[1].build(None, {}, to(shelf, ",ignore-error=false"), code=1)
    assert f"the cache {shelf} can not be written" in done.err


@pytest.mark.parametrize("damage", [b"{", b'{"schemaVersion":2}', None])
def test_a_record_that_is_damaged_is_a_miss(machines: list[Machine], shelf: Path, damage: bytes | None) -> None:
    first, second, third = machines
    epoch = "--build-arg=SOURCE_DATE_EPOCH=1"
    first.build(STAGES, FILES, to(shelf), epoch)
    sheets = sorted((shelf / "sheets").glob("step-*"))
    for path, other in zip(sheets, [*sheets[1:], sheets[0]], strict=True):
        path.write_bytes(other.read_bytes() if damage is None else damage)
        if damage is None:
            break
    done = second.build(None, {}, of(shelf), to(shelf), epoch)
    assert not all(done.cached.values())
    assert len(warnings(done)) == (1 if damage is None else len(set(warnings(done))))
    assert second.image().diff_ids == first.image().diff_ids
    # And was put right.
    assert all(third.build(None, {}, of(shelf), epoch).cached.values())


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_layer_that_is_damaged_is_made_anew(machines: list[Machine], shelf: Path, damage: str) -> None:
    needs_run()
    first, second, _ = machines
    text = "FROM base\nCOPY a /a\nRUN cat /a > /b\nRUN cat /b > /c\n"
    first.build(text, FILES, to(shelf))
    digest = first.image().manifest["layers"][-2]["digest"]
    path = shelf / "blobs" / digest.replace(":", "/")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-3])
    done = second.build(text + "RUN cat /c\n", {}, of(shelf))
    assert done.output == "1"
    assert [message for message in warnings(done) if "its step is done again" in message]
    assert second.image().text("/c") == "1"
    assert second.pybuild("fsck").code == 0
    done = machines[2].build(text, {}, of(shelf))
    assert machines[2].image().text("/b") == "1"


def test_a_layer_that_turns_out_to_be_damaged_when_it_is_pushed_is_made_anew(
    machines: list[Machine], shelf: Path, played: PlayedRegistry
) -> None:
    first, second, _ = machines
    text = "FROM scratch\nCOPY a /a\nCOPY d /d\n"
    first.build(text, FILES, to(shelf))
    digest = first.image().manifest["layers"][0]["digest"]
    (shelf / "blobs" / digest.replace(":", "/")).write_bytes(b"x")
    done = second.build(text, {}, of(shelf), "--push", tag=f"{played.name}/app:1")
    assert len(warnings(done)) == 1
    assert "its step is done again" in warnings(done)[0]
    manifest = json.loads(played.manifests["app", "1"][1])
    assert all(layer["digest"] in played.has["app"] for layer in manifest["layers"])


def test_a_record_of_another_layer_than_its_blob_is_not_believed(machines: list[Machine], shelf: Path) -> None:
    first, second, third = machines
    text = "FROM scratch\nCOPY a /a\n"
    first.build(text, FILES, to(shelf))
    path = next((shelf / "sheets").glob("step-*"))
    right = first.image().diff_ids[0].removeprefix("sha256:")
    path.write_bytes(path.read_bytes().replace(right.encode(), b"0" * 64))
    done = second.build(text, {}, of(shelf), to(shelf))
    assert [message for message in warnings(done) if "unpacks to something else" in message]
    assert second.image().diff_ids != ["sha256:" + "0" * 64]
    assert second.pybuild("fsck").code == 0
    # And the record was put right.
    assert third.build(text, {}, of(shelf)).steps[0].cached
    # One whose blob is here already is looked at as well.
    path.write_bytes(path.read_bytes().replace(third.image().diff_ids[0][7:].encode(), b"0" * 64))
    with sqlite3.connect(third.root / "pybuild.db") as database:
        database.execute("DELETE FROM records")
    done = third.build(text, {}, of(shelf))
    assert [message for message in warnings(done) if "unpacks to something else" in message]


def test_a_listing_that_is_damaged_is_made_from_the_layer(machines: list[Machine], shelf: Path) -> None:
    first, second, _ = machines
    first.build(STAGES, FILES, to(shelf))
    for path in (shelf / "sheets").glob("step-*"):
        for layer in json.loads(path.read_text())["layers"][1:]:
            if "listing" in layer["mediaType"]:
                (shelf / "blobs" / layer["digest"].replace(":", "/")).write_bytes(b"\x1f\x8bgarbage")
    done = second.build(STAGES.replace("WORKDIR /z", "COPY a /y/new"), {}, of(shelf))
    assert [step.cached for step in done.steps] == [True] * 5 + [False]
    assert [message for message in warnings(done) if "the layer itself is read" in message]


# ---------------------------------------------------------------- many at once


def test_machines_that_build_at_once_do_each_step_once(tmp_path: Path, shelf: Path) -> None:
    needs_run()
    text = "FROM base AS one\nRUN sleep 0.4; cat /proc/sys/kernel/random/uuid > /id\nRUN sleep 0.2; cat /id > /b\n"
    text += "FROM base\nCOPY --from=one /b /b\nRUN sleep 0.2; cat /b > /c\n"
    machines = [Machine(tmp_path / f"machine{number}") for number in range(4)]
    write(tmp_path / "context", {"Dockerfile": text})
    for machine in machines:
        machine.folder.mkdir()
    words = [f"--build-context=base={busybox()}", of(shelf), to(shelf), "--progress=rawjson", "-t", "app"]
    try:
        running = [machine.start("build", *words, str(machine.context)) for machine in machines]
        done = [process.communicate(timeout=60) for process in running]
        assert [process.returncode for process in running] == [0] * 4, done
        ended = [
            json.loads(line)
            for _, err in done
            for line in err.decode().splitlines()
            if line.startswith('{"time"') and '"step-finished"' in line
        ]
        assert len(ended) == 16
        assert sum(not event["cached"] for event in ended) == 4
        assert len({machine.image().text("/c") for machine in machines}) == 1
        assert not list(shelf.glob("sheets/claim-*"))
    finally:
        for machine in machines:
            machine.close()


def test_builds_that_write_one_cache_at_once_lose_nothing_though_some_are_killed(tmp_path: Path, shelf: Path) -> None:
    machines = [Machine(tmp_path / f"machine{number}") for number in range(6)]
    data = os.urandom(2 << 20)
    for number, machine in enumerate(machines):
        # Steps of its own and steps that all have.
        text = "FROM scratch\nCOPY shared /shared\n" + "".join(f"COPY own{step} /{step}\n" for step in range(4))
        files = {f"own{step}": f"{number} {step}".encode() + data[: step << 18] for step in range(4)}
        write(machine.folder / "own", {"Dockerfile": text, "shared": data, **files})
    words = ["build", to(shelf), "--build-arg=SOURCE_DATE_EPOCH=1", "--progress=rawjson"]
    try:
        running = [machine.start(*words, str(machine.folder / "own")) for machine in machines]
        for process in running[:2]:
            while not list(shelf.glob("sheets/step-*")) and process.poll() is None:
                time.sleep(0.005)
            process.kill()
        done = [process.communicate(timeout=60) for process in running]
        assert [process.returncode for process in running[2:]] == [0] * 4, done
        for path in (shelf / "blobs/sha256").iterdir():
            if not path.name.startswith("."):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for path in (shelf / "sheets").glob("[!.]*"):
            sheet = json.loads(path.read_text())
            for blob in (sheet["config"], *sheet["layers"]):
                assert (shelf / "blobs" / blob["digest"].replace(":", "/")).stat().st_size == blob["size"]
        for number, machine in enumerate(machines[2:]):
            again = Machine(tmp_path / f"again{number}")
            again.folder.mkdir()
            made = again.alone(*words, of(shelf), "--require-cache", str(machine.folder / "own"))
            assert made.code == 0, made.err
    finally:
        for machine in machines:
            machine.close()


def test_the_step_of_a_machine_that_failed_is_done_by_another(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, _ = machines
    write(first.context, {"Dockerfile": "FROM base\nRUN sleep 0.5; test -d /lost+found-not\n"})
    words = ["build", f"--build-context=base={busybox()}", of(shelf), to(shelf), str(first.context)]
    running = [machine.start(*words) for machine in (first, second)]
    for process in running:
        process.communicate(timeout=30)
    # Neither waits for what never comes.
    assert [process.returncode for process in running] == [1, 1]


def test_the_step_of_a_machine_that_died_is_done_by_another(
    machines: list[Machine], shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_run()
    monkeypatch.setattr("cache.remote._EXPIRY", 1.0)
    first, second, _ = machines
    text = "FROM base\nRUN sleep 30\n"
    write(first.context, {"Dockerfile": text})
    named = f"--build-context=base={busybox()}"
    process = first.start("build", named, of(shelf), to(shelf), str(first.context))
    while not list(shelf.glob("sheets/claim-*")):
        assert process.poll() is None
        os.sched_yield()
    process.kill()
    process.wait()
    # The claim is not the same key's unless the command is: one that ends at once.
    claim = next(shelf.glob("sheets/claim-*")).read_bytes()
    write(first.context, {"Dockerfile": "FROM base\nRUN echo done\n"})
    second.build(None, {}, of(shelf), to(shelf), tag="")
    key = next(shelf.glob("sheets/step-*")).name.removeprefix("step-")
    for path in shelf.glob("sheets/*"):
        path.unlink()
    (shelf / "sheets" / f"claim-{key}").write_bytes(claim)
    done = second.build(None, {}, of(shelf), to(shelf), "--cache-ttl=0s")
    assert not done.steps[0].cached
    assert "another machine is doing this step" in done.output


# ---------------------------------------------------------------- registries


def sent(played: PlayedRegistry) -> int:
    """Bytes of blobs that came."""
    return sum(len(seen.body) for seen in played.seen if "/blobs/uploads/" in seen.path)


def got(played: PlayedRegistry) -> list[str]:
    """Blobs that were fetched."""
    return [seen.path.rpartition("/")[2] for seen in played.requests("GET", "/blobs/sha256:")]


def got_layers(played: PlayedRegistry) -> set[str]:
    """Those of them that are layers."""
    sheets = [json.loads(data) for (_, tag), (_, data) in played.manifests.items() if ":" not in tag]
    every = {layer["digest"] for sheet in sheets for layer in sheet["layers"] if "image.layer" in layer["mediaType"]}
    return every & set(got(played))


def layer_digests(machine: Machine, name: str = "app") -> set[str]:
    return {layer["digest"] for layer in machine.image(name).manifest["layers"]}


def test_a_cache_in_a_registry(machines: list[Machine], played: PlayedRegistry) -> None:
    first, second, _ = machines
    ref = f"{played.name}/team/cache"
    first.build(STAGES, FILES, f"--cache-to=type=registry,ref={ref}:main")
    assert {tag[:10] for _, tag in played.manifests if ":" not in tag} == {"main-step-", "main-place"}
    done = second.build(None, {}, f"--cache-from={ref}:main")
    assert all(done.cached.values())
    assert second.names() == first.names()
    assert got_layers(played) == layer_digests(first)
    assert not any(machines[2].build(None, {}, f"--cache-from={ref}:other").cached.values())


def test_a_cached_build_that_is_pushed_moves_no_layer(machines: list[Machine], played: PlayedRegistry) -> None:
    first, second, third = machines
    cache = f"--cache-to={played.name}/cache", f"--cache-from={played.name}/cache"
    name = f"{played.name}/app:1"
    first.build(STAGES, FILES, *cache, "--push", tag=name)
    # The push took them over from the cache, or the other way round: each layer was sent once.
    bodies = [seen.body for seen in played.requests("PUT", "/blobs/uploads/") if seen.body[:2] == b"\x1f\x8b"]
    assert len(bodies) == len(set(bodies))
    played.seen.clear()
    done = second.build(None, {}, *cache, "--push", tag=f"{played.name}/app:2")
    assert all(done.cached.values())
    # No layer; what stage one holds decides about a COPY, so its listing is read.
    assert not got_layers(played)
    assert sent(played) == 0
    assert played.manifests["app", "2"] == played.manifests["app", "1"]
    assert layers(second.root) == set()
    assert second.names() == {}
    # Into a repository that has none of the layers: the registry takes them over, but for the config.
    second.build(None, {}, *cache, "--push", tag=f"{played.name}/other:1")
    assert not got_layers(played)
    assert played.manifests["other", "1"] == played.manifests["app", "1"]
    played.seen.clear()
    # A new step on top: the bytes below it are not wanted either.
    done = third.build(STAGES + "COPY d /new\n", {}, *cache, "--push", tag=f"{played.name}/app:3")
    assert not done.steps[-1].cached
    assert got(played)
    assert not got_layers(played)


def test_of_a_base_in_a_registry_only_what_is_wanted_is_fetched(
    machines: list[Machine], played: PlayedRegistry
) -> None:
    needs_run()
    first, second, third = machines
    base, cache = f"{played.name}/base:1", (f"--cache-to={played.name}/cache", f"--cache-from={played.name}/cache")
    first.build("FROM base\n", {}, "--push", tag=base)
    bottom = layer_digests(first, base)
    first.pybuild("image", "rm", base)
    text = f"FROM {base}\nRUN echo 1 > /1\n"
    write(first.context, {"Dockerfile": text})
    words = ("build", "--progress=rawjson", *cache, str(first.context))
    first.pybuild(*words, "-t", "app")
    # The bytes came, since a RUN wanted them, and the base is in the store as if it had been pulled.
    assert set(first.names()) == {"app:latest", base}
    played.seen.clear()
    done = second.pybuild(*words, "--push", "-t", f"{played.name}/app:1")
    assert all(done.cached.values())
    assert not set(got(played)) & (bottom | layer_digests(first))
    assert second.names() == {}
    played.seen.clear()
    third.pybuild(*words, "-t", "app")
    assert bottom | layer_digests(first) <= set(got(played))
    assert third.names() == first.names()
    assert third.pybuild("fsck").code == 0


def test_a_base_whose_layer_is_gone_is_told(machines: list[Machine], played: PlayedRegistry) -> None:
    needs_run()
    first, second, _ = machines
    base = f"{played.name}/base:1"
    first.build("FROM base\n", {}, "--push", tag=base)
    for digest in layer_digests(first, base):
        played.has["base"].discard(digest)
    write(first.context, {"Dockerfile": f"FROM {base}\nRUN true\n"})
    done = second.pybuild("build", f"--cache-from={played.name}/cache", str(first.context), code=1)
    assert f"can not get the blob {digest[7:19]}" in done.err


def test_the_image_itself_may_carry_its_records(machines: list[Machine], played: PlayedRegistry) -> None:
    first, second, third = machines
    name = f"{played.name}/app:1"
    first.build(STAGES, FILES, "--cache-to=type=inline", "--push", tag=name)
    assert [tag for _, tag in played.manifests if ":" not in tag] == ["1"]
    done = second.build(None, {}, f"--cache-from={name}", tag=name)
    # As with mode=min: the stage that was copied from is not among them.
    assert [step.cached for step in done.steps] == [False, False, True, True, True, True]
    assert second.names() == first.names()
    digest = json.loads((first.root / "index.json").read_text())["manifests"][0]["digest"]
    done = third.build(None, {}, f"--cache-from={played.name}/app@{digest}")
    assert [step.cached for step in done.steps][2:] == [True] * 4


@pytest.mark.parametrize("note", ["[[1]]", '[["key",99,0,0,0.0]]', "x"])
def test_the_records_of_an_image_that_are_damaged_are_warned_of(
    machines: list[Machine], played: PlayedRegistry, note: str
) -> None:
    first, second, _ = machines
    name = f"{played.name}/app:1"
    first.build(STAGES, FILES, "--cache-to=type=inline", "--push", tag=name)
    media_type, data = played.manifests["app", "1"]
    played.put_manifest("app", "1", {**json.loads(data), "annotations": {"pybuild.cache": note}}, media_type)
    done = second.build(None, {}, f"--cache-from={name}")
    assert len(warnings(done)) == 1
    assert not any(done.cached.values())


def test_a_registry_that_can_not_be_reached_is_warned_of_once(machines: list[Machine]) -> None:
    done = machines[0].build(STAGES, FILES, "--cache-from=127.0.0.1:1/cache", "--cache-to=127.0.0.1:1/cache")
    told = [message.partition(" the cache")[0] for message in warnings(done)]
    assert sorted(told) == ["nothing more is put into", "nothing more is taken from"]


def test_a_registry_that_lets_nobody_in_is_warned_of(machines: list[Machine], played: PlayedRegistry) -> None:
    played.login = "a:b"
    done = machines[0].build(STAGES, FILES, f"--cache-to={played.name}/cache")
    assert len(warnings(done)) == 1
    assert "nothing more is put into the cache" in warnings(done)[0]


def test_a_build_that_is_stopped_does_not_wait_for_the_cache(machines: list[Machine], played: PlayedRegistry) -> None:
    first = machines[0]
    asked, over = threading.Event(), threading.Event()

    def stall(handler: Handler, _: bytes) -> None:
        asked.set()
        over.wait(30)
        handler.cut()

    played.fail("PUT", "/blobs/uploads/", *[stall] * 9)
    write(first.context, {"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "1"})
    process = first.start("build", f"--cache-to={played.name}/cache", "-t", "app", str(first.context))
    try:
        assert asked.wait(30)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert time.monotonic() - started < 8
    finally:
        over.set()


def test_cache_mounts_in_a_registry(machines: list[Machine], played: PlayedRegistry) -> None:
    needs_run()
    first, second, _ = machines
    cache = f"--cache-to={played.name}/cache", f"--cache-from={played.name}/cache"
    first.build(MOUNTED, {}, *cache)
    assert second.build(MOUNTED, {}, *cache, "--build-arg=V=2").output == "dir\nkept\n"


# ---------------------------------------------------------------- the flags


def places(text: str, flag: str = "cache-to") -> CachePlace:
    return cache_place(text, flag, lambda text, _: int(text))


def test_what_the_flags_say(tmp_path: Path) -> None:
    plain = CachePlace("local", str(tmp_path))
    assert places(f"type=local,dest={tmp_path}") == plain
    assert places(f"type=local,src={tmp_path}", "cache-from") == plain
    assert places(f'type=local,"dest={tmp_path}",mode=min,mounts=false,mounts-max=5,ignore-error=false') == CachePlace(
        "local", str(tmp_path), "min", required=True, mounts=False, mounts_max=5
    )
    assert places(f"type=local,dest={tmp_path},oci-mediatypes=true,image-manifest=true") == plain
    there = CachePlace("registry", "reg.lan:5000/team/cache:main")
    assert places("type=registry,ref=reg.lan:5000/team/cache:main") == there
    assert places("reg.lan:5000/team/cache:main") == there
    assert places("user/cache").place == "docker.io/user/cache:latest"
    assert places("type=registry,ref=a.b/c,registry.insecure=true,mode=min").insecure
    assert places("type=inline") == CachePlace("inline")
    pinned = f"a.b/c@sha256:{'0' * 64}"
    assert places(pinned, "cache-from").place == pinned


@pytest.mark.parametrize(
    ("text", "flag", "said"),
    [
        ("type=local", "cache-to", "does not say where"),
        ("type=local,src=d", "cache-to", "no attribute 'src'"),
        ("type=local,dest=d", "cache-from", "no attribute 'dest'"),
        ("type=local,dest=d,mode=all", "cache-to", "neither min nor max"),
        ("type=local,dest=d,mod=max", "cache-to", "no attribute 'mod'"),
        ("type=local,dest=d,mounts=maybe", "cache-to", "neither true nor false"),
        ("type=local,dest=d,x", "cache-to", "'x' has no value"),
        ("type=floppy,dest=d", "cache-to", "no type 'floppy'"),
        ("dest=d", "cache-to", "no type ''"),
        ("type=registry", "cache-to", "does not say where"),
        ("type=registry,ref=A/B", "cache-to", "invalid image name"),
        ("a b", "cache-from", "invalid image name"),
        (f"a.b/c@sha256:{'0' * 64}", "cache-to", "has a digest"),
        (f"a.b/c:{'x' * 51}", "cache-to", "longer than 50"),
        ("type=inline", "cache-from", "say which image"),
        ("type=inline,mode=max", "cache-to", "no attribute 'mode'"),
    ],
)
def test_what_the_flags_do_not_understand(text: str, flag: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        places(text, flag)
    assert said in raised.value.message


@pytest.mark.parametrize(
    "text", ["type=gha", "type=s3,bucket=b", "type=azblob", "type=local,dest=d,compression=zstd",
             "type=local,dest=d,oci-mediatypes=false"]
)  # fmt: skip
def test_what_the_flags_can_not_do(text: str) -> None:
    with pytest.raises(UnsupportedError):
        places(text)


# ---------------------------------------------------------------- cache mounts

MOUNTED = (
    "FROM base\nARG V=1\n"
    "RUN --mount=type=cache,id=pip,target=/c,uid=1000 ls /c; cat /c/dir/old 2>/dev/null; mkdir -p /c/dir; "
    "echo $V > /c/dir/v$V; chmod 640 /c/dir/v$V; echo kept > /c/dir/old\n"
)


def test_a_fresh_machine_gets_its_cache_mounts_back(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, third = machines
    assert first.build(MOUNTED, {}, to(shelf)).output == ""
    # Nothing is restored for a step that is in the cache.
    done = second.build(MOUNTED, {}, of(shelf), to(shelf))
    assert done.steps[0].cached
    assert not list((second.root / "mounts").glob("*/data"))
    done = second.build(MOUNTED, {}, of(shelf), to(shelf), "--build-arg=V=2")
    assert done.output == "dir\nkept\n"
    place = next((second.root / "mounts").glob("*/data"))
    assert sorted(path.name for path in (place / "dir").iterdir()) == ["old", "v1", "v2"]
    assert (place / "dir/v1").stat().st_mode & 0o777 == 0o640
    assert place.stat().st_uid == 1000
    done = third.build(MOUNTED, {}, of(shelf), "--build-arg=V=3")
    assert done.output == "dir\nkept\n"
    assert next((third.root / "mounts").glob("*/data/dir/v2")).read_text() == "2\n"


def test_a_folder_that_is_there_is_not_touched_but_an_empty_one_is(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, third = machines
    first.build(MOUNTED, {}, to(shelf))
    second.build("FROM base\nRUN --mount=type=cache,id=pip,target=/c echo own > /c/own\n")
    assert second.build(MOUNTED, {}, of(shelf), "--build-arg=V=2").output == "own\n"
    third.build("FROM base\nRUN --mount=type=cache,id=pip,target=/c true\n")
    assert third.build(MOUNTED, {}, of(shelf), "--build-arg=V=2").output == "dir\nkept\n"


def test_mounts_can_be_left_out(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, third = machines
    first.build(MOUNTED, {}, to(shelf, ",mounts=false"))
    assert not list(shelf.glob("sheets/mount-*"))
    first.build(MOUNTED, {}, to(shelf), "--no-cache")
    assert list(shelf.glob("sheets/mount-*"))
    assert second.build(MOUNTED, {}, of(shelf, ",mounts=false"), "--build-arg=V=2").output == ""
    done = third.build(MOUNTED, {}, to(shelf.with_name("small"), ",mounts-max=1"))
    assert warnings(done) == []
    assert not [line for line in shelf.with_name("small").glob("sheets/mount-*") if b'"packs":[{' in line.read_bytes()]


def test_a_damaged_mount_is_warned_of_and_empty(machines: list[Machine], shelf: Path) -> None:
    needs_run()
    first, second, _ = machines
    first.build(MOUNTED, {}, to(shelf))
    sheet = json.loads(next(shelf.glob("sheets/mount-*")).read_text())
    (shelf / "blobs" / sheet["layers"][-1]["digest"].replace(":", "/")).write_bytes(b"x")
    done = second.build(MOUNTED, {}, of(shelf), "--build-arg=V=2")
    assert done.output == ""
    assert [message for message in warnings(done) if "the cache mount pip can not be had" in message]


def test_a_mount_that_another_build_has_for_itself_is_not_waited_for_long(
    machines: list[Machine], shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_run()
    monkeypatch.setattr("cache.remote._PATIENCE", 0.2)
    first = machines[0]
    first.build(MOUNTED, {})
    lock = next((first.root / "mounts").glob("*.lock"))
    import fcntl

    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        done = first.build(MOUNTED, {}, to(shelf), "--build-arg=V=2")
        assert warnings(done) == []
    text = MOUNTED.replace("id=pip", "id=pip,sharing=private")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert warnings(first.build(text, {}, to(shelf), "--build-arg=V=3")) == []
