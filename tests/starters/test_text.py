"""Text becomes tokens, once and whole; what is wrong with it is said in a sentence."""

import errno
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from text_project.data import corpus
from text_project.data.corpus import fingerprint, read_corpus
from text_project.data.text import TextDataModule
from text_project.data.tokenizer import ByteTokenizer
from text_project.engine.errors import UserError
from text_project.train import train

from .small_texts import Compose

BYTES = ByteTokenizer()
STORY = "Once upon a time there was a tensor. It was née Skalar — 日本語 too. 🚀\n" * 40


@pytest.fixture
def topics() -> TextDataModule:
    datamodule = TextDataModule(batch_size=4, context=32)
    datamodule.setup("fit")
    return datamodule


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8", newline="\n")
    return path


def read(path: Path) -> str:
    return BYTES.decode(read_corpus(path, BYTES, path.parent / "cache").tolist())


def test_the_splits_follow_each_other_and_are_the_whole_text(topics: TextDataModule) -> None:
    sizes = [len(topics.tokens[split]) for split in ("train", "val", "test")]
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.9, 0.05, 0.05], abs=1e-4)
    assert sum(sizes) > 300_000
    text = "".join(BYTES.decode(topics.tokens[split].tolist()) for split in topics.tokens)
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) > 0.99 * len(paragraphs)  # so that none is in two splits


def test_targets_are_one_token_on_and_windows_do_not_overlap(topics: TextDataModule) -> None:
    loader = topics.val_dataloader()
    inputs, targets = (torch.cat(rows) for rows in zip(*loader, strict=True))
    assert inputs.shape == targets.shape
    assert inputs.dtype == targets.dtype == torch.int64
    whole = topics.tokens["val"].long()
    assert torch.equal(inputs.flatten(), whole[: inputs.numel()])
    assert torch.equal(targets.flatten(), whole[1 : 1 + inputs.numel()])
    assert len(whole) - inputs.numel() <= 32
    single = loader.dataset[1]
    assert torch.equal(single[0], inputs[1])


def test_a_file_is_read_once(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(story) == STORY
    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_write_tokens", None)
        assert read(story) == STORY
    story.write_text("Another." * 9)
    assert read(story) == "Another." * 9


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in (("b.md", "second"), ("deep/c.txt", "third"), ("a.TXT", "first")):
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    for copy in ("._b.md", ".ipynb_checkpoints/b.md", "__MACOSX/b.md", "b (conflicted copy).md"):
        (tmp_path / copy).write_bytes(b"\xff")
    assert read(tmp_path) == "first\n\nsecond\n\nthird"


def test_a_long_file_is_read_in_pieces(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE", 7)
    assert max(map(len, corpus._pieces(story))) < 200
    assert read(story) == STORY


def test_a_line_without_an_end_is_read_in_pieces_too(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "née 日本語 🚀" * 500  # of one, two, three and four bytes
    story.write_text(line, encoding="utf-8")
    monkeypatch.setattr(corpus, "PIECE", 5)
    assert max(map(len, corpus._pieces(story))) <= 10
    assert read(story) == line


@pytest.mark.parametrize("piece", [16, 2**20])
def test_bad_encoding_is_said_with_file_and_position(
    story: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(corpus, "PIECE", piece)
    story.write_bytes("é line\n".encode() * 10 + b"caf\xe9\n")
    with pytest.raises(UserError, match=r"story\.txt is not UTF-8 at byte 83 \(0xe9\)"):
        read(story)
    story.write_bytes("日本".encode()[:-1])  # cut off within a character
    with pytest.raises(UserError, match=r"at byte 3 \(0xe6\)"):
        read(story)
    assert not list(story.parent.glob("cache/*.tokens"))


def test_a_kill_in_the_middle_leaves_nothing_half(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(files: Any, tokenizer: Any, out: Any) -> None:
        out.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_write_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            read(story)
    cache = story.parent / "cache"
    assert not list(cache.glob("*.tokens"))
    # What a kill that nothing can catch leaves beside it does no harm.
    (lock,) = cache.glob("*.lock")
    lock.with_name(f"{lock.stem}.part").write_bytes(b"half")
    assert read(story) == STORY


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks of another kind")
def test_a_cache_on_a_disk_without_locks_is_written(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert read(story) == STORY


def test_of_several_processes_one_reads(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    whole = corpus._write_tokens

    def counted(*args: Any) -> None:
        reads.append(args)
        whole(*args)

    monkeypatch.setattr(corpus, "_write_tokens", counted)
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(read, [story] * 4))
    assert texts == [STORY] * 4
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "nowhere"}, "There is no data.path=nowhere"),
        ({"path": ""}, "data.path= is empty"),
        ({"path": "."}, "There is no .txt or .md file"),
        ({"path": "short.txt"}, "A text of 9 tokens is too short"),
        ({"path": "empty.txt"}, "A text of 0 tokens is too short"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"batch_size": 100_000}, "more than the"),
        ({"test_size": 0.99}, "must be fractions"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], says: str
) -> None:
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path / "texts")
    if settings.get("path") != ".":
        Path("short.txt").write_text("too short")
        Path("empty.txt").touch()
    with pytest.raises(UserError, match=says):
        TextDataModule(**{"batch_size": 4, "context": 16, **settings}).setup("fit")


def test_a_run_does_not_go_on_with_another_text(tiny: Compose, story: Path) -> None:
    def asked(epochs: int) -> Any:
        cfg = tiny(f"trainer.max_epochs={epochs}", "scheduler=constant")
        cfg.data.path, cfg.data.cache = str(story), str(story.parent / "cache")
        return cfg

    train(asked(1))
    train(asked(2))
    story.write_text(STORY.replace("tensor", "scalar"), encoding="utf-8")
    with pytest.raises(UserError, match="has changed"):
        train(asked(3))


def test_a_fingerprint_tells_texts_apart() -> None:
    tokens = torch.arange(3_000_000) % 251
    assert fingerprint(tokens) == fingerprint(tokens.clone())
    assert fingerprint(tokens[:-1]) != fingerprint(tokens)
    tokens[5] = 7
    assert fingerprint(tokens) != fingerprint(torch.arange(3_000_000) % 251)


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A tokenizer.json of 300 tokens that has learned the story."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([STORY], vocab_size=300, show_progress=False)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_of_ones_own_gives_the_text_back(bpe: Path, story: Path) -> None:
    cache = str(story.parent / "cache")
    settings = {"path": str(story), "tokenizer": str(bpe), "cache": cache}
    datamodule = TextDataModule(2, 8, **settings)
    datamodule.setup("fit")
    parts = [datamodule.bytes_of(split) for split in ("train", "val", "test")]
    assert len(np.concatenate(parts)) == pytest.approx(len(STORY.encode()), rel=0.01)
    assert datamodule.bytes_per_token("train") > 2
    assert datamodule.tokenizer.decode(datamodule.tokenizer.encode(STORY).tolist()) == STORY


def test_a_run_with_it_counts_in_bytes(tiny: Compose, bpe: Path, story: Path) -> None:
    cfg = tiny("trainer.limit_test_batches=1.0", "model.vocab_size=300")
    cfg.data.path, cfg.data.tokenizer = str(story), str(bpe)
    cfg.data.cache = str(story.parent / "cache")
    cfg.data.batch_size = 4
    cfg.model.context = cfg.data.context = 4
    metrics = train(cfg)
    bits = metrics["test/loss"] / np.log(2)
    assert metrics["test/bits_per_byte"] < bits / 2
    cfg.model.vocab_size = 256
    with pytest.raises(InstantiationException, match="Use 300"):
        train(cfg)
