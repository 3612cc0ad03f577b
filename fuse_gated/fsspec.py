"""Exports without a mount, as a filesystem of fsspec: `fsspec.open("fuse-gated://tenant/export/path")`.

Whatever reads and writes by fsspec (pandas, dask, duckdb, zarr and others) so works on a client's files through the same gate
and the same audit as a mount, where no mount can be made or none is wanted. It is registered as an entry point, and needs the
daemon's runtime directory and the right to use the tenant's mounts, and no privilege.

Sources: fsspec's documentation ("Developing with fsspec") and its AbstractFileSystem and AbstractBufferedFile.
"""

import contextlib
import datetime
import io
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from errno import EACCES, ECONNREFUSED, EISDIR, EXDEV
from typing import Any, ClassVar, Final, cast

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import tokenize

from fuse_gated import control
from fuse_gated.attached import RENAME_NOREPLACE, Attached
from fuse_gated.attached_file import BLOCK, AttachedFile, copy, flags_of
from fuse_gated.commands.places import RUNTIME
from fuse_gated.errors import GateError
from fuse_gated.operations import Attributes
from fuse_gated.paths import join

__all__ = ["FuseGatedFile", "FuseGatedFileSystem"]

Info = dict[str, Any]

_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_SECOND: Final = 1_000_000_000


class FuseGatedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The exports of one server: a path is tenant/export/path.

    `runtime` is the runtime directory of the daemon. Errors are those that the system calls would raise on a mount:
    PermissionError where the policy refuses (and where we may not use the tenant's exports), FileNotFoundError, and so on;
    ConnectionError where no daemon runs. It may be used by several threads, and after a fork: a child attaches anew.
    """

    protocol: ClassVar[str] = "fuse-gated"
    root_marker = ""

    def __init__(self, runtime: str = str(RUNTIME), **options: Any) -> None:
        super().__init__(runtime=runtime, **options)
        self.runtime = runtime
        self._lock = threading.Lock()
        self._attached: dict[str, Attached] = {}

    # Names.

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        told = os.fspath(path)
        return told.removeprefix(f"{cls.protocol}://").strip("/")

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        path = self._strip_protocol(path)
        names = path.split("/") if path else []
        found = list(self._listed(path)) if len(names) > 1 else self._exports(names[0] if names else None)
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **_options: Any) -> Info:
        path = self._strip_protocol(path)
        if path.count("/") < 1:
            if path:
                self._exports(path)
            return _directory(path)
        attached, within = self._at(path)
        node, attributes = attached.find(within, follow=False)
        link = stat.S_ISLNK(attributes.mode)
        destination = ""
        if link:
            # A link that leads nowhere, or where we may not go, is told as a link.
            with contextlib.suppress(OSError):
                destination = os.fsdecode(attached.readlink(node))
                attributes = attached.find(within)[1]
        info = _info(path, attributes)
        return {**info, "islink": True, "destination": destination} if link else info

    def created(self, path: str) -> datetime.datetime:
        """When it was changed last, in any way: a client's birth times do not travel."""
        return _time(self.info(path)["created"])

    def modified(self, path: str) -> datetime.datetime:
        return _time(self.info(path)["mtime"])

    def ukey(self, path: str) -> str:
        info = self.info(path)
        return cast("str", tokenize({key: info.get(key) for key in ("name", "ino", "size", "mtime_ns", "ctime_ns")}))

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    def mkdir(self, path: str, create_parents: bool = True, **_options: Any) -> None:
        path = self._strip_protocol(path)
        if create_parents:
            self.makedirs(self._parent(path), exist_ok=True)
        attached, within = self._at(path)
        attached.mkdir(within)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_protocol(path)
        if path.count("/") < 2:
            # The export's own root is there, or nobody can make it.
            self.info(path)
            if not exist_ok:
                raise FileExistsError(path)
            return
        attached, within = self._at(path)
        try:
            attached.mkdir(within)
        except FileNotFoundError:
            self.makedirs(self._parent(path), exist_ok=True)
            attached.mkdir(within)
        except FileExistsError:
            if not exist_ok or not self.isdir(path):
                raise

    def rmdir(self, path: str) -> None:
        attached, within = self._at(path)
        attached.rmdir(within)

    def rm_file(self, path: str) -> None:
        attached, within = self._at(path)
        attached.unlink(within)

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Links are removed, never what they lead to."""
        for each in path if isinstance(path, list) else [path]:
            for found in self.expand_path(each, maxdepth=maxdepth):
                attached, within = self._at(found)
                if not stat.S_ISDIR(attached.find(within, follow=False)[1].mode):
                    attached.unlink(within)
                elif recursive:
                    attached.remove_tree(within)
                else:
                    raise attached.error(EISDIR, within)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_options: Any) -> None:
        """A rename within one export, where the rules allow it; else a copy, after which the first is removed (as mv(1))."""
        first, second = self._strip_protocol(path1), self._strip_protocol(path2)
        attached, within = self._at(first)
        other, beyond = self._at(second)
        if attached is other:
            try:
                attached.rename(within, beyond)
            except OSError as error:
                if error.errno != EXDEV:
                    raise
            else:
                return
        self.copy(first, second, recursive=recursive or self.isdir(first), maxdepth=maxdepth)
        self.rm(first, recursive=recursive or self.isdir(first))

    # Contents.

    def cp_file(self, path1: str, path2: str, **_options: Any) -> None:
        first, second = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(first):
            self.makedirs(second, exist_ok=True)
        elif first != second:
            (attached, within), (other, beyond) = self._at(first), self._at(second)
            copy(attached, within, other, beyond)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_options: Any) -> bytes:
        with self._raw(self._strip_protocol(path), "rb") as file:
            first, last, _ = slice(start, end).indices(file.size())
            return file.read_at(first, max(0, last - first))

    def touch(self, path: str, truncate: bool = True, **_options: Any) -> None:
        path = self._strip_protocol(path)
        if truncate:
            self._raw(path, "wb").close()
            return
        attached, within = self._at(path)
        try:
            attached.touch(within)
        except FileNotFoundError:
            self._raw(path, "ab").close()

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | str | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Modes r, w, a and x, each with + too. Reading alone has fsspec's caches (`cache_type`); the others are io's."""
        if mode == "rb":
            return FuseGatedFile(self, path, mode, block_size or BLOCK, cache_options=cache_options, **options)
        if not autocommit:
            if mode not in ("wb", "xb"):
                raise ValueError(f"in a transaction a file is written whole, not opened with {mode!r}")
            return _Uncommitted(self, path, mode)
        raw = self._raw(path, mode)
        # Python's buffers know files that are read and written.
        size = block_size if isinstance(block_size, int) else BLOCK
        return io.BufferedRandom(raw, size) if raw.readable() else io.BufferedWriter(raw, size)

    # Details.

    def _raw(self, path: str, mode: str) -> AttachedFile:
        attached, within = self._at(path)
        return AttachedFile(attached, within, flags_of(mode))

    def _at(self, path: str) -> tuple[Attached, bytes]:
        """The export that a path lies in, attached, and the path within it."""
        tenant, _, rest = self._strip_protocol(path).partition("/")
        export, _, within = rest.partition("/")
        if not export:
            raise PermissionError(EACCES, "what a server's tenants and exports are is not to be changed here", path)
        name = f"{tenant}/{export}"
        with self._lock:
            attached = self._attached.get(name)
            if attached is None or attached.closed:
                with _as_os_errors(name):
                    attached = self._attached[name] = Attached.to(self.runtime, name)
        return attached, os.fsencode(within)

    def _exports(self, tenant: str | None) -> list[Info]:
        """The tenants whose exports we may use, or the exports of one."""
        with _as_os_errors(self.runtime):
            names = control.exports(self.runtime)
        if tenant is None:
            return [_directory(name) for name in sorted({name.partition("/")[0] for name in names})]
        found = [_directory(name) for name in sorted(names) if name.startswith(f"{tenant}/")]
        if not found:
            raise FileNotFoundError(2, "no export that we may use", tenant)
        return found

    def _listed(self, path: str) -> Iterator[Info]:
        attached, within = self._at(path)
        try:
            for listed in attached.listing(within):
                name = f"{path}/{os.fsdecode(listed.name)}"
                attributes = listed.attributes
                if attributes is None:
                    # It may be listed, and nothing more.
                    with contextlib.suppress(OSError):
                        attributes = attached.find(join(within, listed.name), follow=False)[1]
                if attributes is None:
                    yield {"name": name, "size": None, "type": _KINDS.get(listed.kind, "other")}
                elif stat.S_ISLNK(attributes.mode):
                    # A directory that is linked is not walked into: links may lead in a circle.
                    info = self.info(name)
                    yield {**info, "type": "link"} if info["type"] == "directory" else info
                else:
                    yield _info(name, attributes)
        except NotADirectoryError:
            yield self.info(path)


class FuseGatedFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file that is read, through one of fsspec's caches. In a process that was forked it is opened anew."""

    DEFAULT_BLOCK_SIZE = BLOCK

    def __init__(self, fs: FuseGatedFileSystem, path: str, mode: str = "rb", block_size: Any = "default", **options: Any) -> None:
        self._raw = fs._raw(path, "rb")
        self._pid = os.getpid()
        options.setdefault("size", self._raw.size())
        super().__init__(fs, path, mode, block_size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self._pid != os.getpid():
            self._raw, self._pid = self.fs._raw(self.path, "rb"), os.getpid()
        return self._raw.read_at(start, max(0, end - start))

    def close(self) -> None:
        super().close()
        raw = getattr(self, "_raw", None)
        if raw is not None:
            raw.close()


class _Uncommitted(io.BufferedWriter):
    """A file of a transaction: written beside its name, which it gets in the end."""

    def __init__(self, fs: FuseGatedFileSystem, path: str, mode: str) -> None:
        self._fs = fs
        self.path = path
        self._exclusive = mode == "xb"
        parent, _, name = path.rpartition("/")
        self._temporary = f"{parent}/.{name}.{secrets.token_hex(4)}"
        super().__init__(fs._raw(self._temporary, "xb"), BLOCK)

    def commit(self) -> None:
        """fsspec's: the transaction is complete."""
        attached, within = self._fs._at(self._temporary)
        attached.rename(within, self._fs._at(self.path)[1], RENAME_NOREPLACE if self._exclusive else 0)

    def discard(self) -> None:
        """fsspec's: it has failed."""
        self._fs.rm_file(self._temporary)


@contextlib.contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    """What the daemon says, as programs expect it of a filesystem."""
    try:
        yield
    except control.AttachError as error:
        raise OSError(error.errno, str(error), name) from None
    except GateError as error:
        raise ConnectionError(ECONNREFUSED, str(error), name) from None


def _directory(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}


def _info(name: str, attributes: Attributes) -> Info:
    kind = _KINDS.get(stat.S_IFMT(attributes.mode), "other")
    return {
        "name": name,
        "size": 0 if kind == "directory" else attributes.size,
        "type": kind,
        "mode": attributes.mode,
        "ino": attributes.inode,
        "nlink": attributes.nlink,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "created": attributes.ctime / _SECOND,
        "mtime": attributes.mtime / _SECOND,
        "mtime_ns": attributes.mtime,
        "ctime_ns": attributes.ctime,
        "islink": False,
    }


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
