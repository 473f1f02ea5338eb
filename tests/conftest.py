"""What many tests need: marks that skip visibly, and no surprise from the environment of whoever runs them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import hypothesis
import pytest

# How long one example takes says more about the machine; what was found wrong is printed, not kept in the checkout.
hypothesis.settings.register_profile("pybuild", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("pybuild")

_OURS = (
    "PYBUILD_ROOT", "PYBUILD_DEBUG", "PYBUILD_LIMITS", "BUILDKIT_PROGRESS", "SOURCE_DATE_EPOCH", "NO_COLOR",
    "DOCKER_HOST", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No variable of the caller's reaches pybuild, and no test reaches the caller's store."""
    for name in _OURS:
        monkeypatch.delenv(name, raising=False)
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("XDG_DATA_HOME", str(base / "data"))
    # Nobody's credentials, and no registry asked for a base unless a test says so.
    monkeypatch.setenv("DOCKER_CONFIG", str(base / "docker-config"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(base / "config"))
    # podman insists on the file, where there is the variable.
    for name, text in (("docker-config/config.json", "{}"), ("config/pybuild/config.toml", 'pull = "never"\n')):
        if not (base / name).exists():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_text(text)


@functools.cache
def _can_mount() -> bool:
    """Whether a mount works, by doing one in a namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/tmp"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@functools.cache
def _user_namespaces() -> bool:
    """Whether an ordinary user's namespace works here."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/tmp"]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more than this machine gives, with the reason."""
    if item.get_closest_marker("root") and not _can_mount():
        pytest.skip("needs root that may mount")
    if item.get_closest_marker("userns") and not _user_namespaces():
        pytest.skip("needs user namespaces")
    peer = item.get_closest_marker("peer")
    if peer:
        missing = [name for name in peer.args if shutil.which(name) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
    if item.get_closest_marker("docker") and shutil.which("dockerd") is None:
        pytest.skip("needs dockerd")
    if item.get_closest_marker("network") and os.environ.get("PYBUILD_TEST_NETWORK") != "1":
        pytest.skip("needs servers beyond this machine: PYBUILD_TEST_NETWORK=1 allows it")
