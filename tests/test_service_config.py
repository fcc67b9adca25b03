"""Defaults, file and flags, and errors that name the key."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from dragoman.model.errors import ConfigError
from dragoman.model.prompt import Term
from dragoman.stream.config import EndpointOptions, Options, load_options, parse_options
from dragoman.stream.endpoint import EndpointFrames


def test_the_packaged_file_says_the_defaults() -> None:
    path = Path(str(resources.files("dragoman.configs").joinpath("default.yaml")))
    assert load_options(path) == Options() == load_options()


def test_every_option_stands_in_the_packaged_file() -> None:
    text = (Path(__file__).parents[1] / "configs" / "default.yaml").read_text(encoding="utf-8")

    def names(section: object) -> list[str]:
        fields = type(section).model_fields  # type: ignore[attr-defined]
        return [name for field in fields for name in (field, *names_below(getattr(section, field)))]

    def names_below(value: object) -> list[str]:
        return names(value) if hasattr(type(value), "model_fields") else []

    assert [name for name in names(Options()) if f"{name}:" not in text] == []


def test_flags_win_over_the_file_and_none_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("session:\n  block_ms: 320\n  targets: [de]\n  vad:\nmodel:\n  threads: 3\n")
    options = load_options(path, {"session.block_ms": 960, "session.vad.kind": "silero", "model.threads": None})
    assert options.session.block_ms == 960 and options.session.targets == ("de",)
    assert options.session.vad.kind == "silero" and options.model.threads == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("session: {blok_ms: 320}", r"unknown key 'session.blok_ms'; did you mean 'block_ms'\?"),
        ("session: {vad: {agressiveness: 1}}", r"did you mean 'aggressiveness'\?"),
        ("sesion: {}", r"did you mean 'session'\?"),
        ("session: {qqq: 1}", "known keys: block_ms, carry_over"),
        ("session: {block_ms: 5}", r"session\.block_ms: .*greater than or equal to 80, got 5"),
        ("session: {block_ms: quick}", r"session\.block_ms: .*got 'quick'"),
        ("session: {endpoint: {start_ms: 400}}", r"start_ms \(400\) is more than start_window_ms \(160\)"),
        ("session: {targets: [de, de]}", "a language stands twice in de, de"),
        ("session: {targets: [de-DE, de-AT]}", r"a language stands twice in de, de, got \['de-DE', 'de-AT'\]"),
        ("session: {vad: {kind: energy}}", "'webrtc' or 'silero', got 'energy'"),
        ("model: [a]", r"model: .*got \['a'\]"),
        ("[1, 2]", "expected sections with keys, got list"),
        ("session: {1: 2}", "key 1 is int"),
        ("a: b: c", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_options(path)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("en-US", "en"),
        ("en_US", "en"),
        ("pt-BR", "pt"),
        ("zh-CN", "zh"),
        ("zh-Hant-TW", "zh"),
        ("de_AT.UTF-8", "de"),
        ("sv-SE", "sv-SE"),
        ("English", "English"),
        ("-US", "-US"),
        ("", ""),
    ],
)
def test_a_language_with_a_region_is_the_language(given: str, code: str) -> None:
    """What is no language that any model knows stays as it was given: the model's refusal shows it."""
    session = load_options(overrides={"session.language": given, "session.targets": [given]}).session
    assert (session.language, session.targets) == (code, (code,))


def test_terms_may_name_a_region() -> None:
    assert Term.read("de-DE:keeper=Wärter") == Term("de", "keeper", "Wärter")


def test_endpoint_options_in_frames_keep_to_the_model() -> None:
    frames = EndpointOptions().frames(40.0, 12.0)
    assert frames == EndpointFrames(), "the endpointer's own defaults are those of the options"
    assert EndpointOptions(longest_s=20).frames(40.0, 12.0).longest_frames == 300
    assert EndpointOptions(longest_s=5).frames(40.0, 12.0).longest_frames == 125
    assert EndpointOptions(hangover_ms=200).frames(40.0, 12.0).sentence_hangover_frames == 5
    assert EndpointOptions(pre_roll_ms=2000, longest_s=2).frames(40.0, 12.0).longest_frames == 55, "room for the beginning"


def test_the_environment_wins_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("server: {port: 1, max_sessions: 2, idle_s: 3}\nsession: {endpoint: {longest_s: 5}}\n")
    environment = {"DRAGOMAN_SERVER_PORT": "10", "DRAGOMAN_SERVER_MAX_SESSIONS": "20", "DRAGOMAN_SERVER_IDLE_S": "30", "PORT": "7"}
    options = load_options(path, {"server.port": 100}, environment=environment, assignments=["server.max_sessions=200"])
    assert (options.server.port, options.server.max_sessions, options.server.idle_s) == (100, 200, 30.0)
    assert options.session.endpoint.longest_s == 5
    assert load_options(path, environment={"DRAGOMAN_SESSION_ENDPOINT_LONGEST_S": "none"}).session.endpoint.longest_s is None
    assert load_options(path, environment={"DRAGOMAN_SERVER_PORT": ""}).server.port == 1, "an empty variable says nothing"


def test_lists_and_switches_as_text() -> None:
    options = load_options(assignments=["session.targets=de, fr", "session.carry_over=false", "server.allow_hosts="])
    assert options.session.targets == ("de", "fr") and options.session.carry_over is False and options.server.allow_hosts == ()


@pytest.mark.parametrize(
    ("environment", "assignments", "says"),
    [
        ({"DRAGOMAN_SERVER_PROT": "1"}, [], "unknown environment variable DRAGOMAN_SERVER_PROT; did you mean 'DRAGOMAN_SERVER_PORT'?"),
        ({"DRAGOMAN_SERVER_PORT": "x"}, [], "server.port: .*got 'x' .from DRAGOMAN_SERVER_PORT."),
        ({"DRAGOMAN_SESSION_TARGETS": "de,de"}, [], "stands twice in de, de.*from DRAGOMAN_SESSION_TARGETS"),
        ({}, ["session.blok_ms=1"], "unknown key 'session.blok_ms'; did you mean 'session.block_ms'"),
        ({}, ["session.vad.kind=loud"], "'webrtc' or 'silero', got 'loud' .from --set."),
        ({}, ["session.vad"], "--set session.vad, expected KEY=VALUE"),
        ({}, ["session.vad=x"], "unknown key 'session.vad'"),
    ],
)
def test_what_is_wrong_with_a_variable_is_named(environment: dict[str, str], assignments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_options(environment=environment, assignments=assignments)


def test_a_variable_does_not_hide_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("server: [a]")
    with pytest.raises(ConfigError, match=r"server: .*got \['a'\]"):
        load_options(path, environment={"DRAGOMAN_SERVER_PORT": "1"})


def test_other_variables_of_ours_are_no_options() -> None:
    assert load_options(environment={"DRAGOMAN_HOME": "x", "DRAGOMAN_SERVERS": "y"}) == Options()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: No such file"):
        load_options(tmp_path / "nowhere.yaml")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options({"session": {"block_ms": 1, "langage": "en"}})
    assert "block_ms" in str(caught.value) and "'language'" in str(caught.value)
