"""Builds of one context on two machines, as far as one machine can be two; and `pybuild verify`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.building import Bench, command, environment, image_of, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.building import Image

FILES = {"src/a.txt": "a", "src/b/c.txt": "c", "src/run.sh": "#!/bin/sh\necho run\n", "z": "z", "other": "o"}
COPIES = """\
FROM scratch AS files
COPY src /src
WORKDIR /made/here
COPY --chmod=600 --chown=7:8 z other /x/
COPY <<EOF /doc
text
EOF
FROM scratch
COPY --from=files / /
COPY src/run.sh /bin/
LABEL a=b
"""
RUNS = """\
FROM base AS build
COPY src /src
RUN ln /src/a.txt /src/hard; mkdir -p /out/z /out/a; cp /src/run.sh /out/z; echo $SOURCE_DATE_EPOCH >/epoch
RUN stat -c '%n %a %u %g %h %Y' /src/*.* /out/z/* /epoch >/facts
RUN id -u >>/facts; umask >>/facts; stat -c %y /epoch >>/facts
RUN --mount=type=bind,target=/context find /context -type f -exec stat -c '%n %a %u %Y' {} + | sort >>/facts
FROM base
RUN truncate -s 3000000 /sparse && echo end >>/sparse
COPY --from=build /out /facts /src/ /
RUN rm -r /bin/id && mkdir /made && rmdir /made
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def digest(layout: Path) -> str:
    """Of the only manifest there is."""
    found = json.loads((layout / "index.json").read_text())["manifests"]
    return str(next(entry["digest"] for entry in found if "annotations" in entry))


def content(image: Image, name: str) -> str:
    """A file's text; the last layer that has it counts."""
    for layer in reversed(image.layers):
        with tarfile.open(layer) as tar:
            if name in tar.getnames():
                return (tar.extractfile(name) or io.BytesIO()).read().decode()
    raise AssertionError(name)


def elsewhere(bench: Bench, folder: Path) -> Path:
    """The context as another checkout has it: another path, umask, times and order of creation."""
    other = folder / "deeper" / "checkout"
    paths = sorted(bench.context.rglob("*"), reverse=True)
    for path in paths:
        target = other / path.relative_to(bench.context)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o700 if path.stat().st_mode & 0o100 else 0o660)
        os.utime(target, (1_000_000_000, 1_000_000_000 + len(target.name)))
    return other


def twice(bench: Bench, dockerfile: str, *flags: str) -> tuple[Image, Image]:
    """The image of a context here, and that of another checkout in another store, by another umask."""
    bench.build(dockerfile, FILES, *flags)
    (bench.context / "src/run.sh").chmod(0o755)
    bench.build(None, None, *flags)
    other = elsewhere(bench, bench.folder)
    words = [*bench.words(None)[:-1], *flags, "-t", "app", str(other)]
    root = bench.folder / "another-root"
    done = subprocess.run(
        command(words[0], "--root", str(root), *words[1:]), env=environment(), capture_output=True, text=True,
        check=False, umask=0o077, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digest(root) == digest(bench.root)
    return bench.image(), image_of(root, "app:latest")


def test_copies_give_the_same_digest_everywhere(bench: Bench) -> None:
    image, _ = twice(bench, COPIES, "--reproducible")
    assert image.config["created"] == "1980-01-01T00:00:00Z"
    assert {line["created"] for line in image.config["history"]} == {"1980-01-01T00:00:00Z"}
    assert {member.mtime for number in range(len(image.layers)) for member in image.members(number)} == {315532800}
    assert {name: image.files[name]["mode"] for name in ("/src/a.txt", "/src/run.sh", "/src/b", "/x/z")} == {
        "/src/a.txt": "0644", "/src/run.sh": "0755", "/src/b": "0755", "/x/z": "0600",
    }  # fmt: skip


def test_runs_give_the_same_digest_everywhere(bench: Bench) -> None:
    image, _ = twice(bench, RUNS, "--reproducible")
    facts = content(image, "facts").splitlines()
    assert image.files["/sparse"]["size"] == 3_000_004
    assert "/epoch 644 0 0 1 315532800" in facts, "the next RUN sees the times that the layer has"
    assert "1980-01-01 00:00:00.000000000 +0000" in facts
    assert "/context/src/run.sh 755 0 315532800" in facts


def test_the_epoch_is_the_one_that_is_given(bench: Bench) -> None:
    flags = ("--reproducible", "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
    image, _ = twice(bench, RUNS, *flags)
    assert image.config["created"] == "2020-09-13T12:26:40Z"
    assert "/epoch 644 0 0 1 1600000000" in content(image, "facts")


def test_another_epoch_takes_nothing_from_the_cache(bench: Bench) -> None:
    plain = bench.build("FROM scratch\nCOPY z /z\n", FILES)
    fixed = bench.build(None, None, "--build-arg", "SOURCE_DATE_EPOCH=1000000000")
    assert fixed.image != plain.image
    assert bench.image().members()[0].mtime == 1_000_000_000, "not the layer of the build before"
    assert "epoch" in bench.build(None, None, "--reproducible").steps[0].reason
    assert bench.build(None, None, "--reproducible").steps[0].cached


def test_layers_are_the_same_on_any_processor(bench: Bench) -> None:
    import zlib

    bench.build("FROM scratch\nCOPY z /z\n", FILES, "--reproducible")
    data = bench.image().layers[0].read_bytes()
    made = zlib.compressobj(4, zlib.DEFLATED, 31)
    plain = zlib.decompress(data, 31)
    assert made.compress(plain) + made.flush() == data


def test_another_zlib_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import zlib

    monkeypatch.setattr(zlib, "ZLIB_RUNTIME_VERSION", "1.3.1.zlib-ng")
    done = bench.build("FROM scratch\nCOPY z /z\n", FILES, "--reproducible")
    assert [event["rule"] for event in done.events if event["event"] == "warning"] == ["OtherZlib"]
    done = bench.build("FROM scratch\nCOPY z /z\n", FILES)
    assert [event for event in done.events if event["event"] == "warning"] == []


def test_the_commit_of_a_checkout(bench: Bench) -> None:
    bench.words("FROM scratch\nCOPY z /z\n", FILES)
    git = ["git", "-C", str(bench.context), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    env = environment(
        GIT_AUTHOR_DATE="@100 +0000", GIT_COMMITTER_DATE="@1234567890 +0100", GIT_CONFIG_GLOBAL="/dev/null"
    )
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True, env=env)
    bench.build(None, None, "--build-arg", "SOURCE_DATE_EPOCH=context")
    assert bench.image().config["created"] == "2009-02-13T23:31:30Z"


def test_times_and_modes_stay_where_nobody_asked(bench: Bench) -> None:
    write(bench.context, FILES)
    os.utime(bench.context / "z", (1_500_000_000, 1_500_000_000))
    (bench.context / "z").chmod(0o664)
    bench.build("FROM scratch\nCOPY z /z\n", None)
    (member,) = bench.image().members()
    assert (member.mtime, member.mode) == (1_500_000_000, 0o664)


def test_a_squashed_image_is_the_same_too(bench: Bench) -> None:
    image, _ = twice(bench, RUNS, "--reproducible", "--squash")
    assert len(image.layers) == 2


@pytest.mark.root
@pytest.mark.userns
def test_an_ordinary_user_makes_the_same(bench: Bench) -> None:
    """Root with real mounts, and someone with one id in a user namespace on a tmpfs."""
    bench.build(RUNS, FILES, "--reproducible")
    wanted = digest(bench.root)
    words = bench.words(None)
    context, base = "/mnt/context", "/mnt/base"
    named = next(word for word in words if word.startswith("--build-context=")).partition("base=")[2]
    script = (
        f"mount -t tmpfs none /mnt && cp -r {bench.context} {context} && cp -a {named} {base} && mkdir -m 777 /mnt/s "
        "&& chmod -R a+rX /mnt && setpriv --reuid=65534 --regid=65534 --clear-groups "
        + " ".join(
            command("build", "--root=/mnt/s/root", "--isolation=rootless-single", f"--build-context=base={base}")
        )
        + f" --reproducible --progress=quiet -o type=oci,tar=false,dest=/mnt/s/out -t app {context} "
        "&& cat /mnt/s/out/index.json"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script], capture_output=True, text=True,
        env=environment(HOME="/nonexistent"), check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr and "python" in done.stderr:
        pytest.skip("other users have no way to this interpreter")
    if "rootless-single" in done.stderr and "is not to be had" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout


# ---------------------------------------------------------------- verify


def verified(bench: Bench, dockerfile: str, *flags: str, code: int) -> dict[str, list[dict[str, object]]]:
    words = bench.words(dockerfile, FILES)[1:]
    done = bench.pybuild("verify", "--progress=quiet", "--format=json", *flags, *words, code=code)
    found = json.loads(done.out)
    assert found["same"] is (code == 0)
    return found  # type: ignore[no-any-return]


def test_what_is_the_same_is_said_to_be(bench: Bench) -> None:
    found = verified(bench, COPIES, code=0)
    assert found["differences"] == []
    assert not (bench.root / "blobs/sha256").exists() or not list((bench.root / "blobs/sha256").iterdir())
    done = bench.pybuild("verify", "--progress=quiet", str(bench.context))
    assert done.out.startswith("the same image twice: sha256:")
    assert bench.names() == {}


def test_without_fixed_times_all_differs(bench: Bench) -> None:
    found = verified(bench, "FROM scratch\nCOPY z /z\n", "--reproducible=false", code=1)
    told = {(each["path"], each["fact"]): each["cause"]["what"] for each in found["differences"]}  # type: ignore[index]
    assert told["z", "time"] == "the time of the build"
    assert told["z", "mode"] == "the umask of the checkout"
    assert ("created", "value") in told


def test_each_path_and_byte_that_differs_is_named(bench: Bench) -> None:
    dockerfile = (
        "FROM base AS build\nRUN cat /proc/sys/kernel/random/uuid >/id\n"
        "RUN cp /id /more && truncate -s 5000 /more && cat /id >>/more && truncate -s 3000000 /more && echo >>/more\n"
        "FROM base\nRUN touch /fixed /x-$(cat /proc/sys/kernel/random/uuid)\nCOPY --from=build /more /more\n"
        "RUN cat /proc/uptime >/bin/up; mkdir /var /var/log; cat /proc/uptime >/var/log/x\n"
        "RUN ln -s $(tr ' ' _ </proc/uptime) /link\n"
    )
    found = verified(bench, dockerfile, "--keep", str(bench.folder / "kept"), code=1)
    told = {each["path"]: each for each in found["differences"]}
    names = [path for path in told if str(path).startswith("x-")]
    assert sorted(str(told[name]["fact"]) for name in names) == ["only in the first", "only in the second"]
    more = told["more"]
    assert (more["title"], more["line"], more["step"]) == ("COPY --from=build /more /more", 6, 3)
    assert all(0 <= start < 37 or 5000 <= start < 5037 for start, _ in more["ranges"])  # type: ignore[attr-defined]
    assert {start >= 5000 for start, _ in more["ranges"]} == {True, False}  # type: ignore[attr-defined]
    assert more["cause"] == {"what": "a random id", "hint": told["more"]["cause"]["hint"]}  # type: ignore[index]
    assert told["var/log/x"]["cause"]["what"] == "a log"  # type: ignore[index]
    assert told["link"]["fact"] == "target"
    assert "fixed" not in told
    assert [each["path"] for each in found["inner"]] == ["id", "more"]
    kept = [(bench.folder / "kept" / number / "more").read_bytes() for number in "12"]
    assert [len(data) for data in kept] == [3_000_001] * 2
    start, end = more["ranges"][0]  # type: ignore[index]
    assert kept[0][start] != kept[1][start]
    assert kept[0][end - 1] != kept[1][end - 1]


def test_verify_says_it_in_words(bench: Bench) -> None:
    words = bench.words("FROM base\nRUN cat /proc/sys/kernel/random/uuid >/id\n", FILES)[1:]
    done = bench.pybuild("verify", *(word for word in words if "rawjson" not in word), code=1)
    assert "[stage-0 2] RUN cat /proc/sys/kernel/random/uuid >/id (line 2)" in done.out
    assert "likely: a random id" in done.out
    assert "/id: bytes " in done.out


def test_verify_uses_the_images_of_the_store(bench: Bench) -> None:
    bench.build("FROM scratch\nCOPY z /z\n", FILES, tag="mine:1")
    verified(bench, "FROM mine:1\nCOPY other /other\nCOPY --from=mine:1 /z /y\n", code=0)


def test_verify_tells_a_build_that_fails(bench: Bench) -> None:
    words = bench.words("FROM scratch\nCOPY missing /z\n", FILES)[1:]
    done = bench.pybuild("verify", *words, code=1)
    assert "missing" in done.err
    assert done.out == ""
    done = bench.pybuild("verify", "-", code=1)
    assert "standard input" in done.err
