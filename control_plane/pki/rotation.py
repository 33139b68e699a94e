"""Renew certificates, and replace the CA itself, without anybody being cut off.

A leaf is renewed in its folder: a new key, the same principal and hosts. Processes notice the
files and show the new certificate from their next handshake on.

A CA is replaced in three phases, each for all identities before the next one begins:

1. *trust*: a new CA is made in `next/`, and every `ca.pem` names both. Nobody shows anything new.
2. *reissue*: the new CA takes over, the old one goes to `previous/`, and every leaf is reissued.
   Whoever meets old or new leaves trusts both.
3. *retire*: the old CA leaves every `ca.pem`. Its certificates are refused from then on.

Each phase may be run again: it goes on where it stopped. Each checks that the one before is
complete, as far as the folders it is given, the CA's ledger and the clock can say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography import x509
from msgspec import Struct

from control_plane.pki import bundle, ledger
from control_plane.pki.authority import create_ca, identity_files, issue, load_ca
from control_plane.pki.bundle import CA_CERTIFICATE, CA_KEY, NEXT, PREVIOUS, RETIRED
from control_plane.pki.files import AuthorityError, write_all
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.identity import Identity, IdentityError, issuer_in

PHASES = ("trust", "reissue", "retire")

DAY_S = 86_400.0
_FILES = ("certificate.pem", "key.pem", "ca.pem")


class OutOfOrder(AuthorityError):
    """A phase that would cut somebody off now."""

    code = "refused"  # for the command's exit code


class Held(Struct, frozen=True):
    """An identity in its folder."""

    folder: Path
    identity: Identity
    leaf: x509.Certificate
    roots: tuple[x509.Certificate, ...]

    @property
    def principal(self) -> str:
        return str(self.identity.principal)

    def is_of(self, authority: x509.Certificate) -> bool:
        return issuer_in(self.leaf, [], [authority]) is not None


class Step(Struct, frozen=True):
    """What was done to one folder, or is to be done. `error`: it could not be."""

    folder: Path
    principal: str
    done: str
    error: str = ""


def find(trees: Sequence[Path]) -> tuple[list[Held], list[Step]]:
    """Every identity in folders under `trees`, and why others there cannot be read."""
    held: dict[Path, Held] = {}
    broken = []
    for tree in trees:
        if not tree.is_dir():
            raise AuthorityError(f"{tree} is no folder")
        for certificate in sorted(tree.rglob(_FILES[0])):
            folder = certificate.parent
            if folder.resolve() in held:
                continue
            try:
                _check_plain(folder)
                identity = Identity.load(identity_files(folder))
                roots = tuple(bundle.read(folder / _FILES[2]))
                held[folder.resolve()] = Held(folder, identity, identity.leaf(), roots)
            except TradewindError as error:
                broken.append(Step(folder, "?", "", error.message))
    return list(held.values()), broken


def _check_plain(folder: Path) -> None:
    for name in _FILES:
        if (folder / name).is_symlink():
            raise AuthorityError(f"{folder / name} is a symbolic link: renew what it points to")


class Rotation:
    """Works on the CA in `authority` and identities `found`. With `dry_run` nothing changes."""

    def __init__(
        self,
        authority: Path,
        found: Sequence[Held],
        clock: Clock,
        *,
        dry_run: bool = False,
        settle_s: float = 60.0,
        force: bool = False,
    ) -> None:
        self._authority = authority
        self._found = found
        self._clock = clock
        self._dry_run = dry_run
        self._settle_s = settle_s
        self._force = force

    def renew(self, older_than_s: float = 0.0, days: float | None = None) -> Iterator[Step]:
        """Renew leaves that were issued at least `older_than_s` ago."""
        load_ca(self._authority)
        now_s = self._clock.wall()
        for held in self._found:
            age_s = now_s - held.leaf.not_valid_before_utc.timestamp()
            if age_s >= older_than_s:
                yield self._each(held, f"renewed, {age_s / DAY_S:.0f} days old", days)

    def phase(self, phase: str) -> Iterator[Step]:
        """Carry out one phase. Raises `OutOfOrder` before anything was changed."""
        run: dict[str, Callable[[], Iterator[Step]]] = {
            "trust": self._trust,
            "reissue": self._reissue,
            "retire": self._retire,
        }
        return run[phase]()

    # The phases

    def _trust(self) -> Iterator[Step]:
        current, _ = load_ca(self._authority)
        if self._at(PREVIOUS).exists():
            raise OutOfOrder(
                "the CA before this one has not been retired yet",
                hint="finish that first: --phase reissue, then --phase retire",
            )
        coming = self._at(NEXT)
        if not coming.exists() and not self._dry_run:
            # The key of a CA that nobody can trust yet, or whose successor has it: cut off there.
            (coming.parent / CA_KEY).unlink(missing_ok=True)
            create_ca(coming.parent, clock=self._clock)
        roots = [current, *bundle.read(coming)]
        for held in self._found:
            if not held.is_of(current):
                yield self._foreign(held)
            elif coming.exists() and all(bundle.holds(held.roots, root) for root in roots):
                continue
            else:
                yield self._rewrite(held, bundle.with_roots(held.roots, roots), "trusts both CAs")

    def _reissue(self) -> Iterator[Step]:
        if self._at(NEXT).exists():
            self._check_trusted(bundle.read(self._at(NEXT)))
            if not self._dry_run:
                self._promote()
        elif not self._at(PREVIOUS).exists():
            raise OutOfOrder(
                "there is no new CA yet, which everybody would have to trust first",
                hint="begin with --phase trust",
            )
        current, _ = load_ca(self._authority)
        for held in self._found:
            if self._dry_run or not held.is_of(current):
                yield self._each(held, "reissued under the new CA", None)

    def _retire(self) -> Iterator[Step]:
        previous = bundle.read(self._at(PREVIOUS))
        if not previous or self._at(NEXT).exists():
            raise OutOfOrder(
                "there is no old CA to retire",
                hint="the phases are: trust, reissue, retire",
            )
        current, _ = load_ca(self._authority)
        self._check_reissued(current, previous[0])
        failed = False
        for held in self._found:
            if any(bundle.holds(held.roots, root) for root in previous):
                kept = bundle.with_roots(bundle.without(held.roots, previous), [current])
                step = self._rewrite(held, kept, "trusts the new CA alone")
                failed |= bool(step.error)
                yield step
        if not self._dry_run and not failed:
            self._put_away()

    # Checks

    def _check_trusted(self, coming: Sequence[x509.Certificate]) -> None:
        lacking = [h for h in self._found if not all(bundle.holds(h.roots, c) for c in coming)]
        self._refuse(
            lacking,
            "do not trust the new CA yet: they would refuse whoever shows its certificates",
            "run --phase trust for them first",
        )
        current, _ = load_ca(self._authority)
        self._check_nobody_is_missing(current, "would not trust the new CA")
        self._check_settled(_FILES[2], "trust the new CA")

    def _check_reissued(self, current: x509.Certificate, previous: x509.Certificate) -> None:
        behind = [held for held in self._found if not held.is_of(current)]
        self._refuse(
            behind,
            "still show certificates of the old CA: they would be refused",
            "run --phase reissue for them first",
        )
        self._check_nobody_is_missing(previous, "would be refused")
        self._check_settled(_FILES[0], "show their new certificate")

    def _refuse(self, folders: Sequence[Held], why: str, hint: str) -> None:
        if folders:
            named = ", ".join(f"{held.principal} in {held.folder}" for held in folders[:5])
            more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
            raise OutOfOrder(f"{len(folders)} identities {why}: {named}{more}", hint=hint)

    def _check_nobody_is_missing(self, issuer: x509.Certificate, what: str) -> None:
        """Identities that the CA issued and that are in none of the folders."""
        out = ledger.outstanding(self._authority, issuer, self._clock.wall())
        here = {held.principal for held in self._found}
        missing = [entry for name, entry in sorted(out.items()) if name not in here]
        if missing and not self._force:
            named = ", ".join(f"{entry.principal} ({entry.folder})" for entry in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise OutOfOrder(
                f"{len(missing)} identities were issued that are in none of these folders, and"
                f" {what}: {named}{more}",
                hint="name their folders too; --force-missing gives them up",
            )

    def _check_settled(self, name: str, what: str) -> None:
        """Processes read their files every few seconds; copies to other machines take longer."""
        if self._settle_s <= 0:
            return
        now_s = self._clock.wall()
        written_s = max(((h.folder / name).stat().st_mtime for h in self._found), default=0.0)
        left_s = written_s + self._settle_s - now_s
        if left_s > 0:
            raise OutOfOrder(
                f"the last of them was told {now_s - written_s:.0f} s ago to {what}",
                hint=f"wait {left_s:.0f} s more, until every process has read it; --settle"
                " changes the wait",
            )

    # Changes

    def _each(self, held: Held, done: str, days: float | None) -> Step:
        """Reissue one leaf as it was."""
        if not any(held.is_of(root) for root in bundle.trusted(self._authority)):
            return self._foreign(held)
        span = held.leaf.not_valid_after_utc - held.leaf.not_valid_before_utc
        if not self._dry_run:
            try:
                issue(
                    self._authority,
                    held.identity.principal,
                    held.folder,
                    hosts_of(held.leaf),
                    days if days is not None else span.total_seconds() / DAY_S,
                    self._clock,
                    bundle.without(held.roots, bundle.retired(self._authority)),
                )
            except (AuthorityError, IdentityError) as error:
                return Step(held.folder, held.principal, "", error.message)
        return Step(held.folder, held.principal, done)

    def _rewrite(self, held: Held, roots: Sequence[x509.Certificate], done: str) -> Step:
        if not self._dry_run:
            try:
                write_all((held.folder / _FILES[2], bundle.pem_of(roots), 0o644))
            except AuthorityError as error:
                return Step(held.folder, held.principal, "", error.message)
        return Step(held.folder, held.principal, done)

    def _foreign(self, held: Held) -> Step:
        return Step(
            held.folder, held.principal, "", f"it was not issued by the CA in {self._authority}"
        )

    def _promote(self) -> None:
        """The next CA becomes the issuing one. May be cut off at any point and run again."""
        here, coming, old = self._authority, self._at(NEXT).parent, self._at(PREVIOUS).parent
        if not self._at(PREVIOUS).exists():
            write_all(
                (old / CA_KEY, (here / CA_KEY).read_bytes(), 0o600),
                (old / CA_CERTIFICATE, (here / CA_CERTIFICATE).read_bytes(), 0o644),
            )
        write_all(
            (here / CA_KEY, (coming / CA_KEY).read_bytes(), 0o600),
            (here / CA_CERTIFICATE, (coming / CA_CERTIFICATE).read_bytes(), 0o644),
        )
        (coming / CA_CERTIFICATE).unlink()
        (coming / CA_KEY).unlink()
        coming.rmdir()

    def _put_away(self) -> None:
        number = 1
        while (retired := self._authority / f"{RETIRED}{number}").exists():
            number += 1
        self._at(PREVIOUS).parent.rename(retired)

    def _at(self, place: str) -> Path:
        return self._authority / place / CA_CERTIFICATE


def hosts_of(leaf: x509.Certificate) -> list[str]:
    """The names and addresses that it may be reached under, its own among them."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]
