"""What the rules on the text find and what they leave alone, beside their pages; hadolint's known mistakes among it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.lint import Settings, Subject, every, look
from builder.lint.settings import Known, judge
from builder.lint.settings import Settings as Wanted
from builder.model import Plan
from builder.plan import plan
from builder.survey import _lowered
from cache.oci import Platform
from grammar.parser import parse_through
from grammar.source import Source

EVERY = every()
KNOWN = Known(EVERY, [rule.name for rule in EVERY if rule.optional])
ALL = Wanted(select=KNOWN.resolve("all"))


def found(text: str) -> list[tuple[str, int]]:
    dockerfile, mistakes = parse_through(Source("Dockerfile", text))
    made, stages = Plan(dockerfile=dockerfile, stages=(), target=0), ()
    if not mistakes:
        made = plan(dockerfile, build_platform=Platform("linux", "amd64"))
        unknown = {s.stage.index: s.base.image for s in made.stages if s.base.image not in {"", "scratch"}}
        stages, _ = _lowered(made, {}, unknown)  # type: ignore[assignment]
    subject = Subject(made, stages, partial=bool(mistakes))
    raw, ran = look(subject, ALL, Settings())
    return [
        (finding.rule, finding.span.line if finding.span else 0)
        for finding in judge(raw, ALL, dockerfile, ran=ran, known=KNOWN)
    ]


def has(rule: str, text: str) -> bool:
    whole = text if text.startswith(("FROM", "ARG", "#")) else f"FROM debian:12\n{text}\n"
    return rule in {name for name, _ in found(whole)}


LISTS = "RUN --mount=type=cache,target=/var/lib/apt/lists "
INSTALL = "apt-get install -y --no-install-recommends a"


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        # had#497, #723, #983, #1095, #1139: cache mounts; #957: rm in front of the install
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL}", True),
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL} && rm -rf /var/lib/apt/lists/*", False),
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL} && rm -rf /var/lib/apt/lists", False),
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL} && rm -rf /var/lib/apt/*", False),
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL} && apt-get dist-clean", False),
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL} && find /var/lib/apt/lists -type f -delete", False),
        ("PackageListsLeft", f"RUN rm -rf /var/lib/apt/lists/* && apt-get update && {INSTALL}", True),
        ("PackageListsLeft", f"RUN apt-get update && {INSTALL}\nRUN rm -rf /var/lib/apt/lists/*", True),
        ("PackageListsLeft", f"{LISTS}apt-get update && {INSTALL}", False),
        ("PackageListsLeft", f"RUN --mount=type=tmpfs,dst=/var/lib/apt apt-get update && {INSTALL}", False),
        ("PackageListsLeft", f"RUN --mount=type=bind,target=/var/lib/apt/lists apt-get update && {INSTALL}", True),
        ("PackageListsLeft", f"RUN <<EOF\napt-get update\n{INSTALL}\nrm -rf /var/lib/apt/lists/*\nEOF", False),
        ("PackageListsLeft", 'RUN ["apt-get", "update"]', True),
        ("PackageListsLeft", 'RUN ["/bin/sh", "-c", "apt-get update && rm -r /var/lib/apt/lists/*"]', False),
        ("PackageListsLeft", f"FROM a:1 AS b\nRUN apt-get update && {INSTALL}\nFROM a:1\nCOPY --from=b /x /x\n", False),
        ("PackageListsLeft", f"FROM a:1 AS b\nRUN apt-get update && {INSTALL}\nFROM b\n", True),
        ("PackageListsLeft", f"ONBUILD RUN apt-get update && {INSTALL}", True),
        ("PackageListsLeft", "RUN apk add a", True),
        ("PackageListsLeft", "RUN apk --no-cache add a", False),
        ("PackageListsLeft", "RUN apk add a && rm -rf /var/cache/apk/*", False),
        ("PackageListsLeft", "RUN --mount=type=cache,target=/var/cache/apk apk add a", False),
        ("PackageListsLeft", "RUN yum install -y a", True),
        ("PackageListsLeft", "RUN yum install -y a && yum clean all", False),
        ("PackageListsLeft", "RUN dnf -y install a && rm -rf /var/cache/dnf/*", False),
        ("PackageListsLeft", "RUN microdnf install -y a && microdnf clean all", False),
        ("PackageListsLeft", "RUN zypper -n in a && zypper cc -a", False),
        ("PackageListsLeft", "RUN echo apt-get update", False),
        # had#943: PIP_NO_CACHE_DIR and cache mounts
        ("LanguageCacheLeft", "RUN pip install a==1", True),
        ("LanguageCacheLeft", "RUN pip3.12 install a==1", True),
        ("LanguageCacheLeft", "RUN python3 -m pip install a==1", True),
        ("LanguageCacheLeft", "RUN pip install --no-cache-dir a==1", False),
        ("LanguageCacheLeft", "ENV PIP_NO_CACHE_DIR=1\nRUN pip install a==1", False),
        ("LanguageCacheLeft", "RUN PIP_NO_CACHE_DIR=1 pip install a==1", False),
        ("LanguageCacheLeft", "RUN export PIP_NO_CACHE_DIR=1; pip install a==1", False),
        ("LanguageCacheLeft", "RUN --mount=type=cache,target=/root/.cache pip install a==1", False),
        ("LanguageCacheLeft", "RUN --mount=type=cache,target=/home/me/.cache/pip pip install a==1", False),
        ("LanguageCacheLeft", "RUN pip install a==1 && rm -rf ~/.cache", False),
        ("LanguageCacheLeft", "RUN pip install a==1 && pip cache purge", False),
        ("LanguageCacheLeft", "FROM a:1 AS b\nENV PIP_NO_CACHE_DIR=1\nFROM b\nRUN pip install a==1\n", False),
        ("LanguageCacheLeft", "RUN yarn install", True),
        ("LanguageCacheLeft", "RUN yarn install && yarn cache clean", False),
        ("LanguageCacheLeft", "RUN npm ci", True),
        ("LanguageCacheLeft", "RUN --mount=type=cache,target=/root/.npm npm ci", False),
        ("InstallAsksQuestions", "RUN apt-get install a", True),
        ("InstallAsksQuestions", "RUN apt-get -qq install a", False),
        ("InstallAsksQuestions", "RUN apt-get -q install a", True),
        ("InstallAsksQuestions", "RUN apt-get -q -q install a", False),
        ("InstallAsksQuestions", "RUN apt-get install -qy a", False),
        ("InstallAsksQuestions", "RUN apt-get install --assume-yes a", False),
        ("InstallAsksQuestions", "RUN apt-get -o APT::Get::Assume-Yes=true install a", False),
        ("InstallAsksQuestions", "RUN yes | apt-get install a", False),
        ("InstallAsksQuestions", "RUN apt-get upgrade", True),
        ("InstallAsksQuestions", "RUN apt-get update", False),
        ("InstallAsksQuestions", "RUN apt-get install -s a", False),
        ("InstallAsksQuestions", "RUN sudo apt-get install a", True),
        ("InstallAsksQuestions", "RUN DEBIAN_FRONTEND=noninteractive apt-get install a", True),
        ("InstallAsksQuestions", "RUN if ! apt-get install a; then exit 1; fi", True),
        ("InstallAsksQuestions", "RUN echo 'APT::Get::Assume-Yes 1;' > /etc/apt/x\nRUN apt-get install a", False),
        ("InstallAsksQuestions", "RUN zypper --non-interactive install a", False),
        ("InstallAsksQuestions", "RUN yum install a", True),
        ("RecommendedPackages", "RUN apt-get install -y a", True),
        ("RecommendedPackages", "RUN apt-get -o APT::Install-Recommends=false install -y a", False),
        ("RecommendedPackages", "RUN apt-get install -y --install-recommends a", False),
        ("RecommendedPackages", "RUN aptitude -R install -y a", False),
        ("RecommendedPackages", "RUN echo 'APT::Install-Recommends 0;' > /etc/apt/x\nRUN apt-get install -y a", False),
        ("AptInScript", "RUN apt list", True),
        ("AptInScript", "RUN apt-cache search x", False),
        ("AptUpdateAlone", "RUN apt-get update\nRUN apt-get install -y a", True),
        ("AptUpdateAlone", "RUN apt-get update\nRUN apt-get update && apt-get install -y a", False),
        ("AptUpdateAlone", "RUN apt-get update\nRUN make", False),
        ("AptUpdateAlone", f"{LISTS}apt-get update\nRUN apt-get install -y a", False),
        # had#345, #928: off unless it is asked for
        ("UnpinnedSystemPackage", "RUN apt-get install -y a=1", False),
        ("UnpinnedSystemPackage", "RUN apt-get install -y a", True),
        ("UnpinnedSystemPackage", "RUN apt-get install -y -t bookworm-backports a=1", False),
        ("UnpinnedSystemPackage", "RUN apt-get install -y $PACKAGES ./a.deb a/bookworm", False),
        ("UnpinnedSystemPackage", "RUN apk add --virtual .deps a~1 'b>2'", False),
        ("UnpinnedSystemPackage", "RUN yum install -y a-1.2 @group", False),
        ("UnpinnedLanguagePackage", "RUN pip install a", True),
        ("UnpinnedLanguagePackage", "RUN pip install -r requirements.txt", False),
        ("UnpinnedLanguagePackage", "RUN pip install . ./a a.whl git+https://x/y 'a[b]==1' a~=1", False),
        ("UnpinnedLanguagePackage", "RUN pip install -c constraints.txt a", False),
        ("UnpinnedLanguagePackage", "RUN pip install --index-url https://x a", True),
        ("UnpinnedLanguagePackage", "RUN npm install -g a", True),
        ("UnpinnedLanguagePackage", "RUN npm install -g a@1 @s/b@2.0 ./c", False),
        ("UnpinnedLanguagePackage", "RUN npm install", False),
        ("UnpinnedLanguagePackage", "RUN gem install a", True),
        ("UnpinnedLanguagePackage", "RUN gem install a:1 && gem install b -v 2", False),
        ("UnpinnedLanguagePackage", "RUN go install x.org/y@latest", True),
        ("UnpinnedLanguagePackage", "RUN go install x.org/y@v1.2.3 && go install ./...", False),
        ("DistributionUpgrade", "RUN zypper dup", True),
        ("PointlessCommand", "RUN ssh host", True),
        ("PointlessCommand", "RUN vim --version", False),
        ("PointlessCommand", "RUN ps aux | grep x", False),
        ("PointlessCommand", "RUN systemctl enable x", False),
        ("PointlessCommand", "RUN echo mount", False),
        ("CdInsteadOfWorkdir", "RUN cd /x", True),
        ("CdInsteadOfWorkdir", "RUN (cd /x && make)", False),
        ("CdInsteadOfWorkdir", "RUN make && cd /x && make", False),
        ("CdInsteadOfWorkdir", "RUN cd build && make", False),
        ("SudoInRun", "RUN a && sudo -u x b", True),
        ("SudoInRun", "RUN apt-get install -y sudo", False),
        ("SudoInRun", 'RUN ["sudo", "a"]', True),
        ("UseraddLargeUid", "RUN useradd -u 100000 a", True),
        ("UseraddLargeUid", "RUN useradd -lu 100000 a", False),
        ("UseraddLargeUid", "RUN useradd -u 1000 a", False),
        ("WgetProgress", "RUN wget -O x https://a", True),
        ("WgetProgress", "RUN wget -q https://a; wget -nv https://a; wget --progress=dot:giga https://a", False),
        ("WgetProgress", "RUN wget -qO- https://a | tar x", False),
        ("WgetAndCurl", "RUN apt-get install -y curl\nRUN apt-get install -y wget", True),
        ("WgetAndCurl", "RUN curl x && wget y", False),
        ("ShellReplaced", "RUN ln -sf bash /bin/sh", True),
        ("ShellReplaced", "RUN ln -s /bin/sh /usr/local/bin/sh", False),
        ("DownloadPiped", "RUN curl https://a | sh", True),
        ("DownloadPiped", "RUN set -o pipefail && curl https://a | sh", False),
        ("DownloadPiped", "RUN set -euo pipefail; curl https://a | sh", False),
        ("DownloadPiped", 'SHELL ["/bin/bash", "-eo", "pipefail", "-c"]\nRUN curl https://a | sh', False),
        ("DownloadPiped", 'SHELL ["/bin/bash", "-c"]\nRUN curl https://a | sh', True),
        ("DownloadPiped", 'SHELL ["pwsh", "-c"]\nRUN curl https://a | sh', False),
        ("DownloadPiped", "RUN curl https://a || true", False),
        ("DownloadPiped", "RUN if curl https://a | grep x; then y; fi", False),
        ("DownloadPiped", "RUN x=$(curl https://a | grep b)", True),
        ("DownloadPiped", "RUN <<EOF\n#!/bin/bash\nset -o pipefail\ncurl https://a | sh\nEOF", False),
        ("PipeHidesFailure", "RUN a | b", True),
        ("PipeHidesFailure", "RUN echo a | b", False),
        ("PipeHidesFailure", "RUN yes | b", False),
        ("PipeHidesFailure", "RUN 'a | b'", False),
        ("ConsecutiveRuns", "RUN a\nRUN b", True),
        ("ConsecutiveRuns", "RUN a\nUSER b\nRUN c", False),
        ("CopyInsteadOfAdd", "ADD a.tar.gz /", False),
        ("CopyInsteadOfAdd", "ADD https://x/y /", False),
        ("CopyInsteadOfAdd", "ADD --unpack=false a /", False),
        ("CopyInsteadOfAdd", "ADD git@x:y.git /", False),
        ("CopyInsteadOfAdd", "ADD a* /", False),
        ("CopyInsteadOfAdd", 'ADD ["a b", "/"]', True),
        ("ArchiveUnpackedByRun", "COPY a.tgz /\nRUN tar xf a.tgz", True),
        ("ArchiveUnpackedByRun", "COPY a.tgz /\nRUN tar cf a.tgz x", False),
        ("ArchiveUnpackedByRun", "RUN tar xf a.tgz\nCOPY a.tgz /", False),
        ("ArchiveUnpackedByRun", "COPY --from=x a.tgz /\nRUN tar xf a.tgz", False),
        ("CopyFromUnknownStage", "COPY --from=nginx:1 /a /", False),
        ("CopyFromUnknownStage", "COPY --from=r.io/x /a /", False),
        ("CopyFromUnknownStage", "COPY --from=nginx /a /", True),
        ("CopyFromUnknownStage", "FROM a:1 AS B\nFROM a:1\nCOPY --from=b /a /\nCOPY --from=0 /a /\n", False),
        ("CopyRelativeDestination", "COPY a b", True),
        ("CopyRelativeDestination", "COPY a $X/b", False),
        ("CopyRelativeDestination", "FROM a:1 AS b\nWORKDIR /x\nFROM b\nCOPY a .\n", False),
        ("CopyOfWholeStage", "FROM a:1 AS x\nFROM b:1\nCOPY --from=x / /\n", False),
        ("CopyOfWholeStage", "FROM a:1 AS x\nRUN b\nFROM scratch\nCOPY --from=x / /\n", False),
        ("CopyOfWholeStage", "FROM a:1 AS x\nRUN b\nFROM b:1\nCOPY --from=0 / /\n", True),
        ("ChangedAfterCopy", "COPY a /b/\nRUN chown x /b/a", True),
        ("ChangedAfterCopy", "COPY a /b/\nRUN chown x /c", False),
        ("ChangedAfterCopy", "COPY --chown=x a /b\nRUN chown y /b", False),
        ("ChangedAfterCopy", "RUN chown x /b\nCOPY a /b", False),
        ("ChangedAfterCopy", "COPY a /b\nRUN x && chmod 755 /b && y", True),
        ("UntaggedBase", "FROM debian", True),
        ("UntaggedBase", "FROM localhost:5000/debian", True),
        ("UntaggedBase", "FROM debian@sha256:" + "a" * 64, False),
        ("UntaggedBase", "FROM scratch", False),
        ("UntaggedBase", "FROM a:1 AS b\nFROM b\n", False),
        ("UntaggedBase", "ARG T=1\nFROM a:$T\n", False),
        ("UntaggedBase", "ARG B=debian\nFROM $B\n", True),
        ("LatestBase", "ARG T=latest\nFROM a:$T\n", True),
        ("LastUserRoot", "USER root", True),
        ("LastUserRoot", "USER 0:0", True),
        ("LastUserRoot", "USER root\nUSER app", False),
        ("LastUserRoot", "FROM a:1 AS b\nUSER root\nFROM a:1\n", False),
        ("NamedUser", "USER app", True),
        ("NamedUser", "USER 1000", False),
        ("NamedUser", "USER $U", False),
        ("EnvRefersToItself", "ENV A=1 B=$A", True),
        ("EnvRefersToItself", "ENV A=1\nENV A=2 B=$A", False),
        ("EnvRefersToItself", "ENV PATH=/x:$PATH B=$PATH", False),
        ("EnvRefersToItself", "ARG A\nENV A=1 B=$A", False),
        ("EnvRefersToItself", "ENV B=$A A=1", False),
        ("EnvRefersToItself", "FROM a:1 AS b\nENV A=1\nFROM b\nENV A=2 B=$A\n", False),
        ("HealthcheckMissing", "FROM a:1 AS b\nHEALTHCHECK NONE\nFROM b\n", False),
        ("InvalidLabelKey", 'LABEL "a.b-c"=1', False),
        ("InvalidLabelKey", "LABEL com.docker.x=1", True),
        ("InvalidLabelKey", "LABEL a..b=1", True),
        ("InvalidLabelKey", "LABEL $X=1", False),
        ("InvalidLabelValue", "LABEL org.opencontainers.image.url=x", True),
        ("InvalidLabelValue", "LABEL org.opencontainers.image.url=$URL", False),
        ("InvalidLabelValue", 'LABEL org.opencontainers.image.licenses="(MIT OR Apache-2.0) AND BSD-3-Clause"', False),
    ],
)  # fmt: skip
def test_triggers(rule: str, text: str, expected: bool) -> None:
    assert has(rule, text) is expected


def test_places_in_joined_lines_and_documents() -> None:
    text = "FROM a:1\nRUN true && \\\n  # why\n\tsudo x\nRUN <<-A <<B\n\tsudo y\n\tA\nB\nRUN <<E\nvim\nE\n"
    assert [place for place in found(text) if place[0] in {"SudoInRun", "PointlessCommand"}] == [
        ("SudoInRun", 4), ("PointlessCommand", 10),
    ]  # fmt: skip


_LINES = st.lists(
    st.sampled_from(
        [
            "FROM a",
            "FROM scratch AS b",
            "from b:1",
            "FROM",
            "RUN sudo x | y",
            "RUN apt-get update && \\",
            "  apt install a",
            "\\",
            "",
            "\ufeff",
            "RUN <<E",
            "E",
            "# pybuild: ignore=all",
            "# hadolint ignore=DL3008,SC1",
            "# check=skip=all",
            "COPY --from=0 / /",
            "COPY . .",
            "COPY <<E /a",
            "ADD a.tgz b",
            "ENV A=1 B=$A",
            "ENV A b",
            "LABEL x=$y",
            "USER root",
            "WORKDIR x",
            "ONBUILD RUN pip install a",
            'SHELL ["bash"]',
            "SHELL []",
            "CMD x",
            "EXPOSE 1:2/TCP",
            "ARG A=${",
            "HEALTHCHECK NONE",
            "RUN $(",
            "RUN 'a",
            "NONSENSE",
            "RUN --mount=type=cache,target=$A x",
            "MAINTAINER",
            'RUN ["sh", "-c", "a | b"]',
        ]
    ),
    max_size=9,
)


@given(_LINES.map("\n".join))
def test_no_file_brings_the_rules_down(text: str) -> None:
    try:
        assert found(text) == found(text)
    except Exception as error:
        from builder.errors import BuildError

        if not isinstance(error, BuildError):
            raise
