"""`pybuild pull`, `push`, `login`, `logout`: images to and from registries, in docker's spellings."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag, UsageError
from builder.cli.opened import INSECURE, open_registries, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.events import Reporter
    from builder.registries import Registries
    from cache.oci import Platform
    from cache.reference import Reference
    from cache.store import Store

PULL = Command(
    name="image pull",
    usage="[OPTIONS] NAME[:TAG|@DIGEST]...",
    summary="Get images from registries. What is in the store already is not fetched.",
    words=(1, -1),
    flags=(
        Flag("all-tags", "every tag of the repository", "a"),
        Flag("platform", "of an image for several platforms, this one (default: this machine's)", value="OS/ARCH"),
        Flag("quiet", "print nothing but the name", "q"),
        *INSECURE,
    ),
    notes="A name without a registry is at docker.io. config.toml can name mirrors: see README.",
)
PUSH = Command(
    name="image push",
    usage="[OPTIONS] IMAGE [NAME[:TAG]]",
    summary="Put an image into the registry of its name, or of another name.",
    words=(1, 2),
    flags=(
        Flag("all-tags", "every tag that the store has of the repository", "a"),
        Flag("quiet", "print nothing but the name", "q"),
        *INSECURE,
    ),
    notes="Layers that the registry has are not sent; they go up compressed as they are in the store.",
)
LOGIN = Command(
    name="login",
    usage="[OPTIONS] [REGISTRY]",
    summary="Ask a registry whether it takes a user and a password, and keep them where docker does.",
    words=(0, 1),
    flags=(
        Flag("username", "the user", "u", "NAME"),
        Flag("password", "the password; others can read a command line, so better --password-stdin", "p", "PASSWORD"),
        Flag("password-stdin", "read the password from standard input"),
        *INSECURE,
    ),
    notes="Without a REGISTRY, docker.io. Kept in $REGISTRY_AUTH_FILE, else docker's config.json, or by its helper.",
)
LOGOUT = Command(
    name="logout",
    usage="[REGISTRY]",
    summary="Forget the credentials for a registry (default: docker.io).",
    words=(0, 1),
)


def pull(given: Given, around: Surroundings) -> int:
    """Pull each name; what docker prints goes to standard output, the progress to standard error."""
    from builder.cli.build import platform_of
    from cache.reference import Reference

    platform = platform_of(given.one("platform"))
    references = [Reference.parse(word) for word in given.words]
    everything = given.on("all-tags")
    for word, reference in zip(given.words, references, strict=True):
        if everything and (reference.digest or word.rpartition("/")[2] != word.rpartition("/")[2].partition(":")[0]):
            raise UsageError("with --all-tags, a name has neither tag nor digest", hint="the repository alone")

    def perform(store: Store, registries: Registries, stop: threading.Event) -> None:
        for reference in references:
            wanted = [reference]
            if everything:
                tags = registries.get(reference.registry).tags(reference.repository)
                wanted = [Reference.parse(f"{reference.name}:{tag}") for tag in tags]
            for each in wanted:
                _pull(each, platform, given, around, store, registries, stop)

    return _moving(given, around, perform)


def _pull(
    reference: Reference,
    platform: Platform | None,
    given: Given,
    around: Surroundings,
    store: Store,
    registries: Registries,
    stop: threading.Event,
) -> None:
    from builder import transfers

    if not given.on("quiet"):
        around.say(f"{reference.tag or reference.digest}: Pulling from {reference.repository}")
        around.stdout.flush()
    place = transfers.Place(reference, registries.get(reference.registry))
    with _shown(given, around) as report:
        done = transfers.pull(place, platform, store=store, report=report, stop=stop)
    if not given.on("quiet"):
        around.say(f"Digest: {done.digest}")
        state = "Downloaded newer image for" if done.new else "Image is up to date for"
        around.say(f"Status: {state} {reference.familiar}")
    around.say(reference.full)


def push(given: Given, around: Surroundings) -> int:
    """Push an image by its name, or by another one."""
    from cache.reference import Reference

    source = given.words[0]
    target = Reference.parse(given.words[-1])
    everything = given.on("all-tags")
    if everything and (len(given.words) == 2 or target.full != Reference.parse(f"{target.name}:latest").full):
        raise UsageError("with --all-tags, the one name has no tag", hint="the repository alone")

    def perform(store: Store, registries: Registries, stop: threading.Event) -> None:
        pairs = [(source, target)]
        if everything:
            names = sorted(name for image in store.images() for name in image.names)
            references = [Reference.parse(name) for name in names]
            pairs = [(each.full, each) for each in references if each.name == target.name]
            if not pairs:
                raise UsageError(f"the store has no image called {target.name}")
        if not given.on("quiet"):
            around.say(f"The push refers to repository [{target.name}]")
            around.stdout.flush()
        for name, reference in pairs:
            _push(name, reference, given, around, store, registries, stop)

    return _moving(given, around, perform)


def _push(
    name: str,
    reference: Reference,
    given: Given,
    around: Surroundings,
    store: Store,
    registries: Registries,
    stop: threading.Event,
) -> None:
    from builder import transfers

    image = store.image(name)
    place = transfers.Place(reference, registries.get(reference.registry))
    with _shown(given, around) as report:
        transfers.push(place, image.manifest, store=store, report=report, stop=stop)
    transfers.note(place, image.id, image.manifest, store.config(image).platform, store)
    if given.on("quiet"):
        around.say(reference.full)
    else:
        around.say(f"{reference.tag or reference.digest}: digest: {image.manifest.digest} size: {image.manifest.size}")


@contextmanager
def _shown(given: Given, around: Surroundings) -> Iterator[Reporter]:
    """The display of one transfer, over before anything goes to standard output: often it is the same terminal."""
    from builder.terminal import progress

    display = progress(
        "none" if given.on("quiet") else "auto",
        around.stderr,
        colour=around.colour(around.stderr),
        dumb=around.environ.get("TERM", "dumb") == "dumb",
    )
    try:
        yield display
    finally:
        display.close()


def _moving(given: Given, around: Surroundings, perform: Callable[[Store, Registries, threading.Event], None]) -> int:
    """Do something with store and registries until it is done or stopped."""
    from builder.cli.stopping import Stop

    stop = threading.Event()
    with Stop(stop) as stopped, open_store(given, around.environ) as store:
        registries = open_registries(given, around.environ, stop.wait)
        try:
            perform(store, registries, stop)
        except Exception:
            if stopped.code is not None:
                return stopped.tell(around)
            raise
        finally:
            registries.close()
    return 0


# ---------------------------------------------------------------- login


def login(given: Given, around: Surroundings) -> int:
    """Ask the registry first; what it refuses is not kept."""
    from builder.cli.surroundings import login_files
    from builder.logins import Logins
    from cache.registry import Credentials

    name = _registry(given)
    user, password = given.one("username"), given.one("password")
    if given.has("password") and given.on("password-stdin"):
        raise UsageError("--password and --password-stdin can not both be had")
    logins = Logins(login_files(around.environ))
    if given.on("password-stdin"):
        if not user:
            raise UsageError("--password-stdin needs --username", hint="pybuild login -u NAME --password-stdin HOST")
        password = around.stdin.read().decode("utf-8", "surrogateescape").rstrip("\r\n")
    elif given.has("password"):
        print("warning: a password on the command line can be seen by others; use --password-stdin", file=around.stderr)
    else:
        user, password = _asked(name, user, around)
    if not user or not password:
        raise UsageError("a user name and a password are needed")
    credentials = Credentials(user, password)
    registries = open_registries(given, around.environ)
    try:
        registries.check(name, credentials)
    finally:
        registries.close()
    place = logins.store(name, credentials)
    print(f"kept in {place}" + (", not encrypted" if "/" in place else ""), file=around.stderr)
    around.say("Login Succeeded")
    return 0


def _registry(given: Given) -> str:
    from builder.logins import registry_of
    from cache.errors import StoreError
    from cache.reference import DOCKER, Reference

    name = registry_of(given.words[0]) if given.words else DOCKER
    try:
        if Reference.parse(f"{name}/x").registry == name:
            return name
    except StoreError:
        pass
    raise UsageError(f"{given.words[0]!r} is not a registry's name", hint="such as reg.lan:5000")


def _asked(name: str, user: str, around: Surroundings) -> tuple[str, str]:
    """User and password from whoever sits at the terminal."""
    import getpass

    if not around.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask for a password on", hint="pybuild login -u NAME --password-stdin HOST < FILE"
        )
    if not user:
        print(f"Username for {name}: ", end="", file=around.stderr, flush=True)
        user = around.stdin.readline().decode("utf-8", "surrogateescape").strip()
    return user, getpass.getpass("Password: ", around.stderr)


def logout(given: Given, around: Surroundings) -> int:
    """Forget what is kept for a registry; it is no error that nothing is."""
    from builder.cli.surroundings import login_files
    from builder.logins import Logins

    name = _registry(given)
    if Logins(login_files(around.environ)).erase(name):
        around.say(f"Removed login credentials for {name}")
    else:
        around.say(f"Not logged in to {name}")
    return 0
