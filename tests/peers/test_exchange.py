"""Images go from pybuild to docker, podman, skopeo and umoci and back, and stay what they are: ids and files."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conformance import compare
from tests.peers.tools import Tool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.peer]

RULES = compare.Rules(history=True, created=True)
DOCKERFILE = """\
FROM base AS one
RUN mkdir -p /data/old && echo one > /data/old/file && ln /data/old/file /data/hard
RUN rm -r /data/old && echo two > /data/new
COPY --chown=12:34 f /data/
ENV A=1
LABEL org.example.title="A title"
CMD ["cat", "/data/f"]
"""


@pytest.fixture(scope="module")
def images(pybuild: Tool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """exchange:1 and exchange:2, on shared layers, with their ids."""
    context = tmp_path_factory.mktemp("exchange")
    (context / "f").write_text("f\n")
    for number in ("1", "2"):
        (context / "Dockerfile").write_text(DOCKERFILE + f"ENV B={number}\n")
        pybuild("build", "-t", f"exchange:{number}", "--build-context", "base=host:", context)
    ids = pybuild("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "exchange")
    return dict(line.split() for line in ids.splitlines())


@pytest.fixture(scope="module")
def saved(pybuild: Tool, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both images as docker.tar, oci.tar and the layout layout/."""
    folder = tmp_path_factory.mktemp("saved")
    pybuild("save", "-o", folder / "docker.tar", "exchange")
    pybuild("save", "--format", "oci-archive", "-o", folder / "oci.tar", "exchange:1")
    pybuild("save", "--format", "oci-dir", "-o", folder / "layout", "exchange")
    return folder


def another(pybuild: Tool, folder: Path) -> Tool:
    """pybuild on an empty store."""
    return type(pybuild)(pybuild.words, (*pybuild.env, ("PYBUILD_ROOT", str(folder / "store"))))


def ids(pybuild: Tool, name: str) -> set[str]:
    form = "{{.Repository}}:{{.Tag}} {{.ID}}"
    lines = pybuild("images", "--no-trunc", "--format", form).splitlines()
    return {line.split()[1] for line in lines if name in line}


@pytest.mark.docker
def test_docker_and_back(pybuild: Tool, docker: Tool, saved: Path, images: dict[str, str], tmp_path: Path) -> None:
    said = docker("load", "--input", saved / "docker.tar")
    assert "Loaded image: exchange:1" in said
    assert "Loaded image: exchange:2" in said
    for name, image_id in images.items():
        assert docker("image", "inspect", "--format", "{{.Id}}", name).strip() == image_id
    docker("save", "--output", tmp_path / "back.tar", *images)
    other = another(pybuild, tmp_path)
    assert sorted(other("load", "-i", tmp_path / "back.tar").splitlines()) == [
        "Loaded image: exchange:1", "Loaded image: exchange:2",
    ]  # fmt: skip
    assert ids(other, "exchange") == set(images.values())
    assert other("fsck").endswith("whole\n")


@pytest.mark.docker
def test_a_build_is_loaded_into_a_running_docker(pybuild: Tool, docker: Tool, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    there = Tool(pybuild.words, (*pybuild.env, *docker.env))
    there("build", "--load", "-t", "handed:1", tmp_path)
    form = ("--format", "{{.Id}}", "handed:1")
    assert docker("image", "inspect", *form) == pybuild("inspect", *form)
    docker("rmi", "handed:1")
    assert there("load", "handed:1") == "Loaded image: handed:1\n"
    assert docker("image", "inspect", *form) == pybuild("inspect", *form)


def test_a_build_is_loaded_into_podman(pybuild: Tool, podman: Tool, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    (tmp_path / "bin").mkdir()
    # The podman of the tests, with its own folders.
    (tmp_path / "bin/podman").write_text(f'#!/bin/sh\nexec {" ".join(podman.words)} "$@"\n')
    (tmp_path / "bin/podman").chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    there = Tool(pybuild.words, (*pybuild.env, ("PATH", path), ("HOME", str(tmp_path)), ("XDG_RUNTIME_DIR", "")))
    there("build", "--load", "-t", "handed:2", tmp_path)
    image_id = pybuild("inspect", "-f", "{{.Id}}", "handed:2").strip()
    assert "sha256:" + podman("image", "inspect", "--format", "{{.Id}}", "handed:2").strip() == image_id
    podman("rmi", "handed:2")
    assert "handed:2" in there("load", "--to", "podman", "handed:2")
    assert podman("image", "exists", "handed:2") == ""


@pytest.mark.docker
def test_templates_are_dockers(pybuild: Tool, docker: Tool, saved: Path, images: dict[str, str]) -> None:
    docker("load", "--input", saved / "docker.tar")
    for form in (
        "{{.Id}}", "{{json .Config.Env}} {{json .Config.Cmd}}", "{{.Config.Env}}", "{{.Config.Labels}}",
        '{{index .Config.Labels "org.example.title"}}', "{{range .Config.Env}}{{println .}}{{end}}",
        "{{range $i, $e := .Config.Env}}{{if $i}}, {{end}}{{$e | printf `%q`}}{{end}}", '{{join .Config.Cmd " "}}',
        "{{with .Config}}{{len .Env}}{{end}}{{if eq .Os `linux`}} {{.Os | upper}}{{else}}?{{end}}",
        '{{slice .Id 7 19}} {{printf "%-8s|%8.3s|%v" .Os .Os .RootFS.Type}} {{index .Config.Cmd 1}}',
        "{{if and .Config.Env (not .Config.Volumes)}}a{{end}}{{- /* c */ -}} b",
        "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}{{end}}",
        "{{split .Id `:`}} {{title .Os}} {{truncate .Id 9}}", "{{len .RootFS.Layers}} {{lt 1 2}} {{or .Author `none`}}",
        "{{.Config.Labels.nothing}}", "{{.Config.User}}|{{.Config.WorkingDir}}|{{.Architecture}}",
    ):  # fmt: skip
        assert pybuild("inspect", "-f", form, "exchange:1") == docker("image", "inspect", "-f", form, "exchange:1"), (
            form
        )


@pytest.mark.docker
def test_docker_import_and_pybuild_import_agree(
    pybuild: Tool, docker: Tool, images: dict[str, str], tmp_path: Path
) -> None:
    pybuild("image", "export", "exchange:1", tmp_path / "files.tar")
    flags = ["-c", 'CMD ["sh"]', "-c", "ENV A=b", "-m", "a message"]
    pybuild("import", *flags, tmp_path / "files.tar", "imported:1")
    docker("import", *flags, tmp_path / "files.tar", "imported:1")
    form = "{{json .Config.Cmd}} {{index .Config.Env 0}} {{.Comment}} {{.Os}}/{{.Architecture}}"
    assert pybuild("inspect", "-f", form, "imported:1") == docker("image", "inspect", "-f", form, "imported:1")


def test_podman_and_back(pybuild: Tool, podman: Tool, saved: Path, images: dict[str, str], tmp_path: Path) -> None:
    podman("load", "--input", saved / "docker.tar")
    podman("load", "--input", saved / "oci.tar")
    # Podman takes the short names of an archive of several images for its own.
    theirs = {f"localhost/{name}": image_id for name, image_id in images.items()}
    theirs["docker.io/library/exchange:1"] = images["exchange:1"]
    for name, image_id in theirs.items():
        assert "sha256:" + podman("image", "inspect", "--format", "{{.Id}}", name).strip() == image_id
    for kind, names in (("docker-archive", list(theirs)[:2]), ("oci-archive", list(theirs)[2:])):
        (tmp_path / kind).mkdir()
        place = tmp_path / kind / "back.tar"
        several = ["--multi-image-archive"] if len(names) > 1 else []
        podman("save", *several, "--format", kind, "-o", place, *names)
        other = another(pybuild, tmp_path / kind)
        loaded = sorted(name.removeprefix("docker.io/library/") for name in names)
        assert sorted(other("load", "-i", place).splitlines()) == [f"Loaded image: {name}" for name in loaded]
        assert ids(other, "exchange") == {theirs[name] for name in names}
        assert other("fsck").endswith("whole\n")
    podman("save", "--format", "oci-dir", "-o", tmp_path / "dir", "docker.io/library/exchange:1")
    other = another(pybuild, tmp_path / "dir2")
    other("load", "-i", tmp_path / "dir", "-t", "exchange:1")
    assert ids(other, "exchange") == {images["exchange:1"]}


def test_skopeo_and_back(pybuild: Tool, skopeo: Tool, saved: Path, images: dict[str, str], tmp_path: Path) -> None:
    layouts = {}
    for source in (f"docker-archive:{saved}/docker.tar:exchange:1", f"oci-archive:{saved}/oci.tar:1"):
        folder = tmp_path / source.partition(":")[0]
        folder.mkdir()
        for form, more in (
            (f"docker-archive:{folder}/docker.tar:exchange:1", ()),
            (f"oci-archive:{folder}/oci.tar:exchange:1", ()),
            (f"oci:{folder}/zstd:1", ("--dest-compress-format=zstd", "--dest-compress")),
        ):
            skopeo("copy", "--insecure-policy", *more, source, form)
            name = form.rpartition("/")[2].partition(":")[0]
            (folder / f"{name}.d").mkdir()
            other = another(pybuild, folder / f"{name}.d")
            assert other("load", "-i", folder / name, "-t", "exchange:1") == "Loaded image: exchange:1\n"
            # From one family of formats to the other skopeo writes the config anew.
            if source.startswith("docker") == form.startswith("docker"):
                assert ids(other, "exchange") == {images["exchange:1"]}, (source, form)
            layouts[source, form] = written(other, "exchange:1", folder / f"{name}.l")
            assert other("fsck").endswith("whole\n")
    first, *rest = layouts.values()
    for other_layout in rest:
        assert compare.diff_images(compare.load_image(first), compare.load_image(other_layout), RULES) == []


def test_umoci_and_back(pybuild: Tool, umoci: Tool, saved: Path, images: dict[str, str], tmp_path: Path) -> None:
    layout = saved / "layout"
    assert sorted(umoci("list", "--layout", layout).split()) == ["1", "2"]
    subprocess.run(["cp", "-r", layout, tmp_path / "copy"], check=True)
    umoci("tag", "--image", f"{tmp_path}/copy:1", "again")
    umoci("config", "--image", f"{tmp_path}/copy:2", "--tag", "changed", "--config.env", "C=3")
    index = json.loads((tmp_path / "copy" / "index.json").read_text())
    index["manifests"] = [
        each for each in index["manifests"] if each["annotations"]["org.opencontainers.image.ref.name"] == "changed"
    ]
    (tmp_path / "copy" / "index.json").write_text(json.dumps(index))
    other = another(pybuild, tmp_path)
    other("load", "-i", tmp_path / "copy", "-t", "umoci:changed")
    assert '"C=3"' in other("inspect", "-f", "{{json .Config.Env}}", "umoci:changed")
    back = written(other, "umoci:changed", tmp_path / "written")
    assert compare.diff_images(compare.load_image(tmp_path / "copy"), compare.load_image(back), RULES) == []


def written(pybuild: Tool, name: str, place: Path) -> Path:
    """The image as a layout."""
    pybuild("save", "--format", "oci-dir", "-o", place, name)
    return place
