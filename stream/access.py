"""Who is who: keys, the visitors that show them, and whether a configuration may listen to the world. No socket here."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..model.errors import ConfigError
from .config import KEY_FORM, ServerOptions
from .recorder import make_folder

OPENAI_SUBPROTOCOL = "openai-insecure-api-key."  # what OpenAI's clients in browsers put before their key
_KEY_SUBPROTOCOLS = ("bearer", "token")  # the subprotocol after one of these is a key: Deepgram's clients, and our page


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who talks to the server. ``key``: the name of the key that was shown, never the key itself; "" without one. ``address``: of the
    machine, or of its network where one machine has many (IPv6)."""

    key: str = ""
    address: str = ""


class Keyring:
    """The keys that let a client in, as hashes: what lies in memory or in a log opens nothing."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, shown: str | None) -> str | None:
        """The name of a key that is ours: the first digits of its hash. Takes as long whatever is shown, and whichever key it is."""
        digest, name = hashlib.sha256((shown or "").encode("utf-8", "replace")).digest(), None
        for known in self._digests:
            if hmac.compare_digest(known, digest):
                name = known.hex()[:8]
        return name


def keyring(server: ServerOptions) -> Keyring:
    """Keys of the options and of their file, which has one a line; # begins a comment. Raises ConfigError that names a line, not a key."""
    keys = list(server.keys)
    if server.keys_file is not None:
        found = _read_keys(server.keys_file)
        if not found:
            raise ConfigError(f"{server.keys_file}: holds no key, expected one a line")
        keys += found
    return Keyring(keys)


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not ASCII text, expected a key a line") from error
    keys: list[str] = []
    for number, line in enumerate(lines, 1):
        key = line.partition("#")[0].strip()
        if key and not re.fullmatch(KEY_FORM, key):
            raise ConfigError(f"{path}: line {number} is no key; expected 16 to 200 letters, digits and - . _ ~ +")
        if key:
            keys.append(key)
    return keys


def shown_key(authorization: str | None, subprotocols: Sequence[str]) -> str | None:
    """The key in the headers of a request: ``Authorization: Bearer KEY`` or ``Token KEY``, or among the subprotocols of a socket, for
    browsers cannot send that header with one. Never in the address: addresses end up in logs."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    if scheme.lower() in ("bearer", "token") and key.strip():
        return key.strip()
    for name in subprotocols:
        if name.startswith(OPENAI_SUBPROTOCOL):
            return name.removeprefix(OPENAI_SUBPROTOCOL)
    for name, following in zip(subprotocols, subprotocols[1:], strict=False):
        if name.lower() in _KEY_SUBPROTOCOLS:
            return following
    return None


def address_of(client: Sequence[object] | None) -> str:
    """(host, port) of a connection → what counts as one address: of IPv6 the first 64 bits, for the rest is the visitor's own choice."""
    host = str(client[0]) if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def check_server(server: ServerOptions) -> None:
    """What no option can tell on its own. Raises ConfigError."""
    has_keys = bool(keyring(server))
    if not has_keys and not server.open_to_all and not _is_loopback(server.host):
        raise ConfigError(
            f"server.host is {server.host}: without a key every machine that reaches this address could use the server; give it keys "
            "(--keys-file FILE), or insist with --open-to-all"
        )
    for name in server.proxies:
        try:
            ipaddress.ip_network(name)
        except ValueError as error:
            raise ConfigError(f"server.proxies: {name!r}, expected the address of a proxy, as in 127.0.0.1") from error
    if server.record != "nothing":
        if server.record_dir is None:
            raise ConfigError(f"server.record is {server.record}, and no folder is named; expected server.record_dir")
        make_folder(server.record_dir)
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError("TLS needs both: server.tls_cert, a chain of certificates, and server.tls_key, its private key")
    if server.tls_cert is not None and server.tls_key is not None:
        _check_tls(server.tls_cert, server.tls_key)


def _check_tls(certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise ConfigError(f"{key}: is encrypted, expected a private key without a password")

    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{certificate} and {key}: are no certificate in PEM and its private key ({reason})") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
