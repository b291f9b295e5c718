"""Names and addresses in resources: Kubernetes names, hostnames, paths, field names, origin URLs. Each check raises
`ValueError` with what is wrong and what to write instead, and has the pattern that the CRD will carry beside it."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, WithJsonSchema

from edgetun_core.quantities import quoted

LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
HOSTNAME_PATTERN: Final = r"^(\*\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
DOMAIN_PATTERN: Final = r"^(\*|(\*\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*)$"
PATH_PATTERN: Final = r"^/[-A-Za-z0-9._~!$&'()*+,;=:@%/]*$"
FIELD_NAME_PATTERN: Final = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
FIELD_VALUE_PATTERN: Final = r"^[\t\x20-\x7e]*$"
ORIGIN_URL_PATTERN: Final = r"^(https?://[^/?#@\s]+(/[^?#\s]*)?|(tcp|udp)://[^/?#@\s]+|unix:///[^?#\s]+)$"
MEDIA_RANGE_PATTERN: Final = (
    r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,62}/(\*|\*\+[A-Za-z0-9!#$&^_.-]{1,62}|[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126})$"
)
QUERY_NAME_PATTERN: Final = r"^[^&=#\s*]*\*?$"

LABEL_KEY_PATTERN: Final = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE_PATTERN: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"

MAX_HOSTNAME: Final = 245
"""Of the 253 that DNS allows, so that the name of a hostname's reservation can say a little more."""

_label = re.compile(LABEL_PATTERN, re.ASCII)
PERCENTAGE_PATTERN: Final = r"^(100|[1-9][0-9]?)%$"
ENV_NAME_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
NETWORK_PATTERN: Final = r"^[0-9a-fA-F:.]{2,45}/[0-9]{1,3}$"

_percentage = re.compile(PERCENTAGE_PATTERN, re.ASCII)
_env_name = re.compile(ENV_NAME_PATTERN, re.ASCII)
_label_key = re.compile(LABEL_KEY_PATTERN, re.ASCII)
_label_value = re.compile(LABEL_VALUE_PATTERN, re.ASCII)
_quantity = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", re.ASCII)
_subdomain = re.compile(SUBDOMAIN_PATTERN, re.ASCII)
_hostname = re.compile(HOSTNAME_PATTERN, re.ASCII)
_path = re.compile(PATH_PATTERN, re.ASCII)
_field_name = re.compile(FIELD_NAME_PATTERN, re.ASCII)
_field_value = re.compile(FIELD_VALUE_PATTERN, re.ASCII)
_query_name = re.compile(QUERY_NAME_PATTERN)
_media_range = re.compile(MEDIA_RANGE_PATTERN, re.ASCII)
_ipv4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", re.ASCII)
_encoded = re.compile(r"%([0-9A-Fa-f]{2})", re.ASCII)
_authority = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_]([-A-Za-z0-9._]{0,251}[A-Za-z0-9_])?)(:[0-9]{1,5})?", re.ASCII
)

_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

UNTOUCHABLE_FIELDS: Final = frozenset(
    {
        # framing and hop-by-hop (RFC 9110 §7.6.1, RFC 9112 §6); a rule that wrote them could smuggle requests
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # who is asked, and the guards against loops and lost bodies
        "expect",
        "host",
        "via",
    }
)


def check_label(value: str) -> str:
    """A DNS label (RFC 1123), as Kubernetes means it."""
    if not _label.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a name; write lower-case letters, digits and '-', at most 63, such as shop-1"
        )
    return value


def check_object_name(value: str) -> str:
    """A DNS subdomain (RFC 1123), as Kubernetes wants it in `metadata.name`."""
    if len(value) > 253 or not _subdomain.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a name; write lower-case letters, digits, '-' and '.', at most 253, such as shop-1"
        )
    return value


def check_hostname(value: str) -> str:
    """A host that visitors ask for: lower case, no port; a leading `*.` stands for exactly one more label."""
    if value == "*":
        raise ValueError('"*" is every host there is; name the host, or write *.example.com')
    if MAX_HOSTNAME < len(value) <= 253 and _hostname.fullmatch(value):
        raise ValueError(f"{quoted(value)} is too long; write at most {MAX_HOSTNAME} characters")
    return _check_host(value, "hostname")


def check_domain(value: str) -> str:
    """What an exit pool lets tunnels claim: a hostname, `*.example.com` (one more label), or `*` for any."""
    return value if value == "*" else _check_host(value, "domain")


def _check_host(value: str, noun: str) -> str:
    if len(value) <= 253 and _hostname.fullmatch(value) and not _ipv4.fullmatch(value):
        return value
    host = value.strip().rstrip(".")
    if "://" in host or "/" in host:
        host = host.split("://")[-1].partition("/")[0]
    if _ipv4.fullmatch(host) or host.startswith("[") or host.count(":") > 1:
        raise ValueError(f"{quoted(value)} is an address; a {noun} is a name, such as shop.example.com")
    host = host.partition(":")[0].lower()
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            host = ""
    if host != value and len(host) <= 253 and _hostname.fullmatch(host):
        raise ValueError(f"{quoted(value)} is not a {noun} as it is written on the wire; write {host}")
    if "*" in value:
        raise ValueError(f"{quoted(value)}: '*' may only stand for the whole first label; write *.example.com")
    raise ValueError(f"{quoted(value)} is not a {noun}; write a name such as shop.example.com or *.example.com")


def check_path(value: str) -> str:
    """A path in the form in which requests are matched: absolute, percent-encoding and dot segments resolved (RFC 3986 §6.2.2)."""
    if not value.startswith("/"):
        raise ValueError(f"{quoted(value)} is not a path; write it with a leading '/', such as /api")
    if "?" in value or "#" in value:
        raise ValueError(f"{quoted(value)}: a path holds no query and no fragment; write what stands before them")
    if not _path.fullmatch(value) or "%" in _encoded.sub("", value):
        raise ValueError(
            f"{quoted(value)} has a character that a path cannot hold; write it percent-encoded, such as %20"
        )
    segments = value.split("/")[1:]
    if "." in segments or ".." in segments:
        raise ValueError(
            f'{quoted(value)}: "." and ".." are resolved before paths are compared; write the path without them'
        )
    if "" in segments[:-1]:
        raise ValueError(f"{quoted(value)} has an empty segment; write one '/' between segments")
    normal = _encoded.sub(_normal_encoding, value)
    if normal != value:
        raise ValueError(f"{quoted(value)} is compared as {normal}; write it so")
    return value


def _normal_encoding(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else match[0].upper()


def check_field_name(value: str) -> str:
    """The name of a header field that rules may touch; lower case in Python."""
    if not _field_name.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a field name (RFC 9110 §5.1); write letters, digits and '-', such as X-Stage"
        )
    name = value.lower()
    if name in UNTOUCHABLE_FIELDS:
        remedy = "use origin.hostHeader" if name == "host" else "remove this rule"
        raise ValueError(f"{quoted(value)} belongs to the connection and cannot be changed by rules; {remedy}")
    return name


def check_field_value(value: str) -> str:
    """The value of a header field: printable ASCII, no line breaks, no blanks at the ends (RFC 9110 §5.5)."""
    if not _field_value.fullmatch(value):
        raise ValueError(f"{quoted(value)} has a character that a field cannot hold; write printable ASCII on one line")
    if value != value.strip(" \t"):
        raise ValueError(f"{quoted(value)} begins or ends with a blank; remove it")
    return value


def check_query_name(value: str) -> str:
    """The name of a query parameter; a `*` at the end stands for any rest."""
    if not value or not _query_name.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a query parameter; write its name, such as gclid or utm_*")
    return value


def check_media_range(value: str) -> str:
    """A media type or a pattern of them: `type/subtype`, `type/*`, `type/*+suffix`."""
    if not _media_range.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a media type; write one such as text/css, text/* or application/*+json"
        )
    return value


def check_origin_url(value: str) -> str:
    """Where a local server listens: `http://host[:port][/path]`, `https://...`, `unix:///path.sock`, `tcp://host:port`, `udp://...`."""
    remedy = "write http://localhost:3000, https://localhost:3443 or unix:///run/app.sock"
    scheme, separator, rest = value.partition("://")
    if separator and scheme in ("h2c", "h2", "grpc", "grpcs"):
        plain = scheme in ("h2c", "grpc")
        written = f"{'http' if plain else 'https'}://{rest}"
        raise ValueError(
            f"{quoted(value)} is not an origin; write {written} and, beside it, protocol: {'h2c' if plain else 'h2'}"
        )
    if separator and scheme == "tls":
        raise ValueError(f"{quoted(value)}: {scheme}:// origins are not available in this version; {remedy}")
    if not separator or scheme not in ("http", "https", "unix", "tcp", "udp"):
        raise ValueError(f"{quoted(value)} is not an origin; {remedy}")
    if any(char.isspace() or not char.isprintable() for char in value) or not value.isascii():
        raise ValueError(f"{quoted(value)} has a character that a URL cannot hold; write it percent-encoded")
    if "?" in rest or "#" in rest:
        raise ValueError(f"{quoted(value)}: an origin has no query and no fragment; write what stands before them")
    if scheme == "unix":
        if not rest.startswith("/") or rest.endswith("/"):
            raise ValueError(f"{quoted(value)} is not the path of a socket; write unix:///run/app.sock")
        return value
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise ValueError(
            f"{quoted(value.replace(authority.rpartition('@')[0], '...'))}: an origin holds no user and password; {remedy}"
        )
    if not _authority.fullmatch(authority):
        raise ValueError(f"{quoted(value)} does not name a host and port; {remedy}")
    try:
        port = urlsplit(value).port
    except ValueError:
        port = 0
    if scheme in ("tcp", "udp") and (not port or "/" in rest):
        raise ValueError(f"{quoted(value)} does not name a host and port; write {scheme}://localhost:5432")
    if port == 0:
        raise ValueError(f"{quoted(value)}: a port is a number from 1 to 65535; {remedy}")
    if path:
        check_path(f"/{path}")
    return value


def check_host_header(value: str) -> str:
    """`preserve`, `origin`, or an authority to send."""
    if value not in ("preserve", "origin") and not _authority.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a host; write preserve, origin, or a host such as app.internal:8080")
    return value


def check_label_key(value: str) -> str:
    """The key of a label or annotation: a name, which a DNS subdomain and `/` may stand before."""
    if len(value) > 316 or not _label_key.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a label's key; write a name such as example.com/team")
    return value


def check_label_value(value: str) -> str:
    """The value of a label."""
    if not _label_value.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a label's value; write letters, digits, '-', '_' and '.', at most 63")
    return value


def check_tunnel_pattern(value: str) -> str:
    """Names of tunnels in one namespace; `*` stands for any run of characters."""
    if not _subdomain.fullmatch(value.replace("*", "x")):
        raise ValueError(
            f"{quoted(value)} is not a tunnel's name; write a name of this namespace, such as shop or preview-*"
        )
    return value


def check_quantity(value: object) -> str | int:
    """An amount of a resource as Kubernetes writes it: `500m`, `2`, `1Gi`."""
    if isinstance(value, str | int) and not isinstance(value, bool) and _quantity.fullmatch(str(value)):
        return value
    raise ValueError(f"{quoted(value)} is not a quantity; write 500m, 2 or 1Gi")


def check_count_or_percent(value: object) -> str | int:
    """A number from 1 to 1000, or a share from 1% to 100%."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000:
        return value
    if isinstance(value, str) and _percentage.fullmatch(value):
        return value
    raise ValueError(f"{quoted(value)} is neither a number nor a share; write 1 or more, or a share such as 25%")


def check_env_name(value: str) -> str:
    """The name of an environment variable."""
    if not _env_name.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a variable's name; write letters, digits and '_', such as LOG_LEVEL")
    return value


def check_network(value: str) -> str:
    """A network in CIDR notation, without host bits."""
    try:
        ip_network(value)
    except ValueError:
        raise ValueError(f"{quoted(value)} is not a network; write 192.0.2.0/24 or 2001:db8::/32") from None
    if "/" not in value:
        raise ValueError(f"{quoted(value)} is an address; write {value}/{128 if ':' in value else 32}")
    return value


def check_file_path(value: str) -> str:
    """A file on the machine where the process runs; relative paths start at its working directory."""
    if not value or not value.isprintable():
        raise ValueError(f"{quoted(value)} is not the path of a file; write something like certs/tls.pem")
    return value


def _text(pattern: str, max_length: int, min_length: int = 1) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "minLength": min_length, "maxLength": max_length})


Label = Annotated[str, AfterValidator(check_label), _text(LABEL_PATTERN, 63)]
ObjectName = Annotated[str, AfterValidator(check_object_name), _text(SUBDOMAIN_PATTERN, 253)]
LabelKey = Annotated[str, AfterValidator(check_label_key), _text(LABEL_KEY_PATTERN, 316)]
LabelValue = Annotated[str, AfterValidator(check_label_value), _text(LABEL_VALUE_PATTERN, 63, min_length=0)]
Hostname = Annotated[str, AfterValidator(check_hostname), _text(HOSTNAME_PATTERN, MAX_HOSTNAME)]
Domain = Annotated[str, AfterValidator(check_domain), _text(DOMAIN_PATTERN, 253)]
UrlPath = Annotated[str, Field(max_length=1024), AfterValidator(check_path), _text(PATH_PATTERN, 1024)]
FieldName = Annotated[str, Field(max_length=128), AfterValidator(check_field_name), _text(FIELD_NAME_PATTERN, 128)]
FieldValue = Annotated[
    str, Field(max_length=4096), AfterValidator(check_field_value), _text(FIELD_VALUE_PATTERN, 4096, min_length=0)
]
EnvName = Annotated[str, Field(max_length=253), AfterValidator(check_env_name), _text(ENV_NAME_PATTERN, 253)]
Network = Annotated[str, Field(max_length=49), AfterValidator(check_network), _text(NETWORK_PATTERN, 49)]
QueryName = Annotated[str, Field(max_length=128), AfterValidator(check_query_name), _text(QUERY_NAME_PATTERN, 128)]
MediaRange = Annotated[str, Field(max_length=190), AfterValidator(check_media_range), _text(MEDIA_RANGE_PATTERN, 190)]
OriginUrl = Annotated[str, Field(max_length=1024), AfterValidator(check_origin_url), _text(ORIGIN_URL_PATTERN, 1024)]
HostHeader = Annotated[str, Field(max_length=260), AfterValidator(check_host_header), _text(r"^[^\s]+$", 260)]
FilePath = Annotated[str, Field(max_length=4096), AfterValidator(check_file_path), _text(r"^[^\n]+$", 4096)]
