"""`pybuild image diff` and `image tree`: images beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from builder.cli.flags import Command, Flag, UsageError
from builder.cli.opened import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.difference import Change
    from cache.entries import Entry
    from cache.oci import Digest, ImageConfig
    from cache.store import Image, Store

DIFF = Command(
    name="image diff",
    usage="[OPTIONS] IMAGE OTHER",
    summary="Show which files, and what of the config, OTHER has otherwise than IMAGE.",
    words=(2, 2),
    flags=(
        Flag("format", "text, or json (an object a line)", value="FORMAT"),
        Flag("quiet", "print nothing; the exit code tells", "q"),
        Flag("times", "files also differ when their times do"),
    ),
    notes="""\
A: added, D: removed, C: changed, as in docker diff, with sizes and what changed: type, content, mode, owner, target,
device, attributes, time. Exit codes, as of diff: 0 no difference, 1 there are some, 2 or more: trouble.""",
)
TREE = Command(
    name="image tree",
    usage="[OPTIONS] [IMAGE...]",
    summary="Show images as a tree of their layers: which stand on the same ones, and what each adds.",
    words=(0, -1),
    flags=(
        Flag("all", "also the intermediate images: those of steps and of stages", "a"),
        Flag("layers", "each layer, with the instruction that made it"),
        Flag("no-trunc", "write ids and instructions in full"),
        Flag("format", "text, or json (the whole tree)", value="FORMAT"),
    ),
    notes="With IMAGE: only the trees in which it is.",
)

# ---------------------------------------------------------------- diff


def diff(given: Given, around: Surroundings) -> int:
    """Print the differences; 1 when there are some."""
    from builder.difference import differences
    from cache.errors import CorruptError, StoreError
    from cache.tree import Tree

    form = given.one("format", "text")
    if form not in {"text", "json"}:
        raise UsageError(f"--format {form!r} is neither text nor json")
    with open_store(given, around.environ) as store, store.lease():
        try:
            images = [store.image(word) for word in given.words]
        except CorruptError:
            raise
        except StoreError as error:
            # 1 would mean a difference.
            raise UsageError(error.message, hint=error.hint) from None
        one, other = (Tree(store, store.layers(image)) for image in images)
        configs = [_facts(store.config(image)) for image in images]
        config = [
            (name, configs[0].get(name), configs[1].get(name))
            for name in sorted(configs[0].keys() | configs[1].keys())
            if configs[0].get(name) != configs[1].get(name)
        ]
        changes = list(differences(one, other, times=given.on("times")))
    if not given.on("quiet"):
        (_say_json if form == "json" else _say_text)(changes, config, around)
    return 1 if changes or config else 0


def _facts(config: ImageConfig) -> dict[str, Any]:
    return {"Platform": str(config.platform), "Author": config.author or None, **config.config.to_json()}


def _say_json(changes: list[Change], config: list[tuple[str, Any, Any]], around: Surroundings) -> None:
    import json

    for name, before, after in config:
        around.say(json.dumps({"config": name, "before": before, "after": after}))
    for change in changes:
        document = {
            "path": _shown(change.path),
            "change": change.kind,
            "before": _described(change.before),
            "after": _described(change.after),
            **({"parts": change.parts} if change.parts else {}),
        }
        around.say(json.dumps(document))


def _described(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    found: dict[str, Any] = {"type": entry.kind.value, "mode": f"{entry.mode:04o}", "uid": entry.uid, "gid": entry.gid}
    found |= {"size": entry.size, "mtime": entry.mtime_ns // 10**9}
    if entry.digest:
        found["sha256"] = entry.digest
    if entry.target:
        found["target"] = entry.target.decode("utf-8", "surrogateescape")
    if entry.device != (0, 0):
        found["device"] = entry.device
    if entry.xattrs:
        found["attributes"] = {name: value.hex() for name, value in entry.xattrs}
    return found


def _shown(path: bytes) -> str:
    return "/" + path.decode("utf-8", "surrogateescape")


def _say_text(changes: list[Change], config: list[tuple[str, Any, Any]], around: Surroundings) -> None:
    from builder.cli.template import json_of
    from builder.quantities import human_size
    from builder.terminal import columns, printable

    for name, before, after in config:
        around.say(printable(f"config {name}: {json_of(before)} → {json_of(after)}"))
    rows = []
    for change in changes:
        letter = {"added": "A", "removed": "D", "changed": "C"}[change.kind]
        rows.append((_size_of(change), f"{letter} {printable(_shown(change.path))}{_details(change)}"))
    if rows:
        around.say(columns(rows))
    told = []
    for kind in ("added", "removed", "changed"):
        some = [change for change in changes if change.kind == kind]
        if some:
            growth = sum(change.growth for change in some)
            told.append(f"{len(some)} {kind} ({'-' if growth < 0 else '+'}{human_size(abs(growth))})")
    if told:
        around.say(", ".join(told))


def _size_of(change: Change) -> str:
    """Sizes of a row: `12B`, or `12B → 3kB` where there are two of them."""
    from builder.quantities import human_size

    sizes = [human_size(entry.size) for entry in (change.before, change.after) if entry is not None]
    if len(sizes) == 2 and (sizes[0] != sizes[1] or "content" in change.parts):
        return " → ".join(sizes)
    return sizes[0]


def _details(change: Change) -> str:
    """What of a changed path differs, with the values where they are short."""
    from builder.terminal import printable

    one, other = change.before, change.after
    if one is None or other is None:
        return ""
    values = {
        "type": (one.kind.value, other.kind.value),
        "mode": (f"{one.mode:04o}", f"{other.mode:04o}"),
        "owner": (f"{one.uid}:{one.gid}", f"{other.uid}:{other.gid}"),
        "target": tuple(printable(entry.target.decode("utf-8", "replace")) for entry in (one, other)),
    }
    return (
        "  ("
        + ", ".join(f"{part} {' → '.join(values[part])}" if part in values else part for part in change.parts)
        + ")"
    )


# ---------------------------------------------------------------- tree


class _Node(Struct):
    """Some layers, one on the other, that only come together; the images that end with them, and what goes on."""

    layers: list[tuple[Digest, int, str]] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    above: dict[Digest, _Node] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the layers' blobs."""
        return sum(size for _, size, _ in self.layers)

    def all(self) -> Iterator[Image]:
        """The images here and above."""
        yield from self.images
        for node in self.above.values():
            yield from node.all()


def tree(given: Given, around: Surroundings) -> int:
    """Print the trees."""
    from builder.cli.template import json_of

    form = given.one("format", "text")
    if form not in {"text", "json"}:
        raise UsageError(f"--format {form!r} is neither text nor json")
    with open_store(given, around.environ) as store:
        wanted = {store.image(word).id for word in given.words}
        images = store.images(all=given.on("all") or any(store.image(word).intermediate for word in given.words))
        stages = store.stages() if given.on("all") else {}
        root = _Node()
        for image in sorted(images, key=lambda image: image.names or ("~", image.id)):
            _plant(root, image, store)
    roots = [_joined(node) for node in root.above.values()]
    if root.images:
        roots.append(_Node(images=root.images))
    if wanted:
        roots = [node for node in roots if any(image.id in wanted for image in node.all())]
    names = {image.id: image.names[0] for image in images if image.names}
    if form == "json":
        around.say(json_of([_document(node) for node in roots]))
        return 0
    _say_tree(
        roots,
        {stage: [names.get(each, each[7:19]) for each in users] for stage, users in stages.items()},
        given,
        around,
    )
    return 0


def _plant(root: _Node, image: Image, store: Store) -> None:
    """Put an image where its layers lead to."""
    from cache.oci import chain_ids

    config = store.config(image)
    made = iter([line.created_by for line in config.history if not line.empty_layer])
    node = root
    for chain, layer in zip(chain_ids(config.diff_ids), store.layers(image), strict=True):
        instruction = next(made, "")
        node = node.above.setdefault(chain, _Node([(layer.descriptor.digest, layer.descriptor.size, instruction)]))
    node.images.append(image)


def _joined(node: _Node) -> _Node:
    """The node with all that goes on from it alone, as far as no image ends."""
    while not node.images and len(node.above) == 1:
        (only,) = node.above.values()
        node = _Node([*node.layers, *only.layers], only.images, only.above)
    return _Node(node.layers, node.images, {chain: _joined(inner) for chain, inner in node.above.items()})


def _document(node: _Node) -> dict[str, Any]:
    return {
        "images": [
            {"id": image.id, "names": list(image.names), "size": image.size, "intermediate": image.intermediate}
            for image in node.images
        ],
        "layers": [{"digest": digest, "size": size, "created_by": made} for digest, size, made in node.layers],
        "size": node.size,
        "children": [_document(inner) for inner in node.above.values()],
    }


def _say_tree(roots: list[_Node], stages: dict[Digest, list[str]], given: Given, around: Surroundings) -> None:
    from builder.quantities import human_size
    from builder.terminal import Branch, branches, printable

    full = given.on("no-trunc")

    def label(image: Image) -> str:
        short = image.id if full else image.id[7:19]
        users = stages.get(image.id, [])
        name = ", ".join(image.names) or (f"<stage of {', '.join(users)}>" if users else "<none>")
        return f"{name} ({short})"

    def branch(node: _Node) -> Branch:
        count = f"{len(node.layers)} layer" + "s" * (len(node.layers) != 1)
        some = list(dict.fromkeys(image.id for image in node.all()))
        head = ", ".join(map(label, node.images)) or f"(shared by {len(some)} images)"
        lines = [f"{head}  {human_size(node.size)}  {count}"]
        if given.on("layers"):
            for digest, size, made in node.layers:
                text = " ".join(printable(made.replace("\n", " ")).split())
                text = text if full or len(text) <= 60 else text[:59] + "…"
                lines.append(f"  {digest if full else digest[7:19]}  {human_size(size)}  {text}")
        return Branch(tuple(lines), tuple(branch(inner) for inner in node.above.values()))

    for node in roots:
        around.say("\n".join(branches(branch(node))))
    sizes: dict[str, int] = {}
    nodes = list(roots)
    for node in nodes:
        sizes.update((digest, size) for digest, size, _ in node.layers)
        nodes.extend(node.above.values())
    if roots:
        apart = sum(image.size for node in roots for image in node.all())
        together = f"{len(sizes)} layer{'s' * (len(sizes) != 1)}, {human_size(sum(sizes.values()))}"
        around.say(f"{together}; without sharing it would be {human_size(apart)}")
