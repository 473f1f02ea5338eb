"""Each fix: the file still reads, the rule is silent, and nothing else has changed."""

from __future__ import annotations

import inspect
import re
import textwrap

import pytest
from msgspec.structs import replace

from builder.lint import LintStage, Settings, Subject, every, look
from builder.lint.fixing import OF_BUILDKIT, Look, applied, mend
from builder.lint.running import runs_of
from builder.lint.settings import Known, judge
from builder.lint.settings import Settings as Wanted
from builder.lint.subject import Edit
from builder.model import Plan
from builder.plan import plan
from builder.survey import _lowered
from cache.oci import Platform
from grammar.ignore import Ignore
from grammar.parser import parse, parse_through
from grammar.source import Source, Span

EVERY = every()
KNOWN = Known(EVERY, [rule.name for rule in EVERY if rule.optional])
FIXABLE = [rule for rule in EVERY if rule.fix is not None or rule.name in OF_BUILDKIT]
JUNK = (".git", "node_modules", "app.py")


def looked(text: str, ignore: str | None, wanted: Wanted) -> Look:
    dockerfile, mistakes = parse_through(Source("Dockerfile", text))
    stages: tuple[LintStage, ...] = ()
    made = Plan(dockerfile=dockerfile, stages=(), target=0)
    if not mistakes:
        made = plan(dockerfile, build_platform=Platform("linux", "amd64"))
        stages, _ = _lowered(made, {}, {})
    rules = Ignore.parse(ignore) if ignore else None
    names = tuple(name for name in JUNK if rules is None or not rules.match(name))
    subject = Subject(made, stages, rules, names)
    found, ran = look(subject, wanted, Settings())
    judged = judge(found, wanted, dockerfile, ran=ran, known=KNOWN)
    return Look(replace(subject, runs=runs_of(subject)), tuple(judged), bool(mistakes))


def mended(text: str, *rules: str, ignore: str | None = None) -> tuple[str, str | None, int]:
    """What comes out, and how many findings are gone; of these rules, of all when none is named."""
    wanted = Wanted(select=frozenset(rules)) if rules else Wanted()
    done = mend(text, ignore, lambda text, ignore: looked(text, ignore, wanted), EVERY)
    return done.text, done.ignore, len(done.done)


def bad(rule: object) -> str:
    page = inspect.getdoc(rule.check) or ""  # type: ignore[attr-defined]
    found = re.search(r"^Bad:\n((?:(?:    [^\n]*)?\n?)+)", page, re.MULTILINE)
    assert found
    return textwrap.dedent(found[1]).strip() + "\n"


@pytest.mark.parametrize("rule", FIXABLE, ids=lambda rule: rule.name)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_what_a_page_calls_bad_is_mended(rule: object, ends: str) -> None:
    name = rule.name  # type: ignore[attr-defined]
    text = bad(rule).replace("\n", ends)
    new, ignore, count = mended(text, name)
    assert count >= 1
    assert looked(new, ignore, Wanted(select=frozenset({name}))).findings == ()
    parse(Source("Dockerfile", new))
    assert new.count("\r") == (new.count("\n") if ends == "\r\n" else 0)
    assert mended(new, name, ignore=ignore) == (new, ignore, 0)


@pytest.mark.parametrize("rule", FIXABLE, ids=lambda rule: rule.name)
def test_the_rest_of_a_file_stays_as_it_is(rule: object) -> None:
    name = rule.name  # type: ignore[attr-defined]
    lead, tail = "\ufeff# é, and a comment\t\n\n", "\n# the end, without a line's end \udcff"
    new, _, count = mended(lead + bad(rule) + tail, name)
    assert count >= 1
    assert new.startswith(lead)
    assert new.endswith(tail)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CMD exec server --port 80", 'CMD ["server", "--port", "80"]'),
        ("CMD server 'a b' \"c\"", 'CMD ["server", "a b", "c"]'),
        ("cmd server", 'CMD ["server"]'),
        ("ENTRYPOINT /bin/server é", 'ENTRYPOINT ["/bin/server", "é"]'),
        ("ENV A b", "ENV A=b"),
        ("ENV A b c", 'ENV A="b c"'),
        ("ENV A 'b c'", "ENV A='b c'"),
        ("ENV A $B/c d", 'ENV A="$B/c d"'),
        ("ENV A b\\ c", "ENV A=b\\ c"),
        ("LABEL a b", "LABEL a=b"),
        ("EXPOSE 80/TCP 81 82/UDP", "EXPOSE 80/tcp 81 82/udp"),
        ("EXPOSE 8080:80 [::1]:1:2/tcp", "EXPOSE 80 2/tcp"),
        ("EXPOSE 8080:80 81", "EXPOSE 80 81"),
        ("MAINTAINER a b <c@d>", 'LABEL org.opencontainers.image.authors="a b <c@d>"'),
        ("ADD a b /c/", "COPY a b /c/"),
        ("RUN apt-get install -y x", "RUN apt-get install --no-install-recommends -y x"),
        ("RUN apt-get -q install x", "RUN apt-get -q install --no-install-recommends -y x"),
        ("RUN yum install x && yum clean all", "RUN yum install -y x && yum clean all"),
        ("RUN a && \\\n  zypper install x && zypper clean", "RUN a && \\\n  zypper install -y x && zypper clean"),
        ("RUN <<EOF\npip install a==1\nEOF", "RUN <<EOF\npip install --no-cache-dir a==1\nEOF"),
        ("RUN python3 -m pip install a==1", "RUN python3 -m pip install --no-cache-dir a==1"),
        ("RUN apk add a", "RUN apk add --no-cache a"),
        ("RUN apt update && apt upgrade -y", "RUN apt-get update && apt-get upgrade -y"),
        (
            "RUN apt-get update && apt-get install -y --no-install-recommends a \\\n  b",
            "RUN apt-get update && apt-get install -y --no-install-recommends a \\\n  b && rm -rf /var/lib/apt/lists/*",
        ),
        ("COPY a /b/\nRUN chown u:g /b/a", "COPY --chown=u:g a /b/"),
        ("COPY a /b\nRUN chown -R 1:2 /b", "COPY --chown=1:2 a /b"),
        ("COPY a /b\nRUN chown u /b", "COPY --chown=u:0 a /b"),
        ("COPY --chmod=644 a /b\nRUN chown u:g /b", "COPY --chown=u:g --chmod=644 a /b"),
        ('COPY a /b\nRUN chmod 0755 /b\nCMD ["x"]', 'COPY --chmod=0755 a /b\nCMD ["x"]'),
        ("ENV A=1 \\\n\n\n  B=2", "ENV A=1 \\\n  B=2"),
    ],
)  # fmt: skip
def test_what_a_fix_makes(old: str, new: str) -> None:
    head = "FROM debian:12\n"
    assert mended(f"{head}{old}\n")[0] == f"{head}{new}\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("CMD server $PORT", id="a variable"),
        pytest.param("CMD a && b", id="two commands"),
        pytest.param("CMD server > /log", id="a redirection"),
        pytest.param("CMD A=1 server", id="an assignment"),
        pytest.param("CMD server *.conf", id="a glob"),
        pytest.param("CMD server ~/x", id="a home folder"),
        pytest.param("CMD cd /x", id="the shell's own"),
        pytest.param("CMD server # why", id="a comment"),
        pytest.param('ENTRYPOINT ["a"]\nCMD b', id="arguments of an entrypoint"),
        pytest.param('ENV A b "c d"', id="quotes in the middle"),
        pytest.param("ENV A ${B:-c d}", id="a default"),
        pytest.param("MAINTAINER a $b", id="a variable in a name"),
        pytest.param("RUN apt-get update; apt-get install -y --no-install-recommends a", id="not only &&"),
        pytest.param("RUN apt-get update && apt-get install -y --no-install-recommends a | tee /l", id="a pipe"),
        pytest.param("RUN apt-get update && apt-get install -y --no-install-recommends a || true", id="a fallback"),
        pytest.param("COPY a /b/\nRUN true\nRUN chown u:g /b/a", id="a RUN between"),
        pytest.param("COPY a /b/\nRUN chown u:g /b/a && true", id="more than a chown"),
        pytest.param("COPY a c /b/\nRUN chown u:g /b/a", id="only one of several files"),
        pytest.param("COPY a /b\nRUN chmod +x /b", id="a mode that depends on the old one"),
        pytest.param("COPY a /b\nRUN chown $U /b", id="an owner in a variable"),
        pytest.param("COPY a /b\nRUN chown u: /b", id="the login group"),
        pytest.param('RUN ["apt-get", "install", "a"]', id="a JSON array"),
        pytest.param("RUN cat <<E | sh\napt-get install a\nE", id="a document that is data"),
    ],
)
def test_what_no_fix_touches(text: str) -> None:
    whole = f"FROM debian:12\n{text}\n"
    assert mended(whole) == (whole, None, 0)


def test_a_file_with_mistakes_is_left_alone() -> None:
    text = "FROM debian:12\nNONSENSE\nCMD server\n"
    assert mended(text) == (text, None, 0)


def test_what_is_silenced_is_left_alone() -> None:
    text = "FROM debian:12\n# pybuild: ignore=JSONArgsRecommended\nCMD server\n"
    assert mended(text) == (text, None, 0)


def test_all_together() -> None:
    text = "from debian:12 AS Build\nENV A b\nRUN apt update && apt install a\nADD x /y\nRUN chown u:g /y\nCMD z\n"
    new, _, count = mended(text)
    assert new == (
        "FROM debian:12 AS build\nENV A=b\n"
        "RUN apt-get update && apt-get install --no-install-recommends -y a && rm -rf /var/lib/apt/lists/*\n"
        'COPY --chown=u:g x /y\nCMD ["z"]\n'
    )
    assert count == 11


def test_an_ignore_file_gets_its_lines() -> None:
    text = "FROM scratch\nCOPY . /\n"
    assert mended(text) == (text, ".git\nnode_modules\n", 1)
    assert mended(text, ignore="*.o")[1] == "*.o\n.git\nnode_modules\n"
    assert mended(text, ignore=".git\r\n")[1] == ".git\r\nnode_modules\r\n"
    assert mended(text, ignore=".git\nnode_modules\n")[2] == 0


def test_edits() -> None:
    def put(line: int, column: int, text: str, more: int = 0) -> Edit:
        return Edit(Span(line, column, line, column + more), text)

    assert applied("ab\ncd\n", [put(1, 2, "X"), put(2, 1, "Y", 1)]) == "aXb\nYd\n"
    assert applied("ab\r\ncd", [put(3, 1, "e\n")]) == "ab\r\ncd\r\ne\r\n"
    assert applied("\ufeffab\n", [put(1, 1, "X"), put(2, 1, "Y\n")]) == "\ufeffXab\nY\n"
    assert applied("a\nb\nc\n", [Edit(Span(2, 1, 3, 1), "")]) == "a\nc\n"
    assert applied("", [put(9, 9, "x\n")]) == "x\n"
