from __future__ import annotations

import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgetun_core.errors import ConfigError
from edgetun_core.pki import (
    CLOCK_SKEW_S,
    DAY_S,
    LEAF_TTL_S,
    DevelopmentCA,
    ServerIdentity,
    Trust,
    ca_with_fingerprint,
    canonical_names,
    certificates_der,
    fingerprint,
    is_renewal_due,
)

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> DevelopmentCA:
    return DevelopmentCA(tmp_path / "ca", clock=clock)


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_the_ca_is_made_on_first_use_and_its_key_is_private(ca: DevelopmentCA, tmp_path: Path) -> None:
    assert not (tmp_path / "ca").exists()
    assert ca.ca_pem.startswith(b"-----BEGIN CERTIFICATE-----")
    assert _mode(tmp_path / "ca") == 0o700
    assert _mode(tmp_path / "ca" / "ca.key") == 0o600
    assert DevelopmentCA(tmp_path / "ca").ca_pem == ca.ca_pem
    certificate = x509.load_pem_x509_certificate(ca.ca_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca


def test_a_leaf_carries_its_names_and_its_bounds(ca: DevelopmentCA) -> None:
    names = ["Shop.Example.", "*.apps.example", "127.0.0.1", "::1", "bücher.example"]
    cert_pem, key_pem = ca.issue(names)
    leaf = x509.load_pem_x509_certificate(cert_pem)
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(found.get_values_for_type(x509.DNSName)) == {"shop.example", "*.apps.example", "xn--bcher-kva.example"}
    assert {str(ip) for ip in found.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert leaf.not_valid_before_utc.timestamp() == NOW - CLOCK_SKEW_S
    assert leaf.not_valid_after_utc.timestamp() == NOW + LEAF_TTL_S
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.ca_pem))
    ServerIdentity(cert_pem, key_pem)


def test_a_leaf_never_outlives_its_ca(ca: DevelopmentCA, clock: Clock) -> None:
    ca_ends = x509.load_pem_x509_certificate(ca.ca_pem).not_valid_after_utc
    clock.now = ca_ends.timestamp() - 5 * DAY_S
    assert x509.load_pem_x509_certificate(ca.issue(["a.example"])[0]).not_valid_after_utc == ca_ends


@pytest.mark.parametrize("names", [[], [""], ["a..b"], ["-a.example"], ["a b"], ["*"], ["a.*.example"], ["x" * 64]])
def test_what_is_no_name_is_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError):
        canonical_names(names)


def test_names_are_each_once_and_the_first_stays_first() -> None:
    assert canonical_names(["b.example", "B.example", "[::1]", "a.example", "::0001"]) == (
        "b.example",
        "::1",
        "a.example",
    )


def test_a_kept_leaf_is_used_until_a_third_of_its_time_is_left(ca: DevelopmentCA, clock: Clock, tmp_path: Path) -> None:
    first = ca.leaf(["a.example", "b.example"])
    (kept,) = (tmp_path / "ca").glob("leaf-*.pem")
    assert _mode(kept) == 0o600
    clock.now += LEAF_TTL_S * 0.66
    assert ca.leaf(["a.example", "b.example"]) == first
    assert ca.leaf(["a.example"]) != first
    clock.now += LEAF_TTL_S * 0.02
    renewed = ca.leaf(["a.example", "b.example"])
    assert renewed != first
    assert ca.leaf(["a.example", "b.example"]) == renewed


def test_a_damaged_or_foreign_leaf_is_made_again(ca: DevelopmentCA, tmp_path: Path) -> None:
    first = ca.leaf(["a.example"])
    (kept,) = (tmp_path / "ca").glob("leaf-*.pem")
    whole = kept.read_bytes()
    for broken in (b"", whole[:200], whole.replace(b"issuer: ", b"issuer: 0"), whole.replace(b"ends: ", b"ends: x")):
        kept.write_bytes(broken)
        made = ca.leaf(["a.example"])
        assert made != first
        ServerIdentity(*made)


def test_the_ca_is_renewed_when_it_is_due_and_old_leaves_go_with_it(ca: DevelopmentCA, clock: Clock) -> None:
    old_ca, old_leaf = ca.ca_pem, ca.leaf(["a.example"])
    assert not ca.renew()
    clock.now += 3650 * DAY_S * 0.7
    assert ca.renew()
    assert ca.ca_pem != old_ca
    assert ca.leaf(["a.example"]) != old_leaf
    assert not ca.renew()


def test_renewal_is_due_in_the_last_third_and_when_the_clock_is_before_the_beginning() -> None:
    assert not is_renewal_due(0, 90, 59)
    assert is_renewal_due(0, 90, 61)
    assert is_renewal_due(10_000, 20_000, 10_000 - CLOCK_SKEW_S - 1)


def test_processes_that_start_together_agree_on_one_ca(tmp_path: Path) -> None:
    code = "import sys; from edgetun_core.pki import DevelopmentCA; print(DevelopmentCA(sys.argv[1]).ca_pem.decode())"
    command = [sys.executable, "-c", code, str(tmp_path / "ca")]
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = {process.communicate(timeout=30)[0].strip() for process in together}
    assert len(made) == 1
    certificate = (tmp_path / "ca" / "ca.pem").read_bytes()
    assert made == {certificate.decode().strip()}
    ServerIdentity(certificate, (tmp_path / "ca" / "ca.key").read_bytes())


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(ConfigError, match=r"file/ca.*choose a folder"):
        DevelopmentCA(file / "ca").ca_pem  # noqa: B018


def test_a_warm_start_does_not_import_cryptography(tmp_path: Path) -> None:
    DevelopmentCA(tmp_path).identity(["localhost"])
    code = (
        "import sys; from edgetun_core.pki import DevelopmentCA; ca = DevelopmentCA(sys.argv[1]);"
        "ca.identity(['localhost']); ca.fingerprint; ca.trust.ssl_context(['edgetun/1']);"
        "sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=30)


def test_a_fingerprint_is_that_of_the_der_and_finds_its_certificate(ca: DevelopmentCA) -> None:
    from cryptography.hazmat.primitives import hashes

    certificate = x509.load_pem_x509_certificate(ca.ca_pem)
    assert ca.fingerprint == fingerprint(ca.ca_pem) == certificate.fingerprint(hashes.SHA256()).hex()
    leaf_pem, _ = ca.issue(["a.example"])
    chain = certificates_der(leaf_pem + ca.ca_pem)
    assert len(chain) == 2
    pinned = ca_with_fingerprint(chain, ca.fingerprint)
    assert pinned is not None
    assert certificates_der(pinned) == certificates_der(ca.ca_pem)
    assert ca_with_fingerprint(chain[:1], ca.fingerprint) is None
    with pytest.raises(ConfigError):
        fingerprint(b"nothing")


def test_an_identity_of_another_key_is_refused_and_the_old_one_stays(ca: DevelopmentCA) -> None:
    identity = ca.identity(["a.example"])
    before = identity.version, identity.cert_pem, identity.ssl_context(["x"])
    with pytest.raises(ConfigError, match="does not belong"):
        identity.replace(ca.issue(["a.example"])[0], identity.key_pem)
    with pytest.raises(ConfigError, match="not a PEM"):
        identity.replace(b"", b"")
    assert (identity.version, identity.cert_pem, identity.ssl_context(["x"])) == before


def test_an_identity_of_files_is_read_again_when_they_change(ca: DevelopmentCA, tmp_path: Path) -> None:
    cert_file, key_file = tmp_path / "tls.crt", tmp_path / "tls.key"

    def write(pair: tuple[bytes, bytes]) -> None:
        cert_file.write_bytes(pair[0])
        key_file.write_bytes(pair[1])

    write(ca.issue(["a.example"]))
    identity = ServerIdentity.from_files(cert_file, key_file)
    old = identity.ssl_context(["edgetun/1"])
    assert identity.ssl_context(["edgetun/1"]) is old
    assert not identity.reload()
    write(ca.issue(["b.example"]))
    assert identity.reload()
    assert identity.version == 2
    assert identity.ssl_context(["edgetun/1"]) is not old
    cert_file.write_bytes(b"half a fi")
    with pytest.raises(ConfigError, match=r"tls\.crt"):
        identity.reload()
    cert_file.unlink()
    with pytest.raises(ConfigError, match=r"tls\.crt: No such file"):
        identity.reload()
    assert b"BEGIN" in identity.cert_pem


def test_trust_is_tls_1_3_and_verifies_unless_told_otherwise(ca: DevelopmentCA) -> None:
    context = ca.trust.ssl_context(["edgetun/1"])
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    assert Trust(insecure=True).ssl_context().verify_mode is ssl.CERT_NONE
    with pytest.raises(ConfigError, match="cannot be read"):
        Trust(ca_pem=b"not a certificate").ssl_context()
