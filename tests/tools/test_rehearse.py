"""What `rehearse` promises: every experiment trains on every target, and faults are found.

Nothing here needs a GPU. Experiments are found by their files, so a new one is rehearsed, too.
"""

import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config, names, starter
from lightning import LightningModule
from test_commands import command
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.rehearse import (
    TARGETS,
    Finding,
    Verdict,
    rehearse_task,
)
from {{ cookiecutter.package_name }}.rehearse.__main__ import rehearse
from {{ cookiecutter.package_name }}.rehearse.memory import parse
from {{ cookiecutter.package_name }}.rehearse.parity import partings, train
from {{ cookiecutter.package_name }}.rehearse.rehearsal import Rehearser
from {{ cookiecutter.package_name }}.rehearse.report import (
    as_json,
    show,
    succeeds,
)
from {{ cookiecutter.package_name }}.run import identity

# This file names devices itself, so it is not read for literals that do.
rehearsed = functools.partial(rehearse_task, sources=[])
EXPERIMENTS = [None, *names("experiment")]


def test_what_may_know_hardware_is_not_held_against_an_experiment() -> None:
    """Loaded in the same process, as here, it names devices."""
    importlib.import_module(f"{package.__name__}.doctor.gpu")
    (verdict,) = rehearse(compose_config("rehearse", "targets=[cuda]"))
    assert verdict.findings == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_every_experiment_would_train_on_every_target(experiment: str | None, target: str) -> None:
    """One that cannot says so in its YAML: `rehearse: {skip: {mps: "why"}}`."""
    chosen = [f"experiment={experiment}"] * (experiment is not None)
    verdicts = rehearse(compose_config("rehearse", f"targets=[{target}]", *chosen))
    assert succeeds(verdicts), as_json(verdicts)


def test_the_table_has_no_blanks_at_the_ends_of_its_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show([Verdict("cpu", "ran", []), Verdict("mps", "as a whole", [], memory="12 MiB: of it")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["target", "cpu", "mps"]
    assert lines == [line.rstrip() for line in lines]


class Sound(LightningModule):
    """What the planted faults are planted in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layer(self.spoilt(batch[0])), batch[1])

    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Eigenvalues(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs * torch.linalg.eigh(inputs.T @ inputs)[0].sum()  # fault


class OnTheCPU(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs + torch.ones(8)  # fault


class Doubled(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs.double().float()  # fault


class Waiting(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs * inputs.mean().item()  # fault


class ResizedWithGradient(Sound):
    """MPS has the operator, and not that of its backward pass."""

    def spoilt(self, inputs: Tensor) -> Tensor:
        images = (inputs * self.layer.weight.sum()).view(-1, 1, 2, 4)
        images = F.interpolate(images, (2, 4), mode="bilinear", antialias=True)  # fault
        return images.flatten(1)


def loader(samples: int = 16, **options: Any) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(samples, 8), torch.randint(0, 4, (samples,)))
    return DataLoader(data, batch_size=samples, **options)


def line_of_fault(task: LightningModule) -> int:
    lines, first = inspect.getsourcelines(type(task))
    return first + next(i for i, line in enumerate(lines) if line.endswith("# fault\n"))


def by_target(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {verdict.target: verdict for verdict in verdicts}


def test_a_sound_task_is_fine_everywhere_and_stays_as_it_is() -> None:
    task = Sound()
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    assert [v.verdict for v in rehearsed(task, loader())] == ["fine"] * len(TARGETS)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())


@pytest.mark.parametrize(
    ("task", "kind", "verdicts"),
    [
        (Eigenvalues(), "fallback", {"mps": "fails", "cuda": "fine", "cpu": "fine"}),
        (ResizedWithGradient(), "fallback", {"mps": "fails", "cuda": "fine", "cpu": "fine"}),
        (OnTheCPU(), "device", {"mps": "fails", "cuda": "fails", "cpu": "fine"}),
        (Doubled(), "dtype", {"mps": "fails", "cuda": "fine", "cpu": "fine"}),
        (Waiting(), "sync", {"mps": "warning", "cuda": "warning", "cpu": "fine"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sound) else None,
)
def test_a_fault_is_found_with_its_file_and_line(
    task: Sound, kind: str, verdicts: dict[str, str]
) -> None:
    for target, verdict in by_target(rehearsed(task, loader())).items():
        assert verdict.verdict == verdicts[target], verdict
        if verdict.verdict != "fine":
            found = {(finding.kind, finding.file, finding.line) for finding in verdict.findings}
            assert found == {(kind, __file__, line_of_fault(task))}


def test_a_fallback_that_is_accepted_is_a_warning() -> None:
    (verdict,) = rehearsed(
        Eigenvalues(), loader(), targets=["mps"], accept={"linalg_eigh": "8 by 8"}
    )
    assert verdict.verdict == "warning"
    assert "8 by 8" in verdict.findings[0].message


def test_without_the_fallback_a_missing_operator_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")
    (verdict,) = rehearsed(Eigenvalues(), loader(), targets=["mps"])
    assert [finding.kind for finding in verdict.findings] == ["operator"]


def test_what_workers_and_checkpoints_lose_is_found() -> None:
    class Unplain(Sound):
        def __init__(self, path: Path) -> None:
            super().__init__()
            self.save_hyperparameters()

    (verdict,) = rehearsed(
        Unplain(Path("data")),
        loader(num_workers=1, collate_fn=lambda samples: torch.utils.data.default_collate(samples)),
        targets=["mps"],
    )
    assert {finding.kind for finding in verdict.findings} == {"workers", "checkpoint"}


def test_a_precision_that_the_target_refuses_is_a_finding() -> None:
    verdicts = by_target(rehearsed(Sound(), loader(), trainer={"precision": "64-true"}))
    assert [finding.kind for finding in verdicts["mps"].findings] == ["policy"]
    assert verdicts["cuda"].verdict == verdicts["cpu"].verdict == "fine"


def test_a_model_that_does_not_fit_here_is_rehearsed_without_memory() -> None:
    class Large(Sound):
        def __init__(self) -> None:
            super().__init__()
            wide = nn.Linear(2**15, 2**16)
            self.layer = nn.Sequential(nn.Linear(8, 2**15), wide, nn.Linear(2**16, 4))

    (verdict,) = rehearsed(Large, loader(), targets=["cuda"], memory="24GB")
    (finding,) = verdict.findings
    assert finding.kind == "memory", finding
    assert "parameters 8" in finding.message  # 2**31 numbers of 4 bytes
    assert "do not fit" in finding.fix


def test_the_batch_size_that_is_said_to_fit_fits() -> None:
    asked = (*starter.TOO_LARGE, "targets=[cuda]")
    (verdict,) = rehearse(compose_config("rehearse", *asked))
    (finding,) = verdict.findings
    assert finding.kind == "memory"
    smaller = finding.fix.partition(",")[0]
    assert smaller.startswith("data.batch_size=")
    (verdict,) = rehearse(compose_config("rehearse", *asked, smaller))
    assert verdict.verdict == "fine"


@pytest.mark.parametrize(("text", "size"), [("16GB", 2**34), ("1.5 MiB", 1_572_864), ("12", 12)])
def test_memory_is_written_as_people_do(text: str, size: int) -> None:
    assert parse(text) == size


class Odd(Sound):
    """The second layer gives one hundredth more than it should."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        self.layer[1].register_forward_hook(lambda module, inputs, output: output * factor)


@pytest.mark.parametrize(("factor", "parts"), [(1.0, []), (1.01, ["the output of layer.1"])])
def test_the_first_layer_that_parts_from_the_cpu_is_named(factor: float, parts: list[str]) -> None:
    """As where the hardware is; here both are CPUs, of which one can be off."""
    rehearser = Rehearser(Sound(), loader(), trainer={}, accept={})
    assert rehearser.taken is not None
    traces = []
    for off in (1.0, factor):
        torch.manual_seed(0)
        traces.append(train(Odd(off), rehearser.datamodule, rehearser.taken, "cpu"))
    assert len(traces[0].losses) == 5
    found = partings(traces[0], traces[1], tolerance=1e-3)
    assert [finding.message.partition(" is the first")[0] for finding in found] == parts


def test_an_experiment_can_be_left_out_with_a_reason() -> None:
    cfg = compose_config("rehearse", "targets=[mps]", "+rehearse.skip.mps=too large")
    verdicts = rehearse(cfg)
    assert [verdict.verdict for verdict in verdicts] == ["skipped"]
    assert "too large" in verdicts[0].how
    assert succeeds(verdicts)


def test_what_rehearse_is_told_does_not_make_another_run() -> None:
    plain = compose_config("train")
    told = compose_config("train", "+rehearse.skip.mps=why", "+rehearse.accept.linalg_eigh=why")
    assert identity(plain) == identity(told)


def test_what_nobody_knows_is_not_fine() -> None:
    unknown = Finding("undecided", "unknown", "a value that is not known", "try it")
    verdict = Verdict("mps", "", [unknown])
    assert verdict.verdict == "unknown"
    assert not succeeds([verdict])


def test_the_command_prints_json_alone_and_its_status_tells(tmp_path: Path) -> None:
    good = command("rehearse", "targets=[mps]", "--json", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["trains"] is True
    bad = command("rehearse", "targets=[mps]", "memory=1KB", "--json", cwd=tmp_path)
    assert bad.returncode == 1
    (row,) = json.loads(bad.stdout)["targets"]
    assert row["verdict"] == "fails"
    assert row["findings"][0]["kind"] == "memory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["targets=[abacus]"], "none of mps, cuda, cpu"),
        (["memory=much"], "write it as in memory=16GB"),
        (["optimizer.lr=-1"], "Invalid learning rate"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(
    tmp_path: Path, args: list[str], says: str
) -> None:
    done = command("rehearse", *args, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
