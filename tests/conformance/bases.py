#!/usr/bin/env python3
"""Build the base images that the conformance cases start from.

    bases.py DEST [--debian ROOTFS_TAR] [--busybox /bin/busybox]

writes OCI image layouts

    DEST/busybox/      one layer: a static busybox with its applet links
    DEST/debian/       (only with --debian) one layer: the given rootfs tar

Both are bit-for-bit reproducible from their inputs: fixed timestamps, sorted
entries, fixed JSON.  The manifest is tagged ``latest`` in index.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path
from typing import Any

EPOCH = 1577836800  # 2020-01-01T00:00:00Z
CREATED = "2020-01-01T00:00:00Z"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""

GROUP = """\
root:x:0:
daemon:x:1:
wheel:x:10:root
users:x:100:
nobody:x:65534:
"""

DIRS = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
}


def goarch() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _entry(name: str, kind: bytes, mode: int, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = mode
    info.linkname = link
    info.mtime = EPOCH
    return info


def busybox_layer(busybox: str) -> bytes:
    """An uncompressed tar: busybox, its applets as links in /bin, a small /etc."""
    applets = subprocess.run([busybox, "--list"], check=True, text=True, capture_output=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add_file(name: str, data: bytes, mode: int) -> None:
            info = _entry(name, tarfile.REGTYPE, mode)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for name, mode in sorted(DIRS.items()):
            tar.addfile(_entry(name, tarfile.DIRTYPE, mode))
        add_file("bin/busybox", Path(busybox).read_bytes(), 0o755)
        for applet in sorted(set(applets) - {"busybox"}):
            tar.addfile(_entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777, "busybox"))
        add_file("etc/group", GROUP.encode(), 0o644)
        add_file("etc/passwd", PASSWD.encode(), 0o644)
        tar.addfile(_entry("usr/bin/env", tarfile.SYMTYPE, 0o777, "../../bin/busybox"))
    return out.getvalue()


def write_layout(dest: Path, layer: bytes, config: dict[str, Any]) -> str:
    """Write a one-layer OCI image layout and return its manifest digest."""
    blobs = dest / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=6) as zipped:
        zipped.write(layer)
    layer_desc = put(packed.getvalue(), "application/vnd.oci.image.layer.v1.tar+gzip")
    image = {
        "created": CREATED,
        "architecture": goarch(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": CREATED, "created_by": "conformance base"}],
    }
    config_desc = put(json.dumps(image, sort_keys=True).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config_desc,
        "layers": [layer_desc],
    }
    desc = put(json.dumps(manifest, sort_keys=True).encode(), str(manifest["mediaType"]))
    desc["platform"] = {"os": "linux", "architecture": goarch()}
    desc["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (dest / "index.json").write_text(
        json.dumps(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [desc]},
            sort_keys=True,
        )
    )
    (dest / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return str(desc["digest"])


def make_bases(dest: Path, busybox: str = "/bin/busybox", debian: str | None = None) -> dict[str, Any]:
    digests = {
        "busybox": write_layout(dest / "busybox", busybox_layer(busybox), {"Env": [f"PATH={PATH}"], "Cmd": ["sh"]})
    }
    if debian:
        digests["debian"] = write_layout(
            dest / "debian", Path(debian).read_bytes(), {"Env": [f"PATH={PATH}"], "Cmd": ["bash"]}
        )
    return digests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("--busybox", default="/bin/busybox", help="a static busybox binary")
    parser.add_argument("--debian", help="uncompressed rootfs tar of a Debian minbase")
    args = parser.parse_args()
    for name, digest in make_bases(args.dest, args.busybox, args.debian).items():
        print(name, digest)


if __name__ == "__main__":
    main()
