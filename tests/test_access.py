"""Keys, addresses, and which configurations may listen to whom."""

from __future__ import annotations

import hmac
import stat
from pathlib import Path
from typing import Any

import pytest
from dragoman.model.errors import ConfigError
from dragoman.stream import access
from dragoman.stream.access import Keyring, address_of, check_server, keyring, shown_key
from dragoman.stream.config import ServerOptions, load_options
from hypothesis import given
from hypothesis import strategies as st

KEY, OTHER = "a-key-of-sixteen-letters", "another-key-for-these-tests"
DATA = Path(__file__).parent / "data"


def server(**options: Any) -> ServerOptions:
    return ServerOptions.model_validate(options)


def test_a_key_has_a_name_that_does_not_tell_it() -> None:
    ring = Keyring([KEY, OTHER])
    names = {ring.name_of(KEY), ring.name_of(OTHER)}
    assert len(names) == 2 and all(name and len(name) == 8 and name not in KEY for name in names)
    assert KEY not in repr(vars(ring))


@pytest.mark.parametrize("shown", [None, "", " ", KEY[:-1], KEY + "x", KEY.upper(), "\ud800", "ü" * 30])
def test_what_is_no_key_opens_nothing(shown: str | None) -> None:
    assert Keyring([KEY]).name_of(shown) is None and not Keyring()


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early end, whatever is shown: every known key is compared, by the function that takes as long for each."""
    compared: list[bool] = []
    same = hmac.compare_digest

    def watch(known: bytes, shown: bytes) -> bool:
        compared.append(same(known, shown))
        return compared[-1]

    monkeypatch.setattr(access.hmac, "compare_digest", watch)
    ring = Keyring([KEY, OTHER])
    for shown, found in ((KEY, [True, False]), (OTHER, [False, True]), ("x", [False, False]), (None, [False, False])):
        compared.clear()
        ring.name_of(shown)
        assert compared == found


@pytest.mark.parametrize(
    ("authorization", "subprotocols", "key"),
    [
        (f"Bearer {KEY}", [], KEY),
        (f"bearer   {KEY} ", [], KEY),
        (f"Token {KEY}", [], KEY),  # Deepgram
        (None, ["realtime", f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1"], KEY),
        (None, ["token", KEY], KEY),  # Deepgram in browsers
        (None, ["bearer", KEY], KEY),  # and our page
        (f"Basic {KEY}", [], None),
        (KEY, [], None),
        ("Bearer", [], None),
        ("Bearer ", ["bearer", KEY], KEY),
        (None, [KEY], None),
        (None, ["bearer"], None),
        (None, [], None),
    ],
)
def test_where_a_key_may_stand(authorization: str | None, subprotocols: list[str], key: str | None) -> None:
    assert shown_key(authorization, subprotocols) == key


@given(st.none() | st.text(max_size=40), st.lists(st.text(max_size=20), max_size=4))
def test_nothing_that_is_shown_breaks_the_gate(authorization: str | None, subprotocols: list[str]) -> None:
    assert Keyring([KEY]).name_of(shown_key(authorization, subprotocols)) is None


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),  # the same machine
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),  # has as many addresses as it likes
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("a name", 0), "a name"),
        (None, ""),
    ],
)
def test_what_counts_as_one_address(client: tuple[str, int] | None, address: str) -> None:
    assert address_of(client) == address


def test_keys_come_from_a_file_and_from_the_options(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\n{KEY}   # Ann\n\n")
    ring = keyring(server(keys_file=path, keys=[OTHER]))
    assert ring.name_of(KEY) and ring.name_of(OTHER) and not ring.name_of("# of the team")


@pytest.mark.parametrize(
    ("text", "says"), [("", "holds no key"), (f"{KEY}\nshort\n", "line 2 is no key"), ("ü" * 20, "not ASCII"), (None, "No such file")]
)
def test_what_is_wrong_with_a_file_is_told_without_its_keys(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        keyring(server(keys_file=path))
    assert "short" not in str(caught.value) and str(path) in str(caught.value)


def test_no_error_and_no_repr_shows_a_key() -> None:
    with pytest.raises(ConfigError, match="server.keys: .*16 to 200 letters.*DRAGOMAN_SERVER_KEYS") as caught:
        load_options(environment={"DRAGOMAN_SERVER_KEYS": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert KEY not in repr(load_options(environment={"DRAGOMAN_SERVER_KEYS": KEY}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    check_server(server(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "captions.example", ""])
def test_the_world_needs_a_key_or_somebody_who_insists(host: str) -> None:
    with pytest.raises(ConfigError, match="--keys-file FILE.*--open-to-all"):
        check_server(server(host=host))
    check_server(server(host=host, keys=[KEY]))
    check_server(server(host=host, open_to_all=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tls_cert": DATA / "tls_cert.pem"}, "TLS needs both"),
        ({"tls_cert": "nowhere.pem", "tls_key": "nowhere.pem"}, "nowhere.pem: No such file"),
        ({"tls_cert": DATA / "tls_key.pem", "tls_key": DATA / "tls_cert.pem"}, "no certificate in PEM and its private key"),
        ({"proxies": ["proxy.example"]}, "'proxy.example', expected the address of a proxy"),
        ({"record": "text"}, "no folder is named"),
        ({"record": "text", "record_dir": "/dev/null/x"}, "expected a folder for recordings"),
    ],
)
def test_what_does_not_fit_together_is_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_server(server(**options))


def test_what_fits_together_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "recordings"
    tls = {"tls_cert": DATA / "tls_cert.pem", "tls_key": DATA / "tls_key.pem"}
    check_server(server(**tls, record="both", record_dir=folder, proxies=["127.0.0.1", "10.0.0.0/8"]))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
