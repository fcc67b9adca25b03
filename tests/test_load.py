"""Opening a model by name or folder, and what is said when that cannot be."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from dragoman.model import load as loading
from dragoman.model.checkpoint import save_checkpoint, save_drafter
from dragoman.model.decoder import hypothesis
from dragoman.model.errors import CheckpointError, ConfigError
from dragoman.model.load import load, model_folder, weights_digests
from dragoman.model.prompt import Task
from dragoman.model.work import run
from dragoman.stream import FileSource, Final, Session

from .fakes import SPECIALS, scripted_tokenizer
from .test_checkpoint import text_section
from .tiny_models import noise, tiny_config, tiny_drafter, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint folder: config.json, tokenizer.json, weights, and an assistant beside them."""
    tokenizer, home = scripted_tokenizer(), tmp_path / "tiny"
    model = tiny_model(0, tiny_config(vocab_size=tokenizer.size))
    text = model.config.backbone
    place = {name: index for index, name in enumerate(SPECIALS)}
    raw = {
        "text_config": text_section(text) | {"bos_token_id": place["<bos>"]},
        "audio_token_id": place["<|audio|>"],
        "boa_token_id": place["<|audio>"],
        "eoa_token_index": place["<audio|>"],
        "dragoman": {"prompt_format": "tokens", "targets": ["de", "fr", "es"], "stop": [place["<eos>"]]},
    }
    save_checkpoint(home, model.backbone, model.projector)
    (home / "config.json").write_text(json.dumps(raw))
    tokenizer._inner.save(str(home / "tokenizer.json"))
    drafter = tiny_drafter(1, text)
    save_drafter(home / "assistant", drafter)
    (home / "assistant" / "config.json").write_text(
        json.dumps({"backbone_hidden_size": text.hidden_size, "text_config": text_section(drafter.config.text)})
    )
    return home


def test_a_folder_becomes_a_model_that_speaks(folder: Path) -> None:
    loaded = load(folder)
    backend, prompts, task = loaded.backend, loaded.prompts, Task()
    assert backend.spec.name == "tiny"
    cache = backend.new_cache()
    backend.step([(cache, np.array(prompts.prefix(task)))])
    backend.listen([(cache, noise(0, 30))])
    job = hypothesis(cache, prompts.tail(task), [], [], stop=prompts.stop, limit_tokens=8, max_draft=backend.spec.max_draft)
    found = run(backend, job)
    assert found.stopped or len(found.ids) == 8
    assert isinstance(loaded.tokenizer.decode(found.ids), str)


def test_the_assistant_beside_the_model_is_found(folder: Path) -> None:
    assert load(folder).backend.spec.max_draft > 0
    elsewhere = folder.parent / "elsewhere"
    (folder / "assistant").rename(elsewhere)
    assert load(folder).backend.spec.max_draft == 0
    assert load(folder, assistant=elsewhere).backend.spec.max_draft > 0


def test_a_built_in_model_is_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ASSETS", folder.parent)
    assert model_folder("tiny") == folder
    with pytest.raises(ConfigError, match="'huge' is neither a folder with a config.json nor a built-in model; built-in models are tiny"):
        load("huge")


def test_the_type_of_numbers_is_chosen(folder: Path) -> None:
    backend = load(folder, dtype="bfloat16").backend
    cache = backend.new_cache()
    backend.listen([(cache, noise(0, 3))])
    assert cache.stores["full_attention"].keys.dtype == torch.bfloat16  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="dtype is 'int3', expected one of float32, bfloat16"):
        load(folder, dtype="int3")


def test_threads_are_set_when_asked_for(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load(folder, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_a_folder_lacks_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="needs a tokenizer.json"):
        load(folder)


def test_the_shipped_graphs_are_of_the_shipped_weights(clips: Path) -> None:
    """Should this fail: dragoman export model/assets/small --out model/assets/small."""
    home, texts = model_folder("small"), list[str]()
    of = json.loads((home / "onnx" / "export.json").read_text(encoding="utf-8"))["weights"]
    assert of == {"model.safetensors": hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()}
    for runtime in ("onnx", "torch"):
        source = FileSource(clips / "lighthouse.ogg")
        loaded = load(home, runtime=runtime)
        session = Session(loaded, sample_rate=source.sample_rate, channels=source.channels, encoding="float32")
        events = [event for block in source.blocks() for event in session.push(block)] + session.finish()
        source.close()
        texts.append(" ".join(event.text for event in events if isinstance(event, Final)))
    int8, fp32 = (text.split() for text in texts)  # they may differ in a word that is nearly a tie; v1 beside v2 has 0.67
    assert len(int8) > 20 and SequenceMatcher(None, int8, fp32).ratio() > 0.85, texts


def changed(path: Path, at: int) -> dict[str, str]:
    """The digests of a file's folder while one byte of the file is another."""
    held = path.read_bytes()
    path.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])
    found = weights_digests(path.parent)
    path.write_bytes(held)
    return found


@pytest.mark.parametrize("large", [False, True])
def test_a_change_of_any_tensor_changes_the_digest(folder: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """Of the projector or of one norm alone, too; of a large file only the beginning of each tensor is read."""
    path = folder / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    tensors = {name: each for name, each in json.loads(path.read_bytes()[8 : 8 + header]).items() if name != "__metadata__"}
    if large:
        monkeypatch.setattr(loading, "_WHOLE_BYTES", 0)
    before = weights_digests(folder)
    assert list(before) == [path.name] and len(before[path.name]) == 64
    begins = [8 + header + each["data_offsets"][0] for each in tensors.values()]
    found = [changed(path, begin)[path.name] for begin in begins]
    assert len({before[path.name], *found}) == len(begins) + 1 > 20
    widest = max(tensors.values(), key=lambda each: each["data_offsets"][1] - each["data_offsets"][0])["data_offsets"]
    assert widest[1] - widest[0] > 8192 and (changed(path, 8 + header + widest[0] + 5000) == before) == large
    assert weights_digests(folder) == before


def test_shards_and_damaged_files_have_digests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_WHOLE_BYTES", 0)
    whole = folder / "model.safetensors"
    shards = [folder / f"model-0000{place}-of-00002.safetensors" for place in (1, 2)]
    whole.rename(shards[0])
    shards[1].write_bytes(b"\xff" * 1000)
    (folder / "optimizer.safetensors").write_bytes(b"not the model's")
    digests = weights_digests(folder)
    assert list(digests) == [shard.name for shard in shards] and len(set(digests.values())) == 2
    assert changed(shards[1], 500) != digests
    assert weights_digests(folder / "nowhere") == {}


def test_importing_the_loader_imports_nothing_heavy() -> None:
    """torch and transformers come with the first model, not with the import."""
    code = (
        "import sys, dragoman.model.load, dragoman.model.decoder; print(sorted({'torch', 'tokenizers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
