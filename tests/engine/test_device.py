"""The policy, row by row, on described hardware; nothing here needs it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_project.engine import limits as engine_limits
from image_project.engine.device import (
    Gpu,
    Hardware,
    Requested,
    Settings,
    apply,
    hardware,
    limit_threads,
    line,
    probe,
    requested,
    resolve,
)
from image_project.engine.errors import UserError

from .small_runs import HERE, Compose

CPU = Hardware(system="Linux", cpu="EPYC", cores=16)
SMALL = Hardware(system="Linux", cpu="EPYC", cores=2)
MAC = Hardware(system="Darwin", cpu="arm", cores=8, mps="Apple M3")
MAC_RUNNER = Hardware(system="Darwin", cpu="arm", cores=3, missed="PyTorch reports MPS, but ...")
WINDOWS = Hardware(system="Windows", cpu="Intel64", cores=8, cuda=(Gpu("RTX 4090", (8, 9)),))
H100 = Hardware(system="Linux", cpu="EPYC", cores=16, cuda=(Gpu("H100", (9, 0)),))
EIGHT = Hardware(system="Linux", cpu="EPYC", cores=96, cuda=(Gpu("A100", (8, 0)),) * 8)
T4 = Hardware(system="Linux", cpu="Xeon", cores=4, cuda=(Gpu("T4", (7, 5)),))
MIXED = Hardware(system="Linux", cpu="Xeon", cores=4, cuda=(Gpu("A100", (8, 0)), Gpu("T4", (7, 5))))


@pytest.mark.parametrize(
    ("has", "accelerator", "devices", "precision", "matmul", "workers", "pinned"),
    [
        (MAC, "mps", 1, "32-true", "highest", 0, False),
        (MAC_RUNNER, "cpu", 1, "32-true", "highest", 0, False),
        (H100, "cuda", 1, "bf16-mixed", "high", 8, True),
        (EIGHT, "cuda", 8, "bf16-mixed", "high", 8, True),
        (T4, "cuda", 1, "16-mixed", "highest", 3, True),
        (MIXED, "cuda", 2, "16-mixed", "highest", 1, True),
        (WINDOWS, "cuda", 1, "bf16-mixed", "high", 0, True),
        (CPU, "cpu", 1, "32-true", "highest", 8, False),
        (SMALL, "cpu", 1, "32-true", "highest", 0, False),
    ],
)
def test_auto_follows_from_what_is_there(
    has: Hardware,
    accelerator: str,
    devices: int,
    precision: str,
    matmul: str,
    workers: int,
    pinned: bool,
) -> None:
    settings = resolve(Requested(), has)
    assert settings.accelerator == accelerator
    assert settings.devices == devices
    assert settings.precision == precision
    assert settings.matmul_precision == matmul
    assert settings.num_workers == workers
    assert settings.pin_memory is pinned
    assert settings.persistent_workers is (workers > 0)


@pytest.mark.parametrize(
    ("has", "asked"),
    [
        (H100, {"accelerator": "cpu"}),
        (MAC, {"accelerator": "cpu"}),
        (H100, {"precision": "32-true"}),
        (MAC, {"precision": "bf16-mixed"}),
        (MAC, {"precision": "16-mixed"}),
        (CPU, {"precision": "64-true"}),
        (CPU, {"devices": 2}),
        (EIGHT, {"devices": 4}),
        (EIGHT, {"devices": [0, 7]}),
        (MAC, {"num_workers": 4}),
        (H100, {"pin_memory": False}),
        (CPU, {"persistent_workers": False}),
        (CPU, {"matmul_precision": "medium"}),
        (H100, {"compile": False}),
        (MAC, {"compile": True}),
        (EIGHT, {"strategy": "ddp"}),
        (H100, {"require_accelerator": "gpu", "accelerator": "cuda"}),
    ],
)
def test_explicit_beats_auto(has: Hardware, asked: dict[str, Any]) -> None:
    settings = resolve(Requested(**asked), has)
    for field, value in asked.items():
        if field == "require_accelerator":
            continue
        assert getattr(settings, field) == value
        assert settings.reasons[field] == "requested"


@pytest.mark.parametrize(
    ("has", "asked", "says"),
    [
        (CPU, {"accelerator": "cuda"}, "no cuda works here"),
        (MAC, {"accelerator": "cuda"}, "no cuda works here"),
        (CPU, {"accelerator": "gpu"}, "no gpu works here"),
        (CPU, {"accelerator": "tpu"}, "must be one of: auto"),
        (MAC_RUNNER, {"accelerator": "mps"}, "PyTorch reports MPS"),
        (CPU, {"precision": "16-mixed"}, "needs a GPU"),
        (MAC, {"precision": "64-true"}, "impossible on MPS"),
        (CPU, {"precision": "fp8"}, "must be one of: auto"),
        (CPU, {"matmul_precision": "fast"}, "must be one of: auto"),
        (MAC, {"devices": 2}, "has 1 mps"),
        (EIGHT, {"devices": 9}, "has 8 cuda"),
        (EIGHT, {"devices": [8]}, "has 8 cuda"),
        (EIGHT, {"devices": []}, "has 8 cuda"),
        (CPU, {"devices": 0}, "impossible"),
        (CPU, {"devices": "many"}, "impossible"),
        (MAC, {"strategy": "ddp"}, "does not run on MPS"),
        (MAC, {"strategy": "fsdp"}, "does not run on MPS"),
        (EIGHT, {"strategy": "ddp_spawn"}, "must be one of: auto, ddp, fsdp"),
        (WINDOWS, {"strategy": "ddp"}, "NCCL"),
        (CPU, {"num_workers": -1}, "must be auto, 0 or more"),
        (CPU, {"compile": "yes please"}, "must be one of: auto"),
        (replace(CPU, compiles=()), {"compile": True}, "compiler"),
        (CPU, {"require_accelerator": "cuda"}, "but this is cpu"),
    ],
)
def test_the_impossible_is_refused_in_one_sentence(
    has: Hardware, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as refused:
        resolve(Requested(**asked), has)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("has", [H100, EIGHT, T4])
def test_a_large_model_is_compiled_on_cuda(has: Hardware) -> None:
    settings = resolve(Requested(), has)
    assert settings.compiles(100_000_000)
    assert not settings.compiles(1_000_000)
    without = replace(has, compiles=("cpu", "mps"))
    assert resolve(Requested(), without).compile is False


@pytest.mark.parametrize("has", [CPU, MAC])
def test_elsewhere_a_model_is_compiled_when_asked_for(has: Hardware) -> None:
    assert not resolve(Requested(), has).compiles(100_000_000)
    assert resolve(Requested(compile=True), has).compiles(1)


@pytest.mark.parametrize("missing", ["triton", "gcc", "Python.h", None])
def test_for_cuda_the_compiler_needs_one_of_c_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str | None
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(
        hardware.shutil, "which", lambda name: name if name == "gcc" != missing else None
    )
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: name != missing or None)
    if missing != "Python.h":
        (tmp_path / "Python.h").touch()
    assert hardware._has_triton([*H100.cuda]) == (missing is None)


def test_gpu_means_the_one_that_is_there() -> None:
    assert resolve(Requested(accelerator="gpu"), MAC).accelerator == "mps"
    assert resolve(Requested(accelerator="gpu"), H100).accelerator == "cuda"


def test_only_the_gpus_asked_for_count() -> None:
    settings = resolve(Requested(devices=[0]), MIXED)
    assert (settings.name, settings.precision) == ("A100", "bf16-mixed")
    assert resolve(Requested(devices=[1]), MIXED).precision == "16-mixed"


@pytest.mark.parametrize(
    ("quota", "cores", "threads"),
    [(None, 16, 16), (2.0, 2, 2), (2.5, 2, 2), (0.5, 1, 1), (64, 16, 16)],
)
def test_workers_and_threads_keep_to_a_containers_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int, threads: int
) -> None:
    monkeypatch.setattr(engine_limits, "visible_cores", lambda: 16)
    for module in (engine_limits, hardware):
        monkeypatch.setattr(module, "limits", lambda: (None, quota))
    assert probe().cores == cores
    started = [16]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads()
    assert started[-1] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "9")  # the user has chosen
    limit_threads()
    assert len(started) <= 2


def test_processes_share_the_cores() -> None:
    many = Hardware("Linux", "EPYC", 16, cuda=(Gpu("A100", (8, 0)),) * 8)
    assert resolve(Requested(), many).num_workers == 1


def test_no_workers_cannot_be_persistent() -> None:
    settings = resolve(Requested(num_workers=0, persistent_workers=True), CPU)
    assert settings.persistent_workers is False


def test_short_names_of_precisions_are_understood() -> None:
    assert resolve(Requested(precision=32), H100).precision == "32-true"
    assert resolve(Requested(precision="bf16"), CPU).precision == "bf16-mixed"


@pytest.mark.parametrize("has", [CPU, MAC, H100, EIGHT, T4, WINDOWS, MAC_RUNNER])
def test_every_answer_has_its_reason(has: Hardware) -> None:
    settings = resolve(Requested(), has)
    fields = set(Settings.__dataclass_fields__) - {"name", "reasons", "num_nodes"}
    assert set(settings.reasons) == fields
    assert all(settings.reasons.values())


def test_the_line_names_device_precision_count_and_effective_batch_size(config: Compose) -> None:
    cfg = config("data.batch_size=16", "trainer.accumulate_grad_batches=2")
    said = line(resolve(Requested(), EIGHT), cfg)
    assert said == (
        "cuda (A100), bf16-mixed, 8 devices, effective batch size 256: auto, since cuda works here"
    )


def test_a_missed_gpu_is_named_in_the_line(config: Compose) -> None:
    has = Hardware("Linux", "EPYC", 4, missed="nvidia-smi is here, but this PyTorch has no CUDA")
    assert "no GPU works here (nvidia-smi is here" in line(resolve(Requested(), has), config())


def test_the_applied_config_has_no_auto_left(config: Compose) -> None:
    # A datamodule that takes a loader's settings gets them; one that does not is as ordinary.
    loader = ("+data.num_workers=auto", "+data.pin_memory=auto", "+data.persistent_workers=auto")
    for options in ((), loader):
        cfg = config(*options)
        applied = apply(cfg, resolve(requested(cfg), HERE))
        answered = ("accelerator", "devices", "precision", "num_nodes")
        assert "auto" not in {applied.trainer[key] for key in answered}
        assert "auto" not in {*map(str, applied.data.values())}
        assert cfg.trainer.accelerator == "auto"  # what was requested is untouched
        assert set(applied.data) == set(cfg.data) - {"global_batch_size"}


def test_torchrun_has_chosen_how_many_devices_and_hosts() -> None:
    settings = resolve(Requested(), replace(EIGHT, processes=4, hosts=2))
    assert (settings.devices, settings.num_nodes, settings.world_size) == (4, 2, 8)
    assert settings.strategy == "ddp"
    assert resolve(Requested(), replace(CPU, processes=2)).world_size == 2


@pytest.mark.parametrize(
    ("has", "asked", "says"),
    [
        (EIGHT, {"devices": 2}, "torchrun has started 4 processes here, and trainer.devices=2"),
        (MIXED, {}, "for 2 cuda: let it start --nproc-per-node 2"),
        (MAC, {}, "for 1 mps: let it start --nproc-per-node 1"),
    ],
)
def test_what_torchrun_has_started_must_fit(
    has: Hardware, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        resolve(Requested(**asked), replace(has, processes=4))


def test_one_device_needs_no_strategy_of_several() -> None:
    assert resolve(Requested(strategy="fsdp"), H100).strategy == "auto"
    assert resolve(Requested(strategy="fsdp"), EIGHT).strategy == "fsdp"


@pytest.mark.parametrize(
    ("has", "accumulate", "each"), [(MAC, 1, 96), (MAC, 4, 24), (EIGHT, 1, 12), (EIGHT, 2, 6)]
)
def test_a_global_batch_is_split_over_devices_and_accumulated_batches(
    config: Compose, has: Hardware, accumulate: int, each: int
) -> None:
    options = ("data.global_batch_size=96", f"trainer.accumulate_grad_batches={accumulate}")
    cfg = config(*options)
    applied = apply(cfg, resolve(Requested(), has))
    assert applied.data.batch_size == each
    assert "global_batch_size" not in applied.data  # no datamodule takes it
    assert "effective batch size 96:" in line(resolve(Requested(), has), cfg)


def test_a_global_batch_that_cannot_be_split_names_those_that_can(config: Compose) -> None:
    with pytest.raises(UserError, match="use 96 or 104"):
        apply(config("data.global_batch_size=100"), resolve(Requested(), EIGHT))
