"""RUN as a RunStep: its forms, environment, mounts, and what of it a cache key sees."""

from __future__ import annotations

import pytest

from builder.errors import BuildError
from builder.handlers import initial_state, lower_all
from builder.handlers.run import run_parts, run_secrets
from builder.model import (
    CONTEXT,
    BindMount,
    CacheMount,
    Lowered,
    Mount,
    Origin,
    RunStep,
    SecretMount,
    SshMount,
    TmpfsMount,
)
from builder.plan import plan
from grammar.parser import parse
from grammar.source import DockerfileError, Source


def last(body: str, args: dict[str, str] | None = None, allow: tuple[str, ...] = ()) -> Lowered:
    text = f"FROM scratch AS seed\nFROM busybox\n{body}\n"
    found = plan(parse(Source("Dockerfile", text)), "", args or {}, allow=allow)
    scope = found.scope(1)
    return lower_all(found.stages[-1].instructions, initial_state(None, scope), scope)[-1]


def step(body: str, args: dict[str, str] | None = None, allow: tuple[str, ...] = ()) -> RunStep:
    found = last(body, args, allow).step
    assert isinstance(found, RunStep)
    return found


def refused(body: str) -> str:
    try:
        last(body)
    except (BuildError, DockerfileError) as error:
        return f"{error.message} ({error.hint})" if error.span else "no place"
    pytest.fail("it was accepted")


# ---------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("body", "argv"),
    [
        ("RUN a  $B && c", ("/bin/sh", "-c", "a  $B && c")),
        ('RUN ["a", "$B"]', ("a", "$B")),
        ('RUN ["a", b]', ("/bin/sh", "-c", '["a", b]')),
        ("RUN", ("/bin/sh", "-c", "")),
        ('SHELL ["/bin/awk"]\nRUN <<P\nBEGIN {}\nP', ("/bin/awk", "BEGIN {}\n")),
        ("RUN <<-E\n\t\tx\n\tE", ("/bin/sh", "-c", "x\n")),
        ("RUN <<E cat\nb\nE", ("/bin/sh", "-c", "<<E cat\nb\nE")),
        ("RUN cat <<'A' - <<B\na\nA\nb\nB", ("/bin/sh", "-c", "cat <<'A' - <<B\na\nA\nb\nB")),
    ],
)
def test_forms(body: str, argv: tuple[str, ...]) -> None:
    found = step(body)
    assert found.argv == argv
    assert found.scripts == ()


def test_a_heredoc_with_an_interpreter_is_a_script() -> None:
    line = last("RUN <<SCRIPT\n#!/usr/bin/awk -f\nBEGIN {}\nSCRIPT")
    assert isinstance(line.step, RunStep)
    assert line.step.argv == ("/bin/sh", "-c", "/dev/pipes/SCRIPT")
    assert line.step.scripts == (("/dev/pipes/SCRIPT", b"#!/usr/bin/awk -f\nBEGIN {}\n"),)
    assert line.created_by == "RUN /bin/sh -c /dev/pipes/SCRIPT # buildkit"
    assert line.title == "RUN <<SCRIPT (#!/usr/bin/awk -f...)"


def test_surroundings() -> None:
    found = step("USER u:g\nWORKDIR /a//b/\nRUN x")
    assert (found.user, found.cwd, found.network, found.security) == ("u:g", "/a/b", "default", "sandbox")


# ---------------------------------------------------------------- environment


def test_environment() -> None:
    found = step("ENV E=1\nARG A=2\nARG NONE\nARG E=3\nRUN x")
    assert found.env[1:] == ("E=3", "A=2")
    line = last("ENV E=1\nARG A=2\nARG NONE\nARG E=3\nRUN x")
    assert line.created_by == "RUN |3 A=2 NONE= E=3 /bin/sh -c x # buildkit"


def test_proxies() -> None:
    found = step("RUN x", {"HTTP_PROXY": "http://p:1", "no_proxy": "local"})
    assert set(found.env[1:]) == {"HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=local", "no_proxy=local"}
    assert not [part for part in run_parts(found) if "proxy" in part[0].lower()]
    declared = step("ARG HTTP_PROXY\nRUN x", {"HTTP_PROXY": "http://p:1"})
    assert ("env HTTP_PROXY", "http://p:1") in run_parts(declared)
    assert last("RUN x", {"HTTP_PROXY": "http://p:1"}).created_by == "RUN /bin/sh -c x # buildkit"


def test_key_parts() -> None:
    plain = run_parts(step("RUN --mount=type=cache,target=/c,id=one x"))
    assert plain == run_parts(step("RUN --mount=type=cache,target=/c,id=two,sharing=locked x"))
    assert plain != run_parts(step("RUN --mount=type=cache,target=/d x"))
    assert plain != run_parts(step("RUN --mount=type=cache,target=/c --network=none x"))
    assert run_parts(step('RUN ["a", "b-c"]')) != run_parts(step('RUN ["a-b", "c"]'))
    assert run_parts(step("RUN <<E\n#!/a\n1\nE")) != run_parts(step("RUN <<E\n#!/a\n2\nE"))


def test_key_parts_hold_no_secret() -> None:
    found = step("ARG API_TOKEN\nENV DB_PASSWORD=pw1\nRUN x", {"API_TOKEN": "hunter2"})
    text = repr(run_parts(found))
    assert "hunter2" not in text
    assert "pw1" not in text
    assert run_secrets(found) == [b"API_TOKEN=hunter2", b"DB_PASSWORD=pw1"]


# ---------------------------------------------------------------- mounts


@pytest.mark.parametrize(
    ("fields", "mount"),
    [
        ("target=/m", BindMount("/m", CONTEXT)),
        ("type=bind,src=a/../b,dst=m,rw", BindMount("/w/m", CONTEXT, "/b", writable=True)),
        (
            "type=bind,from=seed,source=$D,destination=/m,ro=false",
            BindMount("/m", Origin(stage=0), "/d", writable=True),
        ),
        ("from=debian,target=/m,rw=0", BindMount("/m", Origin(image="debian"))),
        (r"type=bind,\"target=/a,b\"", BindMount("/a,b", CONTEXT)),
        ("TYPE=CACHE,target=/c/", CacheMount("/c", "/c")),
        ("type=cache,target=c,id=$D,sharing=LOCKED,ro", CacheMount("/w/c", "/d", "locked", readonly=True)),
        (
            "type=cache,target=/c,from=seed,source=/s,mode=0700,uid=1,gid=2",
            CacheMount("/c", "/c", origin=Origin(stage=0), source="/s", mode=0o700, uid=1, gid=2),
        ),
        ("type=tmpfs,target=/t", TmpfsMount("/t")),
        ("type=tmpfs,target=/t,size=1.5m", TmpfsMount("/t", 3 << 19)),
        ("type=secret,id=pw", SecretMount("pw", "/run/secrets/pw")),
        ("type=secret,id=a/pw", SecretMount("a/pw", "/run/secrets/pw")),
        ("type=secret,target=/x/pw,required", SecretMount("pw", "/x/pw", required=True)),
        ("type=secret,src=s,dst=t,mode=0640,uid=1,gid=2", SecretMount("s", "/w/t", mode=0o640, uid=1, gid=2)),
        ("type=secret,id=pw,env=PW", SecretMount("pw", env="PW")),
        ("type=secret,id=pw,env=", SecretMount("pw", env="pw")),
        ("type=secret,id=pw,env=PW,target=/pw", SecretMount("pw", "/pw", env="PW")),
        ("type=ssh", SshMount("default", "/run/buildkit/ssh_agent.0")),
        ("type=ssh,id=x,target=/s,required=true,mode=0666", SshMount("x", "/s", required=True, mode=0o666)),
    ],
)
def test_mounts(fields: str, mount: Mount) -> None:
    (found,) = step(f"ENV D=/d\nWORKDIR /w\nRUN --mount={fields} x").mounts
    assert without_place(found) == mount


def without_place(mount: Mount) -> Mount:
    from msgspec.structs import replace

    return replace(mount, span=None) if not isinstance(mount, CacheMount | TmpfsMount) else mount


def test_agents_are_numbered() -> None:
    found = step("RUN --mount=type=ssh --mount=type=tmpfs,target=/t --mount=type=ssh,id=b x").mounts
    assert [mount.target for mount in found if isinstance(mount, SshMount)] == [
        "/run/buildkit/ssh_agent.0",
        "/run/buildkit/ssh_agent.1",
    ]


def test_cache_namespace() -> None:
    (found,) = step("RUN --mount=type=cache,target=/c x", {"BUILDKIT_CACHE_MOUNT_NS": "ns"}).mounts
    assert isinstance(found, CacheMount)
    assert found.id == "ns//c"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("type=tmpf,target=/x", 'unsupported mount type "tmpf" (did you mean tmpfs?)'),
        ("typ=tmpfs,target=/x", "unexpected key 'typ' in 'typ=tmpfs' (did you mean type?)"),
        ("type=bind,source=.", "invalid mount target"),
        ("target=/", "invalid mount target"),
        ("target=/a/..", "invalid mount target"),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("type=cache,target=/c,sharing=stolen", "unsupported sharing value"),
        ("type=cache,target=/c,mode=rwx", "invalid value rwx for mode"),
        ("type=cache,target=/c,mode=888", "invalid value 888 for mode"),
        ("type=cache,target=/c,uid=-1", "invalid value -1 for uid"),
        ("type=cache,target=/c,gid=99999999999", "invalid value 99999999999 for gid"),
        ("type=cache,target=/c,source=x", "needs a from"),
        ("type=bind,target=/c,sharing=locked", "invalid cache sharing set for bind mount"),
        ("type=bind,target=/c,mode=7", 'mode not allowed for "bind" type mounts'),
        ("type=tmpfs,target=/c,uid=7", 'uid not allowed for "tmpfs" type mounts'),
        ("type=bind,target=/c,size=7", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,target=/c,size=big", "invalid value for size"),
        ("target=/c,ro=perhaps", "invalid value for ro: perhaps"),
        ("target=/c,required", "unexpected key 'required' for mount type 'bind'"),
        ("required,type=secret,id=x", "unexpected key 'required' for mount type 'bind'"),
        ("type=secret", "invalid secret mount"),
        ("type=secret,id=a,source=b", "both source and id"),
        ("type=secret,id=a,from=seed", "should not have a from"),
        ("type=secret,id=a,sharing=shared", "should not define sharing"),
        ("type=ssh,source=b", "ssh does not support source"),
        ("from=$X,target=/m", "variable"),
        ("from=UPPER,target=/m", "invalid reference"),
        (r"target=/a\"b", "quot"),
    ],
)
def test_mounts_refused(fields: str, message: str) -> None:
    assert message in refused(f"RUN --mount={fields} x")


def test_a_key_without_effect_is_said() -> None:
    (finding,) = last("RUN --mount=target=/m,id=x x").findings
    assert finding.rule == "MountKeyWithoutEffect"
    assert "id" in finding.message


# ---------------------------------------------------------------- entitlements


def test_entitlements() -> None:
    assert "network.host is not allowed" in refused("RUN --network=host x")
    assert "security.insecure is not allowed" in refused("RUN --security=insecure x")
    assert step("RUN --network=host x", allow=("network.host",)).network == "host"
    assert step("RUN --security=insecure x", allow=("security.insecure",)).security == "insecure"
    assert step("RUN --network=none x").network == "none"


@pytest.mark.parametrize("flag", ["--network=carrier-pigeon", "--security=maximal"])
def test_unknown_values(flag: str) -> None:
    assert flag.partition("=")[2] in refused(f"RUN {flag} x")
