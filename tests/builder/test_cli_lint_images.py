"""`pybuild lint IMAGE`, and what settings and comments do for `pybuild build --lint`."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.building import Bench, busybox, needs_run, write

if TYPE_CHECKING:
    from pathlib import Path

JUNK = 'FROM base\nRUN mkdir /d && echo junk > /tmp/junk && echo more > /d/x\nRUN rm -r /d\nCMD ["sh"]\n'


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    needs_run()
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "context", {".git/": "", ".dockerignore": ".git\n"})
    return Bench(tmp_path)


def build(bench: Bench, text: str, *flags: str, code: int = 0) -> str:
    write(bench.context, {"Dockerfile": text})
    return bench.pybuild("build", "--build-context", f"base={busybox()}", *flags, str(bench.context), code=code).err


def found(bench: Bench, *words: str, code: int = 1) -> list[tuple[str, int]]:
    document = json.loads(bench.pybuild("lint", "--format=json", *words, code=code).out)
    return [(each["rule"], each.get("layer", -1)) for each in document["findings"] if each["severity"] != "info"]


def test_an_image_of_the_store_an_archive_and_a_layout(bench: Bench) -> None:
    tar, layout = bench.folder / "junk.tar", bench.folder / "layout"
    build(bench, JUNK, "-t", "junk", "-o", f"type=docker,dest={tar}", "-o", f"type=oci,tar=false,dest={layout}")
    expected = [("TemporaryFiles", 1)]
    image = bench.pybuild("image", "ls", "-q", "--no-trunc").out.strip()
    (bench.folder / "copy.tar").write_bytes(tar.read_bytes())
    for name in (
        "junk", "junk:latest", "docker.io/library/junk", image, image.partition(":")[2][:12], "docker-image:junk",
        f"docker-archive:{tar}", f"docker-archive://{tar}", f"oci-archive:{tar}", str(tar), f"oci-layout:{layout}",
        str(layout),
    ):  # fmt: skip
        assert found(bench, name) == expected, name
    ended = bench.pybuild("lint", "junk", code=1)
    assert "TemporaryFiles: 1 temporary file left behind, 5B: /tmp/junk\n --> layer 1: RUN " in ended.out
    assert "shipped bytes can be seen" in ended.out
    assert ended.out.endswith("junk: 1 warning, 1 note\n")
    assert bench.pybuild("image", "ls", "-q").out.count("\n") == 1, "looking gives no names"


def test_settings_and_limits_count_for_images(bench: Bench) -> None:
    build(bench, JUNK, "-t", "junk")
    assert found(bench, "junk", "--ignore=TemporaryFiles", code=0) == []
    assert found(bench, "junk", "--severity=TemporaryFiles=info", code=0) == []
    assert found(bench, "junk", "--select=SudoInRun", "--max-waste=4", code=1)[0][0] == "WasteOverBudget"
    assert found(bench, "junk", "--select=SudoInRun", "--max-waste=5", code=0) == []
    write(bench.folder, {".pybuild.toml": "[lint]\nselect = ['SudoInRun']\nmax-waste = '4'\n"})
    assert [rule for rule, _ in found(bench, "junk")] == ["WasteOverBudget"]
    write(bench.folder, {".pybuild.toml": "[lint]\nmax-waste = 'little'\n"})
    assert "max-waste = 'little' is no size" in bench.pybuild("lint", "junk", code=2).err


def test_which_is_meant(bench: Bench) -> None:
    build(bench, 'FROM scratch\nCOPY Dockerfile /\nCMD ["x"]\n', "-t", "app")
    write(bench.folder, {"app/Dockerfile": "FROM a:1\n"})
    ended = bench.pybuild("lint", "app", code=2)
    assert "app is a folder here and an image in the store" in ended.err
    assert "./app is the folder, docker-image:app the image" in ended.err
    assert bench.pybuild("lint", "./app").out == "app/Dockerfile: nothing to say\n"
    assert "app: " in bench.pybuild("lint", "docker-image:app", code=None).out
    assert "did you mean app?" in bench.pybuild("lint", "apq", code=2).err
    assert "no such image: nothere" in bench.pybuild("lint", "docker-image:nothere", code=1).err
    assert "no.tar" in bench.pybuild("lint", "docker-archive:no.tar", code=1).err
    for flag in ("--fix", "--file=x", "--build-arg=a=b"):
        assert "is about a Dockerfile" in bench.pybuild("lint", "docker-image:app", flag, code=2).err
    assert "is about an image" in bench.pybuild("lint", "./app", "--max-size=1k", code=2).err


def test_a_damaged_layer_is_a_finding(bench: Bench) -> None:
    write(bench.context, {"Dockerfile": 'FROM scratch\nCOPY Dockerfile /\nCMD ["x"]\n'})
    layout = bench.folder / "layout"
    bench.pybuild("build", "-t", "app", "-o", f"type=oci,tar=false,dest={layout}", str(bench.context))
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    layer = json.loads((layout / "blobs" / manifest.replace(":", "/")).read_text())["layers"][0]["digest"]
    blob = bench.root / "blobs" / layer.replace(":", "/")
    shutil.rmtree(bench.root / "listings", ignore_errors=True)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert ("DamagedLayer", 0) in found(bench, "app")


# ---------------------------------------------------------------- build --lint


def test_settings_and_comments_count_for_a_build(bench: Bench) -> None:
    text = (
        "# pybuild: ignore=LogFiles nothing of it\nFROM base\n"
        "# pybuild: ignore=TemporaryFiles meant\nRUN echo x > /tmp/y\n"
        "RUN echo x > /tmp/z\nRUN sudo true || true\nCMD sh\n"
    )
    said = build(bench, text, "--lint", "--progress=plain")
    lines = [line for line in said.splitlines() if line.startswith(("warning: ", "info: ", "error: "))]
    assert [line.split(":")[1].strip() for line in lines] == [
        "SudoInRun", "JSONArgsRecommended", "UnusedSuppression", "TemporaryFiles", "EmptyLayer",
    ]  # fmt: skip
    assert "Dockerfile:5:1" in said
    write(bench.context, {".pybuild.toml": "[lint]\nignore = ['TemporaryFiles', 'JSONArgsRecommended', 'DL3004']\n"})
    said = build(bench, text, "--lint=error", "--progress=plain")
    assert "TemporaryFiles:" not in said
    assert "JSONArgsRecommended" not in said
    write(bench.context, {".pybuild.toml": "[lint]\nignore = ['DL3004', 'DL3025']\nfail-on = 'error'\n"})
    assert "warning: TemporaryFiles" in build(bench, text, "--lint=error", "--progress=plain")
    write(bench.context, {".pybuild.toml": "[lint]\nseverity = {TemporaryFiles = 'error'}\nfail-on = 'error'\n"})
    assert "violation found for rules: TemporaryFiles" in build(bench, text, "--lint=error", code=1)
    write(bench.context, {".pybuild.toml": "[lint]\nignore = ['Tempfiles']\n"})
    assert "there is no rule Tempfiles" in build(bench, text, "--lint", code=2)
    build(bench, text)


def test_a_build_does_not_guess_at_its_layers(bench: Bench) -> None:
    # The text alone says that apk leaves its index; there is none.
    text = 'FROM base\nRUN apk() { :; }; apk add curl\nRUN echo x > /x\nCMD ["sh"]\n'
    assert "PackageListsLeft" not in build(bench, text, "--lint")
    assert "PackageListsLeft" in bench.pybuild("lint", str(bench.context), "--fail-on=never").out
