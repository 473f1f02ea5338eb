"""What the rooms of this package raise, each saying what was wrong and what would help."""

from __future__ import annotations


class StoreError(Exception):
    """Something about stored or given image data is wrong. message: one sentence; hint: what to do, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NotFoundError(StoreError):
    """A name, an id or a blob that the store does not have."""


class CorruptError(StoreError):
    """Bytes that are not what their digest, their format or their length say."""


class InUseError(StoreError):
    """The thing can not be removed since something else needs it."""


class LostError(NotFoundError):
    """A blob that lay elsewhere when it was counted on, and can not be had from there any more."""
