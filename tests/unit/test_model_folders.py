"""Copies of model directories: whole or not there, of this content and no other, and never an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spftsql.config import GenerationConfig, LoraConfig
from spftsql.errors import UserError
from spftsql.generation import model_folders
from spftsql.generation.model_folders import ModelFolders, directory_key
from spftsql.training.artefact import named_base
from spftsql.training.local import train_local
from spftsql.training.model import load_causal_lm, load_with_adapters
from tests import trainings
from tests.model_copies import exchange_weights
from tests.small_disk import small_disk

WEIGHTS = "model.safetensors"


def model(folder: Path, size: int = 10_000) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "tokenizer.json").write_text(folder.name)
    (folder / "templates").mkdir()
    (folder / "templates" / "chat.jinja").write_text("{{ messages }}")
    (folder / WEIGHTS).write_bytes(os.urandom(size))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(folder: Path, megabytes: int = 100) -> ModelFolders:
    return ModelFolders(GenerationConfig(node_cache=folder, copies_mb=megabytes))


def test_a_copy_has_every_file_and_is_made_once(tmp_path: Path) -> None:
    original = model(tmp_path / "model")
    folders = opened(tmp_path / "cache")
    copy = folders.of(original)
    assert copy == tmp_path / "cache" / "models" / directory_key(original)
    assert content(copy) == content(original)
    assert all(path.stat().st_mode & 0o222 == 0 for path in copy.rglob("*") if path.is_file())
    made = (copy / WEIGHTS).stat()
    assert folders.of(str(original)) == opened(tmp_path / "cache").of(original) == copy
    assert (copy / WEIGHTS).stat() == made


def test_files_that_are_links_are_copied_as_what_they_say(tmp_path: Path) -> None:
    """As the snapshots of the Hub's cache are."""
    blobs, snapshot = model(tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("config.json", WEIGHTS):
        (snapshot / name).symlink_to(blobs / name)
    copy = opened(tmp_path / "cache").of(snapshot)
    assert copy != snapshot
    assert not (copy / WEIGHTS).is_symlink()
    assert (copy / WEIGHTS).read_bytes() == (blobs / WEIGHTS).read_bytes()
    (blobs / WEIGHTS).write_bytes(os.urandom(10_000))
    assert (opened(tmp_path / "cache").of(snapshot) / WEIGHTS).read_bytes() == (blobs / WEIGHTS).read_bytes()


def rewritten(path: Path, data: bytes) -> None:
    """Another content under the same size and date."""
    before = path.stat()
    assert before.st_size == len(data) and path.read_bytes() != data
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "weights": lambda folder: rewritten(folder / WEIGHTS, os.urandom(10_000)),
    "config": lambda folder: rewritten(folder / "config.json", b'{"hidden_size": 65}'),
    "date": lambda folder: os.utime(folder / WEIGHTS),
    "new file": lambda folder: (folder / "generation_config.json").write_text("{}"),
    "new empty file": lambda folder: (folder / "added_tokens.json").touch(),
    "removed": lambda folder: (folder / "tokenizer.json").unlink(),
    "renamed": lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"),
    "below": lambda folder: (folder / "templates" / "chat.jinja").write_text("{{ message }}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_gets_another_copy(tmp_path: Path, change: str) -> None:
    original = model(tmp_path / "model")
    first = opened(tmp_path / "cache").of(original)
    CHANGES[change](original)
    second = opened(tmp_path / "cache").of(original)
    assert first != second
    assert content(second) == content(original)


def test_large_weights_that_only_differ_inside_have_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inode's time tells them apart, even where neither samples nor dates do."""
    monkeypatch.setattr(model_folders, "_HASHED_BYTES", 1_000)
    monkeypatch.setattr("spftsql.training.artefact._SAMPLE_BYTES", 1)
    original = model(tmp_path / "model")
    first, data = directory_key(original), bytearray((original / WEIGHTS).read_bytes())
    data[10_000 // 64 // 2] ^= 1  # between two samples
    rewritten(original / WEIGHTS, bytes(data))
    assert directory_key(original) != first


@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_a_copy_that_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    original = model(tmp_path / "model")
    copy = opened(tmp_path / "cache").of(original)
    (copy / WEIGHTS).chmod(0o600)
    if damage == "cut":
        os.truncate(copy / WEIGHTS, 100)
    elif damage == "changed":
        (copy / WEIGHTS).write_bytes(os.urandom(10_000))
    else:
        (copy / "config.json").unlink()
    assert opened(tmp_path / "cache").of(original) == copy
    assert content(copy) == content(original)


def test_a_model_that_changes_while_it_is_copied_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, folders = model(tmp_path / "model"), opened(tmp_path / "cache")
    fill = model_folders._Directories._fill

    def change(self: Any, directory: Path, draft: Path, key: str) -> None:
        (directory / WEIGHTS).write_bytes(os.urandom(10_000))
        fill(self, directory, draft, key)

    monkeypatch.setattr(model_folders._Directories, "_fill", change)
    assert folders.of(original) == original
    assert "it changed while it was copied" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert content(folders.of(original)) == content(original)  # in its new state it is another one


def test_the_least_recently_used_goes_first_and_none_that_is_in_use(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    models = {name: model(tmp_path / name, 1_000_000) for name in "abcde"}

    def is_copied(folders: ModelFolders, name: str) -> bool:
        time.sleep(0.02)  # so that the times of use differ
        return folders.of(models[name]) != models[name]

    def there() -> set[str]:
        return {name for name, path in models.items() if (cache / "models" / directory_key(path)).exists()}

    first = opened(cache, 3)
    assert all(is_copied(first, name) for name in "abc")
    assert not is_copied(opened(cache, 3), "d")  # all are in use
    assert there() == set("abc")
    first.close()
    other = opened(cache, 3)
    assert is_copied(other, "a")
    assert is_copied(opened(cache, 3), "d")
    assert there() == set("acd")
    assert is_copied(opened(cache, 3), "e")
    assert there() == set("ade")  # c was the oldest; a is in use
    large = model(tmp_path / "large", 4_000_000)
    assert opened(cache, 3).of(large) == large
    assert there() == set("ade")  # nothing is removed for what never fits


READER = """
import sys
from pathlib import Path
from spftsql.config import GenerationConfig
from spftsql.generation.model_folders import ModelFolders
folders = ModelFolders(GenerationConfig(node_cache=Path(sys.argv[1]), copies_mb=1000))
copy = folders.of(sys.argv[2])
print(copy, (copy / "model.safetensors").stat().st_ino, flush=True)
sys.stdin.read()
"""


def test_processes_share_one_copy_though_one_of_them_is_killed(tmp_path: Path) -> None:
    original, cache = model(tmp_path / "model", 200_000_000), tmp_path / "cache"

    def start(directory: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", READER, str(cache), str(directory)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill_while_it_copies(directory: Path) -> Path:
        killed, draft = start(directory), cache / "models" / f".{directory_key(directory)}.draft"
        deadline = time.monotonic() + 60
        while not draft.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert draft.exists() and not (cache / "models" / directory_key(directory)).exists()
        return draft

    kill_while_it_copies(original)
    others = [start(original) for _ in range(3)]
    small = model(tmp_path / "small")
    try:
        said = set()
        for process in others:
            assert process.stdout
            said.add(process.stdout.readline())
        assert len(said) == 1
        copy = Path(said.pop().split()[0])
        assert copy.parent == cache / "models"
        assert content(copy) == content(original)
        assert opened(cache, 1).of(small) == small  # wants room, and the copy is in use by the others
    finally:
        for process in others:
            process.communicate("")
    left = kill_while_it_copies(model(tmp_path / "given up", 200_000_000))
    assert opened(cache, 1).of(small) != small
    assert not copy.exists() and not left.exists()


def test_a_full_disk_costs_the_copy_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = model(tmp_path / "model", 3_000_000)
    with small_disk(tmp_path / "disk", "1m") as disk:
        folders = opened(disk)
        assert folders.of(original) == folders.of(original) == original
        assert [path.suffix for path in (disk / "models").iterdir()] == [".lock"]
    assert caplog.text.count("is not copied") == 1
    assert "No space left" in caplog.text


def test_trouble_with_the_folder_or_the_model_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = model(tmp_path / "model")
    (tmp_path / "file").touch()
    assert opened(tmp_path / "file").of(original) == original
    assert "Not a directory" in caplog.text
    linked = model(tmp_path / "linked")
    (linked / "more").symlink_to(original, target_is_directory=True)
    assert opened(tmp_path / "cache").of(linked) == linked
    assert "neither a file nor a folder" in caplog.text
    dangling = model(tmp_path / "dangling")
    (dangling / "vocab.json").symlink_to(tmp_path / "nowhere")
    assert opened(tmp_path / "cache").of(dangling) == dangling
    assert opened(tmp_path / "cache").of(tmp_path / "absent") == tmp_path / "absent"


def test_by_default_only_models_of_other_machines_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    original = model(tmp_path / "model")
    assert ModelFolders(GenerationConfig()).of(original) == original
    monkeypatch.setattr(model_folders, "is_remote", lambda file: file.parent == original)
    assert ModelFolders(GenerationConfig()).of(original).parent == tmp_path / "cache" / "models"
    assert ModelFolders(GenerationConfig(node_cache=None)).of(original) == original
    assert ModelFolders(None).of(original) == original


@pytest.mark.parametrize(("kind", "copied"), [("ext4", True), ("tmpfs", False)])
def test_memory_is_no_place_for_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, copied: bool
) -> None:
    """Where the home directory is on a mount, temporary files are the choice, and they may be in memory."""
    monkeypatch.setattr("spftsql.node_cache.cache_folder", raise_no_folder)
    monkeypatch.setattr("spftsql.node_cache._mount_kind", lambda path: kind)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(model_folders, "is_remote", lambda file: True)
    original = model(tmp_path / "model")
    assert (ModelFolders(GenerationConfig()).of(original) != original) is copied


def raise_no_folder(name: str) -> Path:
    raise UserError(f"{name} cannot be made")


def test_training_reads_copies_and_names_originals(tmp_path: Path, tiny_models: list[str]) -> None:
    node = GenerationConfig(node_cache=tmp_path / "cache")
    base = trainings.base_model(tmp_path)
    plain, copied = (tmp_path / name for name in ("plain", "copied"))
    for folder, generation in ((plain, GenerationConfig()), (copied, node)):
        config = trainings.config_of(lora=LoraConfig(rank=4, alpha=8)).model_copy(update={"generation": generation})
        first = trainings.job_of(base, folder, 2, name="first")
        train_local([first], config, folder / "metrics.jsonl", lambda *_: None)
        second = trainings.job_of(first.output, folder, 2, name="second")
        train_local([second], config, folder / "metrics.jsonl", lambda *_: None)
        assert named_base(second.output) == str(base)
    copies = {path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()}
    assert copies == {directory_key(base), directory_key(copied / "first")}
    for file in copied.rglob("*"):
        assert file.is_dir() or str(tmp_path / "cache").encode() not in file.read_bytes(), file
    weights = "second/adapter_model.safetensors"
    assert (plain / weights).read_bytes() == (copied / weights).read_bytes()


def test_what_a_training_loads_is_the_copy(tmp_path: Path, tiny_models: list[str]) -> None:
    node = GenerationConfig(node_cache=tmp_path / "cache")
    original, other = Path(tiny_models[0]), Path(tiny_models[1])
    exchange_weights(ModelFolders(node), original, other)
    expected = load_causal_lm(other, torch.float32).get_input_embeddings().weight
    adapted, _ = load_with_adapters(original, torch.float32, LoraConfig(), False, node)
    for found in (load_causal_lm(original, torch.float32, node), adapted):
        assert torch.equal(found.get_input_embeddings().weight.view(expected.shape), expected)
    assert not torch.equal(load_causal_lm(original, torch.float32).get_input_embeddings().weight, expected)
