"""Translation in training: rows as a session would prompt for them, and nothing learnt that is measured."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")
pytest.importorskip("sacrebleu", reason="needs the extra train")

import tokenizers  # noqa: E402
from dragoman.model.errors import ConfigError, TaskError  # noqa: E402
from dragoman.model.load import Loaded, load  # noqa: E402
from dragoman.model.offline import translate_job  # noqa: E402
from dragoman.model.prompt import Task  # noqa: E402
from dragoman.model.store import Store  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.batches import Batches, BatchOptions  # noqa: E402
from dragoman.model.training.evaluate import main as evaluate  # noqa: E402
from dragoman.model.training.evaluate import translation_report, translation_scores  # noqa: E402
from dragoman.model.training.package import Taught, package  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.sentences import HELD_OUT_PAIRS, plain  # noqa: E402
from dragoman.model.training.speech import Speech  # noqa: E402
from dragoman.model.training.student import LossWeights  # noqa: E402
from dragoman.model.training.trainer import Trainer, TrainOptions  # noqa: E402
from dragoman.model.training.translations import Translations, read_held_out  # noqa: E402
from dragoman.model.work import run  # noqa: E402

from .training_fakes import SENTENCES, make_batches, make_store, make_student  # noqa: E402

GERMAN = ["Die Katze sass auf der Matte.", "Wo ist das rote Haus?", "Ich mag Berlin im Mai."]  # of the first three; the last has none


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """A file of which just these pairs are not held out."""
    order = list(range(len(pairs) + HELD_OUT_PAIRS))
    random.Random(0).shuffle(order)
    lines = [("Number one.", "Nummer eins.")] * len(order)
    for place, pair in zip(order, pairs, strict=False):
        lines[place] = pair
    path.write_text("".join(f"{english}\t{other}\n" for english, other in lines))
    return path


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "en-de.tsv", list(zip(SENTENCES, GERMAN, strict=False)))


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    return text.train_tokenizer(iter([*SENTENCES, *GERMAN] * 4), tmp_path / "tokenizer.json", vocab_size=320)


def batches_of(tmp_path: Path, tokenizer: tokenizers.Tokenizer, translations: Translations | None, **options: object) -> Batches:
    if not (tmp_path / "store").exists():
        make_store(tmp_path / "store")
    given = {"shapes": ((192, 6, 1.0),), "labelled": 1.0, "silence": 0.0, **options}
    return Batches(Speech([(tmp_path / "store", 1.0)], None), tokenizer, BatchOptions(**given), 7, translations)  # type: ignore[arg-type]


def test_a_translated_row_is_what_a_session_asks_for(tmp_path: Path, tokenizer: tokenizers.Tokenizer, german: Path) -> None:
    translations = Translations({"de": german})
    batch = batches_of(tmp_path, tokenizer, translations, translate=1.0, several=1.0)[0]
    de, said = text.TRANSLATE["de"], dict(zip(SENTENCES, GERMAN, strict=False))
    several = 0
    for b in range(6):
        ids = batch.ids[b][batch.is_text[b]].tolist()
        assert ids[:4] == [text.BOS, text.BEGIN_AUDIO, text.END_AUDIO, text.TRANSCRIBE] and ids[-1] == text.END
        assert ids.count(de) == 1 and ids[ids.index(de) - 1] == text.END
        english, other = tokenizer.decode(ids[4 : ids.index(de) - 1]).strip(), tokenizer.decode(ids[ids.index(de) + 1 : -1]).strip()
        expected = english
        for sentence, translation in said.items():
            expected = expected.replace(sentence, translation)
        assert other == expected != english, "sentence by sentence, in order, none without a translation"
        several += english.count(".") + english.count("?") > 1
        asked = batch.labels[b]
        assert asked[asked != IGNORE].tolist() == [*ids[4 : ids.index(de)], *ids[ids.index(de) + 1 :]], "all but the language is asked for"
        place = int((batch.ids[b] == de).nonzero()[0, 0])
        assert asked[place - 1] == IGNORE and asked[place] == ids[ids.index(de) + 1]
        assert (batch.windows[b, place - 1 :] == -1).all(), "a translated word is heard nowhere in particular"
    assert several


def test_french_marks_are_always_set_in_the_same_way(tmp_path: Path) -> None:
    """What other languages write stays as it is."""
    said = "« Oui » : qui\u202f? Moi\u2009! À 10:30, «\u00a0non »; vas-y !"
    path = write_pairs(tmp_path / "pairs.tsv", [("Yes.", said)])
    wanted = "«\u00a0Oui\u00a0»\u00a0: qui\u00a0? Moi\u00a0! À 10:30, «\u00a0non\u00a0»; vas-y\u00a0!"
    found = Translations({"fr": path, "es": path}).pairs
    assert [pair for pair in found["fr"] if pair[0] == "Yes."] == [("Yes.", wanted)] != found["es"]
    assert [pair for pair in found["es"] if pair[0] == "Yes."] == [("Yes.", said)]


def test_rows_of_pairs_ask_only_for_the_translation(tmp_path: Path, tokenizer: tokenizers.Tokenizer, german: Path) -> None:
    batch = batches_of(tmp_path, tokenizer, Translations({"de": german}), pairs=1.0)[2]
    assert batch.audio_seconds == 0 and not batch.frames.any()
    for b in range(6):
        ids = batch.ids[b][batch.is_text[b]].tolist()
        cut = ids.index(text.TRANSLATE["de"])
        assert ids[:4] == [text.BOS, text.BEGIN_AUDIO, text.END_AUDIO, text.TRANSCRIBE] and ids[cut - 1] == ids[-1] == text.END and cut > 5
        assert batch.labels[b][batch.labels[b] != IGNORE].tolist() == ids[cut + 1 :]
    student = make_student()
    loss, figures = student(batch, LossWeights(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)) if len(batch.features) else student(batch, LossWeights())
    assert torch.isfinite(loss) and set(figures) == {"words", "words_right"}


def test_batches_without_the_options_stay_as_they_were(tmp_path: Path, tokenizer: tokenizers.Tokenizer, german: Path) -> None:
    with_pairs, without = (batches_of(tmp_path, tokenizer, t)[4] for t in (Translations({"de": german}), None))
    assert torch.equal(with_pairs.frames, without.frames) and torch.equal(with_pairs.labels, without.labels)
    mixed = batches_of(tmp_path, tokenizer, Translations({"de": german}), translate=0.5, pairs=0.3, shapes=((192, 40, 1.0),))
    one, two = (
        mixed[1],
        batches_of(tmp_path, tokenizer, Translations({"de": german}), translate=0.5, pairs=0.3, shapes=((192, 40, 1.0),))[1],
    )
    assert torch.equal(one.ids, two.ids) and torch.equal(one.frames, two.frames)
    silent, german_rows = int((one.audio_frames == 0).sum()), int((one.ids == text.TRANSLATE["de"]).any(1).sum())
    assert 4 <= silent <= 22 and silent < german_rows < 40
    with pytest.raises(ConfigError, match="batches.translate is 0.5.*no translations"):
        batches_of(tmp_path, tokenizer, None, translate=0.5)


def test_what_is_measured_is_never_learnt(tmp_path: Path) -> None:
    german = tmp_path / "en-de.tsv"
    german.write_text("".join(f"Sentence {i}!\tSatz {i}\nsentence {i}\tSatz {i} nochmal\n" for i in range(HELD_OUT_PAIRS)))
    french = tmp_path / "en-fr.tsv"
    french.write_text("".join(f"Sentence {i}?\tPhrase {i}\n" for i in range(2 * HELD_OUT_PAIRS)))
    held = {plain(english) for path in (german, french) for english, _ in read_held_out(path)}
    assert len(read_held_out(german)) == HELD_OUT_PAIRS
    learnt = Translations({"de": german, "fr": french}, banned=["SENTENCE 1999"])
    for language in ("de", "fr"):
        english = {plain(english) for english, _ in learnt.pairs[language]}
        assert english and not english & held and "sentence 1999" not in english
        assert all(learnt.of(sentence, language) for sentence in english) and not any(learnt.of(sentence, language) for sentence in held)
    with pytest.raises(ConfigError, match="'it' has no token"):
        Translations({"it": german})
    german.write_text("only English\n" * 2000)
    with pytest.raises(ConfigError, match="line 1: expected English TAB other, got 'only English'"):
        Translations({"de": german})


def test_scores_are_sacrebleus_with_every_reference() -> None:
    perfect = translation_scores(["ein Haus am See", "das war gut so"], [["ein Haus am See"], ["falsch ganz und gar", "das war gut so"]])
    assert perfect.startswith("BLEU 100.0 (") and "chrF2 100.0 (" in perfect
    assert "BLEU 0.0" in translation_scores(["nichts"], [["ein Haus am See"]])


@pytest.fixture(scope="module")
def translating(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = text.train_tokenizer(iter([*SENTENCES, *GERMAN] * 4), folder / "tokenizer.json", vocab_size=320)
    trainer = Trainer(make_student(), make_batches(folder, tokenizer), folder, TrainOptions(threads=1))
    trainer.save()
    (folder / "sizes.json").write_text(json.dumps(asdict(trainer.student.config.backbone)))
    Taught(targets=("de",)).write(folder)
    package(folder, folder / "model")
    return load(folder / "model", runtime="torch")


def test_a_translation_continues_the_transcript(translating: Loaded) -> None:
    """Clip, text or both: the ids before the translation are those of a row of training."""
    prompts, samples = translating.prompts, np.zeros(8_000, np.float32)
    task = Task(targets=("de",))
    tail = prompts.translate(task, "de", translating.tokenizer.encode("We saw it all."))
    assert tail[0] == text.END_AUDIO and tail[1] == text.TRANSCRIBE and tail[-2:] == [text.END, text.TRANSLATE["de"]]
    said = run(translating.backend, translate_job(translating, "de", transcript="We saw it all."))
    cache = translating.backend.new_cache()
    step = translating.backend.step([(cache, np.array([text.BOS, text.BEGIN_AUDIO, *tail]))])[0]
    assert (said.ids[:1] or (text.END,)) == (int(step.ids[-1]),)
    heard = run(translating.backend, translate_job(translating, "de", samples=samples, transcript="We saw it all."))
    assert heard.forwards > 0
    with pytest.raises(TaskError, match="nothing to translate"):
        run(translating.backend, translate_job(translating, "de"))


def test_held_out_pairs_are_scored_from_text_and_from_speech(translating: Loaded, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", features=False)
    held = [("the CAT sat on the mat", "Die Katze."), ("The cat sat on the mat.", "Eine Katze."), ("Nobody says this.", "Niemand.")]
    line, triples = translation_report(translating, "de", held, None, "", limit=None, noise_db=None)
    assert "BLEU" in line and "chrF2" in line and [t["english"] for t in triples] == [english for english, _ in held]
    _, spoken = translation_report(translating, "de", held, Store(store.folder), "train", limit=2, noise_db=None)
    assert [t["english"] for t in spoken] == [SENTENCES[0]] * 2 and spoken[0]["reference"] == "Die Katze."
    with pytest.raises(SystemExit, match="no clip of split 'dev'"):
        translation_report(translating, "de", held, Store(store.folder), "dev", limit=2, noise_db=None)
    with pytest.raises(SystemExit):
        evaluate(["--to", "de"])
