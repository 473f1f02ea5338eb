"""Whence things came: which image a name meant in a registry, and which repositories are known to have a blob.

The first answers `name@digest`, tells pulled images from those that were built here, and finds the image of another
platform that the same name has. The second lets a push ask the registry to take a blob over from another repository
instead of sending it. All of it is what was true once; a registry is asked before it is relied on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from cache.oci import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cache.reference import Reference
    from cache.store import Store


class Origin(Struct, frozen=True):
    """A repository (`docker.io/library/debian`) in which an image was, and the digest of what was asked for there.

    That is an index's digest where the name meant images for several platforms. tag: empty when asked for by digest.
    """

    repository: str
    tag: str
    digest: Digest


def note_image(store: Store, image_id: Digest, reference: Reference, digest: Digest, platform: str) -> None:
    """Remember that `reference` meant `digest`, and for `platform` this image. Idempotent.

    A tag means one thing for a platform: the image that had it before has it no more.
    """
    with store.database.transaction() as connection:
        row = (reference.name, reference.tag, platform)
        if reference.tag:
            connection.execute("DELETE FROM origins WHERE repository = ? AND tag = ? AND platform = ?", row)
        connection.execute(
            "INSERT OR REPLACE INTO origins (image, repository, tag, platform, digest) VALUES (?, ?, ?, ?, ?)",
            (image_id, *row, digest),
        )


def origins(store: Store, image_ids: Sequence[str]) -> dict[str, tuple[Origin, ...]]:
    """Where each of these images came from or was pushed to; those of which nothing is known are left out."""
    found: dict[str, tuple[Origin, ...]] = {}
    wanted = set(image_ids)
    for image, repository, tag, digest in store.database.query(
        "SELECT image, repository, tag, digest FROM origins ORDER BY repository, tag, digest"
    ):
        if image in wanted:
            found[image] = (*found.get(image, ()), Origin(repository, tag, Digest(digest)))
    return found


def images_of(store: Store, reference: Reference) -> list[tuple[Digest, str]]:
    """The ids of the images that a registry had under this name, each with the platform that it was asked for."""
    if reference.digest:
        where, value = "digest", reference.digest
    else:
        where, value = "tag", reference.tag
    rows = store.database.query(
        f"SELECT image, platform FROM origins WHERE repository = ? AND {where} = ?",  # noqa: S608  one of two words
        (reference.name, value),
    )
    return [(Digest(image), platform) for image, platform in rows]


def note_blobs(store: Store, repository: str, digests: Iterable[Digest]) -> None:
    """Remember that a repository, with its registry's name before it, has these blobs. Idempotent."""
    with store.database.transaction() as connection:
        connection.executemany(
            "INSERT OR IGNORE INTO holders (digest, repository) VALUES (?, ?)",
            [(digest, repository) for digest in digests],
        )


def repositories_with(store: Store, digest: Digest, registry: str) -> list[str]:
    """The repositories of a registry, without its name, that had this blob; the last one noted first."""
    rows = store.database.query(
        "SELECT repository FROM holders WHERE digest = ? ORDER BY rowid DESC LIMIT 20", (digest,)
    )
    return [name[len(registry) + 1 :] for (name,) in rows if name.startswith(registry + "/")]
