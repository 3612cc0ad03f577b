"""The gate of one session: what a tenant's policy says of an operation, as a verdict.

The worker calls the methods for every operation that reaches it, and `fuse-gatectl explain` calls them through `judge`: there
is one gate. Denied is EACCES, hidden is ENOENT, and making a name that `hide` matches is EACCES, whether it exists or not.
Paths are bytes relative to the export's root, made of safe components (`paths.is_safe_name`).
"""

from typing import Final

from fuse_gated.errors import UsageError
from fuse_gated.gate.judgement import OPERATIONS, R_OK, W_OK, X_OK, Case
from fuse_gated.gate.policy import WALKABLE, Rules, Standing
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.verdict import ALLOWED, DELETE, EXECUTE, PERMISSIONS, READ, WRITE, Rule, Verdict
from fuse_gated.paths import split

# open(2): these four are the same on x86 and arm64 (asm-generic/fcntl.h).
O_ACCMODE: Final = 0o3
O_WRONLY: Final = 0o1
O_TRUNC: Final = 0o1000
FMODE_EXEC: Final = 0x20
"""The kernel's mark of an execve(2) in OPEN's flags (linux/fs.h)."""

_NAMES: Final = {bit: name for name, bit in PERMISSIONS.items()}
_NO_RULE: Final = -1

_READ_ONLY: Final = Verdict("EROFS", "", "the export is read-only")
_ROOT: Final = Verdict("EBUSY", "", "the export's root can be neither made, renamed nor removed")
_NOT_WALKABLE: Final = Verdict("EACCES", "", "no rule allows anything here or beneath")
_NOT_LISTED: Final = Verdict("EACCES", "", "the directory may not be read, and nothing beneath it may be listed")


class Gate:
    """What `tenant`'s policy says, for an export that is `read_only` or not.

    Raises ValueError if a rule's pattern is faulty (config refuses those before).
    """

    def __init__(self, tenant: Tenant, identity: Identity, *, read_only: bool = False) -> None:
        self.tenant = tenant
        self.identity = identity
        self.read_only = read_only
        self.rules = Rules(tenant.rules)
        self.any_execute = any(rule.allow & ~rule.deny & EXECUTE for rule in tenant.rules)
        """Whether any rule allows execute: where none does, the mount is noexec."""
        self._labels = tuple(_label(rule) for rule in tenant.rules)
        self._granted = tuple(Verdict(None, label, "allowed by the rule") for label in self._labels)
        self._denied: dict[tuple[int, int], Verdict] = {}
        self._hidden = tuple(Verdict("ENOENT", label, "hidden by the rule") for label in self._labels)
        self._unmakable = tuple(Verdict("EACCES", label, "the rule hides what has this name") for label in self._labels)

    # Names.

    def see(self, path: bytes) -> Verdict:
        """Looking a name up, its attributes, and going through a directory."""
        standing = self.rules.standing(path)
        if standing.level == WALKABLE:
            return ALLOWED
        verdict = self._grant(standing, READ)
        return verdict if verdict.rule else _NOT_WALKABLE

    def create(self, path: bytes) -> Verdict:
        """Making a name, of any kind: write in the parent and at the name."""
        if self.read_only:
            return _READ_ONLY
        if not path:
            return _ROOT
        parent = self._need(split(path)[0], WRITE)
        if parent.errno is not None:
            return parent
        standing = self.rules.standing(path)
        if standing.hidden_by is not None:
            return self._unmakable[standing.hidden_by]
        return self._grant(standing, WRITE)

    def remove(self, path: bytes) -> Verdict:
        """unlink and rmdir."""
        if self.read_only:
            return _READ_ONLY
        return self._need(path, DELETE) if path else _ROOT

    def rename(self, old: bytes, new: bytes, *, directory: bool, replaces: bool = False, exchange: bool = False) -> Verdict:
        """Delete at the old name, write at the new one and in its parent, delete of what it `replaces`; with `exchange` the
        same the other way round. Nothing is granted at a new name that the old one denied: EXDEV. `directory`: what moves
        is one, or with `exchange` either of the two."""
        make, remove_target = self.create(new), self.remove(new)
        if exchange:
            # Both are there already: a hidden one is not found, rather than refused as a name to make.
            steps: tuple[Verdict, ...] = (self.remove(old), remove_target, self.create(old), make)
        else:
            steps = (self.remove(old), make, remove_target if replaces else ALLOWED)
        refusal = next((verdict for verdict in steps if verdict.errno is not None), None) or self._widened(old, new, directory)
        if refusal is None and exchange:
            refusal = self._widened(new, old, directory)
        return refusal or make

    def link(self, old: bytes, new: bytes) -> Verdict:
        """A hard link: as making the new name, and that name may grant nothing which the old one denies (EXDEV)."""
        seen = self.see(old)
        if seen.errno is not None:
            return seen
        verdict = self.create(new)
        return verdict if verdict.errno is not None else self._widened(old, new, directory=False) or verdict

    # Files.

    def open(self, path: bytes, flags: int) -> Verdict:
        """`flags` are open(2)'s, as OPEN carries them."""
        mode = flags & O_ACCMODE
        verdict = ALLOWED
        if mode or flags & O_TRUNC:
            verdict = self.write(path)
            if mode == O_WRONLY or verdict.errno is not None:
                return verdict
        other = self._need(path, EXECUTE if flags & FMODE_EXEC else READ)
        return other if other.errno is not None or verdict is ALLOWED else verdict

    def read(self, path: bytes) -> Verdict:
        """Contents, a symlink's target, extended attributes."""
        return self._need(path, READ)

    def write(self, path: bytes) -> Verdict:
        """Contents, attributes, extended attributes."""
        return _READ_ONLY if self.read_only else self._need(path, WRITE)

    def lock(self, path: bytes) -> Verdict:
        """Locks on an open file: for whoever may read or write it."""
        standing = self.rules.standing(path)
        return self._grant(standing, WRITE if standing.rights & WRITE else READ)

    def access(self, path: bytes, mask: int, *, directory: bool) -> Verdict:
        """access(2): R_OK, W_OK, X_OK; 0 asks whether it is there (F_OK)."""
        verdict = self.see(path)
        if verdict.errno is None and mask & R_OK:
            verdict = self.list(path) if directory else self.read(path)
        if verdict.errno is None and mask & X_OK and not directory:
            verdict = self._need(path, EXECUTE)
        if verdict.errno is None and mask & W_OK:
            verdict = self.write(path)
        return verdict

    def shown_mode(self, path: bytes, mode: int) -> int:
        """The mode as it is shown: a regular file that may not be executed has no x bits."""
        if mode & 0o170000 == 0o100000 and mode & 0o111 and not self.rules.standing(path).rights & EXECUTE:
            return mode & ~0o111
        return mode

    # Directories.

    def list(self, path: bytes) -> Verdict:
        """opendir and readdir: read, or else something beneath that may be listed."""
        standing = self.rules.standing(path)
        if standing.rights & READ:
            return self._grant(standing, READ)
        if self.rules.may_be_listed(path):
            return ALLOWED
        verdict = self._grant(standing, READ)
        return verdict if verdict.rule else _NOT_LISTED

    def entry_is_listed(self, directory: bytes, name: bytes) -> bool:
        """Whether a listing shows the name: with read on the directory whatever is not hidden, without it only ways to what
        may be seen."""
        return self.rules.entry_is_listed(directory, name)

    def attributes_may_be_shown(self, path: bytes) -> bool:
        """Whether READDIRPLUS may carry the attributes of a name that is listed."""
        return self.rules.standing(path).level == WALKABLE

    # By name.

    def judge(
        self,
        operation: str,
        path: bytes,
        other: bytes | None = None,
        *,
        directory: bool = False,
        replaces: bool = False,
        flags: int = 0,
        mask: int = R_OK,
    ) -> Verdict:
        """The verdict on an operation of `OPERATIONS`. `other` is the new name of a rename, an exchange or a link, and where
        copy_file_range writes; `directory` and `replaces` are `rename`'s and `access`'s, `flags` `open`'s, `mask` `access`'s.

        Raises UsageError for an operation that is not in the table, and for one of two paths that is given but one.
        """
        known = OPERATIONS.get(operation)
        if known is None:
            raise UsageError(f"no operation is called '{operation}'", "there are " + ", ".join(OPERATIONS))
        if known.two_paths and other is None:
            raise UsageError(f"'{operation}' has two paths", "give the second one as well")
        return known.decide(self, Case(path, other or b"", directory, replaces, flags, mask))

    # The session.

    def caller_may_enter(self, uid: int) -> bool:
        """Whether a caller is one of the tenant's users. Where the policy names groups, everybody may be: a caller's
        supplementary groups are unknown here. The kernel has checked them at the mount's directory, which also means that
        root can never be kept out."""
        identity = self.identity
        return uid in identity.uids or identity.anyone or bool(identity.gids) or uid == 0

    def narrowed(self, old_gate: "Gate", path: bytes) -> bool:
        """Whether this gate, which follows `old_gate`, gives less at `path`, or shows a directory's names otherwise."""
        now, before = self.rules.standing(path), old_gate.rules.standing(path)
        return (
            now.level < before.level
            or before.rights & ~now.rights != 0
            or now.listing != before.listing
            or (self.read_only and not old_gate.read_only)
        )

    def _widened(self, old: bytes, new: bytes, directory: bool) -> Verdict | None:
        if directory:
            if self.rules.moves_freely(old, new):
                return None
            return Verdict("EXDEV", "", "the rules do not prove that nothing in the directory gains by its new place: copy it")
        gained = self.rules.standing(new).rights & ~self.rules.standing(old).rights
        if not gained:
            return None
        names = " and ".join(name for name, bit in PERMISSIONS.items() if gained & bit)
        return Verdict("EXDEV", "", f"the new name would grant {names}, which the old one denies: copy it")

    def _need(self, path: bytes, permission: int) -> Verdict:
        standing = self.rules.standing(path)
        if standing.rights & permission:
            return self._granted[standing.deciders[permission]]
        return self._grant(standing, permission)

    def _grant(self, standing: Standing, permission: int) -> Verdict:
        if standing.hidden_by is not None:
            return self._hidden[standing.hidden_by]
        index = standing.deciders.get(permission, _NO_RULE)
        if standing.rights & permission:
            return self._granted[index]
        verdict = self._denied.get((index, permission))
        if verdict is None:
            name = _NAMES[permission]
            if index == _NO_RULE:
                verdict = Verdict("EACCES", "", f"no rule allows {name} here")
            else:
                verdict = Verdict("EACCES", self._labels[index], f"the rule denies {name}")
            self._denied[index, permission] = verdict
        return verdict


def _label(rule: Rule) -> str:
    return f"{rule.path} ({rule.place})" if rule.place else rule.path
