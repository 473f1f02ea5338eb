#!/usr/bin/env python3
"""Build every conformance case with one builder and compare with the reference.

    run.py --builder pybuild                        check pybuild against expected.json
    run.py --builder buildkit --record              (re)record expected.json from BuildKit
    run.py --builder buildah --ref DIR              check buildah against another record
    run.py --builder pybuild --cases '*copy*' -j2   a subset, two builds at a time

Exit status: 0 all cases agree, 1 some differ, 2 the harness itself failed.
Python 3.11 standard library only.  See README.md for the case format.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.conformance import bases, compare

HERE = Path(__file__).resolve().parent
STAMP = 1577934245  # 2020-01-02T03:04:05Z, the mtime of every context file
VALUE_FLAGS = {
    "--build-arg",
    "--target",
    "--label",
    "--platform",
    "--secret",
    "--ssh",
    "--file",
    "-f",
    "--build-context",
    "--add-host",
    "--network",
    "--shm-size",
    "--ulimit",
    "--allow",
    "--annotation",
    "--cgroup-parent",
    "--no-cache-filter",
}


class HarnessError(Exception):
    """Something other than the builder under test went wrong."""


# ---------------------------------------------------------------------------- cases


@dataclass
class Case:
    slug: str
    folder: Path
    title: str
    area: str
    source: str
    expect: str = "ok"
    args: list[str] = field(default_factory=list)
    error_contains: str = ""
    context: str = "ctx"
    env: dict[str, str] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    mtimes: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    ignore_config: list[str] = field(default_factory=list)
    history: bool = False
    env_order: bool = False
    created: bool = False
    reference: str = "buildkit"
    frontend_opts: list[str] = field(default_factory=list)
    quirk: str = ""  # why a builder may well differ here; such differences do not count
    note: str = ""

    def rules(self) -> compare.Rules:
        return compare.Rules(
            tuple(self.mtimes),
            tuple(self.ignore),
            tuple(self.ignore_config),
            history=self.history,
            env_order=self.env_order,
            created=self.created,
        )


def load_case(folder: Path) -> Case:
    with (folder / "case.toml").open("rb") as stream:
        data = tomllib.load(stream)
    known = {key.replace("-", "_"): value for key, value in data.items()}
    try:
        return Case(slug=folder.name, folder=folder, **known)
    except TypeError as err:
        raise HarnessError(f"{folder.name}/case.toml: {err}") from err


def find_cases(pattern: str, only: Path | None) -> list[Case]:
    wanted = set(only.read_text().split()) if only else None
    folders = sorted(path.parent for path in (HERE / "cases").glob("*/case.toml"))
    globs = pattern.split(",")
    return [
        load_case(folder)
        for folder in folders
        if any(fnmatch.fnmatchcase(folder.name, glob) for glob in globs) and (wanted is None or folder.name in wanted)
    ]


def split_flags(args: list[str]) -> list[tuple[str, str | None]]:
    """docker-build flags as (name, value) pairs."""
    found: list[tuple[str, str | None]] = []
    words = iter(args)
    for word in words:
        if word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            found.append((name, value))
        elif word in VALUE_FLAGS:
            found.append((word, next(words)))
        else:
            found.append((word, None))
    return [("--file" if name == "-f" else name, value) for name, value in found]


# ---------------------------------------------------------------------- preparation


class Loopback:
    """An HTTP server on 127.0.0.1 that serves each prepared case's www folder.

    www/_http.json may give per-file answers:
    {"name": {"status": 404, "headers": {...}, "last_modified": false}}.
    """

    def __init__(self, root: Path) -> None:
        handler = functools.partial(_Handler, root)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, root: Path, *args: Any) -> None:
        self.root = root
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        case, _, name = self.path.split("?")[0].lstrip("/").partition("/")
        www = next(self.root.glob(f"[0-9][0-9][0-9]-{case}/work/www"), self.root / "none")
        rules = {}
        if (www / "_http.json").exists():
            rules = json.loads((www / "_http.json").read_text())
        rule = rules.get(name, {})
        path = www / rule.get("file", name)
        status = rule.get("status", 200 if path.is_file() else 404)
        data = path.read_bytes() if path.is_file() else b"not here\n"
        self.send_response(status)
        for key, value in rule.get("headers", {}).items():
            self.send_header(key, value)
        if path.is_file() and rule.get("last_modified", True):
            self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def prepare(case: Case, work: Path, http_base: str) -> Path:
    """Copy a case to `work`, normalise what git cannot carry, run its setup.sh."""
    shutil.copytree(case.folder, work, symlinks=True, ignore=shutil.ignore_patterns("expected.json", "case.toml"))
    for directory, dirs, files in os.walk(work):
        for name in dirs + files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                os.chmod(path, 0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644)
            os.utime(path, (STAMP, STAMP), follow_symlinks=False)
    (work / case.context).mkdir(exist_ok=True)
    setup = work / "setup.sh"
    if setup.exists():
        done = subprocess.run(
            ["bash", "-eu", "setup.sh"],
            check=False,
            cwd=work,
            text=True,
            umask=0o022,
            env={**os.environ, "HTTP_BASE": http_base, "LC_ALL": "C.UTF-8", "TZ": "UTC", "STAMP": str(STAMP)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise HarnessError(f"{case.slug}: setup.sh failed: {done.stdout[-400:]}")
    return work


# ------------------------------------------------------------------------- builders


@dataclass
class Job:
    """One build: where everything is and what it is called."""

    case: Case
    work: Path
    out: Path
    bases: Path
    http_base: str
    name: str
    options: argparse.Namespace

    def flags(self) -> list[tuple[str, str | None]]:
        flags = split_flags(self.case.args)
        if (self.work / "www").exists():
            flags.append(("--build-arg", f"HTTP_BASE={self.http_base}"))
        return flags

    def dockerfile(self) -> str:
        for name, value in self.flags():
            if name == "--file" and value:
                return value
        return f"{self.case.context}/Dockerfile"

    def base_digest(self, name: str) -> str:
        index = json.loads((self.bases / name / "index.json").read_text())
        return str(index["manifests"][0]["digest"])

    def base_names(self) -> list[str]:
        return sorted(path.name for path in self.bases.iterdir() if path.is_dir())


def pybuild_command(job: Job) -> list[str]:
    words = [*shlex.split(job.options.command or "pybuild"), "build", "-t", job.name]
    words += ["-f", job.dockerfile()]
    for name, value in job.flags():
        if name != "--file":
            words.append(name if value is None else f"{name}={value}")
    words += ["--output", f"type=oci,dest={job.out}"]
    for base in job.base_names():
        words += ["--build-context", f"{base}=oci-layout://{job.bases / base}"]
    return [*words, job.case.context]


def buildkit_command(job: Job) -> list[str]:
    file = Path(job.dockerfile())
    words = shlex.split(job.options.command or "buildctl")
    words += [
        "build",
        "--progress",
        "plain",
        "--frontend",
        "dockerfile.v0",
        "--no-cache",
        "--local",
        f"context={job.case.context}",
        "--local",
        f"dockerfile={file.parent}",
        "--opt",
        f"filename={file.name}",
        "--output",
        f"type=oci,dest={job.out}",
    ]
    opts = list(job.case.frontend_opts)
    joined: dict[str, list[str]] = {}
    for base in job.base_names():
        words += ["--oci-layout", f"{base}={job.bases / base}"]
        opts.append(f"context:{base}=oci-layout://{base}:latest@{job.base_digest(base)}")
    for name, value in job.flags():
        value = value or ""  # noqa: PLW2901
        if name == "--build-arg":
            key, eq, text = value.partition("=")
            if not eq:
                text = job.case.env.get(key, "")
            if eq or key in job.case.env:
                opts.append(f"build-arg:{key}={text}")
        elif name in ("--target", "--platform", "--cgroup-parent"):
            opts.append(f"{name[2:]}={value}")
        elif name == "--ulimit":
            joined.setdefault("ulimit", []).append(value)
        elif name == "--label":
            opts.append(f"label:{value}")
        elif name == "--add-host":
            joined.setdefault("add-hosts", []).append(re.sub(r"^([^:=]+)[:=]", r"\1=", value))
        elif name == "--network":
            opts.append(f"force-network-mode={value}")
        elif name == "--shm-size":
            opts.append(f"shm-size={_bytes(value)}")
        elif name in ("--secret", "--ssh", "--allow"):
            words += [name, value]
        elif name == "--build-context":
            key, _, where = value.partition("=")
            if re.match(r"^[a-z-]+:", where):
                opts.append(f"context:{key}={where}")
            else:
                words += ["--local", f"{key}={where}"]
                opts.append(f"context:{key}=local:{key}")
        elif name not in ("--file", "--no-cache"):
            raise HarnessError(f"{job.case.slug}: no BuildKit spelling for {name}")
    opts += [f"{key}={','.join(values)}" for key, values in joined.items()]
    for opt in opts:
        words += ["--opt", opt]
    return words


def _bytes(text: str) -> int:
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def buildah_command(job: Job) -> list[str]:
    """A shell line: buildah builds into its own store, then pushes an archive."""
    tool = shlex.split(job.options.command or "buildah")
    build = [
        *tool,
        "build",
        "--layers=false",
        "--no-cache",
        "--pull=never",
        "--format=oci",
        "--identity-label=false",
        "-t",
        job.name,
        "-f",
        job.dockerfile(),
    ]
    for name, value in job.flags():
        if name == "--build-context" and value and not re.search(r"=[a-z-]+:", value):
            key, _, where = value.partition("=")
            value = f"{key}={(job.work / where).resolve()}"  # noqa: PLW2901
        if name != "--file":
            build.append(name if value is None else f"{name}={value}")
    push = [*tool, "push", "-q", job.name, f"oci-archive:{job.out}"]
    drop = [*tool, "rmi", "-f", job.name]
    script = (
        f"{shlex.join([*build, job.case.context])} && {shlex.join(push)}; rc=$?; "
        f"{shlex.join(drop)} >/dev/null 2>&1; exit $rc"
    )
    return ["sh", "-c", script]


BUILDERS = {"pybuild": pybuild_command, "buildkit": buildkit_command, "buildah": buildah_command}


def load_bases_into_buildah(options: argparse.Namespace, where: Path) -> None:
    tool = shlex.split(options.command or "buildah")
    for base in sorted(path.name for path in where.iterdir() if path.is_dir()):
        pulled = subprocess.run(
            [*tool, "pull", "-q", f"oci:{where / base}:latest"], text=True, capture_output=True, check=False
        )
        if pulled.returncode:
            raise HarnessError(f"buildah pull {base}: {pulled.stderr.strip()[-300:]}")
        subprocess.run([*tool, "tag", pulled.stdout.split()[-1], f"docker.io/library/{base}:latest"], check=True)


def forget_local_sources(options: argparse.Namespace, cwd: Path) -> None:
    """Drop BuildKit's copies of earlier contexts.

    BuildKit syncs a context onto the copy it kept from the last build and takes files of
    equal name, size and mtime for unchanged.  Our contexts all share one mtime, so a stale
    copy would leak one case's files into another.  (For the same reason BuildKit runs its
    cases one at a time.)
    """
    words = shlex.split(options.command or "buildctl")
    status, log = run_command([*words, "prune", "--filter", "type==source.local"], cwd, dict(os.environ), 60)
    if status:
        raise HarnessError(f"buildctl prune: {log.strip()[-200:]}")


def run_command(words: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int | None, str]:
    """(exit status or None on timeout, combined output); kills the whole group."""
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as err:
            raise HarnessError(f"cannot start {words[0]}: {err}") from err
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return status, log.read().decode("utf-8", "replace")


# -------------------------------------------------------------------------- records


def delta(files: dict[str, dict[str, Any]], base: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What `files` has beyond `base`, and which of the base's paths are gone."""

    def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
        return {**one, "mtime": 0} == {**two, "mtime": 0}

    changed = {path: entry for path, entry in files.items() if path not in base or not same(entry, base[path])}
    return changed, sorted(base.keys() - files.keys())


def undelta(record: dict[str, Any], base_files: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    base = base_files[record["base"]] if record.get("base") else {}
    gone = set(record.get("removed", ()))
    kept = {
        path: entry for path, entry in base.items() if gone.isdisjoint([path, *map(str, PurePosixPath(path).parents)])
    }
    return {**kept, **record["files"]}


def record_of(
    image: compare.Image, base_files: dict[str, dict[str, dict[str, Any]]], rules: compare.Rules
) -> dict[str, Any]:
    """An image as a small JSON record: only what differs from the nearest base.

    Of a removed tree only the top is listed; paths that the case ignores are left out.
    """
    base_name, changed = "", image.files
    removed: list[str] = []
    for name, files in base_files.items():
        more, gone = delta(image.files, files)
        if len(gone) * 2 < len(files) and len(more) + len(gone) < len(changed) + len(removed):
            base_name, changed, removed = name, more, gone
    kept = {}
    for path, entry in changed.items():
        if compare.matches(path, rules.ignore_globs):
            continue
        kept[path] = dict(entry)
        if not compare.matches(path, rules.mtime_globs):
            kept[path].pop("mtime", None)
    tops = set(removed)
    removed = [
        path
        for path in removed
        if not compare.matches(path, rules.ignore_globs) and str(PurePosixPath(path).parent) not in tops
    ]
    name = "host" if image.platform == f"linux/{bases.goarch()}" else image.platform
    record: dict[str, Any] = {"outcome": "ok", "platform": name}
    if image.author:
        record["author"] = image.author
    if rules.created:
        record["created"] = image.created
    record["config"] = image.config
    record["history"] = [[without_port(h["created_by"]), h["empty_layer"]] for h in image.history]
    record["base"] = base_name
    record["files"] = kept
    if removed:
        record["removed"] = removed
    return record


def without_port(text: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", text)


def last_error(log: str) -> str:
    """The builder's own last word, without identifiers that change from run to run."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if re.match(r"(?i)error\b", line)), lines[-1] if lines else "")
    text = re.sub(r"\bref [0-9a-z]{20,}(::[0-9a-z]+)?", "ref <id>", text)
    text = re.sub(r"/[^\s\"':]*/cachemounts/buildkit\d+", "<mount>", text)
    return re.sub(r"/tmp/[^\s\"':]*/work\b", "<case>", without_port(text))


def dumps(record: dict[str, Any]) -> str:
    """The record as JSON with one line for each key, history entry and path."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    parts = []
    for key, value in record.items():
        if key == "files" and value:
            inner = ",\n".join(f"  {line(path)}: {line(entry)}" for path, entry in value.items())
            parts.append(f" {line(key)}: {{\n{inner}\n }}")
        elif key in ("history", "removed") and value:
            inner = ",\n".join(f"  {line(entry)}" for entry in value)
            parts.append(f" {line(key)}: [\n{inner}\n ]")
        else:
            parts.append(f" {line(key)}: {line(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def as_image(record: dict[str, Any], base_files: dict[str, dict[str, dict[str, Any]]]) -> compare.Image:
    return compare.Image(
        config=record["config"],
        platform=record["platform"],
        author=record.get("author", ""),
        created=record.get("created", ""),
        layers=0,
        history=[{"created_by": by, "empty_layer": empty} for by, empty in record.get("history", [])],
        files=undelta(record, base_files),
    )


def _record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# --------------------------------------------------------------------------- running


@dataclass
class Result:
    slug: str
    area: str
    status: str  # pass, diff, outcome, message, quirk, timeout, skip, broken, recorded
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Runner:
    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.runs = work / "runs"
        self.runs.mkdir()
        self.bases = options.bases or work / "bases"
        if options.bases is None:
            bases.make_bases(self.bases, options.busybox)
        self.base_files = {
            path.name: compare.load_image(path).files for path in sorted(self.bases.iterdir()) if path.is_dir()
        }
        self.http = Loopback(self.runs)
        if options.builder == "buildah":
            load_bases_into_buildah(options, self.bases)

    def close(self) -> None:
        self.http.close()

    def reference(self, case: Case) -> dict[str, Any] | None:
        if self.options.ref:
            for path in (self.options.ref / f"{case.slug}.json", self.options.ref / case.slug / "expected.json"):
                if path.exists():
                    return _record(path)
            return None
        path = case.folder / "expected.json"
        return _record(path) if path.exists() else None

    def build(self, case: Case) -> tuple[dict[str, Any] | None, str]:
        """(record, log); no record when the build ran out of time."""
        room = self.runs / case.slug
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        http_base = f"{self.http.base}/{case.slug[4:]}"
        work = prepare(case, room / "work", http_base)
        job = Job(case, work, room / "out.tar", self.bases, http_base, f"conformance/{case.slug}:latest", self.options)
        if self.options.builder == "buildkit":
            forget_local_sources(self.options, work)
        words = BUILDERS[self.options.builder](job)
        status, log = run_command(words, work, {**os.environ, **case.env}, self.options.timeout)
        (room / "log").write_text(shlex.join(words) + "\n\n" + log)
        if status is None:
            return None, log
        if status:
            return {"outcome": "error", "error": last_error(log)}, log
        image = compare.load_image(job.out)
        return record_of(image, self.base_files, case.rules()), log

    def run(self, case: Case) -> Result:
        result = Result(case.slug, case.area, "pass")
        if missing := set(case.needs) - set(self.base_files):
            result.status, result.notes = "skip", [f"needs {', '.join(sorted(missing))}"]
            return result
        if self.options.record and not self.options.ref and case.reference != self.options.builder:
            result.status, result.notes = "skip", [f"recorded from {case.reference}"]
            return result
        start = time.monotonic()
        try:
            record, log = self.build(case)
            if record is None:
                result.status, result.notes = "timeout", log.splitlines()[-3:]
            else:
                self.judge(case, record, log, result)
        except Exception as err:  # one bad case must not stop the others
            result.status, result.notes = "broken", [f"{type(err).__name__}: {err}"]
        else:
            if case.quirk and result.status in ("diff", "outcome", "message"):
                result.notes = [f"allowed to differ: {case.quirk}", *result.notes]
                result.status = "quirk"
        finally:
            result.seconds = round(time.monotonic() - start, 2)
            if not self.options.keep:
                shutil.rmtree(self.runs / case.slug, ignore_errors=True)
        return result

    def judge(self, case: Case, record: dict[str, Any], log: str, result: Result) -> None:
        if record["outcome"] != case.expect:
            result.status = "outcome"
            result.notes = [f"expected {case.expect}, got {record['outcome']}: {record.get('error', '')}"]
        elif case.expect == "error" and not re.search(case.error_contains, log, re.IGNORECASE | re.DOTALL):
            result.status = "message"
            result.notes = [f"no /{case.error_contains}/ in the output; last line: {record['error']}"]
        if self.options.record:
            self.save(case, record)
            if result.status == "pass":
                result.status = "recorded"
            else:
                result.status = "unexpected"
            return
        if result.status != "pass" or case.expect == "error":
            return
        reference = self.reference(case)
        if reference is None or reference["outcome"] != "ok":
            result.status, result.notes = "broken", ["no recorded image to compare with"]
            return
        lines = compare.diff_images(
            as_image(reference, self.base_files), as_image(record, self.base_files), case.rules()
        )
        if lines:
            result.status, result.notes = "diff", lines

    def save(self, case: Case, record: dict[str, Any]) -> None:
        if self.options.ref:
            self.options.ref.mkdir(parents=True, exist_ok=True)
            path = self.options.ref / f"{case.slug}.json"
        else:
            path = case.folder / "expected.json"
        record = {"reference": self.options.reference_name or self.options.builder, **record}
        path.write_text(dumps(record))


def print_summary(results: list[Result], limit: int) -> None:
    for result in results:
        if result.status not in ("pass", "quirk", "recorded", "skip"):
            print(f"\n{result.slug}: {result.status}")
            for note in result.notes[:limit]:
                print(f"    {note}")
            if len(result.notes) > limit:
                print(f"    ... and {len(result.notes) - limit} more")
    statuses = sorted({result.status for result in results})
    print(f"\n{'area':<14}{'cases':>6}" + "".join(f"{status:>10}" for status in statuses))
    for area in [*sorted({result.area for result in results}), "all"]:
        mine = [r for r in results if area in (r.area, "all")]
        counts = Counter(r.status for r in mine)
        print(f"{area:<14}{len(mine):>6}" + "".join(f"{counts[status] or '':>10}" for status in statuses))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--builder", choices=sorted(BUILDERS), required=True)
    parser.add_argument(
        "--command", help="how to start the builder, e.g. 'python3 -m pybuild' or 'buildctl --addr unix:///tmp/bk.sock'"
    )
    parser.add_argument("--cases", default="*", help="comma-separated globs of case names")
    parser.add_argument("--list", type=Path, help="file of case names, e.g. visible.txt")
    parser.add_argument("--ref", type=Path, help="folder of recorded results (default: each case's expected.json)")
    parser.add_argument("--record", action="store_true", help="write results, compare nothing")
    parser.add_argument("--reference-name", help="what to call the recording builder")
    parser.add_argument("--bases", type=Path, help="OCI layouts made by bases.py (default: made afresh, busybox only)")
    parser.add_argument("--busybox", default="/bin/busybox", help="a static busybox")
    parser.add_argument("--work", type=Path, help="where to build (default: a new temp folder)")
    parser.add_argument("--keep", action="store_true", help="keep each case's files and log")
    parser.add_argument("-j", "--jobs", type=int, default=1, choices=(1, 2))
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each case")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--notes", type=int, default=8, help="lines shown for each failure")
    return parser.parse_args()


def main() -> int:
    options = parse_args()
    cases = find_cases(options.cases, options.list)
    if not cases:
        print("run.py: no such cases", file=sys.stderr)
        return 2
    if options.builder == "buildkit":
        options.jobs = 1
    work = options.work or Path(tempfile.mkdtemp(prefix="conformance-"))
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "runs", ignore_errors=True)
    try:
        runner = Runner(options, work)
        try:
            with ThreadPoolExecutor(options.jobs) as pool:
                results = list(pool.map(runner.run, cases))
        finally:
            runner.close()
    except HarnessError as err:
        print(f"run.py: {err}", file=sys.stderr)
        return 2
    finally:
        if not options.keep and options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print_summary(results, options.notes)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    good = {"pass", "quirk", "recorded", "skip"}
    return 0 if all(r.status in good for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
