"""How much a copy may hold of what the client has."""

from fuse_gated.replica.version import FILE, Version


class Room:
    """`size` bytes of files and `files` names at most are brought here. What programs write here counts, and is not hindered."""

    def __init__(self, size: int, files: int) -> None:
        self.size = size
        self.files = files
        self.used = 0
        self._sizes: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._sizes)

    def has(self, path: bytes, found: Version | None) -> None:
        """What is in the copy by that name now."""
        self.used -= self._sizes.pop(path, 0)
        if found is not None:
            self._sizes[path] = _size(found)
            self.used += self._sizes[path]

    def why_not(self, path: bytes, wanted: Version) -> str:
        """Why that does not fit in the place of what has the name now; '' if it does."""
        if self.used - self._sizes.get(path, 0) + _size(wanted) > self.size:
            return f"more than the {self.size} bytes that the policy's local.size allows"
        if path not in self._sizes and len(self._sizes) >= self.files:
            return f"more than the {self.files} names that the policy's local.files allows"
        return ""


def _size(found: Version) -> int:
    return found.size if found.kind == FILE else 0
