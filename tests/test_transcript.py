"""Committed text only grows, by whole words; times are in order; nothing is lost at a flush."""

from __future__ import annotations

import pytest
from dragoman.model.tokenizer import Tokenizer
from dragoman.stream.transcript import Transcript, starts_word
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import WORDS, scripted_tokenizer

TOKENIZER = scripted_tokenizer()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return TOKENIZER


def update(transcript: Transcript, text: str, *, heard_ms: int = 1000, word_is_over: bool = False, patience_ms: int | None = None) -> int:
    """A hypothesis for the whole segment, agreement counted as the decoder does."""
    ids = TOKENIZER.encode(text)[len(transcript.committed_ids) :] if text else []
    agreed = 0
    for old, new in zip(transcript.unstable_ids, ids, strict=False):
        if old != new:
            break
        agreed += 1
    logprobs = [-0.1] * len(ids)
    return transcript.update(ids, logprobs, agreed, heard_ms=heard_ms, word_is_over=word_is_over, patience_ms=patience_ms)


def test_agreement_of_two_hypotheses_commits_whole_words(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the quick brown")
    assert (transcript.text, transcript.tail) == ("", "the quick brown")
    update(transcript, "the quick fox", heard_ms=1600)
    assert (transcript.text, transcript.tail) == ("the quick", " fox")
    update(transcript, "the quick fox", heard_ms=2200)
    assert (transcript.text, transcript.tail) == ("the quick", " fox")  # the last word may go on


def test_a_word_that_keeps_changing_is_committed_when_patience_is_at_an_end(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    for heard_ms, said in enumerate(("the quick", "a quick", "the quick brown", "a quick brown"), start=1):
        update(transcript, said, heard_ms=heard_ms * 250, patience_ms=1000)
        assert transcript.text == ""
    update(transcript, "the quick brown fox", heard_ms=1500, patience_ms=1000)
    assert (transcript.text, transcript.tail) == ("the quick", " brown fox"), "the others ended less than a second ago"
    update(transcript, "the quick red", heard_ms=9000, patience_ms=1000)
    assert (transcript.text, transcript.tail) == ("the quick", " red"), "the last word may go on"


def test_the_last_word_is_committed_when_silence_shows_that_it_is_over(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the fox")
    update(transcript, "the fox", word_is_over=True)
    assert (transcript.text, transcript.tail) == ("the fox", "")
    assert [word.text for word in transcript.words] == ["the", " fox"]


def test_a_word_that_the_vocabulary_cuts_up_is_never_committed_by_half(tokenizer: Tokenizer) -> None:
    long = "zebrastripes"  # not in the vocabulary: many tokens
    transcript = Transcript(tokenizer, 0)
    assert len(tokenizer.encode(long)) > 5
    update(transcript, f"the {long}")
    update(transcript, f"the {long}x")
    assert transcript.text == "the"
    transcript.flush()
    assert transcript.text == f"the {long}x"
    assert [word.text for word in transcript.words] == ["the", f" {long}x"]


def test_a_full_stop_after_a_told_word_is_a_piece_of_its_own(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the fox")
    update(transcript, "the fox", word_is_over=True)
    told = list(transcript.words)
    update(transcript, "the fox.", heard_ms=1500)
    first = transcript.flush()
    assert first == 2 and transcript.words[:2] == told
    assert [word.text for word in transcript.words] == ["the", " fox", "."]
    assert transcript.text == "the fox." and transcript.ends_sentence


def test_the_last_sentence_is_what_a_next_segment_may_know(tokenizer: Tokenizer) -> None:
    for text, last in (
        ("we met. all left early.", "all left early."),
        ("over a lazy dog", "over a lazy dog"),
        ("the fox. why", "why"),
        ("", ""),
    ):
        transcript = Transcript(tokenizer, 0)
        update(transcript, text)
        transcript.flush()
        assert transcript.last_sentence == last


def test_words_share_the_audio_that_brought_them(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 400)
    update(transcript, "the quick", heard_ms=1000)
    update(transcript, "the quick brown fox", heard_ms=1600)
    transcript.flush()
    spans = [(word.text, word.start_ms, word.end_ms) for word in transcript.words]
    assert spans[0][1] == 400 and spans[1][2] == 1000  # the first two in the first block
    assert spans[2][1] == 1000 and spans[3][2] == 1600  # the others in the second
    assert spans[0][2] == spans[1][1] and spans[2][2] == spans[3][1]


def spans(transcript: Transcript) -> dict[str, tuple[int, int]]:
    transcript.flush()
    return {word.text.strip(): (word.start_ms, word.end_ms) for word in transcript.words}


def test_a_word_that_is_heard_better_later_on_was_not_said_later(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the quick brown", heard_ms=1000)
    before = spans(transcript_of("the quick brown", 1000))
    update(transcript, "the lazy brown fox", heard_ms=1600)
    after = spans(transcript)
    assert after["lazy"] == before["quick"], "in place of the other"
    assert (after["the"], after["brown"]) == (before["the"], before["brown"]), "as it was"
    assert after["fox"] == (1000, 1600), "in the audio that is new"


def test_what_is_new_behind_a_word_that_has_changed_shares_the_time_of_both(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the quick brown", heard_ms=1000)
    brown = spans(transcript_of("the quick brown", 1000))["brown"]
    update(transcript, "the quick fox why", heard_ms=1600)
    after = spans(transcript)
    assert after["fox"][0] == brown[0] and after["fox"][1] == after["why"][0] and after["why"][1] == 1600


def test_a_word_between_two_others_gets_time_of_its_own(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the fox", heard_ms=800)
    update(transcript, "the quick fox", heard_ms=1440)
    after = spans(transcript)
    assert all(end_ms - start_ms >= 40 for start_ms, end_ms in after.values())
    assert [after[word][0] for word in ("the", "quick", "fox")] == sorted(after[word][0] for word in after)


def transcript_of(text: str, heard_ms: int) -> Transcript:
    transcript = Transcript(TOKENIZER, 0)
    update(transcript, text, heard_ms=heard_ms)
    return transcript


def test_an_unfinished_character_is_held_back_and_told_at_the_flush(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    ids = tokenizer.encode("naïve")
    broken = ids[:4]  # the ï takes two bytes, each a token
    assert tokenizer.decode(broken).endswith("\N{REPLACEMENT CHARACTER}")
    transcript.update(broken, [-0.1] * 4, 0, heard_ms=100, word_is_over=False)
    assert "\N{REPLACEMENT CHARACTER}" not in transcript.tail
    transcript.flush()
    assert "".join(word.text for word in transcript.words) == transcript.text


def test_the_shown_tail_lacks_whole_words(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer, 0)
    update(transcript, "the quick brown")
    assert [transcript.shown_tail(held) for held in range(5)] == ["the quick brown", "the quick", "the", "", ""]
    update(transcript, "the quick fox.")
    assert [transcript.shown_tail(held) for held in range(3)] == [" fox.", "", ""]
    update(transcript, "")
    assert transcript.shown_tail(0) == transcript.shown_tail(1) == ""


def test_scripts_without_spaces_commit_character_by_character(tokenizer: Tokenizer) -> None:
    assert starts_word(tokenizer, tokenizer.encode("the")[0])
    assert not starts_word(tokenizer, tokenizer.encode("zebra")[1])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(WORDS), max_size=8), st.booleans(), st.integers(0, 900)), max_size=12),
    st.sampled_from([None, 0, 500]),
)
def test_whatever_the_hypotheses_committed_text_only_grows(hypotheses: list[tuple[list[str], bool, int]], patience_ms: int | None) -> None:
    transcript, heard_ms, told = Transcript(TOKENIZER, 0), 0, ""
    words: list[object] = []
    for heard, word_is_over, step_ms in hypotheses:
        heard_ms += step_ms
        first = update(transcript, " ".join(heard), heard_ms=heard_ms, word_is_over=word_is_over, patience_ms=patience_ms)
        assert transcript.text.startswith(told)
        assert transcript.words[: len(words)] == words and first == len(words)
        told, words = transcript.text, list(transcript.words)
        assert (told + transcript.tail).strip() == TOKENIZER.decode([*transcript.committed_ids, *transcript.unstable_ids]).strip()
    tail = transcript.tail
    transcript.flush()
    assert transcript.text == told + tail and transcript.tail == ""
    assert "".join(word.text for word in transcript.words) == transcript.text
    times = [time for word in transcript.words for time in (word.start_ms, word.end_ms)]
    assert times == sorted(times) and (not times or times[-1] <= max(heard_ms, 0))


@pytest.mark.parametrize("is_over", [False, True])
def test_a_word_that_only_one_of_two_hypotheses_said_is_not_committed(tokenizer: Tokenizer, is_over: bool) -> None:
    """Their tokens agree as far as "fox", and one of them says "foxy"."""
    longer = tokenizer.encode("the foxy")
    assert longer[:2] == tokenizer.encode("the fox") and len(longer) > 2
    for first, second in (("the foxy", "the fox jumps"), ("the foxy", "the fox"), ("the fox", "the foxy jumps")):
        transcript = Transcript(tokenizer, 0)
        update(transcript, first)
        update(transcript, second, word_is_over=is_over)
        assert transcript.text == "the"
