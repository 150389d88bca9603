"""Text becomes tokens, once and whole, and a prompt is continued."""

from pathlib import Path

import pytest
import torch

from {{ cookiecutter.package_name }}.data import corpus
from {{ cookiecutter.package_name }}.data.corpus import read_corpus
from {{ cookiecutter.package_name }}.data.text import TextDataModule
from {{ cookiecutter.package_name }}.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
STORY = "Once upon a time there was a tensor. It was née Skalar — 日本語 too. 🚀\n" * 40


def read(path: Path) -> str:
    return BYTES.decode(read_corpus(path, BYTES, path.parent / "cache").tolist())


def test_the_splits_are_the_whole_text_and_targets_are_one_token_on() -> None:
    datamodule = TextDataModule(batch_size=4, context=32)
    datamodule.setup("fit")
    sizes = [len(datamodule.tokens[split]) for split in ("train", "val", "test")]
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.9, 0.05, 0.05], abs=1e-4)
    batches = zip(*datamodule.val_dataloader(), strict=True)
    inputs, targets = (torch.cat(rows).flatten() for rows in batches)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[1:], targets[:-1])
    assert torch.equal(inputs, datamodule.tokens["val"][: len(inputs)].long())


def test_a_folder_is_its_text_files_in_order_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE", 7)
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name, text in (("b.md", "second"), ("deep/c.txt", STORY), ("a.TXT", "first")):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "picture.png").write_bytes(b"\xff")
    assert read(folder) == f"first\n\nsecond\n\n{STORY}"


def test_a_prompt_is_read_and_its_continuation_written(tmp_path: Path) -> None:
    datamodule = TextDataModule(batch_size=4, context=32)
    (tmp_path / "start.txt").write_bytes("Été: ".encode())
    ((tokens, num_tokens),) = datamodule.read_inputs(str(tmp_path / "start.txt"))
    assert (BYTES.decode(tokens[0].tolist()), num_tokens.item()) == ("Été: ", 256)
    datamodule.write_predictions([[[*b"on"]]], tmp_path / "continued.txt")
    assert (tmp_path / "continued.txt").read_text(encoding="utf-8") == "Été: on"
