"""What is under the directory."""

from __future__ import annotations

import dataclasses
import os

from ..screen import Screen, count, shown
from .comparing import Limit


@dataclasses.dataclass
class Tree:
    """Files and directories under `root`, but for directories whose name is `left_out`."""

    root: str
    left_out: frozenset[str]
    files: list[str] = dataclasses.field(default_factory=list[str])
    directories: int = 0
    depth: int = 0
    complete: bool = True
    unread: list[str] = dataclasses.field(default_factory=list[str])
    """What could not be read, each with the reason."""

    def below(self, path: str) -> str:
        """Return `path` without that of the root."""
        return path.removeprefix(os.path.join(self.root, ""))

    def why_unread(self, path: str, error: OSError) -> str:
        """Return an entry of `unread`."""
        return f"{shown(self.below(path))}: {error.strerror}"


def look(root: str, left_out: frozenset[str], seconds: float, screen: Screen) -> Tree:
    """List what is under `root` on this thread; the later parts are checked against it.

    Symbolic links to directories are not followed, so a loop of them ends here.
    """
    tree = Tree(root, left_out)
    limit = Limit(seconds)

    def unlisted(error: OSError) -> None:
        tree.unread.append(tree.why_unread(str(error.filename), error))

    for directory, below, files in os.walk(root, onerror=unlisted):
        below[:] = [name for name in below if name not in left_out]
        tree.files += [os.path.join(directory, name) for name in files]
        tree.directories += 1
        if directory != root:
            tree.depth = max(tree.depth, tree.below(directory).count(os.sep) + 1)
        if tree.directories % 100 == 0:
            screen.progress(f"listing {count(len(tree.files), 'file')}")
        if limit.over():
            tree.complete = False
            break
    return tree
