"""Bytes that outlive a build: blobs, layers, snapshots, image names, the instruction cache.

No subprocess and no terminal here, and nothing of Dockerfiles. Nouns stand at the bottom (`oci`, `reference`,
`entries`, `errors`); every other room builds on them. `entries` is a room of its own, apart from `layers`, because the
tree, the snapshots and the builder's handlers speak of entries without ever touching a tar.

`registry` speaks the distribution spec; `connection` below it carries its requests, and `challenges` has the words in
which a server asks who is calling. `whence` remembers which registries had what.
"""
