"""Whether a text was said in the audio, or is a model's answer to it: a model with instructions may reply to a question that it hears,
describe the recording, refuse, or write its prompt once more. Judged from the text, the language asked for, and how much can be said
in the time.

An answer as short and plain as speech is not found here: nothing in its text tells it from what was said.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Doubt = Literal["rate", "assistant", "phrase", "description", "language", "echo"]
# A speaker, too, may say these: believed when the model says the very same with a firmer prompt.
PARDONED: frozenset[Doubt] = frozenset(("phrase", "description", "language"))

_FLOOR_WORDS = 4
_ECHO_WORDS = (3, 5)  # of a carried sentence: with fewer it is no echo, with more it is one already
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI")
_MARKS_OF_A_WORD = 2  # in scripts without spaces
_LEAST_LETTERS, _LEAST_SCRIPT_SHARE = 10, 0.3
_LEAST_WORDS, _LEAST_FOREIGN, _MOST_OWN = 8, 0.3, 0.05

_CLIP = r"(?:clip|file|recording|segment|sample)"
_AUDIO = rf"(?:(?:provided|given|attached|supplied) )?(?:audio(?: {_CLIP})?|(?:sound|speech|voice) {_CLIP})"
_SORRY = r"(?:i'm|i am|i) (?:sorry|apologi[sz]e)[,.]? (?:but )?"
_CANNOT = r"i(?: am|'m)? (?:cannot|can't|can not|unable to|not able to)"
_THE = r"(?:the |this |that |any |your )?"
_SOUND = rf"{_THE}(?:{_AUDIO}s?|speech)\b"
_HERE = r"(?:(?:sure|certainly|of course|okay|absolutely)[,.!] *)?here(?:'s| is| are) (?:the|a|your) (?:\w+ )?(?:transcri\w+|translation)\b"
_PLEASE = r"please (?:provide|upload|attach|share) (?:the|an|your|a) (?:audio|recording|file)"
_COLON = r"[^.!?\n]*(?::(?!\S)|\n)"  # in the same sentence; no time of day
# An AI, and nobody who works on one: no "AI researcher", no "language model trainer".
_MODEL = (
    r"(?:(?:(?:ai )?(?:large )?language model|ai (?:(?:voice|chat|virtual) )?(?:model|assistant|chatbot|bot|system|program))\b"
    r"(?! \w{3,}(?:er|or|ist|ect)\b)"
    r"|ai(?:[^\w\s'-]| (?:and|but|so|i|my|that|which|who|with|without|trained|developed|created|designed|built|made|by|from|here)\b|$))"
)
# What only an assistant says: a preface, a refusal to hear, talk about itself, or the layout of a written answer.
_ASSISTANT = re.compile(
    "|".join(
        (
            rf"{_HERE}{_COLON}",
            rf"(?:the |full )?(?:transcription|transcript)(?: ?:| is as follows| of the{_COLON})",
            rf"{_SORRY}{_CANNOT} (?:transcribe\b|(?:process|access|assist with) (?:transcribing\b|{_SOUND}))",
            rf"(?:{_SORRY})?{_CANNOT} (?:transcribe|hear|listen to) {_SOUND}",
            rf"as an? {_MODEL}",
            rf"i(?: am|'m) (?:just )?an? {_MODEL}",
            rf"{_PLEASE}.*\btranscribe\b",
            r"(?:\*\*|#{1,4} |```|[-*•] |1\. )",
        )
    )
)
# What an assistant says, and now and then a clerk.
_PHRASE = re.compile(
    "|".join(
        (
            _HERE,
            r"(?:the |full )?(?:transcription|transcript) (?:of the|reads)",
            rf"{_SORRY}{_CANNOT} (?:process|access|assist with|fulfill?)\b",
            r"i(?: am|'m) a virtual assistant",
            _PLEASE,
        )
    )
)
_LAYOUT = re.compile(r"\*\*[^*]+\*\*|\n\s*(?:[-*•]|\d+\.) |\n#{1,4} |```")
_DESCRIPTION = re.compile(
    "|".join(
        (
            rf"(?:the|this) {_AUDIO} (?:contains|features|is|does not|doesn't|appears|seems|consists|has|includes|captures)\b",
            rf"(?:in|from) (?:the|this) {_AUDIO}\b",
            r"(?:the|a) (?:speaker|person|man|woman|voice) (?:in the (?:audio|recording|clip)|is (?:asking|speaking|saying|talking))\b",
            r"there is no (?:audible |discernible |clear )?(?:speech|spoken|audio)\b",
            r"(?:no|unintelligible|inaudible) (?:speech|audio)(?: (?:is )?(?:detected|found|present|heard))?[.!]?$",
        )
    )
)
_BRACKETED = re.compile(r"[\[(<*][^\[\]()<>*]+[\])>*][.]?")  # "[music]", "(laughter)", and nothing else

_SCRIPTS = {
    "ar": ("ARABIC",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "zh": ("CJK",),
}
# The commonest words of each language that are no common words of another of them.
_COMMON = {
    "de": "der das und ist nicht ich ein eine zu mit von auf sich dem den wir sie auch",
    "en": "the of and to is that it you for was with this are not have be we they",
    "es": "el los las que y es por con para una del está como pero más lo",
    "fr": "le les des est et que pour dans une du pas vous nous qui sur au je",
    "it": "il che di è per non una sono con della del gli questo anche si",
    "nl": "het een en van ik dat niet zijn op te voor met ook maar we er",
    "pt": "o os que não uma para com é do da em um mais você como na",
}
_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}


def doubt(text: str, *, language: str, audio_s: float, words_per_second: float) -> Doubt | None:
    """Why ``text`` may not have been said in ``audio_s`` seconds of ``language`` (ISO 639-1); None: it may."""
    text = text.strip()
    low = text.casefold().replace("’", "'").lstrip("\"'“„« ")
    if count_words(text) > _FLOOR_WORDS + words_per_second * audio_s:
        return "rate"
    if _ASSISTANT.match(low) or _LAYOUT.search(text):
        return "assistant"
    if _PHRASE.match(low):
        return "phrase"
    if _DESCRIPTION.match(low) or _BRACKETED.fullmatch(text):
        return "description"
    return "language" if _is_foreign(text, language) else None


def echoes(text: str, carried: str) -> bool:
    """Whether ``text`` begins as the sentence before it, which stood in its prompt: such a model writes it again in each segment."""
    said, before = (re.findall(r"\w+", each.casefold()) for each in (text, carried))
    least, enough = _ECHO_WORDS
    count = min(len(before), enough)
    return count >= least and said[:count] == before[:count]


def count_words(text: str) -> float:
    """Words between spaces; where a script has none, two of its marks count as one."""
    marks = sum(_script(mark).startswith(_UNSPACED) for mark in text if mark.isalpha())
    spaced = "".join(" " if mark.isalpha() and _script(mark).startswith(_UNSPACED) else mark for mark in text)
    return marks / _MARKS_OF_A_WORD + sum(any(map(str.isalnum, word)) for word in spaced.split())


def _is_foreign(text: str, language: str) -> bool:
    letters = [mark for mark in text if mark.isalpha()]
    own = sum(_script(mark).startswith(_SCRIPTS.get(language, ("LATIN",))) for mark in letters)
    if len(letters) >= _LEAST_LETTERS and own < _LEAST_SCRIPT_SHARE * len(letters):
        return True
    words = re.findall(r"\w+", text.casefold())
    if language not in _WORDS or len(words) < _LEAST_WORDS:
        return False
    share = {each: sum(word in common for word in words) / len(words) for each, common in _WORDS.items()}
    return share[language] <= _MOST_OWN and max(share.values()) >= _LEAST_FOREIGN


def _script(mark: str) -> str:
    return unicodedata.name(mark, "")
