"""`pybuild image ...` and `pybuild import`: images by name and id, in docker's spellings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builder.cli.flags import FALSE, TRUE, Command, Flag, UsageError
from builder.cli.opened import choose_isolation, open_store
from builder.cli.stopping import cleanly
from cache import whence
from cache.reference import Reference

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from cache.store import Image, Store
    from cache.whence import Origin

NONE = "<none>"
_FORMAT = Flag("format", "table, json (an object a line), or a template: '[table ]{{.ID}}\\t{{.Size}}'", value="FORMAT")
_NO_TRUNC = Flag("no-trunc", "write ids and commands in full")

LIST_IMAGES = Command(
    name="image ls",
    usage="[OPTIONS] [NAME[:TAG]]",
    summary="List images, newest first.",
    words=(0, 1),
    flags=(
        Flag("all", "also the intermediate image of each step", "a"),
        Flag(
            "filter",
            "dangling=true|false, label=NAME[=VALUE], reference=PATTERN, before=IMAGE, since=IMAGE, until=TIME",
            "f",
            "FILTER",
            many=True,
        ),
        Flag("quiet", "only ids", "q"),
        Flag("digests", "also the manifest's digest"),
        _NO_TRUNC,
        _FORMAT,
    ),
    notes="TIME: 24h, 7d (so long ago), 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970.",
)
INSPECT = Command(
    name="image inspect",
    usage="[OPTIONS] IMAGE...",
    summary="Show all that is known of images, as a JSON array.",
    words=(1, -1),
    flags=(
        Flag("format", "json, or a template: '{{.Id}}', '{{json .Config.Env}}'", "f", "FORMAT"),
        Flag("type", "image, the one type that there is", value="TYPE"),
    ),
)
HISTORY = Command(
    name="image history",
    usage="[OPTIONS] IMAGE",
    summary="Show the steps of an image, newest first.",
    words=(1, 1),
    flags=(
        Flag("quiet", "only ids", "q"),
        _NO_TRUNC,
        Flag("human", "sizes and times for people (default); =false: bytes and dates", "H"),
        _FORMAT,
    ),
)
TAG = Command(
    name="image tag",
    usage="IMAGE NAME[:TAG]",
    summary="Give an image another name. An image that loses its last name so stays, as <none>.",
    words=(2, 2),
)
REMOVE = Command(
    name="image rm",
    usage="[OPTIONS] IMAGE...",
    summary="Remove names; with its last name the image goes, and what only it needed.",
    words=(1, -1),
    flags=(
        Flag("force", "by id: remove all its names; a missing image is no error", "f"),
        Flag("no-prune", "keep the intermediate images that only it needed, as dangling ones"),
    ),
    notes="""\
IMAGE is a name, an id or its beginning, or a digest. What is mounted or what other images are built on is not removed;
neither is, without --force, what a running build stands on.""",
)
PRUNE = Command(
    name="image prune",
    usage="[OPTIONS]",
    summary="Remove images without a name, and what only they need.",
    flags=(
        Flag("all", "every image, named ones too", "a"),
        Flag("force", "do not ask", "f"),
        Flag(
            "filter",
            "only some: until=TIME (made before), label=NAME[=VALUE], label!=NAME[=VALUE]",
            value="FILTER",
            many=True,
        ),
    ),
    notes="""\
TIME: 24h, 7d (so long ago), 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970. Images that are mounted, or that a
running build stands on, stay.""",
)
IMPORT_IMAGE = Command(
    name="import",
    usage="[OPTIONS] FILE|URL|- [NAME[:TAG]]",
    summary="Make an image of one layer from a tar of a root file system, plain or compressed.",
    words=(1, 2),
    flags=(
        Flag("change", "a line of a Dockerfile that sets the config, such as 'CMD [\"sh\"]'", "c", "LINE", many=True),
        Flag("message", "a comment for the history", "m", "TEXT"),
        Flag("platform", "the platform of the files (default: this machine's)", value="OS/ARCH"),
    ),
    notes="Prints the image's id. Without a NAME the image is dangling.",
)

# ---------------------------------------------------------------- ls


def list_images(given: Given, around: Surroundings) -> int:
    """Print the images that the filters leave."""
    patterns = [text.partition("=")[2] for text in given.all("filter") if text.startswith("reference=")]
    with open_store(given, around.environ) as store:
        images = store.images(all=given.on("all") or any("dangling=" in text for text in given.all("filter")))
        images = [image for image in images if not image.intermediate or given.on("all")]
        for text in given.all("filter"):
            keep = _filter(text, store)
            images = [image for image in images if keep(image)]
        known = whence.origins(store, [image.id for image in images])
        rows = [row for image in images for row in _rows(image, known.get(image.id, ()), given)]
    # As in docker, an image's other names do not come along; of several references one is enough.
    for wanted in (list(given.words), patterns):
        if wanted:
            rows = [row for row in rows if any(_named(each, row["Repository"], row["Tag"]) for each in wanted)]
    form = given.one("format", "table")
    if given.on("quiet"):
        _say(around, dict.fromkeys(row["ID"] for row in rows))
    else:
        digest = ["Digest"] if given.on("digests") else []
        _say(around, _listed(form, rows, _IMAGE, ["Repository", "Tag", *digest, "ID", "CreatedSince", "Size"]))
    return 0


def _digest(image: Image, name: str, origins: Iterable[Origin]) -> str:
    """The digest by which a registry knows the image that is called so, where one does; else the manifest's."""
    reference = Reference.parse(name)
    digests = [
        origin.digest for origin in origins if (origin.repository, origin.tag) == (reference.name, reference.tag)
    ]
    return digests[-1] if digests else image.manifest.digest


def _rows(image: Image, origins: Iterable[Origin], given: Given) -> list[dict[str, str]]:
    """A row for each name of the image, with the fields that docker's templates know."""
    from builder.quantities import human_size

    found = []
    for name in image.names or (f"{NONE}:{NONE}",):
        repository, _, tag = name.rpartition(":")
        found.append(
            {
                "Containers": "N/A",
                "CreatedAt": _local(image.created),
                "CreatedSince": _since(image.created),
                "Digest": _digest(image, name, origins) if image.names else image.manifest.digest,
                "ID": _id(image.id, given),
                "Repository": repository,
                "SharedSize": "N/A",
                "Size": human_size(image.size),
                "Tag": tag,
                "UniqueSize": "N/A",
            }
        )
    return found


def _filter(text: str, store: Store) -> Callable[[Image], bool]:
    """One --filter as a question about an image."""
    name, sign, value = text.partition("=")
    if not sign or not value:
        raise UsageError(f"--filter {text!r} is not NAME=VALUE", hint="--filter dangling=true")
    match name:
        case "dangling" if value in TRUE | FALSE:
            return lambda image: image.dangling == (value in TRUE)
        case "dangling":
            raise UsageError(f"--filter dangling={value} is neither true nor false")
        case "label" | "label!":
            label, equals, wanted = value.partition("=")

            def labelled(image: Image) -> bool:
                labels = dict(store.config(image).config.labels)
                return (label in labels and (not equals or labels[label] == wanted)) == (name == "label")

            return labelled
        case "until":
            moment = _moment(value)
            return lambda image: (when := _time(image.created)) is None or when < moment
        case "reference":
            return lambda image: bool(image.names)
        case "before" | "since":
            edge = store.image(value)
            older = name == "before"
            order = [image.id for image in store.images(all=True)]
            place = order.index(edge.id)
            return lambda image: order.index(image.id) > place if older else order.index(image.id) < place
        case _:
            raise UsageError(f"--filter has no {name!r}", hint="dangling, label, reference, before, since, until")


def _moment(text: str) -> datetime.datetime:
    """A time as docker's `until` takes it: how long ago, RFC 3339 or a part of it, or seconds since 1970."""
    import datetime
    import re

    now = datetime.datetime.now(datetime.UTC)
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return datetime.datetime.fromtimestamp(float(text), datetime.UTC)
        if re.fullmatch(r"(\d+(\.\d+)?(ms|[smhdw]))+", text):
            units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
            parts = re.findall(r"([\d.]+)(ms|[smhdw])", text)
            return now - datetime.timedelta(seconds=sum(float(number) * units[unit] for number, unit in parts))
        when = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--filter until={text} is no time", hint="24h, 7d, 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970"
        ) from None
    # As in docker, a time without a zone is local.
    return when.astimezone() if when.tzinfo is None else when


def _split(name: str) -> tuple[str, str]:
    repository, _, tag = name.rpartition(":")
    return repository, tag


def _named(pattern: str, repository: str, tag: str) -> bool:
    """Whether a name fits docker's pattern: a repository, with wildcards in its parts, and perhaps a tag."""
    import fnmatch

    wanted, colon, tags = pattern.rpartition(":")
    if not colon or "/" in tags:
        wanted, tags = pattern, "*"
    parts, given = repository.split("/"), wanted.split("/")
    return (
        len(parts) == len(given)
        and all(fnmatch.fnmatchcase(*pair) for pair in zip(parts, given, strict=True))
        and fnmatch.fnmatchcase(tag, tags)
    )


# ---------------------------------------------------------------- inspect, history


def inspect(given: Given, around: Surroundings) -> int:
    """Print what the store knows of each image; all that are found, before the first that is not is an error."""
    import json

    from cache.errors import NotFoundError

    form = given.one("format", "json")
    if given.one("type", "image") != "image":
        raise UsageError(f"--type {given.one('type')}: there are only images")
    documents: list[dict[str, Any]] = []
    missing: NotFoundError | None = None
    with open_store(given, around.environ) as store:
        for word in given.words:
            try:
                documents.append(_document(store, store.image(word)))
            except NotFoundError as error:
                missing = missing or error
    if form == "json":
        around.say(json.dumps(documents, indent=4, ensure_ascii=False))
    else:
        _say(around, (formatted(form, _for_template(document)) for document in documents))
    if missing is not None:
        raise missing
    return 0


def _document(store: Store, image: Image) -> dict[str, Any]:
    config = store.config(image)
    origins = whence.origins(store, [image.id]).get(image.id, ())
    return {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": sorted({f"{_split(name)[0]}@{_digest(image, name, origins)}" for name in image.names}),
        "Parent": image.parent or "",
        "Comment": config.history[-1].comment if config.history else "",
        "Created": config.created,
        "Author": config.author,
        "Config": config.config.to_json(),
        "Architecture": config.platform.architecture,
        **({"Variant": config.platform.variant} if config.platform.variant else {}),
        "Os": config.platform.os,
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "Descriptor": image.manifest.to_json(),
        **_manifests(store, image),
    }


def _manifests(store: Store, image: Image) -> dict[str, Any]:
    """Of an index, what is in it; the rest of the document tells of the image for this machine, or the first one."""
    from msgspec.structs import replace

    found = [
        {"ID": each.id, "Descriptor": replace(each.manifest, platform=platform).to_json(), "Size": each.size}
        for platform, each in store.variants(image)
    ]
    return {"Manifests": found} if found else {}


def _for_template(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what docker's templates know of a config that does not have it."""
    from builder.cli.template import Fields, Map, NilList, NilMap

    unset: dict[str, Any] = {"User": "", "WorkingDir": "", "StopSignal": "", "Healthcheck": None, "ArgsEscaped": False}
    unset |= {name: NilList() for name in ("Env", "Entrypoint", "Cmd", "OnBuild", "Shell")}
    unset |= {name: NilMap() for name in ("ExposedPorts", "Volumes", "Labels")}
    config = {
        name: Map(value) if isinstance(unset.get(name), Map) else value for name, value in document["Config"].items()
    }
    return Fields(document | {"Config": Fields(config, unset)}, {"Variant": ""})


def history(given: Given, around: Surroundings) -> int:
    """Print a row for each line of the image's history, with the image that it left where the store still has it."""
    from builder.quantities import human_size
    from builder.terminal import printable

    rows = []
    human = given.on("human") or not given.all("human")
    with open_store(given, around.environ) as store:
        image = store.image(given.words[0])
        config = store.config(image)
        sizes = iter(layer.descriptor.size for layer in store.layers(image))
        left = _left_images(store, image)
        for index, line in enumerate(config.history):
            size = 0 if line.empty_layer else next(sizes, 0)
            rows.append(
                {
                    "ID": _id(left[index + 1], given) if index + 1 in left else "<missing>",
                    "CreatedAt": _local(line.created),
                    "CreatedSince": _since(line.created) if human else line.created or "N/A",
                    "CreatedBy": _short(printable(line.created_by.replace("\n", " ")), given),
                    "Size": human_size(size) if human else str(size),
                    "Comment": line.comment,
                }
            )
    rows.reverse()
    form = given.one("format", "table")
    if given.on("quiet"):
        _say(around, (row["ID"] for row in rows))
    else:
        _say(around, _listed(form, rows, _STEP, ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"]))
    return 0


def _left_images(store: Store, image: Image) -> dict[int, str]:
    """Which image was left after so many lines of history: the image itself and the intermediate ones below it."""
    found: dict[int, str] = {}
    known = {each.id: each for each in store.images(all=True)}
    at: Image | None = image
    while at is not None:
        # Its own parent may differ by --label alone and have as many lines; the nearest one counts.
        found.setdefault(len(store.config(at).history), at.id)
        at = known.get(at.parent) if at.parent else None
    return found


# ---------------------------------------------------------------- tag, rm, prune, import


def tag(given: Given, around: Surroundings) -> int:
    """Move or make a name."""
    with open_store(given, around.environ) as store:
        store.tag(Reference.parse(given.words[1]), store.image(given.words[0]).id)
    return 0


def remove(given: Given, around: Surroundings) -> int:
    """Remove each of the images; the first that can not be removed is an error after the others are gone."""
    from cache.errors import NotFoundError, StoreError

    choose_isolation()
    failure: StoreError | None = None
    with open_store(given, around.environ) as store:
        for word in given.words:
            try:
                _say(around, store.remove(word, force=given.on("force"), keep_parents=given.on("no-prune")))
            except NotFoundError as error:
                failure = failure or (None if given.on("force") else error)
            except StoreError as error:
                failure = failure or error
    if failure is not None:
        raise failure
    return 0


def prune(given: Given, around: Surroundings) -> int:
    """Remove what nothing needs, after asking."""
    from builder.quantities import human_size

    for text in given.all("filter"):
        if text.partition("=")[0] not in {"until", "label", "label!"}:
            raise UsageError(f"--filter {text!r} is not for prune", hint="until=24h, label=NAME, label!=NAME")
    if not given.on("force") and not _sure(given, around):
        return 0
    choose_isolation()
    with open_store(given, around.environ) as store:
        only = None
        if given.has("filter"):
            kept = {image.id: image for image in store.images()}
            for text in given.all("filter"):
                asked = _filter(text, store)
                kept = {each: image for each, image in kept.items() if asked(image)}
            only = kept.__contains__
        pruned = store.prune(all=given.on("all"), only=only)
    if pruned.deleted:
        _say(around, ["Deleted Images:", *pruned.deleted, ""])
    around.say(f"Total reclaimed space: {human_size(pruned.bytes, 4)}")
    return 0


def _sure(given: Given, around: Surroundings) -> bool:
    """Ask; a script can not answer, so it has to say -f."""
    what = "all images" if given.on("all") else "all dangling images"
    if not around.stdin.isatty():
        raise UsageError(f"this will remove {what}, and there is no terminal to ask on", hint="-f does not ask")
    print(f"This will remove {what}. Are you sure you want to continue? [y/N] ", end="", file=around.stderr, flush=True)
    return around.stdin.readline().strip().lower() in {b"y", b"yes"}


@cleanly()
def import_image(given: Given, around: Surroundings) -> int:
    """Read the archive into the store and print the new image's id."""
    from builder.bases import import_rootfs
    from builder.cli.build import platform_of
    from cache.errors import CorruptError

    file, *names = given.words
    with open_store(given, around.environ) as store, store.lease(), _rootfs(file, store, around) as stream:
        try:
            image = import_rootfs(
                stream,
                names[0] if names else "",
                store,
                changes=given.all("change"),
                message=given.one("message"),
                platform=platform_of(given.one("platform")),
            )
        except CorruptError as error:
            raise CorruptError(f"can not import {file}: {error.message}", error.hint) from None
    around.say(image.id)
    return 0


def _rootfs(file: str, store: Store, around: Surroundings) -> BinaryIO:
    """The archive that `import` was given: standard input, a file, or what a URL has, which is downloaded first."""
    from pathlib import Path

    if file == "-":
        return around.stdin
    if file.startswith(("http://", "https://")):
        from builder.fetch import Fetcher

        return Fetcher(store.root / "fetched").download(file).path.open("rb")
    if not Path(file).is_file():
        raise UsageError(f"there is no file {file}", hint="pybuild import ROOTFS.tar NAME")
    return Path(file).open("rb")


# ---------------------------------------------------------------- words

# Every field of a row with its column's head.
_IMAGE = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID", "CreatedSince": "CREATED"}
_IMAGE |= {"CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE"}
_IMAGE |= {"UniqueSize": "UNIQUE SIZE"}
_STEP = {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}
_STEP |= {"CreatedAt": "CREATED AT"}


def _listed(form: str, rows: list[dict[str, str]], heads: dict[str, str], shown: list[str]) -> list[str]:
    """The lines of --format for rows: `table` with the columns `shown`, `table TEMPLATE`, or a line for each row."""
    from builder.terminal import columns

    if form == "table":
        return [columns([[row[name] for name in shown] for row in (heads, *rows)])]
    table, _, template = form.partition(" ")
    if table == "table":
        return [columns([formatted(template.strip(), row).split("\t") for row in (heads, *rows)])]
    return [formatted(form, row) for row in rows]


def formatted(form: str, row: Any) -> str:
    """What `--format` makes of a value: `json`, or a template as docker has it (see `builder.cli.template`)."""
    from builder.cli.template import Template, TemplateError, json_of

    if form == "json":
        return json_of(row)
    if "{{" not in form:
        raise UsageError(f"--format {form!r} is neither table nor json nor a template", hint="'{{.ID}}'")
    try:
        return Template(form).render(row)
    except TemplateError as error:
        raise UsageError(f"--format: {error.message}", hint=error.hint) from None


def _say(around: Surroundings, lines: Iterable[str]) -> None:
    for line in lines:
        around.say(line)


def _id(text: str, given: Given) -> str:
    return text if given.on("no-trunc") else text.removeprefix("sha256:")[:12]


def _short(text: str, given: Given) -> str:
    return text if given.on("no-trunc") or len(text) <= 45 else text[:44] + "…"


def _since(created: str) -> str:
    """`3 days ago`, for RFC 3339; `N/A` where there is no time."""
    import datetime

    from builder.quantities import human_age

    when = _time(created)
    if when is None:
        return "N/A"
    return human_age(max((datetime.datetime.now(datetime.UTC) - when).total_seconds(), 0)) + " ago"


def _local(created: str) -> str:
    when = _time(created)
    return "N/A" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M:%S %z %Z")


def _time(created: str) -> datetime.datetime | None:
    """RFC 3339 with up to nine digits of fraction, of which datetime takes six."""
    import datetime
    import re

    try:
        when = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", created))
    except ValueError:
        return None
    return when.replace(tzinfo=when.tzinfo or datetime.UTC)
