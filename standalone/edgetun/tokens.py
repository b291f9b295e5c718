"""What stands behind `edgetun token create|list|revoke` and `edgetun host list|release`: the state folder, also while a server runs.

A token is shown once, when it is made; what is kept is a hash.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgetun_control.store import Claim, StoreProblem
from edgetun_control.stores.files import write_whole
from edgetun_control.stores.state_folder import StateFolder
from edgetun_core.api.names import check_hostname
from edgetun_core.credentials import ClusterToken, TokenRecord, hash_secret
from edgetun_core.credentials.cluster_token import is_control_url
from edgetun_core.errors import ConfigError
from edgetun_core.pki import DevelopmentCA
from edgetun_core.quantities import parse_duration, quoted

SERVER_FILE: Final = "server.json"
MAX_LABEL_LENGTH: Final = 100
MAX_PATTERNS: Final = 100


class ServerFacts(msgspec.Struct, frozen=True):
    """What `edgetun serve` leaves in the state folder for `edgetun token create`: how agents reach it and whom they trust.

    `has_public_certificate`: agents trust the system's CAs, and the token pins nothing. `domain`: where single labels go.
    """

    control_urls: tuple[str, ...]
    domain: str = ""
    has_public_certificate: bool = False


def remember_server(state: Path, facts: ServerFacts) -> None:
    """Writes the facts when they changed. Raises `ConfigError`."""
    folder = StateFolder(state)
    folder.create()
    if _read_facts(state) != facts:
        write_whole(state / SERVER_FILE, msgspec.json.encode(facts) + b"\n")


@dataclass(frozen=True, slots=True)
class TokenLine:
    """One line of `edgetun token list`. Times are seconds since the epoch, 0 for never; `state` is live, expired or revoked."""

    id: str
    label: str
    state: str
    tunnels: tuple[str, ...]
    hostnames: tuple[str, ...]
    created: float
    expires: float
    last_used: float
    claimed: tuple[str, ...]
    """Hostnames that it claimed."""


def create_token(
    state: Path,
    *,
    label: str = "",
    tunnels: Iterable[str] = (),
    hostnames: Iterable[str] = (),
    expires: str = "",
    control_urls: Iterable[str] = (),
    now: float | None = None,
) -> tuple[TokenRecord, str]:
    """Makes a token; returns its record and its text, which exists nowhere else.

    `expires` is a duration such as `30d`; empty: the token has no end. `control_urls` default to those of the server that ran
    on this folder last. Raises `ConfigError`.
    """
    created = time.time() if now is None else now
    folder = StateFolder(state)
    facts = _read_facts(state)
    urls = tuple(control_urls) or (facts.control_urls if facts is not None else ())
    if not urls:
        raise ConfigError(
            f"no server has run on the state folder {state} yet, so the token cannot say where it is",
            remedy='start "edgetun serve" once, or give its address with --url https://HOST:PORT',
        )
    if len(label) > MAX_LABEL_LENGTH or not label.isprintable():
        raise ConfigError(f"a token's name has at most {MAX_LABEL_LENGTH} printable characters")
    folder.create()
    is_public = facts is not None and facts.has_public_certificate
    fingerprint = "" if is_public else DevelopmentCA(folder.ca).fingerprint
    with folder.locked():
        taken = folder.read_tokens([]).keys()
        token_id = next(id_ for id_ in iter(_random_id, "") if id_ not in taken)
        token = ClusterToken(urls, token_id, secrets.token_bytes(32), fingerprint)
        record = TokenRecord(
            id=token_id,
            secret_hash=hash_secret(token_id, token.secret),
            label=label,
            tunnels=_patterns(tunnels, "--tunnel"),
            hostnames=_hostnames(hostnames, facts.domain if facts is not None else ""),
            created=created,
            expires=created + _lifetime_s(expires) if expires else 0.0,
        )
        folder.put_token(record)
    return record, token.format()


def list_tokens(state: Path, *, now: float | None = None) -> tuple[list[TokenLine], list[str]]:
    """Every token from old to new, and a line for each file that cannot be read. Never a secret, nor its hash."""
    at = time.time() if now is None else now
    folder = _existing(state)
    problems: list[StoreProblem] = []
    used = folder.read_used_tokens()
    claims = folder.read_claims(problems).values()
    lines = [
        TokenLine(
            id=record.id,
            label=record.label,
            state=record.state(at).value,
            tunnels=record.tunnels,
            hostnames=record.hostnames,
            created=record.created,
            expires=record.expires,
            last_used=used.get(record.id, 0.0),
            claimed=tuple(sorted(claim.hostname for claim in claims if claim.token_id == record.id)),
        )
        for record in folder.read_tokens(problems).values()
    ]
    lines.sort(key=lambda line: (line.created, line.id))
    return lines, [f"{problem.source} {problem.message}" for problem in problems]


def revoke_token(state: Path, which: str, *, delete: bool = False, now: float | None = None) -> TokenRecord:
    """Ends a token by its id, the beginning of its id, or its name. A running server closes its sessions within a second or two.

    `delete` removes its record too. Names that it claimed stay claimed. Raises `ConfigError`.
    """
    folder = _existing(state)
    with folder.locked():
        record = _find(folder.read_tokens([]), which)
        if not record.revoked:
            record = msgspec.structs.replace(record, revoked=time.time() if now is None else now)
        if delete:
            folder.delete_token(record.id)
        else:
            folder.put_token(record)
    return record


def list_claims(state: Path) -> list[Claim]:
    """Hostnames that tokens claimed, by name."""
    return sorted(_existing(state).read_claims([]).values(), key=lambda claim: claim.hostname)


def release_host(state: Path, hostname: str) -> None:
    """Frees a claimed hostname, so that any token may claim it. Raises `ConfigError` when it is not claimed."""
    folder = _existing(state)
    wanted = hostname.strip().rstrip(".").lower()
    if wanted not in folder.read_claims([]) or not folder.release(wanted):
        raise ConfigError(f"the name {wanted!r} is not claimed", remedy='see "edgetun host list"')


def _find(records: dict[str, TokenRecord], which: str) -> TokenRecord:
    if which.startswith("edgetun_"):
        raise ConfigError(
            "that is a token itself, which does not belong on a command line",
            remedy='give its id: see "edgetun token list"',
        )
    if which in records:
        return records[which]
    found = [record for record in records.values() if which and (record.id.startswith(which) or record.label == which)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f'there is no token "{which}"', remedy='see "edgetun token list"')
    raise ConfigError(
        f'"{which}" fits {len(found)} tokens ({", ".join(record.id for record in found[:5])})', remedy="give a whole id"
    )


def _existing(state: Path) -> StateFolder:
    folder = StateFolder(state)
    if not folder.exists:
        raise ConfigError(f"{state} is not the state folder of a server", remedy="give the server's one with --state")
    return folder


def _read_facts(state: Path) -> ServerFacts | None:
    try:
        facts = msgspec.json.decode((state / SERVER_FILE).read_bytes(), type=ServerFacts)
    except (OSError, ValueError):
        return None
    return facts if facts.control_urls and all(is_control_url(url) for url in facts.control_urls) else None


def _random_id() -> str:
    """Eight characters that nobody mistakes; the id is no secret."""
    return "".join(secrets.choice("23456789abcdefghjkmnpqrstuvwxyz") for _ in range(8))


def _patterns(patterns: Iterable[str], flag: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(pattern.strip() for pattern in patterns))
    if len(found) > MAX_PATTERNS:
        raise ConfigError(f"{flag} is given more than {MAX_PATTERNS} times", remedy="use a pattern with *")
    for pattern in found:
        if not pattern or len(pattern) > 320 or not pattern.isascii() or any(c.isspace() for c in pattern):
            raise ConfigError(
                f"{flag} {pattern!r} is not a pattern", remedy="write for example team-a/* or *.example.com"
            )
        if flag == "--tunnel" and "/" not in pattern and pattern != "*":
            raise ConfigError(
                f"--tunnel {pattern!r} has no namespace", remedy=f"write default/{pattern} or */{pattern}"
            )
    return found


def _hostnames(patterns: Iterable[str], domain: str) -> tuple[str, ...]:
    """A single label stands for the name under the server's domain, as it does for the agent."""
    found: list[str] = []
    for pattern in _patterns(patterns, "--host"):
        if pattern != "*" and "." not in pattern:
            if not domain:
                raise ConfigError(
                    f"--host {pattern!r} is no full hostname", remedy=f"write for example {pattern}.example.com"
                )
            pattern = f"{pattern}.{domain}"
        if pattern != "*":
            try:
                check_hostname(pattern.lower())
            except ValueError as error:
                raise ConfigError(f"--host {error}") from None
        found.append(pattern.lower())
    return tuple(found)


def _lifetime_s(text: str) -> float:
    """Days and weeks besides what durations are elsewhere: `30d`, `2w`, `12h`."""
    days = re.fullmatch(r"([0-9]{1,5})([dw])", text)
    try:
        lifetime_s = int(days[1]) * (86400.0 if days[2] == "d" else 604800.0) if days else parse_duration(text)
    except ValueError:
        raise ConfigError(
            f"--expires {quoted(text)} is not a duration", remedy="write for example 30d or 12h"
        ) from None
    if lifetime_s <= 0:
        raise ConfigError(f"--expires {text} is not in the future", remedy="write for example 30d")
    return lifetime_s
