"""Prompt caches: computed once, never touched by a stream."""

from __future__ import annotations

from typing import Any

import pytest
from dragoman.model.errors import TaskError
from dragoman.model.prompt import Task
from dragoman.model.work import run
from dragoman.stream.opening import Openings

from .fakes import ScriptedBackend


class CarryingPrompts:
    """Prompts with a place for the previous text, as the format with instructions has."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self._inner, self._tokenizer = backend.prompts, backend.tokenizer

    def prefix(self, task: Task) -> list[int]:
        return [2, 50, 51, 3]

    def carry(self, text: str) -> list[int]:
        return self._tokenizer.encode(text) if text else []

    def opening(self, task: Task, carried: str = "") -> list[int]:
        return [2, 50, 51, *self.carry(carried), 3]


def steps(backend: ScriptedBackend) -> int:
    return sum(verb == "step" for verb, _ in backend.calls)


def test_one_computation_many_copies() -> None:
    backend = ScriptedBackend()
    openings = Openings(backend, backend.prompts)  # type: ignore[arg-type]
    first, second = (run(backend, openings.open(Task())) for _ in range(2))  # type: ignore[arg-type]
    assert steps(backend) == 1
    assert first is not second
    first.truncate(0)
    assert second.length == len(backend.prompts.prefix(Task())) == run(backend, openings.open(Task())).length  # type: ignore[arg-type]


def test_carried_text_stands_before_the_audio_and_is_not_kept() -> None:
    backend = ScriptedBackend()
    prompts: Any = CarryingPrompts(backend)
    openings = Openings(backend, prompts)  # type: ignore[arg-type]
    caches: list[Any] = [run(backend, openings.open(Task(), text)) for text in ("the fox", "", "the fox", "a dog")]  # type: ignore[arg-type]
    for cache, text in zip(caches, ("the fox", "", "the fox", "a dog"), strict=True):
        assert [int(value) for _, value in cache.items] == prompts.opening(Task(), text)
    assert len(openings._caches) == 2  # pyright: ignore[reportPrivateUsage]


def test_the_oldest_prompt_goes_first() -> None:
    backend = ScriptedBackend()
    prompts: Any = backend.prompts
    prompts.opening = lambda task, carried="": [2, *task.glossary, 3]
    prompts.carry = lambda text: []
    openings = Openings(backend, prompts, most=2)  # type: ignore[arg-type]
    for term in (50, 51, 50, 52, 50):
        run(backend, openings.open(Task(glossary=(term,))))  # type: ignore[arg-type]
    assert steps(backend) == 3
    run(backend, openings.open(Task(glossary=(51,))))  # type: ignore[arg-type]
    assert steps(backend) == 4


def test_a_task_that_the_model_lacks() -> None:
    backend = ScriptedBackend()
    with pytest.raises(TaskError):
        run(backend, Openings(backend, backend.prompts).open(Task(language="xx")))  # type: ignore[arg-type]
