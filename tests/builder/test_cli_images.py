from __future__ import annotations

import io
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from builder.cli import run
from builder.cli.surroundings import Surroundings
from cache.oci import LAYER, Descriptor, Digest, History, ImageConfig, Layer, RuntimeConfig, digest_of
from cache.reference import Reference
from cache.store import Store

if TYPE_CHECKING:
    from pathlib import Path


class Shell:
    """`pybuild` on one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.err = ""

    def __call__(self, *words: str, stdin: bytes = b"", code: int = 0) -> str:
        out, err = io.StringIO(), io.StringIO()
        around = Surroundings({"PYBUILD_ROOT": str(self.root)}, io.BytesIO(stdin), out, err)
        found = run(list(words), around)
        self.err = err.getvalue()
        assert found == code, self.err
        return out.getvalue()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    isolation = ModuleType("builder.isolation")
    texts = dict.fromkeys(("reason", "mechanism", "hint", "network", "shared"), "")
    isolation.choose = lambda forced="auto": SimpleNamespace(tier=forced, **texts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "builder.isolation", isolation)
    return Shell(tmp_path)


def layer(store: Store, data: bytes) -> Layer:
    blob = store.put_blob(data, LAYER)
    return Layer(digest_of(data), Descriptor(LAYER, blob.digest, blob.size))


@pytest.fixture
def images(shell: Shell) -> dict[str, Digest]:
    """step: an intermediate image; app: on it, with two names; old: dangling."""
    with Store.open(shell.root) as store:
        one, two = layer(store, b"x" * 1500), layer(store, b"y" * 500)
        lines = (History("RUN one\n  more", "2020-01-01T00:00:00.123456789Z"), History("ENV A=b", empty_layer=True))
        base = ImageConfig(
            config=RuntimeConfig(env=("A=b",), labels=(("kind", "web"),)),
            diff_ids=(one.diff_id,), history=lines[:1], created="2020-01-01T00:00:00Z",
        )  # fmt: skip
        step = store.put_image(base, (one,), intermediate=True)
        final = replace(
            base, diff_ids=(one.diff_id, two.diff_id), history=(*lines, History("COPY . /", "2020-01-01T00:00:00Z"))
        )
        app = store.put_image(final, (one, two), parent=step.id)
        store.tag(Reference.parse("app:1.0"), app.id)
        store.tag(Reference.parse("localhost:5000/team/app"), app.id)
        old = store.put_image(replace(base, author="old", created="2019-01-01T00:00:00Z"), (one,))
    return {"step": step.id, "app": app.id, "old": old.id}


def short(digest: str) -> str:
    return digest[7:19]


def test_an_empty_store_lists_nothing(shell: Shell) -> None:
    assert shell("images") == "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n"
    assert shell("image", "ls", "-q") == ""


def test_the_table_is_dockers(shell: Shell, images: dict[str, Digest]) -> None:
    lines = shell("images").splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["app", "1.0", short(images["app"])],
        ["localhost:5000/team/app", "latest", short(images["app"])],
        ["<none>", "<none>", short(images["old"])],
    ]
    assert lines[1].endswith("years ago   2kB")
    assert lines[0].index("TAG") == lines[1].index("1.0")


def test_all_shows_the_intermediate_ones(shell: Shell, images: dict[str, Digest]) -> None:
    assert short(images["step"]) not in shell("images")
    assert short(images["step"]) in shell("images", "-a")


@pytest.mark.parametrize(
    "words, found",
    [
        (["-f", "dangling=true"], {"old"}),
        (["-f", "dangling=false"], {"app"}),
        (["-f", "label=kind"], {"app", "old"}),
        (["-f", "label=kind=db"], set()),
        (["-f", "reference=app"], {"app"}),
        (["-f", "reference=*:2*"], set()),
        (["-f", "reference=localhost:5000/*/app"], {"app"}),
        (["-f", "before=app:1.0"], {"old"}),
        (["-f", "since=app:1.0"], set()),
        (["-f", "until=2019-06-01"], {"old"}),
        (["-f", "until=1546300801"], {"old"}),
        (["-f", "until=24h"], {"app", "old"}),
        (["-f", "until=1500000000"], set()),
        (["-f", "label!=kind"], set()),
        (["-f", "label!=kind=db"], {"app", "old"}),
        (["app"], {"app"}),
        (["app:1.0"], {"app"}),
        (["app:2.0"], set()),
        (["-f", "dangling=false", "app:1.0"], {"app"}),
    ],
)
def test_filters(shell: Shell, images: dict[str, Digest], words: list[str], found: set[str]) -> None:
    assert set(shell("images", "-q", "--no-trunc", *words).split()) == {images[name] for name in found}


def test_formats(shell: Shell, images: dict[str, Digest]) -> None:
    rows = [json.loads(line) for line in shell("images", "--format", "json", "--no-trunc").splitlines()]
    assert rows[0]["Repository"] == "app"
    assert rows[0]["ID"] == images["app"]
    assert shell("images", "--format", "{{.Repository}}:{{.Tag}}\\t{{ .Size }}", "app") == "app:1.0\t2kB\n"
    assert "sha256:" in shell("images", "--digests").splitlines()[1]
    shell("images", "--format", "{{range .}}", code=2)
    shell("images", "-f", "color=red", code=2)
    shell("images", "-f", "until=soon", code=2)
    form = "{{if eq .Tag `1.0`}}{{.Repository | upper}}{{else}}-{{end}}"
    assert shell("images", "--format", form).split() == ["APP", "-", "-"]


def test_inspect(shell: Shell, images: dict[str, Digest]) -> None:
    (document,) = json.loads(shell("inspect", "app:1.0"))
    assert document["Id"] == images["app"]
    assert document["Parent"] == images["step"]
    assert document["RepoTags"] == ["app:1.0", "localhost:5000/team/app:latest"]
    assert document["RootFS"]["Type"] == "layers"
    assert len(document["RootFS"]["Layers"]) == 2
    assert shell("image", "inspect", "-f", "{{json .Config.Env}} {{.Os}}", images["app"][7:20]) == '["A=b"] linux\n'
    assert json.loads(shell("inspect", "app:1.0", "nothing", code=1))[0]["Id"] == images["app"]
    assert "error: " in shell.err


def test_history(shell: Shell, images: dict[str, Digest]) -> None:
    lines = shell("history", "app:1.0").splitlines()
    assert lines[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert [line.split()[0] for line in lines[1:]] == [short(images["app"]), "<missing>", short(images["step"])]
    assert "RUN one   more" in lines[3]
    assert [json.loads(line)["Size"] for line in shell("history", "--format=json", "app:1.0").splitlines()] == [
        "500B", "0B", "1.5kB",
    ]  # fmt: skip


def test_a_name_moves_and_the_old_image_dangles(shell: Shell, images: dict[str, Digest]) -> None:
    shell("tag", images["old"], "localhost:5000/team/app")
    assert shell("images", "-q", "--no-trunc", "localhost:5000/team/app").strip() == images["old"]
    shell("rmi", "app:1.0")
    assert "<none>" not in shell("images")
    shell("tag", "nothing", "x", code=1)
    shell("tag", images["old"], "Upper", code=1)


def test_removal_says_what_it_did(shell: Shell, images: dict[str, Digest]) -> None:
    assert shell("rmi", "localhost:5000/team/app") == "Untagged: localhost:5000/team/app:latest\n"
    lines = shell("rmi", "app:1.0").splitlines()
    assert lines[0] == "Untagged: app:1.0"
    assert f"Deleted: {images['app']}" in lines
    shell("rmi", "app:1.0", code=1)
    assert "no such image" in shell.err.lower()
    shell("rmi", "-f", "app:1.0")


def test_removing_several_goes_on_after_one_that_is_missing(shell: Shell, images: dict[str, Digest]) -> None:
    assert f"Deleted: {images['old']}" in shell("rmi", "nothing", images["old"], code=1)


def test_prune_with_filters(shell: Shell, images: dict[str, Digest]) -> None:
    shell("image", "prune", "-f", "--filter", "dangling=true", code=2)
    assert shell("image", "prune", "-f", "--filter", "label=none") == "Total reclaimed space: 0B\n"
    assert "Deleted" not in shell("image", "prune", "-af", "--filter", "until=2018-01-01T00:00:00Z")
    out = shell("image", "prune", "-af", "--filter", "until=2019-02-01", "--filter", "label=kind=web")
    assert f"Deleted: {images['old']}" in out
    assert images["app"] not in out
    out = shell("image", "prune", "-af", "--filter", "label!=none")
    assert "Untagged: app:1.0" in out
    assert f"Deleted: {images['app']}" in out
    assert shell("images", "-aq") == ""


def test_what_a_running_build_stands_on_stays(shell: Shell, images: dict[str, Digest]) -> None:
    with Store.open(shell.root) as store, store.lease():
        store.note_use(images["app"])
        assert shell("rmi", "app:1.0") == "Untagged: app:1.0\n"
        for word in ("localhost:5000/team/app", images["app"]):
            shell("rmi", word, code=1)
            assert "in use by a running build (process " in shell.err
            assert "--force" in shell.err
        shell("rmi", images["step"], code=1)
        assert images["app"] not in shell("image", "prune", "-af")
        assert f"Deleted: {images['app']}" in shell("rmi", "-f", images["app"])
        assert store.has(images["app"])
    assert not store.has(images["app"])
    assert shell("images", "-aq") == ""


def test_parents_may_be_kept(shell: Shell, images: dict[str, Digest]) -> None:
    out = shell("rmi", "-f", "--no-prune", images["app"])
    assert f"Deleted: {images['app']}" in out
    assert images["step"] not in out
    assert images["step"] in shell("images", "-q", "--no-trunc", "-f", "dangling=true").split()
    assert f"Deleted: {images['step']}" in shell("image", "prune", "-f")


def test_removal_by_digest(shell: Shell, images: dict[str, Digest]) -> None:
    digest = json.loads(shell("inspect", "app:1.0"))[0]["Descriptor"]["digest"]
    shell("rmi", f"app@{digest}", code=1)
    assert "several names" in shell.err
    lines = shell("rmi", "-f", f"app@{digest}").splitlines()
    assert lines[:2] == ["Untagged: app:1.0", "Untagged: localhost:5000/team/app:latest"]


def test_prune_asks(shell: Shell, images: dict[str, Digest]) -> None:
    shell("image", "prune", code=2)
    assert "-f" in shell.err
    out = shell("image", "prune", "-f")
    assert f"Deleted: {images['old']}" in out
    assert "Total reclaimed space: " in out
    assert shell("images", "-q", "--no-trunc").split() == [images["app"]] * 1
    assert shell("image", "prune", "--force") == "Total reclaimed space: 0B\n"


def test_inspect_fills_templates(shell: Shell, images: dict[str, Digest]) -> None:
    form = "{{.Config.Cmd}} {{json .Config.Cmd}} {{len .Config.Volumes}} {{.Config.Labels.kind}} {{.Config.Labels.no}}"
    assert shell("inspect", "-f", form, "app:1.0") == "[] null 0 web <no value>\n"
    form = "{{range .RepoTags}}{{println .}}{{end}}{{if .Config.User}}user{{else}}root{{end}}{{.Variant}}"
    assert shell("inspect", "-f", form, "app:1.0") == "app:1.0\nlocalhost:5000/team/app:latest\nroot\n"
    for wrong in ("x", "{{.None}}", "{{if .Id}}", "{{.Id", '{{index .RepoTags "x"}}'):
        shell("inspect", "-f", wrong, "app:1.0", code=2)
        assert "--format" in shell.err


def test_a_table_may_have_columns_of_its_own(shell: Shell, images: dict[str, Digest]) -> None:
    form = "table {{.ID}}\\t{{.Repository}}:{{.Tag}}"
    assert shell("images", "--format", form, "app").splitlines() == [
        "IMAGE ID       REPOSITORY:TAG",
        f"{short(images['app'])}   app:1.0",
    ]
    assert shell("images", "--format", form, "nothing") == "IMAGE ID   REPOSITORY:TAG\n"
    assert shell("history", "--format", "table {{.Size}}", "app:1.0").splitlines()[0] == "SIZE"


def test_a_reference_leaves_an_images_other_names_out(shell: Shell, images: dict[str, Digest]) -> None:
    form = "{{.Repository}}"
    assert shell("images", "-f", "reference=app", "--format", form) == "app\n"
    two = shell("images", "-f", "reference=app", "-f", "reference=localhost:5000/team/*", "--format", form)
    assert sorted(two.split()) == ["app", "localhost:5000/team/app"]


def test_history_in_bytes_and_dates(shell: Shell, images: dict[str, Digest]) -> None:
    form = "{{.Size}} {{.CreatedSince}}"
    assert shell("history", "-H=false", "--format", form, "app:1.0").splitlines()[0] == "500 2020-01-01T00:00:00Z"
    assert shell("history", "-H", "--format", "{{.Size}}", "app:1.0").splitlines()[0] == "500B"


def test_inspect_knows_images_alone(shell: Shell, images: dict[str, Digest]) -> None:
    assert shell("inspect", "--type=image", "-f", "{{.Id}}", "app:1.0") == f"{images['app']}\n"
    shell("inspect", "--type", "container", "app:1.0", code=2)


def test_ignore_says_which_line_decided(shell: Shell, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / ".dockerignore").write_text("# comment\n*.o\n\n!keep.o\n")
    out = shell("ignore", "-C", str(context), "a.o", "keep.o", "main.c", ".").splitlines()
    file = context / ".dockerignore"
    assert out == [f"out  a.o   {file}:2: *.o", f"in   keep.o   {file}:4: !keep.o", "in   main.c", "in   ."]
    (context / "Dockerfile.dockerignore").write_text("main.c\n")
    assert shell("ignore", "-C", str(context), "main.c").startswith("out  main.c   ")
    (context / ".dockerignore").write_text("dir\n!dir/in\n")
    (context / "Dockerfile.dockerignore").unlink()
    out = shell("ignore", "-C", str(context), "dir", "dir/in", "dir/out").splitlines()
    assert out[0].endswith(":1: dir   (a ! line may bring back parts)")
    assert [line.split()[0] for line in out] == ["out", "in", "out"]
    (context / "dockerfile").write_text("")
    (context / "dockerfile.dockerignore").write_text("main.c\n")
    assert shell("ignore", "-C", str(context), "main.c").startswith("out  main.c   ")
    shell("ignore", "-C", str(context), "../x", code=2)
    shell("ignore", code=2)


def test_about(shell: Shell) -> None:
    assert shell("version").startswith("pybuild ")
    facts = json.loads(shell("info", "--format", "json"))
    assert facts["store"] == str(shell.root)
    assert facts["images"] == 0
    assert "tier:" in shell("info")
