#!/usr/bin/env python3
"""Compare two container images: configuration and flattened root filesystem.

    compare.py LEFT RIGHT [options]      exit 0 when equal, 1 when they differ
    compare.py --dump IMAGE              print one image's listing as JSON

An image is an OCI image layout (a directory, or a tar of one) or an archive as
written by ``docker save``.  Standard library only; zstd layers need the
``zstd`` program.
"""

from __future__ import annotations

import argparse
import bz2
import fnmatch
import gzip
import hashlib
import json
import lzma
import posixpath
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

# Files that a builder mounts over while a RUN executes; some builders leave an
# empty stub behind when the base image lacks them.
STUBS = {
    "/dev",
    "/dev/console",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/etc",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/proc",
    "/run",
    "/run/.containerenv",
    "/run/secrets",
    "/sys",
    "/.dockerenv",
}

MOUNTED = {"/dev", "/proc", "/sys"}  # whose own mode and owner nobody can rely on

CONFIG_KEYS = (
    "Env",
    "Entrypoint",
    "Cmd",
    "User",
    "WorkingDir",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
    "ArgsEscaped",
)

TEXT_LIMIT = 256
MAX_LINKS = 40


class ImageError(Exception):
    """The image could not be read."""


# --------------------------------------------------------------------------- blobs


class Source:
    """Named byte streams out of a directory or a tar archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tar: tarfile.TarFile | None = None
        if not path.is_dir():
            try:
                self.tar = tarfile.open(path)  # noqa: SIM115 - closed by close()
            except (OSError, tarfile.TarError) as err:
                raise ImageError(f"{path}: {err}") from err
            self.members = {posixpath.normpath(m.name): m for m in self.tar.getmembers()}

    def open(self, name: str) -> BinaryIO:
        if self.tar is None:
            try:
                return (self.path / name).open("rb")
            except OSError as err:
                raise ImageError(f"{self.path}: {err}") from err
        member = self.members.get(name)
        stream = self.tar.extractfile(member) if member else None
        if stream is None:
            raise ImageError(f"{self.path}: no file {name}")
        return stream  # type: ignore[return-value]

    def has(self, name: str) -> bool:
        return (self.path / name).exists() if self.tar is None else name in self.members

    def json(self, name: str) -> Any:
        with self.open(name) as stream:
            return json.load(stream)

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()


def _unzstd(stream: BinaryIO) -> BinaryIO:
    if not shutil.which("zstd"):
        raise ImageError("a zstd layer, and no zstd program to unpack it with")
    out = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes
    with tempfile.TemporaryFile() as packed:
        shutil.copyfileobj(stream, packed)
        packed.seek(0)
        subprocess.run(["zstd", "-dcq"], stdin=packed, stdout=out, check=True)
    out.seek(0)
    return out


def unpacked(stream: BinaryIO) -> BinaryIO:
    """A seekable stream of the layer's uncompressed tar, whatever its compression."""
    magic = stream.read(6)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        source: BinaryIO = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
    elif magic[:4] == b"\x28\xb5\x2f\xfd":
        source = _unzstd(stream)
    elif magic[:6] == b"\xfd7zXZ\x00":
        source = lzma.LZMAFile(stream)  # type: ignore[assignment]  # noqa: SIM115
    elif magic[:3] == b"BZh":
        source = bz2.BZ2File(stream)  # type: ignore[assignment]
    else:
        source = stream
    out = tempfile.SpooledTemporaryFile(max_size=64 << 20)  # noqa: SIM115 - the caller closes
    shutil.copyfileobj(source, out)
    if source is not stream:
        source.close()
    out.seek(0)
    return out  # type: ignore[return-value]


# ---------------------------------------------------------------------- filesystem


@dataclass(eq=False)
class Node:
    """One inode of the flattened filesystem (hardlinks share one Node)."""

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    size: int = 0
    sha256: str = ""
    text: str | None = None
    target: str = ""
    dev: str = ""
    xattrs: dict[str, str] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)
    implied: bool = False  # a parent directory that no layer had an entry for


def _split(name: str) -> list[str]:
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"layer entry escapes the root: {name!r}")
    return parts


def _walk_to(root: Node, parts: list[str], create: bool) -> Node | None:
    """The directory at `parts`, following symlinks inside the root."""
    todo, stack, hops = list(parts), [root], 0
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if len(stack) > 1:
                stack.pop()
            continue
        child = stack[-1].children.get(part)
        if child is not None and child.kind == "symlink":
            hops += 1
            if hops > MAX_LINKS:
                return None
            if child.target.startswith("/"):
                stack = [root]
            todo = child.target.split("/") + todo
            continue
        if child is None or child.kind != "dir":
            if not create:
                return None
            child = Node("dir", implied=True)
            stack[-1].children[part] = child
        stack.append(child)
    return stack[-1]


def _xattrs(info: tarfile.TarInfo) -> dict[str, str]:
    prefix = "SCHILY.xattr."
    found = {}
    for key, value in info.pax_headers.items():
        if key.startswith(prefix):
            raw = value.encode("utf-8", "surrogateescape")
            printable = raw.isascii() and raw.decode("ascii").isprintable()
            found[key[len(prefix) :]] = raw.decode() if printable else "hex:" + raw.hex()
    return found


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, node: Node) -> None:
    stream = tar.extractfile(info)
    assert stream is not None
    digest, head = hashlib.sha256(), b""
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
        if len(head) <= TEXT_LIMIT:
            head += chunk[: TEXT_LIMIT + 1]
        node.size += len(chunk)
    node.sha256 = digest.hexdigest()
    if node.size <= TEXT_LIMIT:
        try:
            text = head.decode()
            if all(c.isprintable() or c in "\n\t\r" for c in text):
                node.text = text
        except UnicodeDecodeError:
            pass


def _node(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Node:
    node = Node("file", info.mode & 0o7777, info.uid, info.gid, int(info.mtime))
    node.xattrs = _xattrs(info)
    if info.isdir():
        node.kind = "dir"
    elif info.issym():
        node.kind, node.mode, node.target = "symlink", 0o777, info.linkname
    elif info.ischr() or info.isblk():
        node.kind = "char" if info.ischr() else "block"
        node.dev = f"{info.devmajor}:{info.devminor}"
    elif info.isfifo():
        node.kind = "fifo"
    else:
        _content(tar, info, node)
    return node


def apply_layer(root: Node, stream: BinaryIO) -> None:
    """Apply one layer's tar to the tree: first its whiteouts, then its entries."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        entries = []
        for info in tar.getmembers():
            parts = _split(info.name)
            name = parts[-1] if parts else ""
            if name == ".wh..wh..opq":
                directory = _walk_to(root, parts[:-1], create=False)
                if directory is not None:
                    directory.children.clear()
            elif name.startswith(".wh..wh."):
                continue  # aufs bookkeeping
            elif name.startswith(".wh."):
                directory = _walk_to(root, parts[:-1], create=False)
                if directory is not None:
                    directory.children.pop(name[4:], None)
            else:
                entries.append((parts, info))
        for parts, info in entries:
            _apply_entry(root, tar, parts, info)


def _apply_entry(root: Node, tar: tarfile.TarFile, parts: list[str], info: tarfile.TarInfo) -> None:
    if not parts:  # the root directory itself
        node = _node(tar, info)
        root.mode, root.uid, root.gid, root.mtime = node.mode, node.uid, node.gid, node.mtime
        root.xattrs, root.implied = node.xattrs, False
        return
    parent = _walk_to(root, parts[:-1], create=True)
    if parent is None:
        raise ImageError(f"layer entry below a symlink loop: {info.name!r}")
    name = parts[-1]
    if info.islnk():
        goal = _split(info.linkname)
        holder = _walk_to(root, goal[:-1], create=False) if goal else None
        linked = holder.children.get(goal[-1]) if holder else None
        if linked is None:
            raise ImageError(f"hardlink {info.name!r} to a missing {info.linkname!r}")
        parent.children[name] = linked
        return
    node = _node(tar, info)
    old = parent.children.get(name)
    if node.kind == "dir" and old is not None and old.kind == "dir":
        node.children = old.children
    parent.children[name] = node


def walk(root: Node, at: str = "") -> Iterator[tuple[str, Node]]:
    for name in sorted(root.children):
        child = root.children[name]
        yield f"{at}/{name}", child
        if child.kind == "dir":
            yield from walk(child, f"{at}/{name}")


def listing(root: Node) -> dict[str, dict[str, Any]]:
    """The tree as {path: plain dict}, ready for JSON."""
    names: dict[int, list[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    for path, node in walk(root):
        entry: dict[str, Any] = {"type": node.kind}
        if node.kind != "symlink":
            entry["mode"] = f"{node.mode:04o}"
        entry["uid"], entry["gid"] = node.uid, node.gid
        if node.kind == "file":
            entry["size"], entry["sha256"] = node.size, node.sha256
            if node.text is not None:
                entry["text"] = node.text
            names.setdefault(id(node), []).append(path)
        if node.kind == "symlink":
            entry["target"] = node.target
        if node.dev:
            entry["dev"] = node.dev
        if node.xattrs:
            entry["xattrs"] = node.xattrs
        if node.mtime is not None:
            entry["mtime"] = node.mtime
        found[path] = entry
    for group in names.values():
        if len(group) > 1:
            for path in group:
                found[path]["links"] = [other for other in group if other != path]
    return found


# --------------------------------------------------------------------------- image


@dataclass
class Image:
    config: dict[str, Any]
    platform: str
    author: str
    created: str
    history: list[dict[str, Any]]
    layers: int
    files: dict[str, dict[str, Any]]


def _pick_manifest(source: Source, platform: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, manifest) of the wanted platform out of an OCI layout."""

    def candidates(index: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for desc in index.get("manifests", []):
            if "attestation" in str(desc.get("annotations", {}).get("vnd.docker.reference.type", "")):
                continue
            blob = source.json("blobs/" + desc["digest"].replace(":", "/"))
            if "manifests" in blob:
                yield from candidates(blob)
            elif "config" in blob:
                yield blob

    seen = []
    for manifest in candidates(source.json("index.json")):
        config = source.json("blobs/" + manifest["config"]["digest"].replace(":", "/"))
        name = platform_of(config)
        if platform in (None, name):
            return config, manifest
        seen.append(name)
    raise ImageError(f"{source.path}: no image for {platform}; has {seen}")


def platform_of(config: dict[str, Any]) -> str:
    parts = (config.get("os", ""), config.get("architecture", ""), config.get("variant", ""))
    return "/".join(part for part in parts if part)


def load_image(path: str | Path, platform: str | None = None) -> Image:
    source = Source(Path(path))
    try:
        if source.has("index.json"):
            config, manifest = _pick_manifest(source, platform)
            blobs = ["blobs/" + layer["digest"].replace(":", "/") for layer in manifest.get("layers") or []]
        elif source.has("manifest.json"):
            manifest = source.json("manifest.json")[0]
            config, blobs = source.json(manifest["Config"]), manifest.get("Layers") or []
        else:
            raise ImageError(f"{path}: neither an OCI layout nor a docker archive")
        root = Node("dir", implied=True)
        for blob in blobs:
            with source.open(blob) as packed, unpacked(packed) as stream:
                apply_layer(root, stream)
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        lzma.LZMAError,
        ValueError,
        KeyError,
        subprocess.CalledProcessError,
    ) as err:
        raise ImageError(f"{path}: {type(err).__name__}: {err}") from err
    finally:
        source.close()
    return Image(
        config=normal_config(config.get("config") or {}),
        platform=platform_of(config),
        author=config.get("author", ""),
        created=config.get("created", ""),
        history=[
            {"created_by": h.get("created_by", ""), "empty_layer": bool(h.get("empty_layer"))}
            for h in config.get("history") or []
        ],
        layers=len(blobs),
        files=listing(root),
    )


def normal_config(config: dict[str, Any]) -> dict[str, Any]:
    """The compared keys, with absent, null and empty all left out."""
    found = {}
    for key in CONFIG_KEYS:
        value = config.get(key)
        if value not in (None, "", [], {}, False):
            found[key] = sorted(value) if key in ("ExposedPorts", "Volumes") else value
    return found


# ---------------------------------------------------------------------- comparison


@dataclass
class Rules:
    """What counts as a difference."""

    mtime_globs: tuple[str, ...] = ()
    ignore_globs: tuple[str, ...] = ()
    ignore_config: tuple[str, ...] = ()
    ignore_stubs: bool = True
    history: bool = False
    env_order: bool = False
    created: bool = False


def matches(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in globs)


def is_stub(path: str, entry: dict[str, Any]) -> bool:
    """An empty mount point that a builder may or may not leave behind."""
    return path in STUBS and (entry["type"] == "dir" or entry.get("size") == 0)


def describe(entry: dict[str, Any]) -> str:
    kind = entry["type"]
    words = [kind]
    if "mode" in entry:
        words.append(entry["mode"])
    words.append(f"{entry['uid']}:{entry['gid']}")
    if kind == "symlink":
        words.append("-> " + entry["target"])
    if kind == "file":
        words.append(
            json.dumps(entry["text"]) if "text" in entry else f"{entry['size']} bytes sha256:{entry['sha256'][:12]}"
        )
    if "dev" in entry:
        words.append(entry["dev"])
    return " ".join(words)


def diff_entry(path: str, left: dict[str, Any], right: dict[str, Any], rules: Rules) -> list[str]:
    if left["type"] != right["type"]:
        return [f"type: {describe(left)} != {describe(right)}"]
    keys = ("mode", "uid", "gid", "target", "dev", "xattrs", "links")
    notes = [f"{key}: {left.get(key)} != {right.get(key)}" for key in keys if left.get(key) != right.get(key)]
    if left.get("sha256") != right.get("sha256"):
        if "text" in left and "text" in right:
            notes.append(f"content: {left['text']!r} != {right['text']!r}")
        else:
            notes.append(f"content: {describe(left)} != {describe(right)}")
    if matches(path, rules.mtime_globs) and left.get("mtime") != right.get("mtime"):
        notes.append(f"mtime: {left.get('mtime')} != {right.get('mtime')}")
    return notes


def diff_files(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]], rules: Rules) -> list[str]:
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if matches(path, rules.ignore_globs):
            continue
        one, two = left.get(path), right.get(path)
        if one is None or two is None:
            entry = one or two
            assert entry is not None
            if rules.ignore_stubs and is_stub(path, entry):
                continue
            side = "only on the left" if two is None else "only on the right"
            lines.append(f"{path}: {side}: {describe(entry)}")
            continue
        if rules.ignore_stubs and path in MOUNTED and one["type"] == two["type"] == "dir":
            continue
        lines += [f"{path}: {note}" for note in diff_entry(path, one, two, rules)]
    return lines


def diff_config(left: dict[str, Any], right: dict[str, Any], rules: Rules) -> list[str]:
    lines = []
    for key in sorted(left.keys() | right.keys()):
        one, two = left.get(key), right.get(key)
        same = one == two
        if key == "Env" and not rules.env_order:
            same = sorted(one or []) == sorted(two or [])
        if not same and key not in rules.ignore_config:
            lines.append(f"config {key}: {json.dumps(one)} != {json.dumps(two)}")
    return lines


def diff_images(left: Image, right: Image, rules: Rules) -> list[str]:
    lines = diff_config(
        {**left.config, "platform": left.platform, "author": left.author},
        {**right.config, "platform": right.platform, "author": right.author},
        rules,
    )
    if rules.created and left.created != right.created:
        lines.append(f"created: {left.created} != {right.created}")
    if rules.history and left.history != right.history:
        lines.append(f"history: {json.dumps(left.history)} != {json.dumps(right.history)}")
    return lines + diff_files(left.files, right.files, rules)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--dump", action="store_true", help="print the listing of one image")
    parser.add_argument("--platform", help="os/arch[/variant] to pick from an index")
    parser.add_argument(
        "--mtime",
        action="append",
        default=[],
        metavar="GLOB",
        help="also compare the mtime of these paths ('*' for all)",
    )
    parser.add_argument("--ignore", action="append", default=[], metavar="GLOB", help="paths to leave out")
    parser.add_argument("--ignore-config", action="append", default=[], metavar="KEY")
    parser.add_argument(
        "--stubs", action="store_true", help="also report mount-point stubs such as /proc and /etc/hosts"
    )
    parser.add_argument("--history", action="store_true", help="also compare the history")
    parser.add_argument("--created", action="store_true", help="also compare the date")
    parser.add_argument("--env-order", action="store_true", help="compare the order of Env, not only its content")
    args = parser.parse_args()
    if len(args.images) != (1 if args.dump else 2):
        parser.error("--dump takes one image, a comparison two")
    try:
        images = [load_image(path, args.platform) for path in args.images]
    except ImageError as err:
        print(f"compare.py: {err}", file=sys.stderr)
        return 2
    if args.dump:
        print(json.dumps(vars(images[0]), indent=1, sort_keys=True, ensure_ascii=False))
        return 0
    rules = Rules(
        tuple(args.mtime),
        tuple(args.ignore),
        tuple(args.ignore_config),
        not args.stubs,
        args.history,
        args.env_order,
        args.created,
    )
    lines = diff_images(images[0], images[1], rules)
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
