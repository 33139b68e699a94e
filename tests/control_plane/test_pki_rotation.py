"""Renewing certificates and replacing the CA: what is done, and in which order only."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from typer.testing import CliRunner

from control_plane.cli.pki import _NEXT_STEP, app
from control_plane.pki import AuthorityError, create_ca, issue
from control_plane.pki.authority import ROLES
from control_plane.pki.files import locked, write_all
from control_plane.pki.rotation import PHASES, OutOfOrder, Rotation, Step, find, hosts_of
from runtime.clock import ManualClock, SystemClock
from runtime.identity import Identity, Principal

DAY_S = 86_400.0
NAMES = ("control/cp-1", "edge/tokyo", "core/singapore")


class Mesh:
    """A CA and a tree of identities, on a clock that is moved by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = path / "ca"
        self.tree = path / "identities"
        self.clock = ManualClock(wall=SystemClock().wall())
        create_ca(self.ca, clock=self.clock)
        for name in NAMES:
            self.issue(name)

    def issue(self, name: str, *hosts: str, days: int = 30) -> Path:
        role, _, rest = name.partition("/")
        folder = self.tree / role / rest
        issue(self.ca, Principal(role, rest), folder, hosts, days, self.clock)
        return folder

    def rotation(self, *, settle_s: float = 0.0, **options: bool) -> Rotation:
        held, broken = find([self.tree])
        assert not broken
        return Rotation(self.ca, held, self.clock, settle_s=settle_s, **options)

    def phase(self, phase: str, **options: bool) -> list[Step]:
        return list(self.rotation(**options).phase(phase))

    def check_all(self) -> None:
        """Every identity is whole, and everybody trusts everybody."""
        held, _ = find([self.tree])
        assert {h.principal for h in held} == set(NAMES)
        for one in held:
            one.identity.check(self.clock.wall())
            for other in held:
                assert any(one.is_of(root) for root in other.roots), (one.folder, other.folder)

    def bytes_of(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.path.rglob("*") if p.is_file()}


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


def failed(steps: Sequence[Step]) -> list[str]:
    return [step.error for step in steps if step.error]


# Leaves


def test_a_renewed_leaf_speaks_for_the_same(mesh: Mesh) -> None:
    folder = mesh.issue("edge/tokyo", "192.0.2.1", "edge.example", "2001:db8::1")
    before, _ = find([folder])
    mesh.clock.advance(5 * DAY_S)
    steps = list(mesh.rotation().renew())
    assert [step.principal for step in steps] == sorted(NAMES)
    assert not failed(steps)
    after, _ = find([folder])
    assert after[0].principal == "edge/tokyo"
    assert hosts_of(after[0].leaf) == hosts_of(before[0].leaf)
    assert {"192.0.2.1", "edge.example", "2001:db8::1"} <= set(hosts_of(after[0].leaf))
    assert after[0].identity.key_pem != before[0].identity.key_pem
    assert after[0].leaf.public_key() != before[0].leaf.public_key()
    gained = after[0].leaf.not_valid_after_utc - before[0].leaf.not_valid_after_utc
    assert gained.total_seconds() == pytest.approx(5 * DAY_S, abs=600)
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    mesh.check_all()


def test_only_those_that_are_old_enough(mesh: Mesh) -> None:
    mesh.clock.advance(10 * DAY_S)
    mesh.issue("edge/tokyo")
    mesh.clock.advance(5 * DAY_S)
    steps = list(mesh.rotation().renew(older_than_s=10 * DAY_S))
    assert {step.principal for step in steps} == {"control/cp-1", "core/singapore"}


@pytest.mark.parametrize("phase", ["", "trust", "reissue", "retire"])
def test_a_dry_run_changes_nothing(mesh: Mesh, phase: str) -> None:
    if phase in ("reissue", "retire"):
        mesh.phase("trust")
    if phase == "retire":
        mesh.phase("reissue")
    before = mesh.bytes_of()
    rotation = mesh.rotation(dry_run=True)
    steps = list(rotation.phase(phase) if phase else rotation.renew())
    assert len(steps) == len(NAMES)
    assert mesh.bytes_of() == before


def test_another_mesh_and_broken_folders_are_left_alone(mesh: Mesh, tmp_path: Path) -> None:
    create_ca(tmp_path / "elsewhere")
    issue(tmp_path / "elsewhere", Principal("edge", "london"), mesh.tree / "foreign")
    other = (mesh.tree / "foreign" / "certificate.pem").read_bytes()
    steps = list(mesh.rotation().renew())
    assert len(failed(steps)) == 1
    assert "was not issued by the CA" in failed(steps)[0]
    assert (mesh.tree / "foreign" / "certificate.pem").read_bytes() == other
    (mesh.tree / "broken").mkdir()
    (mesh.tree / "broken" / "certificate.pem").write_text("nonsense")
    held, broken = find([mesh.tree])
    assert len(held) == len(NAMES) + 1
    assert broken[0].folder == mesh.tree / "broken"
    with pytest.raises(AuthorityError, match="no folder"):
        find([tmp_path / "nowhere"])
    shutil.rmtree(mesh.tree / "broken")
    (mesh.ca / "ca-key.pem").unlink()
    with pytest.raises(AuthorityError, match="no CA"):
        list(mesh.rotation().renew())


# The CA


def test_the_phases_in_their_order(mesh: Mesh) -> None:
    old = (mesh.ca / "ca.pem").read_bytes()
    for phase in ("trust", "reissue", "retire"):
        steps = mesh.phase(phase)
        assert not failed(steps)
        assert len(steps) == len(NAMES)
        mesh.check_all()
        assert mesh.phase(phase) == [] if phase != "retire" else True  # nothing is left to do
    held, _ = find([mesh.tree])
    for one in held:
        assert old not in one.identity.ca_pem
        assert one.identity.ca_pem == (mesh.ca / "ca.pem").read_bytes()
    assert (mesh.ca / "retired-1" / "ca.pem").read_bytes() == old
    assert not (mesh.ca / "previous").exists()
    assert not (mesh.ca / "next").exists()
    for phase in ("trust", "reissue", "retire"):  # and once more
        mesh.phase(phase)
    mesh.check_all()
    assert (mesh.ca / "retired-2").exists()


def test_no_phase_comes_before_its_turn(mesh: Mesh) -> None:
    for phase in ("reissue", "retire"):
        with pytest.raises(OutOfOrder):
            mesh.phase(phase)
    mesh.phase("trust")
    with pytest.raises(OutOfOrder, match="no old CA"):
        mesh.phase("retire")
    mesh.phase("reissue")
    with pytest.raises(OutOfOrder, match="has not been retired"):
        mesh.phase("trust")
    mesh.check_all()


def test_nothing_is_reissued_before_everybody_trusts_it(mesh: Mesh) -> None:
    aside = mesh.path / "aside"
    shutil.move(mesh.tree / "edge", aside)
    mesh.phase("trust")
    shutil.move(aside, mesh.tree / "edge")
    before = mesh.bytes_of()
    with pytest.raises(OutOfOrder, match="edge/tokyo") as refused:
        mesh.phase("reissue")
    assert "--phase trust" in refused.value.hint
    assert mesh.bytes_of() == before
    mesh.phase("trust")
    mesh.phase("reissue")
    mesh.check_all()


def test_nothing_is_retired_before_everybody_was_reissued(mesh: Mesh) -> None:
    mesh.phase("trust")
    kept = {p: p.read_bytes() for p in (mesh.tree / "core").rglob("*.pem")}
    mesh.phase("reissue")
    for path, data in kept.items():  # somebody restored a backup
        path.write_bytes(data)
    with pytest.raises(OutOfOrder, match="core/singapore") as refused:
        mesh.phase("retire")
    assert "--phase reissue" in refused.value.hint
    mesh.phase("reissue")
    mesh.phase("retire")
    mesh.check_all()


def test_identities_elsewhere_are_not_forgotten(mesh: Mesh) -> None:
    role = Principal("operator", "alice")
    issue(mesh.ca, role, mesh.path / "home", days=30, clock=mesh.clock)
    mesh.phase("trust")
    with pytest.raises(OutOfOrder, match="operator/alice"):
        mesh.phase("reissue")
    assert mesh.phase("reissue", force=True)
    with pytest.raises(OutOfOrder, match="operator/alice"):
        mesh.phase("retire")
    mesh.clock.advance(31 * DAY_S)  # hers has run out meanwhile
    for step in mesh.rotation().renew():
        assert not step.error
    mesh.phase("retire")


def test_a_phase_waits_until_processes_have_read_the_one_before(mesh: Mesh) -> None:
    mesh.phase("trust")
    with pytest.raises(OutOfOrder, match="ago") as refused:
        list(mesh.rotation(settle_s=60.0).phase("reissue"))
    assert "wait" in refused.value.hint
    mesh.clock.advance(120.0)
    list(mesh.rotation(settle_s=60.0).phase("reissue"))
    mesh.check_all()


def test_a_change_of_ca_that_was_cut_off_goes_on(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.phase("trust")
    real, calls = write_all, 0

    def dies(*files: tuple[Path, bytes, int]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(*files)

    with monkeypatch.context() as patched:
        patched.setattr("control_plane.pki.rotation.write_all", dies)
        with pytest.raises(KeyboardInterrupt):
            mesh.phase("reissue")
    assert (mesh.ca / "previous").exists()
    assert (mesh.ca / "next").exists()
    mesh.phase("reissue")
    mesh.check_all()
    mesh.phase("retire")
    mesh.check_all()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_order_and_wherever_it_is_cut_off(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Processes that have read the last command and others that have not trust each other."""
    rng = Random(seed)
    left = 0

    def dies(*files: tuple[Path, bytes, int]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        write_all(*files)

    for module in ("rotation", "authority"):
        monkeypatch.setattr(f"control_plane.pki.{module}.write_all", dies)
    read = {held.principal: held for held in find([mesh.tree])[0]}
    for _ in range(20):
        left = rng.choice((0, rng.randint(1, 6)))
        with contextlib.suppress(KeyboardInterrupt, OutOfOrder):
            command = rng.choice(("trust", "reissue", "retire", ""))
            list(mesh.rotation().phase(command) if command else mesh.rotation().renew())
        now = {held.principal: held for held in find([mesh.tree])[0]}
        for held in now.values():
            held.identity.check(mesh.clock.wall())
        mixed = [rng.choice((read[name], now[name])) for name in NAMES]
        for one in mixed:
            assert all(any(one.is_of(root) for root in other.roots) for other in mixed)
        read = now


def test_a_folder_that_cannot_be_written_is_retired_the_next_time(mesh: Mesh) -> None:
    mesh.phase("trust")
    mesh.phase("reissue")
    in_the_way = mesh.tree / "edge" / "tokyo" / f".ca.pem.{os.getpid()}"
    in_the_way.mkdir()
    assert len(failed(mesh.phase("retire"))) == 1
    assert (mesh.ca / "previous").exists(), "it is still trusted, and so not yet put away"
    in_the_way.rmdir()
    steps = mesh.phase("retire")
    assert ([step.principal for step in steps], failed(steps)) == (["edge/tokyo"], [])
    assert not (mesh.ca / "previous").exists()
    mesh.check_all()


@pytest.mark.parametrize("phases", [[], ["trust", "reissue", "retire"]], ids=["first", "second"])
def test_a_key_without_its_certificate_stops_no_change_of_ca(mesh: Mesh, phases: list[str]) -> None:
    for phase in phases:
        mesh.phase(phase)
    (mesh.ca / "next").mkdir()
    (mesh.ca / "next" / "ca-key.pem").write_bytes(b"cut off")
    for phase in ("trust", "reissue", "retire"):
        assert not failed(mesh.phase(phase))
    mesh.check_all()


def test_certificates_issued_meanwhile_fit_in(mesh: Mesh) -> None:
    mesh.phase("trust")
    mesh.issue("edge/tokyo")
    mesh.check_all()
    mesh.phase("reissue")
    mesh.issue("edge/tokyo")
    mesh.check_all()
    mesh.phase("retire")
    mesh.issue("edge/tokyo")
    list(mesh.rotation().renew())
    mesh.check_all()


def test_other_roots_stay_and_retired_ones_do_not_come_back(mesh: Mesh) -> None:
    create_ca(mesh.path / "partner")
    partner = (mesh.path / "partner" / "ca.pem").read_bytes()
    path = mesh.tree / "edge" / "tokyo" / "ca.pem"
    path.write_bytes(path.read_bytes() + partner)
    left = mesh.path / "left"
    shutil.copytree(mesh.tree / "edge" / "tokyo", left)
    for phase in ("trust", "reissue", "retire"):
        mesh.phase(phase)
        assert partner in path.read_bytes()
    # A copy that was forgotten trusts the old CA still; its certificate is of no use.
    held, _ = find([left])
    assert failed(list(Rotation(mesh.ca, held, mesh.clock).renew()))


# The command line


def tradewind(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_command(mesh: Mesh) -> None:
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca, "--dry-run")
    assert code == 0
    assert out.count("would be renewed") == len(NAMES)
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca, "--older-than", "10d")
    assert (code, "0 done, 3 left as they are, 0 failed" in out) == (0, True)
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca, "--phase", "trust")
    assert code == 0
    assert "--phase reissue" in out
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca, "--phase", "reissue")
    assert code != 0
    assert "ago" in out
    for phase in ("reissue", "retire"):
        code, out = tradewind(
            "rotate", mesh.tree, "--ca", mesh.ca, "--phase", phase, "--settle", "0s"
        )
        assert code == 0, out
    mesh.check_all()


def test_the_help_knows_every_role_and_phase() -> None:
    told = CliRunner().invoke(app, ["issue", "--help"], env={"COLUMNS": "200"}).output
    assert all(role in told for role in ROLES)
    assert tuple(_NEXT_STEP) == PHASES


def test_two_at_once_and_links(mesh: Mesh) -> None:
    with locked(mesh.ca):
        code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca)
        assert code == 1
        assert "somebody else" in out
    linked = mesh.tree / "linked"
    linked.mkdir()
    for name in ("certificate.pem", "key.pem", "ca.pem"):
        (linked / name).symlink_to(mesh.tree / "edge" / "tokyo" / name)
    code, out = tradewind("rotate", linked, "--ca", mesh.ca)
    assert code == 1
    assert "symbolic link" in out
    assert (linked / "key.pem").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--phase", "all"), "--phase 'all'"),
        (("--phase", "trust", "--older-than", "1d"), "do not go with"),
        (("--older-than", "soon"), "is no 90s"),
        (("--older-than", "-1d"), "is no 90s"),
        (("--settle", "٣s"), "is no 90s"),
    ],
)
def test_wrong_options(mesh: Mesh, arguments: tuple[str, ...], told: str) -> None:
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca, *arguments)
    assert code == 2
    assert told in " ".join(out.split())


def test_a_phase_needs_all_identities(mesh: Mesh) -> None:
    (mesh.tree / "edge" / "tokyo" / "key.pem").unlink()
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca, "--phase", "trust")
    assert code == 1
    assert "cannot be read" in out
    code, out = tradewind("rotate", mesh.tree, "--ca", mesh.ca)
    assert code == 1
    assert "2 done" in out
    code, out = tradewind("rotate", mesh.path / "ca", "--ca", mesh.ca)
    assert "no identity in" in out


def test_certificates_are_what_others_expect(mesh: Mesh) -> None:
    """Old and new CA differ by name, for verifiers that look an issuer up by it."""
    mesh.phase("trust")
    held, _ = find([mesh.tree])
    names = {root.subject for root in held[0].roots}
    assert len(names) == 2
    mesh.phase("reissue")
    leaf = x509.load_pem_x509_certificate(
        Identity.load(find([mesh.tree])[0][0].identity.files).certificate_pem
    )
    assert leaf.issuer in names
