"""Problem pages: what a visitor sees when an exchange failed, as HTML, as a problem document (RFC 9457) or as text.

A page says what failed, on whose side, and what to do. It never shows more than the error's own message, which carries no
secret. Pages are memoised: when an origin goes down under a crowd, everyone gets the same bytes.
"""

from __future__ import annotations

import html
import json
from http import HTTPStatus
from typing import Final, Literal

from edgetun_core.errors import EdgetunError
from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.memo import Memo
from edgetun_exitnode.front.grpc_status import build_trailers_only, is_grpc

Media = Literal["html", "json", "text"]
Side = Literal["visitor", "edge", "agent", "origin"]

_SIDES: Final[dict[str, Side]] = {
    "protocol": "visitor",
    "auth": "visitor",
    "limit": "visitor",
    "no_tunnel": "visitor",
    "cancelled": "visitor",
    "internal": "edge",
    "config": "edge",
    "draining": "edge",
    "no_session": "agent",
    "session_lost": "agent",
    "upstream": "agent",
    "origin_unreachable": "origin",
    "origin_timeout": "origin",
    "origin_broken": "origin",
    "origin_busy": "origin",
}

_TITLES: Final[dict[str, str]] = {
    "internal": "Something went wrong at the edge",
    "config": "This tunnel is not configured correctly",
    "protocol": "The request was not understood",
    "auth": "Access is not allowed",
    "limit": "Too many requests",
    "upstream": "The tunnel could not deliver the request",
    "origin_unreachable": "The local server does not answer",
    "origin_timeout": "The local server takes too long",
    "origin_broken": "The local server broke off",
    "origin_busy": "The local server is busy",
    "no_session": "The tunnel is offline",
    "session_lost": "The tunnel's connection was lost",
    "no_tunnel": "No tunnel lives here",
    "cancelled": "The request was cancelled",
    "draining": "This edge is going away",
}

_REMEDIES: Final[dict[str, str]] = {
    "internal": "try again; if it stays, tell whoever runs this edge",
    "config": "tell whoever owns this tunnel",
    "limit": "wait a moment and try again",
    "upstream": "try again in a moment",
    "origin_unreachable": "if this is your tunnel, start the local server and check its port",
    "origin_timeout": "if this is your tunnel, see what keeps the local server busy, or raise the response timeout",
    "origin_broken": "if this is your tunnel, look at the local server's log",
    "origin_busy": "try again in a moment; if this is your tunnel, raise the origin's maxConnections",
    "no_session": "if this is your tunnel, start the agent: edgetun-agent, or edgetun http PORT",
    "session_lost": "try again; the agent reconnects by itself",
    "no_tunnel": "check the address; if this is your tunnel, check its hostnames and paths",
    "draining": "try again",
}

_PROBLEM_TYPE = "https://edgetun.dev/problems/"

_memo: Memo[tuple[object, ...], tuple[ResponseHead, bytes]] = Memo(256)


def build_problem(
    error: EdgetunError, head: RequestHead | None, *, accept: bytes | None = None
) -> tuple[ResponseHead, bytes]:
    """The response that tells a visitor of an error.

    `error.status` and `error.retry_after_s` are respected where an error has them. `head` chooses the media type and may be
    None when none could be read; then `accept` stands in for its field. The body is for the front to leave out at HEAD; it is
    empty for a gRPC call, which gets a status of its own (grpc_status.py).
    """
    presentation = error.presentation
    status = status_of(error)
    if is_grpc(head):
        return build_trailers_only(error, status), b""
    retry = getattr(error, "retry_after_s", None)
    retry_after = "" if retry is None else str(max(1, -int(-float(retry) // 1)))
    if accept is None:
        accept = b",".join(head.get_all(b"accept")) if head is not None else b""
    media = decide_media(accept)
    host = head.authority.decode("latin-1") if head is not None else ""
    remedy = error.remedy or _REMEDIES.get(presentation.label, "")
    key = (status, presentation.label, presentation.reason, error.message, remedy, retry_after, media, host)
    known = _memo.get(key)
    if known is None:
        known = _build(status, presentation.label, presentation.reason, error.message, remedy, retry_after, media, host)
        _memo.put(key, known)
    return known


def status_of(error: EdgetunError) -> int:
    """The HTTP status that tells of an error."""
    status = getattr(error, "status", error.presentation.status)
    return status if isinstance(status, int) and 400 <= status <= 599 and status != 499 else 502


def decide_media(accept: bytes) -> Media:
    """HTML when it is asked for by name, text when that is preferred by name, otherwise a problem document.

    A browser names text/html; `*/*` is a program's, and a program is served best by JSON, which a person at a terminal can
    read as well.
    """
    if not accept or accept == b"*/*":
        return "json"
    best: Media = "json"
    best_weight = 0.0
    for element in accept.lower().split(b","):
        name, _, parameters = element.partition(b";")
        name = name.strip()
        media: Media
        if name in (b"text/html", b"application/xhtml+xml"):
            media = "html"
        elif name in (b"application/problem+json", b"application/json", b"application/*"):
            media = "json"
        elif name in (b"text/plain", b"text/*"):
            media = "text"
        else:
            continue
        weight = _weight(parameters)
        if weight > best_weight:
            best, best_weight = media, weight
    return best


def _weight(parameters: bytes) -> float:
    for parameter in parameters.split(b";"):
        name, _, value = parameter.strip().partition(b"=")
        if name == b"q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def _build(
    status: int, label: str, reason: str, message: str, remedy: str, retry_after: str, media: Media, host: str
) -> tuple[ResponseHead, bytes]:
    side = _SIDES.get(label, "edge")
    title = _TITLES.get(label) or HTTPStatus(status).phrase
    if media == "html":
        content_type = b"text/html; charset=utf-8"
        body = _html(status, reason, title, message, remedy, side, host)
    elif media == "text":
        content_type = b"text/plain; charset=utf-8"
        lines = [f"{status} {title} ({reason})", message]
        if remedy:
            lines.append(f"What to do: {remedy}.")
        body = "\n".join((*lines, "")).encode()
    else:
        content_type = b"application/problem+json"
        document: dict[str, object] = {
            "type": _PROBLEM_TYPE + reason,
            "title": title,
            "status": status,
            "detail": message,
            "reason": reason,
            "side": side,
        }
        if remedy:
            document["remedy"] = remedy
        if retry_after:
            document["retryAfter"] = int(retry_after)
        body = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    fields = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"vary", b"accept"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if media == "html":
        fields.append(
            (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
        )
    if retry_after:
        fields.append((b"retry-after", retry_after.encode()))
    return ResponseHead(status, tuple(fields)), body


_HOPS: Final[tuple[tuple[Side, str], ...]] = (
    ("visitor", "You"),
    ("edge", "Edge"),
    ("agent", "Agent"),
    ("origin", "Local server"),
)

_STYLE: Final = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1d2129;--dim:#667085;--line:#d5dae1;--ok:#12805c;--bad:#c4320a}
@media(prefers-color-scheme:dark){:root{--bg:#101317;--card:#181c22;--ink:#e7eaee;--dim:#98a2b3;--line:#333b46;--ok:#47cd9a;--bad:#ff8a5c}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:2rem;margin:1rem;max-width:38rem;width:calc(100% - 2rem)}
h1{font-size:1.4rem;line-height:1.3;margin:0 0 .75rem}
p{margin:.5rem 0;overflow-wrap:anywhere}
ol{list-style:none;display:flex;margin:1.5rem 0;padding:0}
li{flex:1;text-align:center;font-size:.85rem;color:var(--dim);position:relative}
li::before{content:"";display:block;width:14px;height:14px;border-radius:50%;margin:0 auto .4rem;background:var(--line);position:relative;z-index:1}
li+li::after{content:"";position:absolute;top:6px;left:-50%;width:100%;height:2px;background:var(--line)}
li.ok::before{background:var(--ok)}li.ok+li.ok::after{background:var(--ok)}
li.bad{color:var(--bad);font-weight:600}li.bad::before{background:var(--bad)}
footer{margin-top:1.5rem;color:var(--dim);font-size:.85rem}
""".replace("\n", "")


def _html(status: int, reason: str, title: str, message: str, remedy: str, side: Side, host: str) -> bytes:
    failed_at = [name for name, _ in _HOPS].index(side)
    hops = "".join(
        f'<li class="{"ok" if at < failed_at else "bad" if at == failed_at else "unknown"}">{label}'
        f"{'<br>failed here' if at == failed_at and side != 'visitor' else ''}</li>"
        for at, (_, label) in enumerate(_HOPS)
    )
    advice = f"<p><strong>What to do:</strong> {html.escape(remedy)}.</p>" if remedy else ""
    where = f"{html.escape(host)} · " if host else ""
    path = "" if side == "visitor" else f'<ol aria-label="Where it failed">{hops}</ol>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{status} {html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1>{path}<p>{html.escape(_sentence(message))}</p>{advice}"
        f"<footer>{where}HTTP {status} · {html.escape(reason)} · edgetun</footer></main></body></html>\n"
    ).encode()


def _sentence(message: str) -> str:
    """The message with a capital and a full stop, as a page wants it."""
    if not message:
        return ""
    return message[0].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")
