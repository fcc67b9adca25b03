"""The bench: exact figures of a scripted model whose commits are known, and the command as a user meets it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from dragoman.clients.bench import NEEDED, Plan, block_report, measure, write
from dragoman.clients.bench_plot import draw
from dragoman.clients.bench_tables import ROWS
from dragoman.clients.cli import main
from dragoman.clients.parser import make_parser
from dragoman.model.backend import Floats
from dragoman.stream.bench import Bench, BlockFigures, Tally, offline_errors, whole_minutes
from dragoman.stream.config import Options, SessionOptions
from dragoman.stream.events import Clocks, Drafts, Ended
from dragoman.stream.measures import Delays
from dragoman.stream.session import Session
from dragoman.stream.simulate import Turn
from dragoman.stream.talk import Clip, Talk, Utterance, read_clips

from .fakes import ScriptedBackend, speech
from .listeners import LoudnessVad, loaded, silence
from .tiny import save_tiny_model

for needed in NEEDED:
    pytest.importorskip(needed)

DOCS = (Path(__file__).parents[1] / "docs" / "bench.md").read_text(encoding="utf-8")
BLOCK = SessionOptions(block_ms=640, hold_back_words=0)


def clip(said: str, text: str | None = None) -> Clip:
    samples = speech(said)

    def read() -> Floats:
        return samples

    return Clip(said, text or said, len(samples) / 16_000, read, tuple(400.0 * (i + 1) for i in range(len(said.split()))))


def talk(*clips: Clip) -> Talk:
    """A second of silence around each clip: everything begins with a frame, so what is heard when is known."""
    parts, placed = [silence(1.0)], list[Utterance]()
    for each in clips:
        start_ms = sum(map(len, parts)) / 16
        placed.append(Utterance(each, start_ms, start_ms, start_ms + 1000 * each.duration_s))
        parts += [each.read(), silence(1.0)]
    return Talk(np.concatenate(parts), tuple(placed))


def bench(work_s: float = 0.0, memory_mb: float = 50.0) -> Bench:
    """Every piece of audio takes ``work_s`` of work."""
    backend = ScriptedBackend()
    clock = map(lambda n: n * work_s, count())
    return Bench(
        loaded(backend),
        open_session=lambda options: Session(loaded(backend), options, vad=LoudnessVad()),
        clock=lambda: next(clock),
        cpu_clock=lambda: next(clock),
        memory_mb=lambda: memory_mb,
    )


def measured(one: Bench, *talks: Talk) -> BlockFigures:
    (figures,) = one.streaming(talks, [BLOCK], lambda seconds: None)
    return figures


SAID = clip("the quick brown fox")


def test_exact_figures_of_known_commits() -> None:
    """Speech is from 1000 to 2600 ms, a segment opens at 760 ms, so blocks end at 1400, 2040 and 2680 ms; the endpoint is at 3200 ms.

    At 1400 "the" is shown; at 2040 it is committed, and "quick" and a wrong third word are shown; at 2680 "quick" is committed and the
    wrong word taken back; the rest is committed with the Final. A word is a token, and what is shown and not committed is the next draft:
    1, 2 and 2, of which the wrong word alone is not said again.
    """
    found = measured(bench(), talk(SAID))
    lags = [2040 - 1400, 2680 - 1800, 3200 - 2200, 3200 - 2600]
    assert found.commit_lag == found.commit_lag_unaware == Delays(4, 4, float(np.percentile(lags, 50)), float(np.percentile(lags, 95)))
    assert found.by_alignment
    assert found.first_partial == Delays(1, 1, 400.0, 400.0)
    assert found.final_delay == Delays(1, 1, 600.0, 600.0)
    assert found.final_work == Delays(1, 1, 0.0, 0.0)
    assert (found.erasure.erased, found.erasure.final) == (1, 4)
    assert found.drafts == (Drafts("transcript", "hypothesis", 5, 4),)
    assert found.errors.rate == 0.0 and found.errors.words == 4
    assert (found.audio_s, found.compute_s, found.cpu_s, found.behind_ms, found.peak_memory_mb) == (3.6, 0.0, 0.0, 0.0, 50.0)
    assert found.texts == ("the quick brown fox",)


def test_slow_work_is_part_of_the_lag() -> None:
    """The clocks are read four times for a piece; between the two readings of the one on the wall lie three steps: 60 ms for 40 ms.

    The first piece is there after 40 ms; from then on work never rests. What was told at t is told at 40 + 1.5 t.
    """
    found = measured(bench(0.020), talk(SAID))
    lags = [1.5 * told_ms + 40 - end_ms for told_ms, end_ms in ((2040, 1400), (2680, 1800), (3200, 2200), (3200, 2600))]
    assert found.commit_lag.p50_ms == pytest.approx(np.percentile(lags, 50)) and found.commit_lag_unaware.p50_ms == 760.0
    assert found.first_partial.p50_ms == pytest.approx(1.5 * 1400 + 40 - 1000)
    assert found.final_delay.p50_ms == pytest.approx(1.5 * 3200 + 40 - 2600)
    assert found.final_work.p50_ms == pytest.approx(1.5 * 3200 + 40 - 3200)
    assert found.compute_s == pytest.approx(0.060 * 91) and found.cpu_s == pytest.approx(0.020 * 91)  # 90 pieces and the finish
    assert found.behind_ms == pytest.approx(1.5 * 3600 + 40 - 3600 + 60)


def test_lag_grows_with_the_length_of_a_talk_that_is_too_slow() -> None:
    short, long = (measured(bench(0.020), talk(*[SAID] * n)).commit_lag.p50_ms for n in (1, 8))
    assert short is not None and long is not None and long > 2 * short
    short, long = (measured(bench(0.001), talk(*[SAID] * n)).commit_lag.p50_ms for n in (1, 8))
    assert short is not None and long == pytest.approx(short)


def test_figures_are_summed_over_talks() -> None:
    wrong = clip("over a lazy", "over the lazy")
    found = measured(bench(), talk(SAID, clip("brown fox")), talk(wrong))
    assert (found.errors.words, found.errors.substitutions, found.errors.deletions, found.errors.insertions) == (9, 1, 0, 0)
    assert found.texts == ("the quick brown fox brown fox", "over a lazy")
    assert (found.commit_lag.count, found.commit_lag.asked) == (8, 9)  # the word heard wrong has no place in the reference
    assert (found.first_partial.count, found.final_delay.count, found.first_partial.asked) == (3, 3, 3)


def test_drafts_are_summed_over_talks_for_each_task_and_source() -> None:
    tally, said = Tally(640), talk(SAID)
    both = (Drafts("transcript", "hypothesis", 40, 31), Drafts("transcript", "mtp", 1200, 600))
    for drafts in (both, (), (Drafts("transcript", "mtp", 300, 9), Drafts("translation", "hypothesis", 7, 0))):
        tally.add([Turn((Ended(Clocks(0, 0, 0), 0, drafts),), 0.0, 0.0, 0.0, 0.0)], said, 0.0)
    found = tally.figures()
    assert found.drafts == (both[0], Drafts("transcript", "mtp", 1500, 609), Drafts("translation", "hypothesis", 7, 0))
    shown = dict(ROWS)["drafts confirmed"](block_report(found))
    assert shown == "transcript hypothesis 31/40, transcript mtp 609/1,500, translation hypothesis 0/7"


def test_every_block_size_hears_every_talk() -> None:
    settings = [SessionOptions(block_ms=block, hold_back_words=0) for block in (320, 960)]
    heard_s: list[float] = []
    small, large = bench().streaming([talk(SAID)], settings, heard_s.append)
    assert (small.block_ms, large.block_ms) == (320, 960) and small.texts == large.texts
    assert small.first_partial.p50_ms is not None and large.first_partial.p50_ms is not None
    assert small.first_partial.p50_ms < large.first_partial.p50_ms
    assert sum(heard_s) >= 2 * 3.6


def test_offline_hears_each_clip_whole() -> None:
    clips = [SAID, clip("over a lazy", "over the lazy")]
    texts = bench().offline(clips, lambda seconds: None)
    assert texts == ["the quick brown fox", "over a lazy"]
    assert offline_errors([clips], texts).substitutions == 1
    assert offline_errors([clips[:1], clips[1:]], texts).words == 7


def test_a_long_stream_is_told_minute_by_minute() -> None:
    minute = whole_minutes([SAID, clip("brown fox")])
    assert len(minute.samples) == 60 * 16_000 and len(minute.utterances) > 10
    for seed in range(20):  # whatever the pauses: a second minute of hiss alone would be no minute of talk
        assert len(whole_minutes([clip("brown fox " * 14), SAID], seed=seed).samples) == 60 * 16_000
    heard_s: list[float] = []
    found = bench(0.001, 70.0).minutes(minute, 3, BLOCK, heard_s.append)
    assert [each.number for each in found] == [1, 2, 3]
    assert [each.cpu_s for each in found] == pytest.approx([1.5, 1.5, 1.501])
    assert [each.compute_s for each in found] == pytest.approx([4.5, 4.5, 4.503])
    assert {each.memory_mb for each in found} == {70.0} and sum(heard_s) == pytest.approx(180.04)


# The command


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny")))


def test_the_command_writes_table_json_and_picture(tiny: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model: the words are nonsense, the figures are there."""
    (tmp_path / "clips").mkdir()
    for name in ("market.flac", "market.txt", "talk.ogg", "talk.txt"):
        shutil.copy(clips / name, tmp_path / "clips")
    flags = ["--model", tiny, "--threads", "1", "--vad", "webrtc", "--blocks", "960,1280", "--out", str(tmp_path / "out")]
    assert main(["bench", str(tmp_path / "clips"), *flags]) == 0
    out = capsys.readouterr().out
    assert "commit lag, p50 / p95" in out and "960 ms" in out and "1280 ms" in out and "2 clips in 1 talk" in out
    assert (tmp_path / "out" / "bench.txt").read_text(encoding="utf-8") == out
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert report["settings"]["session"]["vad"]["kind"] == "webrtc" and report["settings"]["threads"] == 1
    assert report["machine"]["cores"] and "simulated real time" in report["method"]
    assert [block["block_ms"] for block in report["blocks"]] == [960, 1280]
    words = sum(len((clips / name).read_text(encoding="utf-8").split()) for name in ("market.txt", "talk.txt"))
    for block in report["blocks"]:
        assert block["words"] == report["offline"]["words"] == words
        assert block["final_delay"]["count"] == 2 and block["final_delay"]["p50_ms"] > 300  # how much more is the machine's business
        assert block["cpu_s_per_audio_s"] > 0 and block["peak_memory_mb"] > 20
        assert "own word times" in block["word_ends_from"]
    assert report["long"] is None and str(tmp_path) not in json.dumps(report)


def test_a_report_with_a_long_stream(tmp_path: Path) -> None:
    plan = Plan(tmp_path, (BLOCK, SessionOptions(block_ms=960)), talk_s=5.0, long_minutes=3)
    clips = [SAID, clip("brown fox"), clip("over a lazy")]
    report = measure(plan, clips, bench(0.001), loaded(ScriptedBackend()), Options(session=BLOCK))
    assert report["settings"]["model"] == "scripted" and report["settings"]["talk_count"] == 2
    long = report["long"]
    assert long["block_ms"] == 640 and [minute["number"] for minute in long["minutes"]] == [1, 2, 3]
    assert long["flat"] == {"cpu_s": round(1.501 / 1.5, 3), "memory_mb": 1.0}
    said = [each["reference"] for talk in report["texts"] for each in talk["clips"]]
    assert said == [each.text for each in clips] and set(report["texts"][0]["streaming"]) == {640, 960}
    write(report, tmp_path)
    text = (tmp_path / "bench.txt").read_text(encoding="utf-8")
    assert "one stream, block 640 ms; the last minute over the second: CPU 1.00, memory 1.00" in text
    assert "ends of words from reference alignment" in text
    (drafts,) = report["blocks"][0]["drafts"]
    assert (drafts["task"], drafts["source"]) == ("transcript", "hypothesis") and 0 < drafts["accepted_tokens"] < drafts["offered_tokens"]
    assert f"transcript hypothesis {drafts['accepted_tokens']}/{drafts['offered_tokens']}" in text
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["blocks"] == report["blocks"]


def test_nothing_in_the_picture_covers_a_bar_or_a_number(tmp_path: Path) -> None:
    delay = {"count": 9, "asked": 9, "p50_ms": 1400.0, "p95_ms": 2100.0}
    kinds = {"commit_lag": delay, "first_partial": delay, "final_delay": delay}
    blocks = [{"block_ms": ms, "wer": 0.8, "normalised_erasure": 1.0, "cpu_s_per_audio_s": 0.1, **kinds} for ms in (320, 640, 960)]
    report = {"blocks": blocks, "long": None, "offline": {"wer": 0.81}, "machine": {"cpu": "none"}}
    figure = draw({**report, "settings": {"model": "small", "runtime": "none", "threads": 1}})
    figure.draw_without_rendering()
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    assert len(legends) == 2
    for legend in legends:
        place = legend.get_window_extent()
        assert not any(place.overlaps(axis.get_window_extent()) for axis in figure.axes)
        assert 0 <= place.x0 < place.x1 <= figure.bbox.x1 and place.y0 >= 0, "in the picture"
    numbers = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    assert len(numbers) == 9 and not any(number.overlaps(title) for number in numbers for title in titles)


def test_what_could_not_be_measured_is_shown_as_such(tmp_path: Path) -> None:
    """A model that writes nothing has neither lags nor erasure."""
    backend = ScriptedBackend(lambda loudness: "")
    deaf = Bench(loaded(backend), open_session=lambda options: Session(loaded(backend), options, vad=LoudnessVad()), memory_mb=lambda: 1.0)
    report = measure(Plan(tmp_path, (BLOCK,)), [SAID], deaf, loaded(backend), Options())
    (block,) = report["blocks"]
    assert (block["wer"], block["deletions"], block["normalised_erasure"], block["drafts"]) == (1.0, 4, None, [])
    assert dict(ROWS)["drafts confirmed"](block) == "–"
    assert block["commit_lag"] == {"count": 0, "asked": 0, "p50_ms": None, "p95_ms": None}
    assert (block["first_partial"]["count"], block["final_delay"]["count"]) == (0, 1)
    write(report, tmp_path)
    assert "– / – ms" in (tmp_path / "bench.txt").read_text(encoding="utf-8")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no CLIPS are given, and none come with the package: CLIPS is a folder of sound files with the words of each in a .txt"),
        (["nowhere"], "nowhere: does not exist; CLIPS is a folder of sound files"),
        (["{clips}", "--blocks", "320,x"], "--blocks is '320,x', expected different numbers of ms"),
        (["{clips}", "--blocks", "320,320"], "--blocks is '320,320', expected different"),
        (["{clips}", "--blocks", "3"], "session.block_ms"),
        (["{clips}", "--limit", "0"], "--limit is 0, expected at least 1"),
        (["{clips}", "--talk-seconds", "0"], "--talk-seconds is 0, expected at least 1"),
        (["{clips}", "--talk-seconds", "nan"], "--talk-seconds is nan, expected at least 1"),
        (["{clips}", "--seed", "-1"], "--seed is -1, expected at least 0"),
        (["{clips}", "--long", "2"], "--long is 2, expected at least 3"),
        (["{clips}", "--split", "dev"], "no clips.tsv, so it is no store"),
        (["{clips}", "--out", "{clips}/market.txt"], "market.txt: File exists"),
        (["{clips}", "--model", "nowhere"], "'nowhere' is neither a folder"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(arguments: list[str], says: str, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *(argument.format(clips=clips) for argument in arguments)]) == 1
    err = capsys.readouterr().err
    assert says in err and err.startswith("dragoman: ") and err.count("\n") == 1


def test_where_to_get_clips_is_told_before_anything_else_is_asked_for(
    clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dragoman.clients.bench.NEEDED", ("no_such_package",))
    assert main(["bench"]) == 1
    err = capsys.readouterr().err
    assert "dragoman bench tests/clips, in a checkout" in err and "LibriSpeech's dev-clean (337 MB, https://www.openslr.org/12)" in err
    assert len(read_clips(clips)) == 3, "what the message promises of this folder"


def test_another_language_is_refused(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("session: {language: de}")
    assert main(["bench", str(clips), "--config", str(tmp_path / "mine.yaml")]) == 1
    assert "session.language is 'de', expected 'en'" in capsys.readouterr().err


def test_missing_packages_are_named(clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dragoman.clients.bench.NEEDED", ("json", "no_such_package"))
    assert main(["bench", str(clips)]) == 1
    assert 'needs more packages (no_such_package): pip install "dragoman[bench]"' in capsys.readouterr().err


# docs/bench.md


def test_every_figure_of_the_table_is_defined() -> None:
    defined = re.findall(r"^\| ([^|]+) \|", DOCS, re.MULTILINE)
    for name, _ in ROWS:
        assert name.startswith("  ") or any(name.lower().startswith(figure.lower()) for figure in defined), name


@pytest.mark.parametrize("line", re.findall(r"^dragoman .*$", DOCS, re.MULTILINE))
def test_commands_of_the_page_are_understood(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    assert make_parser().parse_args(arguments).command == arguments[0]


def test_the_page_makes_clips_of_a_corpus_that_has_one_transcript_for_a_chapter(clips: Path, tmp_path: Path) -> None:
    said = {"84-121123-0000": "GO DO YOU HEAR", "84-121123-0001": "BUT IN LESS THAN FIVE MINUTES", "174-50561-0000": "FORGOTTEN TOO"}
    for name, text in said.items():
        reader, chapter, _ = name.split("-")
        folder = tmp_path / "LibriSpeech" / "dev-clean" / reader / chapter
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / "market.flac", folder / f"{name}.flac")
        with (folder / f"{reader}-{chapter}.trans.txt").open("a", encoding="utf-8") as words:
            words.write(f"{name} {text}\n")
    (line,) = re.findall(r"^awk .*$", DOCS, re.MULTILINE)
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, timeout=60)
    found = read_clips(tmp_path / "LibriSpeech" / "dev-clean")
    assert {Path(each.name).stem: each.text for each in found} == said
