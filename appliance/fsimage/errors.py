"""Why an image cannot be served."""

from __future__ import annotations


class ImageError(Exception):
    """An image is refused as a whole, before anything is served from it.

    `hint` tells the user what to do about it. (What is found wrong later, in one file of an image
    that is being served, is a VfsError of that file.)
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint
