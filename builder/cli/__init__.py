"""Words and environment in, exit code out. The only os.environ, sys.exit and print.

`main` is the program. It finds the command, reads its flags, calls it, and is the one place where an error becomes text
and a number. A command is a module-level function `(Given, Surroundings) -> int` in a module that is imported only when
it is called; its flags are a table of `flags`.

Exit codes: 0 done; 1 the build or the command failed; 2 the command line is wrong; 3 the store, or image data given to
it, is damaged or can not be used; 70 a fault of pybuild itself; 129, 130, 143 stopped by hanging up, Ctrl-C, SIGTERM;
141 whoever read the output went away.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from builder.cli.flags import Command, Given, UsageError, describe, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from builder.cli.surroundings import Surroundings

FAILED, USAGE, DAMAGED, INTERNAL, INTERRUPTED, NO_READER = 1, 2, 3, 70, 130, 141

COMMANDS = {
    "build": ("builder.cli.build", "build", "Build an image from a Dockerfile"),
    "lint": ("builder.cli.lint", "lint", "Say what is wrong with a Dockerfile, without building it"),
    "image ls": ("builder.cli.images", "list_images", "List images"),
    "image inspect": ("builder.cli.images", "inspect", "Show all that is known of images, as JSON"),
    "image history": ("builder.cli.images", "history", "Show the steps of an image"),
    "image tag": ("builder.cli.images", "tag", "Give an image another name"),
    "image rm": ("builder.cli.images", "remove", "Remove names, and images that have no other"),
    "image pull": ("builder.cli.registries", "pull", "Get images from registries"),
    "image push": ("builder.cli.registries", "push", "Put images into registries"),
    "image prune": ("builder.cli.images", "prune", "Remove images that nothing needs"),
    "image diff": ("builder.cli.views", "diff", "Show which files two images have otherwise"),
    "image tree": ("builder.cli.views", "tree", "Show images as a tree of their layers"),
    "image export": ("builder.cli.transfer", "export", "Write the files of an image to a folder or a tar"),
    "image mount": ("builder.cli.transfer", "mount", "Show the files of an image in a folder, without copying"),
    "image umount": ("builder.cli.transfer", "umount", "Take mounted images away again"),
    "unshare": ("builder.cli.transfer", "unshare", "Run a command where an ordinary user may mount images"),
    "save": ("builder.cli.transfer", "save", "Write images to an archive"),
    "load": ("builder.cli.transfer", "load", "Take images from an archive into the store"),
    "cache why": ("builder.cli.caches", "why", "Say why steps of the last build were not in the cache"),
    "cache prune": ("builder.cli.caches", "prune", "Cut the cache down: by size, by age, by type"),
    "cache mounts ls": ("builder.cli.caches", "list_mounts", "List the folders of RUN --mount=type=cache"),
    "cache mounts rm": ("builder.cli.caches", "remove_mounts", "Remove such folders"),
    "du": ("builder.cli.caches", "du", "Show what the store takes of the disk"),
    "fsck": ("builder.cli.caches", "fsck", "Look whether the store is whole"),
    "import": ("builder.cli.images", "import_image", "Make an image of a root file system in a tar"),
    "ignore": ("builder.cli.ignore", "ignore", "Say which line of .dockerignore decides about paths"),
    "login": ("builder.cli.registries", "login", "Give the credentials for a registry"),
    "logout": ("builder.cli.registries", "logout", "Forget the credentials for a registry"),
    "info": ("builder.cli.about", "info", "Show the store, the tier of RUN, and what this machine has"),
    "verify": ("builder.cli.verify", "verify", "Build twice, and tell where the two images differ"),
    "version": ("builder.cli.about", "version", "Show the version"),
}
"""name: (module, function, summary). The function's Command is the module's value of the same name in capitals."""

FOREIGN = {
    "buildx": "leave the word out: pybuild build takes buildx's flags",
    "builder": "pybuild image prune frees what no image needs",
    "system": "pybuild info says what is in the store, pybuild image prune frees what no image needs",
    "bud": "did you mean pybuild build?",
    "run": "pybuild only builds; pybuild build --load -t NAME ., and docker run NAME",
    "ps": "pybuild only builds: it has no containers",
}
"""What docker and buildah have and pybuild has not, with what to do instead."""

ALIASES = {
    "images": "image ls",
    "image list": "image ls",
    "image remove": "image rm",
    "cache mounts list": "cache mounts ls",
    "cache mounts remove": "cache mounts rm",
    "cache du": "du",
    "image import": "import",
    "image unmount": "image umount",
    "image save": "save",
    "image load": "load",
    "export": "image export",
    "image build": "build",
    "rmi": "image rm",
    "pull": "image pull",
    "push": "image push",
    "tag": "image tag",
    "history": "image history",
    "inspect": "image inspect",
}

_GROUPS = ("image", "cache")

CODES = """\
Exit codes: 0 done, 1 the build or command failed, 2 wrong command line, 3 damaged or unusable store or image data,
70 a fault of pybuild, 129/130/143 stopped by hang-up, Ctrl-C, SIGTERM, 141 the reader of the output went away."""


def main() -> NoReturn:
    """The program `pybuild`."""
    # What a start makes lives as long as the process: the default of 700 new objects has it all looked through in vain.
    gc.set_threshold(50_000)
    code = _outermost(sys.argv[1:])
    # Everything is closed by now, and taking modules apart one by one costs a tenth of a build of cached steps.
    os._exit(code)


def _outermost(arguments: list[str]) -> int:
    """`run` with the process's own surroundings; an output that nobody reads any more is no traceback."""
    from builder.cli.surroundings import Surroundings

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python has None for a stream that the caller closed.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    around = Surroundings(os.environ, sys.stdin.buffer, sys.stdout, sys.stderr)
    try:
        code = run(arguments, around)
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    return code


def run(arguments: Sequence[str], around: Surroundings) -> int:
    """Do one command line and return its exit code. Whatever goes wrong is told on standard error, once."""
    from builder.cli.surroundings import DEBUG

    debug = bool(around.environ.get(DEBUG))
    try:
        name, rest = find(list(arguments))
        if not name:
            around.say(overview())
            return 0
        module, function, _ = COMMANDS[name]
        home = import_module(module)
        command: Command = getattr(home, function.upper())
        given = read(command, rest)
        debug = debug or given.on("debug")
        if given.on("help"):
            around.say(describe(command, around.width()).rstrip("\n"))
            return 0
        act: Callable[[Given, Surroundings], int] = getattr(home, function)
        return act(given, around)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from builder.cli.failure import report

        return report(error, around, debug=debug)


def find(arguments: list[str]) -> tuple[str, list[str]]:
    """The command that a command line names, and its own words; no name means the overview.

    `build` is meant where the first word is no command: `pybuild -t app .` and `pybuild .` build. --root and --debug
    may stand before the command.
    """
    leading: list[str] = []
    rest = list(arguments)
    while rest and (rest[0] in {"--root", "--debug", "-D"} or rest[0].startswith("--root=")):
        taken = 2 if rest[0] == "--root" else 1
        leading += rest[:taken]
        rest = rest[taken:]
    groups = [[group, flag] for group in _GROUPS for flag in ("--help", "-h")]
    if not rest or rest in (["--help"], ["-h"], ["help"], *groups):
        return "", []
    if rest in (["--version"], ["-v"]):
        return "version", []
    if rest[0] == "help":
        rest = [*rest[1:], "--help"]
    for count in (3, 2, 1):
        name = " ".join(rest[:count])
        name = ALIASES.get(name, name)
        if name in COMMANDS and len(rest) >= count:
            return name, leading + rest[count:]
    if rest[0] in _GROUPS:
        raise _no_such(" ".join(rest[:2]), f"{rest[0]} ")
    if not rest[0].startswith("-"):
        _refuse_mistyped(rest)
    return "build", leading + rest


def _refuse_mistyped(words: list[str]) -> None:
    """`pybuild iamge ls` is no build with two contexts, and `pybuild imags` none of a folder that is not there."""
    if len(words) == 1 and ("/" in words[0] or "." in words[0] or os.path.lexists(words[0])):
        return
    if words[0] in FOREIGN and not (len(words) > 1 and os.path.isdir(words[0])):
        raise UsageError(f"unknown command {words[0]}", hint=FOREIGN[words[0]])
    from grammar.suggest import nearest

    # In this order, so that of two that are equally near it is `images`, not `image`, and always the same.
    known = dict.fromkeys(name.partition(" ")[0] for name in (*ALIASES, *COMMANDS))
    close = nearest(words[0], known) if len(words[0]) > 2 else ""
    if close and not (len(words) > 1 and words[1].startswith("-")):
        raise UsageError(f"unknown command {words[0]}", hint=f"did you mean pybuild {close}?")


def _no_such(name: str, prefix: str) -> UsageError:
    from grammar.suggest import nearest

    known = [command for command in (*COMMANDS, *ALIASES) if command.startswith(prefix)]
    if name == prefix.strip():
        return UsageError(f"pybuild {name} needs a command", hint="one of: " + ", ".join(known))
    close = nearest(name, known)
    return UsageError(
        f"unknown command {name}", hint=f"did you mean pybuild {close}?" if close else "one of: " + ", ".join(known)
    )


def overview() -> str:
    """The short help."""
    width = max(map(len, COMMANDS)) + 2
    lines = [
        "pybuild builds OCI images from Dockerfiles. No daemon, no root needed.",
        "",
        "Usage: pybuild [build] [OPTIONS] PATH | URL | -",
        "       pybuild COMMAND ...",
        "",
        "  pybuild -t app:1.0 .          build the Dockerfile here and call the image app:1.0",
        "  pybuild -o type=docker,dest=app.tar -t app .    and write it for docker load",
        "",
        "Commands:",
        *(f"  {name:<{width}}{summary}" for name, (_, _, summary) in COMMANDS.items()),
        "",
        "Also, as in docker: " + ", ".join(alias for alias in ALIASES if " " not in alias),
        "pybuild COMMAND --help says more about one of them.",
        "",
        CODES,
    ]
    return "\n".join(lines)
