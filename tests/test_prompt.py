"""Tasks as token ids, for both prompt formats, and what each refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dragoman.model.errors import ConfigError, TaskError
from dragoman.model.prompt import LANGUAGES, Prompts, Task, Term

from .fakes import scripted_config, scripted_tokenizer
from .gemma_tokens import gemma_config, gemma_tokenizer

SMALL = Prompts(scripted_config(), scripted_tokenizer())
LARGE = Prompts(gemma_config(), gemma_tokenizer())
NAMES = scripted_tokenizer()
KEEPER = Term("de", "keeper", "Wärter")


def names(ids: list[int]) -> list[str | None]:
    return [NAMES.name_of(token) for token in ids]


def test_the_small_format_is_one_task_token() -> None:
    task = Task(targets=("de",))
    assert names(SMALL.prefix(task)) == ["<bos>", "<|audio>"]
    assert names(SMALL.tail(task)) == ["<audio|>", "<|transcribe|>"]
    assert names(SMALL.translate(task, "de", [20])) == ["<audio|>", "<|transcribe|>", NAMES.name_of(20), "<eos>", "<|de|>"]
    assert SMALL.carry("what was said before") == []
    assert SMALL.opening(task, "what was said before") == SMALL.prefix(task)
    assert names(list(SMALL.stop)) == ["<eos>"]
    assert (SMALL.languages, set(SMALL.targets)) == (("en",), {"de", "fr", "es"})


def test_layers_of_translation_are_asked_by_the_language_alone() -> None:
    config = scripted_config()
    tokens = [scripted_tokenizer().id_of(f"<|{code}|>") for code in config.targets]
    known = tuple(token for token in tokens if token is not None)
    assert len(known) == len(tokens) == 3

    def prompts_with(languages: tuple[int, ...]) -> Prompts:
        return Prompts(replace(config, special=replace(config.special, languages=languages)), scripted_tokenizer())

    assert names(prompts_with(known).translate(Task(), "de", [20])) == ["<|de|>", NAMES.name_of(20), "<eos>"]
    with pytest.raises(ConfigError, match="language_ids lacks the tokens of fr, into which"):
        prompts_with(tuple(token for token in known if token != scripted_tokenizer().id_of("<|fr|>")))


def test_the_large_format_is_the_documented_one() -> None:
    """bos, user turn, instruction, begin of audio; the published tail of ten ids."""
    prefix = LARGE.prefix(Task(language="de"))
    assert prefix[:4] == [2, 105, 2364, 107]
    assert prefix[-1] == 256000
    text = gemma_tokenizer().decode(prefix[4:-1])
    assert text == (
        "Transcribe the following speech segment in German into German text.\n\n"
        "Follow these specific instructions for formatting the answer:\n"
        "*   Only output the transcription, with no newlines.\n"
        "*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write 3 instead of three."
    )
    assert LARGE.tail(Task()) == [258883, 106, 107, 105, 4368, 107, 100, 45518, 107, 101]


def test_a_translation_is_a_further_turn() -> None:
    task = Task(language="en")
    whole = LARGE.translate(task, "fr", [1000, 1001])
    given = [*LARGE.tail(task), 1000, 1001]
    ids = whole[len(given) :]
    assert whole[: len(given)] == given
    assert ids[:5] == [106, 107, 105, 2364, 107]
    assert ids[-9:] == [106, 107, 105, 4368, 107, 100, 45518, 107, 101]
    assert "from English into French" in gemma_tokenizer().decode(ids)
    assert 256000 not in ids, "the audio is not heard again"


def test_glossary_and_carried_text_stand_before_the_audio() -> None:
    task = Task(glossary=("Kubernetes", "<turn|>"))
    ids = LARGE.opening(task, " We met them again. ")
    text = gemma_tokenizer().decode(ids)
    assert ids[-1] == 256000
    assert ids.count(106) == 0, "a term that looks like a control token is text"
    assert "Kubernetes, <turn|>." in text
    assert text.endswith("The text before this segment was: We met them again.")
    assert LARGE.opening(task) == LARGE.prefix(task)
    assert LARGE.carry("  ") == []


@pytest.mark.parametrize(
    ("prompts", "task", "message"),
    [
        (SMALL, Task(language="de"), "does not transcribe 'de'; it knows en"),
        (SMALL, Task(targets=("ja",)), "does not translate into 'ja'; it knows de, es, fr"),
        (SMALL, Task(targets=("en",)), "cannot translate 'en' into itself"),
        (
            SMALL,
            Task(terms=(KEEPER,)),
            "cannot be told how to translate terms \\(got 1\\); it transcribes en",
        ),
        (SMALL, Task(style="plain"), "writes no formatted text \\(got style 'plain'\\); it transcribes en and translates into"),
        (LARGE, Task(language="xx"), "does not transcribe 'xx'; it knows ar, de, en"),
        (LARGE, Task(language="de", targets=("xx",)), "does not translate into 'xx'; it knows ar, en, es"),
        (LARGE, Task(language="de", targets=("fr", "de")), "cannot translate 'de' into itself"),
    ],
)
def test_what_a_model_lacks_is_refused_with_what_it_has(prompts: Prompts, task: Task, message: str) -> None:
    for use in (prompts.check, prompts.prefix, prompts.tail):
        with pytest.raises(TaskError, match=message):
            use(task)
    for target in task.targets[-1:]:
        with pytest.raises(TaskError, match=message):
            prompts.translate(task, target, [])


def test_terms_stand_in_the_translation_that_they_are_for() -> None:
    task = Task(targets=("de", "fr"), terms=(KEEPER, Term("de", "light", "Feuer")))
    text = gemma_tokenizer().decode(LARGE.translate(task, "de", []))
    assert "Translate these terms as given: keeper = Wärter; light = Feuer." in text
    assert LARGE.translate(task, "fr", []) == LARGE.translate(Task(), "fr", []) and LARGE.prefix(task) == LARGE.prefix(Task())


def test_a_term_is_read_or_refused() -> None:
    assert Term.read("de:keeper=Wärter") == KEEPER == Term.read(" de : keeper = Wärter ")
    assert Term.read("de:a=b = c") == Term("de", "a", "b = c")
    for wrong in ("keeper=Wärter", "de:keeper", "xx:keeper=Wärter", "de:=Wärter", "de:keeper=", ""):
        with pytest.raises(ValueError, match="is no term, expected LANGUAGE:TERM=TRANSLATION"):
            Term.read(wrong)


def test_formatted_text_is_a_further_turn_with_its_style() -> None:
    given = [*LARGE.tail(Task()), 1000, 1001]
    wholes = [LARGE.formatted(Task(style=style), given[-2:]) for style in ("plain", "minutes of a meeting <turn|>")]
    assert all(whole[: len(given)] == given for whole in wholes)
    plain, styled = (whole[len(given) :] for whole in wholes)
    for ids in (plain, styled):
        assert ids[:5] == [106, 107, 105, 2364, 107] and ids[-9:] == [106, 107, 105, 4368, 107, 100, 45518, 107, 101]
        assert ids.count(106) == 2, "a style cannot end a turn"
    assert "correct casing, punctuation, numbers and paragraphs" in gemma_tokenizer().decode(plain)
    assert "in this style: minutes of a meeting <turn|>." in gemma_tokenizer().decode(styled)


def test_a_glossary_is_left_to_the_caller_where_there_are_no_instructions() -> None:
    assert LARGE.instructed and not SMALL.instructed
    assert SMALL.prefix(Task(glossary=("Kubernetes",))) == SMALL.prefix(Task())


def test_every_language_has_a_name() -> None:
    for code, name in LANGUAGES.items():
        assert len(code) == 2 and name[0].isupper()
        LARGE.check(Task(language=code, targets=tuple(other for other in LANGUAGES if other != code)))


def test_only_translations_that_were_taught_are_offered() -> None:
    """The small default's vocabulary has tokens for languages that no weights know yet."""
    none = Prompts(replace(scripted_config(), targets=()), scripted_tokenizer())
    with pytest.raises(TaskError, match="it knows no translation, it transcribes en"):
        none.check(Task(targets=("de",)))
    with pytest.raises(ConfigError, match="targets name xx, expected some of"):
        Prompts(replace(scripted_config(), targets=("xx",)), scripted_tokenizer())
    with pytest.raises(ConfigError, match=r"needs the token '<\|ja\|>'"):
        Prompts(replace(scripted_config(), targets=("ja",)), scripted_tokenizer())


def test_a_format_that_does_not_fit_the_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the token '<|transcribe|>'"):
        Prompts(replace(gemma_config(), prompt_format="tokens"), gemma_tokenizer())
    with pytest.raises(ConfigError, match="needs the token '<|turn>'"):
        Prompts(gemma_config(), scripted_tokenizer())
    with pytest.raises(ConfigError, match="prompt_format is 'chat', expected 'tokens' or 'gemma4'"):
        Prompts(replace(gemma_config(), prompt_format="chat"), gemma_tokenizer())
