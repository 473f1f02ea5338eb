"""What a user who made a mistake is told: tests/golden/errors/NAME.txt, one mistake each.

A file begins with a sentence that says what is wrong. Sections follow, each headed by a line `==> NAME`: `command`, any
number of files by their paths (`base64 PATH` for what is no text, `link PATH` for a symlink), and what has to come out:
`exit code` and `standard error`. `{base}` in a command is the folder of a small root file system; a test that has it is
skipped where no RUN works. To add one, write the command and the files, run this file with PYBUILD_UPDATE_GOLDEN=1,
and read what has been written.

Besides what it is told, nothing may be half-written: no name in the store, no output, no rubbish, never a traceback.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.building import Bench, busybox, write

FOLDER = Path(__file__).parent / "golden" / "errors"
CASES = sorted(FOLDER.glob("*.txt"))
KINDS = {"0", "1", "2", "3"}


def read(path: Path) -> tuple[str, dict[str, str]]:
    """The sentence and the sections of a file. A file's last line ends where the section does."""
    sentence, *sections = re.split(r"^==> (.*)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    return sentence, dict(zip(sections[::2], sections[1::2], strict=True))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(tmp_path: Path, path: Path) -> None:
    bench = Bench(tmp_path)
    sentence, sections = read(path)
    for name, text in sections.items():
        kind, _, rest = name.partition(" ")
        if name in {"command", "exit code", "standard error"}:
            continue
        if kind == "link":
            write(tmp_path, {os.path.dirname(rest) + "/": b""})
            (tmp_path / rest).symlink_to(text.strip())
        elif kind == "base64":
            write(tmp_path, {rest: base64.b64decode(text)})
        else:
            write(tmp_path, {name: text})
    program, *words = shlex.split(sections["command"])
    assert program == "pybuild"
    words = [word.replace("{base}", str(busybox())) if "{base}" in word else word for word in words]
    before = everything(tmp_path)
    done = bench.alone(*words)
    told = normal(done.err, tmp_path)
    if os.environ.get("PYBUILD_UPDATE_GOLDEN"):
        sections |= {"exit code": f"{done.code}\n", "standard error": told}
        path.write_text(sentence + "".join(f"==> {name}\n{text}" for name, text in sections.items()), "utf-8")
        sections = read(path)[1]
    assert told == sections["standard error"]
    assert f"{done.code}\n" == sections["exit code"]
    assert "Traceback" not in done.err
    assert sections["exit code"].strip() in KINDS
    assert done.out == ""
    if done.code == 0:
        assert "warning" in told
        return
    assert "error: " in told
    assert everything(tmp_path) == before
    if (bench.root / "tmp").is_dir():
        assert bench.listed() == []
        assert os.listdir(bench.root / "tmp") == []


def everything(folder: Path) -> set[Path]:
    """All paths but those of the store."""
    return {path for path in folder.rglob("*") if folder / "store" not in path.parents and path != folder / "store"}


def normal(text: str, folder: Path) -> str:
    """The text without what differs from run to run: the folder, ids, sizes, how long things took."""
    text = re.sub(r"^(built .*?)  .*", r"\1  ...", text, flags=re.MULTILINE)
    text = re.sub(r"^(#\d+) \d+\.\d+ ", r"\1 ", text, flags=re.MULTILINE)
    return re.sub(r"\b\d+\.\d+s", "0.0s", text.replace(f"{folder}/", "").replace(str(folder), "."))


def test_there_are_golden_files() -> None:
    assert len(CASES) > 30
    for path in CASES:
        sentence, sections = read(path)
        assert sentence.strip(), path
        assert {"command", "exit code", "standard error"} <= sections.keys(), path


def test_a_mistake_in_the_text_shows_its_place(tmp_path: Path) -> None:
    """All that have a Dockerfile to point at: file, line, excerpt and caret."""
    pointing = 0
    for path in CASES:
        told = read(path)[1]["standard error"]
        if re.search(r"^ *--> .*:\d+:\d+$", told, re.MULTILINE):
            pointing += 1
            assert re.search(r"^\d+ +\| .*\n *\| +\^+$", told, re.MULTILINE), path
    assert pointing > 20
