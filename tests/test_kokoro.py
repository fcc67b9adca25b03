"""Text → phonemes for the Kokoro voice, with a stand-in for espeak-ng that echoes its text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dragoman.model.errors import AudioFormatError, BackendError, ConfigError
from dragoman.model.training import kokoro
from dragoman.model.training.kokoro import ROWS, WIDTH, Kokoro, phonemes


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """A command that prints its last argument, as if text were its own phonemes."""
    path = tmp_path / "espeak"
    path.write_text('#!/bin/sh\nfor last; do :; done\necho "$last"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Run, hunt.", "Run, hunt."),
        ("Mr. Finn sat.", "Mɹ Finn sat."),  # no pause after a title
        ("Is it 3.5?", "Is it 3.5?"),  # nor inside a number
        ('"Sit," I said; "sit!"', "Sit, I said; sit!"),
        ("A hut... — a hut", "A hut. — a hut"),
    ],
)
def test_pauses_are_kept(text: str, expected: str, echo: str) -> None:
    assert phonemes(text, "en-us", echo) == expected


@pytest.mark.parametrize(
    ("ipa", "american", "british"),
    [
        ("t^ʃˈɛ^ɹ", "ʧˈɛɹ", "ʧˈɛɹ"),
        ("ɡˈo^ʊ", "ɡˈO", "ɡˈɔʊ"),
        ("ɡˈə^ʊ", "ɡˈəʊ", "ɡˈQ"),
        ("hˈɜːd", "hˈɜɹd", "hˈɜːd"),
        ("bˈʌʔn\u0329", "bˈʌtᵊn", "bˈʌtᵊn"),
        ("lˈɪɾə^l", "lˈɪTᵊl", "lˈɪɾᵊl"),
        ("ðe^ə", "ðAə", "ðɛː"),
    ],
)
def test_sounds_are_respelt_for_the_accent(ipa: str, american: str, british: str, echo: str) -> None:
    assert phonemes(ipa, "en-us", echo) == american
    assert phonemes(ipa, "en-gb", echo) == british


def test_a_failing_command_names_the_text() -> None:
    with pytest.raises(AudioFormatError, match=r"failed on 'hush' \(exit code 1\)"):
        phonemes("hush", "en-us", "false")


def test_missing_parts_are_named(tmp_path: Path, echo: str) -> None:
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({"vocab": {"a": 1}}))
    with pytest.raises(BackendError, match="apt-get install espeak-ng"):
        Kokoro(tmp_path / "none.onnx", vocabulary, tmp_path, command="no-such-command-of-espeak")
    with pytest.raises(ConfigError, match="none was found"):
        Kokoro(tmp_path / "none.onnx", vocabulary, tmp_path, command=echo)
    np.zeros(7, np.float32).tofile(tmp_path / "af_short.bin")
    with pytest.raises(ConfigError, match="7 values; expected 510 x 256"):
        Kokoro(tmp_path / "none.onnx", vocabulary, tmp_path, command=echo)


class Recorded:
    """An ONNX session that keeps what it was fed and answers one second of sound."""

    def __init__(self, *_: object, **__: object) -> None:
        self.feeds: list[dict[str, np.ndarray]] = []

    def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.feeds.append(feed)
        return [np.full(24_000, 0.5, np.float32)]


def test_tokens_style_and_speed_reach_the_model(tmp_path: Path, echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kokoro.onnxruntime, "InferenceSession", Recorded)
    (tmp_path / "vocab.json").write_text(json.dumps({"vocab": {"h": 7, "a": 8, ".": 9}}))
    rows = np.arange(ROWS, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
    for name in ("af_one", "am_two", "bf_three"):
        rows.tofile(tmp_path / f"{name}.bin")
    voice = Kokoro(tmp_path / "none.onnx", tmp_path / "vocab.json", tmp_path, command=echo)
    assert len(voice.wave("haha.", voice.voices["af_one"], "en-us", speed=1.25)) == 24_000
    (feed,) = voice._session.feeds
    assert feed["tokens"].tolist() == [[0, 7, 8, 7, 8, 9, 0]]
    assert feed["style"].shape == (1, WIDTH) and set(feed["style"][0]) == {5.0}  # the row of 5 tokens
    assert feed["speed"].tolist() == [1.25]
    with pytest.raises(AudioFormatError, match="has 0 tokens"):
        voice.wave("???", voice.voices["af_one"], "en-us")
    speakers = {voice.say("haha", np.random.default_rng(seed)).speaker for seed in range(40)}
    assert {"af_one", "am_two", "bf_three"} < speakers
    assert all({part[0] for part in name.split("+")} in ({"a"}, {"b"}) for name in speakers)  # never two accents in a mix
