"""What `rehearse` promises: sound tasks are fine on every target, and faults are found.

Nothing here needs a GPU. The corpus in rehearsal/ has many more tasks of both kinds.
"""

import functools
import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pretend_cuda_build
import pytest
import torch
from conftest import run
from hydra import compose, initialize_config_module
from image_project.tools import known_harm
from image_project.tools.rehearse import (
    TARGETS,
    Finding,
    Verdict,
    fake_hardware,
    rehearse_task,
    selfcheck,
)
from image_project.tools.rehearse.__main__ import rehearse
from image_project.tools.rehearse.memory import parse
from image_project.tools.rehearse.parity import differences, train
from image_project.tools.rehearse.recorder import Recorder
from image_project.tools.rehearse.rehearsal import Rehearser
from image_project.tools.rehearse.report import as_json, show, succeeds
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities import grad_norm
from omegaconf import DictConfig
from text_project.tools.rehearse.__main__ import rehearse as rehearse_text
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

# This file names devices itself, so it is not read for literals that do.
rehearsed = functools.partial(rehearse_task, sources=[])


def compose_config(*overrides: str, package: str = "image_project") -> DictConfig:
    with initialize_config_module(f"{package}.configs", version_base="1.3"):
        return compose("rehearse", list(overrides))


@pytest.fixture(params=["this build", "CUDA build without a driver"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "this build":
        pretend_cuda_build.pretend(monkeypatch.setattr)
        selfcheck.untrusted.cache_clear()


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


class OnTheCPU(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs + torch.ones(8)  # fault


class Eigenvalues(Sound):
    """MPS has no kernel for linalg_eig, in PyTorch 2.13 and 2.14."""

    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs * torch.linalg.eig(inputs.T @ inputs)[0].real.sum()  # fault


class Doubled(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs.double().float()  # fault


class Waiting(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        return inputs * inputs.mean().item()  # fault


class FractionalPool(Sound):
    """MPS has neither the operator nor that of its backward pass."""

    def spoilt(self, inputs: Tensor) -> Tensor:
        images = (inputs * self.layer.weight.sum()).view(-1, 1, 2, 4)
        images = F.fractional_max_pool2d(images, 1, (2, 4))  # fault
        return images.flatten(1)


class AsksTheDriver(Sound):
    """What people ask of the hardware; none of it is at fault."""

    def spoilt(self, inputs: Tensor) -> Tensor:
        accelerator = torch.accelerator.current_accelerator()
        assert (accelerator or torch.device("cpu")).type == self.device.type
        if torch.accelerator.is_available():
            torch.accelerator.memory_allocated()
            assert not torch.accelerator.current_stream().is_capturing()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
            self.log("memory", torch.mps.current_allocated_memory())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.log("memory", torch.cuda.max_memory_allocated() / 2**30)
            assert torch.cuda.current_device() < torch.cuda.device_count()
            assert torch.cuda.get_device_capability() >= (8, 0)
            assert torch.cuda.get_device_properties(0).total_memory == torch.cuda.mem_get_info()[1]
            torch.cuda.manual_seed(0)
            torch.cuda.set_rng_state(torch.cuda.get_rng_state())
            with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.Event(enable_timing=True).record()
            torch.cuda.empty_cache()
        torch.manual_seed(0)
        return inputs


class UsesLogger(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        self.logger.log_metrics({"samples": len(inputs)})  # type: ignore[union-attr]
        self.logger.experiment.add_histogram("inputs", inputs, 0)  # type: ignore[union-attr]
        return inputs

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log_dict(grad_norm(self.layer, norm_type=2))


class WithLSTM(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 8, batch_first=True)

    def spoilt(self, inputs: Tensor) -> Tensor:
        return self.rnn(inputs[:, None])[0][:, 0]


class Projected(Sound):
    """A kernel of MPS that refuses an option."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True, proj_size=8)

    def spoilt(self, inputs: Tensor) -> Tensor:
        return self.rnn(inputs[:, None])[0][:, 0]  # fault


class PacksAndProjects(Projected):
    """Packed sequences do not come to that kernel."""

    def spoilt(self, inputs: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_sequence(list(inputs[:, None]))
        return self.rnn(packed)[0].data


class Pools(Sound):
    """From (2, 4) to `size` and back."""

    pool: Any = staticmethod(F.adaptive_avg_pool2d)
    size = (2, 3)

    def spoilt(self, inputs: Tensor) -> Tensor:
        images = self.pool(inputs.view(-1, 1, 2, 4), self.size)  # fault
        return F.interpolate(images, (2, 4)).flatten(1)


class PoolsEvenly(Pools):
    size = (4, 8)


class PoolsBothWays(Pools):
    pool = staticmethod(F.adaptive_max_pool2d)
    size = (4, 3)

    def spoilt(self, inputs: Tensor) -> Tensor:
        images = self.pool(inputs.view(-1, 1, 2, 4), self.size)  # fault
        return F.interpolate(images, (2, 4)).flatten(1)


class ManyDimensions(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        many = inputs.view(-1, 8, *[1] * 15)
        return (many * 2).flatten(1)  # fault


class Large(Sound):
    """4 GB and a bit."""

    def spoilt(self, inputs: Tensor) -> Tensor:
        wide = inputs[:, :, None].expand(-1, -1, 2**24) * 2  # fault
        return wide.mean(2)


class Convolves(Sound):
    def spoilt(self, inputs: Tensor) -> Tensor:
        wide = inputs[:, None].repeat(1, 1, 9000)
        return F.conv1d(wide, self.layer.weight[:1, None, :1])[:, 0, :8]  # fault


@pytest.mark.parametrize(
    ("task", "verdict"),
    [
        (Projected, "fails"),
        (PacksAndProjects, "fine"),
        (Pools, "fails"),
        (PoolsEvenly, "fine"),
        (PoolsBothWays, "fails"),
        (ManyDimensions, "fails"),
        (Large, "warning"),
        (Convolves, "warning"),
    ],
)
def test_shapes_that_kernels_of_mps_refuse_are_found_where_they_are(
    task: type[Sound], verdict: str
) -> None:
    verdicts = by_target(rehearsed(task(), loader(), targets=["mps", "cuda"]))
    assert verdicts["cuda"].verdict == "fine"
    assert verdicts["mps"].verdict == verdict, verdicts["mps"]
    for one in verdicts["mps"].findings:
        assert (one.kind, one.file, one.line) == ("operator", __file__, line_of_fault(task()))


@pytest.mark.parametrize("limit", known_harm.LIMITS, ids=lambda limit: limit.operator or limit.what)
def test_each_known_limit_has_a_source_and_a_way_out(limit: known_harm.Limit) -> None:
    assert limit.source.startswith("https://")
    assert limit.fix


def loader(samples: int = 16, **options: Any) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(samples, 8), torch.randint(0, 4, (samples,)))
    return DataLoader(data, batch_size=samples, **options)


def line_of_fault(task: LightningModule) -> int:
    lines, first = inspect.getsourcelines(type(task))
    return first + next(i for i, line in enumerate(lines) if line.endswith("# fault\n"))


def by_target(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {verdict.target: verdict for verdict in verdicts}


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("task", [Sound, AsksTheDriver, UsesLogger, WithLSTM])
def test_a_sound_task_is_fine_everywhere_and_stays_as_it_is(task: type[Sound]) -> None:
    given = task()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    verdicts = rehearsed(given, loader())
    assert [v.verdict for v in verdicts] == ["fine"] * len(TARGETS), verdicts
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("task", "kind", "verdicts"),
    [
        (Eigenvalues(), "fallback", {"mps": "fails", "cuda": "fine", "cpu": "fine"}),
        (FractionalPool(), "fallback", {"mps": "fails", "cuda": "fine", "cpu": "fine"}),
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


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("package", "rehearse_it"),
    [
        ("image_project", rehearse),
        pytest.param("text_project", rehearse_text, marks=pytest.mark.slow),
    ],
)
def test_the_default_experiment_would_train_everywhere(package: str, rehearse_it: Any) -> None:
    verdicts = rehearse_it(compose_config(package=package))
    assert [verdict.verdict for verdict in verdicts] == ["fine"] * len(TARGETS), as_json(verdicts)


def test_a_question_about_the_hardware_without_an_answer_is_unknown() -> None:
    class Handle(Sound):
        def spoilt(self, inputs: Tensor) -> Tensor:
            if torch.cuda.is_available():
                torch.cuda.current_blas_handle()
            return inputs

    verdicts = by_target(rehearsed(Handle(), loader()))
    assert verdicts["cuda"].verdict == "unknown"
    assert verdicts["mps"].verdict == verdicts["cpu"].verdict == "fine"


def test_cuda_is_not_there_for_another_target() -> None:
    class NamesCuda(Sound):
        def spoilt(self, inputs: Tensor) -> Tensor:
            return inputs + torch.cuda.current_device()

    verdicts = by_target(rehearsed(NamesCuda(), loader()))
    assert verdicts["cuda"].verdict == "fine"
    assert [finding.kind for finding in verdicts["mps"].findings] == ["vendor"]
    assert verdicts["mps"].verdict == verdicts["cpu"].verdict == "fails"


def break_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a new PyTorch does this otherwise")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def break_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was with PyTorch 2.15's default build: an optimizer asks the driver."""
    pretend_cuda_build.pretend(monkeypatch.setattr)
    monkeypatch.setattr(fake_hardware, "_accelerator", lambda *args: {})


def break_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "watch", lambda *args: None)


@pytest.mark.parametrize(
    ("break_it", "known"),
    [(break_optimizer, "sound"), (break_answers, "sound"), (break_recorder, "faulty")],
)
def test_where_a_known_step_comes_out_wrong_the_verdict_is_unknown(
    monkeypatch: pytest.MonkeyPatch, break_it: Any, known: str
) -> None:
    selfcheck.untrusted.cache_clear()
    break_it(monkeypatch)
    for task in (Sound(), OnTheCPU()):
        (verdict,) = rehearsed(task, loader(), targets=["cuda"])
        assert verdict.verdict == "unknown"
        (finding,) = verdict.findings
        assert f"known to be {known}" in finding.message
    selfcheck.untrusted.cache_clear()


def test_a_task_is_built_as_train_builds_it() -> None:
    """A list of the config is a list: it may be saved among the hyper-parameters."""
    listed = "+task.generation.stops=[1,2]"
    cfg = compose_config("targets=[cpu]", listed, package="text_project")
    (verdict,) = rehearse_text(cfg)
    assert verdict.verdict == "fine", verdict


def test_the_number_of_workers_of_a_target_is_no_warning_here() -> None:
    class ManyWorkers(LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader(num_workers=512)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (verdict,) = rehearsed(Sound(), ManyWorkers(), targets=["cuda"])
    assert verdict.verdict == "fine"


def test_predict_is_not_blamed_for_a_batch_that_is_not_its_own() -> None:
    class Predicts(Sound):
        def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.layer(batch)

    class TestBatches(LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader()

        test_dataloader = train_dataloader

    (borrowed,) = rehearsed(Predicts(), TestBatches(), targets=["cpu"])
    assert borrowed.verdict == "fine"
    (own,) = rehearsed(Predicts(), loader(), targets=["cpu"])
    assert own.verdict == "fails"


def test_a_task_may_bring_its_own_loaders() -> None:
    class WithLoader(OnTheCPU):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader()

    verdicts = rehearsed(WithLoader(), targets=["cuda", "cpu"])
    assert [verdict.verdict for verdict in verdicts] == ["fails", "fine"]


def test_a_fallback_that_is_accepted_is_a_warning() -> None:
    accept = {"linalg_eig": "8 by 8"}
    (verdict,) = rehearsed(Eigenvalues(), loader(), targets=["mps"], accept=accept)
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


@pytest.mark.parametrize(
    ("package", "rehearse_it", "too_large"),
    [
        ("image_project", rehearse, ("experiment=convnet", "memory=2.5MB")),
        pytest.param("text_project", rehearse_text, ("memory=100MB",), marks=pytest.mark.slow),
    ],
)
def test_the_batch_size_that_is_said_to_fit_fits(
    package: str, rehearse_it: Any, too_large: tuple[str, ...]
) -> None:
    asked = (*too_large, "targets=[cuda]")
    (verdict,) = rehearse_it(compose_config(*asked, package=package))
    (finding,) = verdict.findings
    assert finding.kind == "memory"
    smaller = finding.fix.partition(",")[0]
    assert smaller.startswith("data.batch_size=")
    (verdict,) = rehearse_it(compose_config(*asked, smaller, package=package))
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
def test_the_first_layer_that_differs_from_the_cpu_is_named(
    factor: float, parts: list[str]
) -> None:
    """As where the hardware is; here both are CPUs, of which one can be off."""
    rehearser = Rehearser(Sound(), loader(), trainer={}, accept={})
    assert rehearser.taken is not None
    traces = []
    for off in (1.0, factor):
        torch.manual_seed(0)
        traces.append(train(Odd(off), rehearser.datamodule, rehearser.taken, "cpu"))
    assert len(traces[0].losses) == 5
    found = differences(traces[0], traces[1], tolerance=1e-3)
    assert [finding.message.partition(" is the first")[0] for finding in found] == parts


def test_an_experiment_can_be_left_out_with_a_reason() -> None:
    verdicts = rehearse(compose_config("targets=[mps]", "+rehearse.skip.mps=too large"))
    assert [verdict.verdict for verdict in verdicts] == ["skipped"]
    assert "too large" in verdicts[0].how
    assert succeeds(verdicts)


def test_what_nobody_knows_is_not_fine() -> None:
    unknown = Finding("undecided", "unknown", "a value that is not known", "try it")
    verdict = Verdict("mps", "", [unknown])
    assert verdict.verdict == "unknown"
    assert not succeeds([verdict])


def test_the_table_has_no_blanks_at_the_ends_of_its_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show([Verdict("cpu", "ran", []), Verdict("mps", "as a whole", [], memory="12 MiB: of it")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["target", "cpu", "mps"]
    assert lines == [line.rstrip() for line in lines]


def command(*args: str, cwd: Path) -> Any:
    return run(sys.executable, "-m", "image_project", "rehearse", *args, cwd=cwd)


def test_the_command_prints_json_alone_and_its_status_tells(tmp_path: Path) -> None:
    good = command("targets=[mps]", "--json", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["trains"] is True
    bad = command("targets=[mps]", "memory=1KB", "--json", cwd=tmp_path)
    assert bad.returncode == 1
    (row,) = json.loads(bad.stdout)["targets"]
    assert row["verdict"] == "fails"
    assert row["findings"][0]["kind"] == "memory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["targets=[abacus]"], "must be one of: mps, cuda, cpu"),
        (["memory=much"], "Write it as in memory=16GB"),
        pytest.param(["optimizer.lr=-1"], "Invalid learning rate", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(
    tmp_path: Path, args: list[str], says: str
) -> None:
    done = command(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
