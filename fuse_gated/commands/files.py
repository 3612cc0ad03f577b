"""`fuse-gatectl files`: a session's files without a mount, past the same gate and into the same audit."""

import argparse
import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from errno import EACCES
from typing import BinaryIO, Final

from fuse_gated.attached import Attached
from fuse_gated.attached_file import BLOCK, AttachedFile
from fuse_gated.commands.output import plain, print_json
from fuse_gated.errors import OperatorError, UsageError
from fuse_gated.operations import Attributes
from fuse_gated.paths import join

_STDIO: Final = "-"
_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_EPILOG: Final = "PLACE is SESSION:PATH; SESSION is a session's name (see: fuse-gatectl sessions) or TENANT/EXPORT."


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommand and its own; their arguments go to what their `run` says."""
    files = subparsers.add_parser(
        "files",
        help="list, read and write a session's files, mounted or not",
        description="Lists, reads and writes files of a session, mounted or not. Who may use the tenant's mounts may use this; "
        "every operation passes the gate and is told to the audit.",
        epilog=_EPILOG,
    )
    inner = files.add_subparsers(dest="action", metavar="ACTION", required=True)

    ls = inner.add_parser("ls", parents=[common], help="list a directory", epilog=_EPILOG)
    ls.add_argument("-l", "--long", action="store_true", help="with mode, size and time of the last change")
    ls.add_argument("place", metavar="PLACE")
    ls.set_defaults(run=_guarded(run_ls))

    cat = inner.add_parser("cat", help="write files to stdout", epilog=_EPILOG)
    cat.add_argument("places", metavar="PLACE", nargs="+")
    cat.set_defaults(run=_guarded(run_cat))

    get = inner.add_parser("get", help="copy a file to this machine", epilog=_EPILOG)
    get.add_argument("place", metavar="PLACE")
    get.add_argument("local", metavar="FILE", nargs="?", default=".", help="a file or a directory, or - for stdout (default: .)")
    get.set_defaults(run=_guarded(run_get))

    put = inner.add_parser("put", help="copy a file of this machine there", epilog=_EPILOG)
    put.add_argument("local", metavar="FILE", help="a file, or - for stdin")
    put.add_argument("place", metavar="PLACE")
    put.set_defaults(run=_guarded(run_put))

    rm = inner.add_parser("rm", help="remove files", epilog=_EPILOG)
    rm.add_argument("-r", "--recursive", action="store_true", help="remove directories too, with all that is in them")
    rm.add_argument("places", metavar="PLACE", nargs="+")
    rm.set_defaults(run=_guarded(run_rm))


def run_ls(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises OSError and what `control.attach` raises, as the others do."""
    with _attached(options, options.place) as (attached, path):
        shown = sorted(_entries(attached, path))
        if options.json:
            print_json([_json(name, found) for name, found in shown])
        elif options.long:
            for name, found in shown:
                print(f"{_long(found)}  {plain(os.fsdecode(name))}")
        else:
            for name, _ in shown:
                print(plain(os.fsdecode(name)))
    return 0


def run_cat(options: argparse.Namespace) -> int:
    for place in options.places:
        with _attached(options, place) as (attached, path), AttachedFile(attached, path, os.O_RDONLY) as file:
            _pour(file, sys.stdout.buffer)
    return 0


def run_get(options: argparse.Namespace) -> int:
    with _attached(options, options.place) as (attached, path), AttachedFile(attached, path, os.O_RDONLY) as file:
        if options.local == _STDIO:
            _pour(file, sys.stdout.buffer)
            return 0
        local = options.local
        if os.path.isdir(local):
            local = os.path.join(local, os.fsdecode(path.rstrip(b"/").rpartition(b"/")[2]))
        with open(local, "wb") as target:
            _pour(file, target)
    return 0


def run_put(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        # First what is here: a name that is mistyped must empty nothing there.
        source = sys.stdin.buffer if options.local == _STDIO else stack.enter_context(open(options.local, "rb"))
        attached, path = stack.enter_context(_attached(options, options.place))
        if options.local != _STDIO and _is_directory(attached, path):
            path = join(path.rstrip(b"/"), os.fsencode(os.path.basename(options.local)))
        mode = 0o666 if options.local == _STDIO else stat.S_IMODE(os.fstat(source.fileno()).st_mode)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        target = stack.enter_context(AttachedFile(attached, path, flags, mode))
        while data := source.read(BLOCK):
            target.write(data)
    return 0


def run_rm(options: argparse.Namespace) -> int:
    for place in options.places:
        with _attached(options, place) as (attached, path):
            _remove(attached, path, recursive=options.recursive)
    return 0


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Errors of files as errors for people."""

    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except BrokenPipeError:
            raise
        except OSError as error:
            hint = "which rule says so: fuse-gatectl explain TENANT PATH OPERATION" if error.errno == EACCES else ""
            where = f"{error.filename}: " if error.filename else ""
            raise OperatorError(f"{where}{error.strerror}", hint) from None

    return guarded


@contextlib.contextmanager
def _attached(options: argparse.Namespace, place: str) -> Iterator[tuple[Attached, bytes]]:
    session, colon, path = place.partition(":")
    if not colon or not session:
        raise UsageError(f"'{place}' is no SESSION:PATH", "such as acme/src:README.md; fuse-gatectl sessions lists them")
    attached = Attached.to(options.runtime, session)
    try:
        yield attached, os.fsencode(path).strip(b"/")
    finally:
        attached.close()


def _entries(attached: Attached, path: bytes) -> Iterator[tuple[bytes, Attributes | int]]:
    """Names with their attributes, or with their file type where no more may be shown; of what is no directory, itself."""
    node, found = attached.find(path)
    if not stat.S_ISDIR(found.mode):
        yield path.rpartition(b"/")[2], found
        return
    for listed in attached.listing(node):
        yield listed.name, listed.attributes if listed.attributes is not None else listed.kind


def _json(name: bytes, found: Attributes | int) -> dict[str, object]:
    """A name that is no text has its bytes as \\udcNN."""
    shown = {"name": os.fsdecode(name)}
    if isinstance(found, int):
        return {**shown, "type": _KINDS.get(found, "other")}
    return {
        **shown,
        "type": _KINDS.get(stat.S_IFMT(found.mode), "other"),
        "size": found.size,
        "mode": f"{stat.S_IMODE(found.mode):04o}",
        "uid": found.uid,
        "gid": found.gid,
        "mtime": found.mtime / 1e9,
        "inode": found.inode,
    }


def _long(found: Attributes | int) -> str:
    if isinstance(found, int):
        return f"{stat.filemode(found)[0]}?????????  {'?':>12}  {'?':16}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.mtime / 1e9))
    return f"{stat.filemode(found.mode)}  {found.size:>12}  {when}"


def _pour(file: AttachedFile, target: BinaryIO) -> None:
    offset = 0
    while data := file.read_at(offset, BLOCK):
        target.write(data)
        offset += len(data)
    target.flush()


def _is_directory(attached: Attached, path: bytes) -> bool:
    try:
        return stat.S_ISDIR(attached.find(path)[1].mode)
    except FileNotFoundError:
        return False


def _remove(attached: Attached, path: bytes, *, recursive: bool) -> None:
    """Links are removed, never what they lead to."""
    if not stat.S_ISDIR(attached.find(path, follow=False)[1].mode):
        attached.unlink(path)
        return
    if not recursive:
        raise OperatorError(f"{attached.named(path)} is a directory", "to remove it with all that is in it: --recursive")
    attached.remove_tree(path)
