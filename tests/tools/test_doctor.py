"""The doctor's rows with faked machines, and its command with a PyTorch that is really broken."""

import ast
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_project
import pytest
from conftest import run
from image_project.engine import limits as engine_limits
from image_project.engine.limits import limits
from image_project.tools import doctor, known_harm
from image_project.tools.doctor import facts as probe
from image_project.tools.doctor.__main__ import judge
from image_project.tools.doctor.facts import Facts, Nvidia, Torch, parse_smi, read_notes
from image_project.tools.doctor.gpu import has_kernels
from image_project.tools.doctor.row import Row
from image_project.tools.known_harm import number

PACKAGE = Path(image_project.__file__).parent
SOURCES = [
    *sorted(Path(doctor.__path__[0]).glob("*.py")),
    *map(Path, (known_harm.__file__, engine_limits.__file__)),
]

GB = 2**30
LOADED = ("torch", "numpy", "hydra", "omegaconf", "torchmetrics", "lightning")
VERSIONS = {
    "torch": "2.13.0",
    "lightning": "2.6.6",
    "hydra-core": "1.3.8",
    "omegaconf": "2.3.1",
    "torchmetrics": "1.9.0",
    "numpy": "2.4.6",
}
LINUX = Facts(
    system="Linux",
    machine="x86_64",
    python="3.12.4",
    executable="/project/.venv/bin/python",
    versions=VERSIONS,
    torch=Torch(
        finished=LOADED,
        version="2.13.0+cpu",
        works={"cpu": ""},
        bf16={"cpu": ""},
        openmp=("libgomp", "libgomp"),
        policy={"accelerator": ["cpu", "no GPU works here"]},
    ),
    nvidia_smi="is not installed",
    cores=8,
    memory=32 * GB,
    shared_memory=16 * GB,
    open_files=(4096, 4096),
)
MAC = replace(
    LINUX,
    system="Darwin",
    machine="arm64",
    processor="arm",
    arm64="1",
    macos="15.5",
    environment={"PYTORCH_ENABLE_MPS_FALLBACK": "1"},
    versions={**VERSIONS, "torch": "2.14.0"},
    torch=replace(
        LINUX.torch,
        version="2.14.0",
        mps_built=True,
        mps_available=True,
        works={"cpu": "", "mps": ""},
        bf16={"cpu": "", "mps": ""},
        openmp=("libomp", "libomp"),
    ),
    shared_memory=None,
)
H100 = {"name": "NVIDIA H100", "capability": [9, 0]}
SERVER = replace(
    LINUX,
    nvidia=(Nvidia("NVIDIA H100", "580.65.06", "9.0"),),
    torch=replace(
        LINUX.torch,
        version="2.13.0+cu130",
        cuda="13.0",
        arch_list=("sm_75", "sm_80", "sm_90", "sm_120", "compute_120"),
        gpus=(H100,),
        works={"cpu": "", "cuda:0": ""},
        bf16={"cpu": "", "cuda:0": ""},
    ),
)
WINDOWS = replace(LINUX, system="Windows", memory=None, shared_memory=None, open_files=None)
NOT_TOLD = Row("memory", "", "unknown", "Windows does not tell Python how much.")
HEALTHY = {"linux": LINUX, "mac": MAC, "server": SERVER, "windows": WINDOWS}


def seen(facts: Facts, **torch: Any) -> Facts:
    """The same machine, on which PyTorch tells otherwise."""
    return replace(facts, torch=replace(facts.torch, **torch))


def with_version(facts: Facts, **versions: str) -> Facts:
    given = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(facts, versions={**facts.versions, **given})


def with_variables(facts: Facts, **variables: str) -> Facts:
    return replace(facts, environment={**facts.environment, **variables})


def old_gpu(name: str, driver: str, capability: tuple[int, int]) -> Facts:
    told = f"{capability[0]}.{capability[1]}"
    facts = replace(SERVER, nvidia=(Nvidia(name, driver, told),))
    return seen(facts, gpus=({"name": name, "capability": list(capability)},))


def findings(facts: Facts) -> list[Row]:
    return [row for row in judge(facts) if row.state != "ok" and row != NOT_TOLD]


# What is wrong: the row, its state, a word of the reason, a word of the fix.
FINDINGS: list[tuple[Facts, str, str, str, str]] = [
    (replace(LINUX, python="3.10.12"), "Python", "wrong", "3.11 to 3.13", "PYTHON=python3.12"),
    (
        replace(MAC, machine="x86_64", processor="i386", proc_translated="1"),
        "Apple Silicon",
        "wrong",
        "Rosetta",
        "macos-aarch64",
    ),
    (
        replace(MAC, machine="x86_64", processor="i386", arm64="0"),
        "Apple Silicon",
        "wrong",
        "Intel Macs",
        "docker run --platform linux/amd64",
    ),
    (replace(MAC, processor="i386"), "Apple Silicon", "wrong", "looks for 'arm'", "uv python"),
    (replace(MAC, processor=""), "Apple Silicon", "wrong", "looks for 'arm'", "uv python"),
    (replace(MAC, macos="13.6"), "macOS", "wrong", "macOS 14", "softwareupdate"),
    (replace(MAC, macos="27.0"), "macOS", "warning", "180201", "trainer.accelerator=cpu"),
    (replace(MAC, macos="10.16"), "macOS", "unknown", "too old", "sw_vers"),
    (
        with_version(MAC, torch="2.12.1"),
        "harm in torch",
        "wrong",
        "future tokens",
        '"torch>=2.14"',
    ),
    (
        with_version(LINUX, lightning="2.6.4"),
        "harm in lightning",
        "warning",
        "somebody else's",
        '"lightning>=2.6.6"',
    ),
    (with_version(LINUX, torch="2.5.1+cpu"), "harm in torch", "wrong", "code", "torch>=2.11"),
    (
        with_version(LINUX, omegaconf="2.4.0"),
        "harm in omegaconf",
        "wrong",
        "2.3",
        '"omegaconf>=2.3,<2.4"',
    ),
    (
        replace(LINUX, nvidia=(Nvidia("RTX 4090", "580.1", "8.9"),)),
        "PyTorch's build",
        "wrong",
        "RTX 4090 is here",
        "https://download.pytorch.org/whl/cu130",
    ),
    (
        replace(LINUX, nvidia=(Nvidia("RTX 4090", "550.54.14", "8.9"),)),
        "PyTorch's build",
        "wrong",
        "cannot use it",
        "https://download.pytorch.org/whl/cu126",
    ),
    (
        replace(LINUX, nvidia=(Nvidia("RTX 4090", "470.1", "8.9"),)),
        "PyTorch's build",
        "wrong",
        "cannot use it",
        "ubuntu-drivers",
    ),
    (
        replace(WINDOWS, nvidia=(Nvidia("RTX 4090", "471.1", "8.9"),)),
        "PyTorch's build",
        "wrong",
        "cannot use it",
        "start https://www.nvidia.com",
    ),
    (
        with_variables(seen(SERVER, gpus=(), works={"cpu": ""}), CUDA_VISIBLE_DEVICES=""),
        "PyTorch's build",
        "warning",
        "hides it",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    (
        seen(SERVER, gpus=(), works={"cpu": ""}, errors={"devices": "RuntimeError: busy"}),
        "PyTorch's build",
        "wrong",
        "does not see it: RuntimeError: busy",
        "cu130",
    ),
    (seen(MAC, mps_built=False), "PyTorch's build", "wrong", "cannot use the GPU", "torch>=2.13"),
    (seen(MAC, mps_available=False), "PyTorch's build", "warning", "no GPU", "system_profiler"),
    (
        replace(LINUX, nvidia_smi="fails: couldn't communicate with the NVIDIA driver"),
        "NVIDIA driver",
        "warning",
        "nvidia-smi fails: couldn't",
        "ubuntu-drivers",
    ),
    (
        replace(LINUX, nvidia_smi="fails: no devices were found", container=True),
        "NVIDIA driver",
        "warning",
        "no devices",
        "docker run --gpus all",
    ),
    (
        seen(
            replace(SERVER, nvidia=(Nvidia("NVIDIA H100", "535.10", "9.0"),)),
            gpus=(),
            works={"cpu": ""},
        ),
        "NVIDIA driver",
        "wrong",
        "CUDA 13.0 needs 580",
        "whl/cu126",
    ),
    (old_gpu("V100", "580.1", (7, 0)), "kernels for cuda:0", "wrong", "sm_75", "whl/cu126"),
    (old_gpu("K80", "580.1", (3, 7)), "kernels for cuda:0", "wrong", "sm_75", "ubuntu-drivers"),
    (seen(LINUX, xpu=True), "Intel GPU", "warning", "no accelerator", "trainer.accelerator=cpu"),
    (
        seen(MAC, works={"cpu": "", "mps": "RuntimeError: MPS backend out of memory"}),
        "device mps",
        "wrong",
        "out of memory",
        "trainer.accelerator=cpu",
    ),
    (
        seen(SERVER, works={"cpu": "", "cuda:0": "AcceleratorError: busy"}),
        "device cuda:0",
        "wrong",
        "busy",
        "nvidia-smi",
    ),
    (
        seen(LINUX, works={"cpu": "RuntimeError: illegal instruction"}),
        "device cpu",
        "wrong",
        "illegal",
        '--force-reinstall "torch"',
    ),
    (
        seen(MAC, bf16={"cpu": "", "mps": "TypeError: MPS BFloat16"}),
        "bf16",
        "warning",
        "MPS BFloat16",
        "trainer.precision=32-true",
    ),
    (replace(LINUX, memory=2 * GB), "memory", "warning", "1 GB", "data.num_workers=0"),
    (
        replace(LINUX, memory_limit=2 * GB),
        "memory",
        "warning",
        "1 GB",
        "data.num_workers=0",
    ),
    (replace(LINUX, shared_memory=GB // 16), "/dev/shm", "warning", "bus error", "size=8g"),
    (
        replace(LINUX, shared_memory=GB // 16, container=True),
        "/dev/shm",
        "warning",
        "bus error",
        "docker run --shm-size=8g",
    ),
    (replace(LINUX, shared_memory=None), "/dev/shm", "warning", "no /dev/shm", "mount"),
    (replace(MAC, open_files=(256, -1)), "open files", "warning", "Too many", "ulimit -n 4096"),
    (replace(LINUX, open_files=(256, 512)), "open files", "warning", "Too many", "ulimit -n 512"),
    (replace(LINUX, open_files=(256, 256)), "open files", "warning", "Too many", "sudo prlimit"),
    (replace(MAC, open_files=(256, 256)), "open files", "warning", "Too many", "sudo launchctl"),
    (
        replace(LINUX, open_files=(256, 256), container=True),
        "open files",
        "warning",
        "Too many",
        "docker run --ulimit nofile=4096",
    ),
    (
        seen(MAC, openmp=("libiomp5", "libomp")),
        "OpenMP",
        "warning",
        "Intel's",
        "--force-reinstall",
    ),
    (
        seen(MAC, openmp=None, died="openmp: its process ended with status -6 OMP: Error #15: ..."),
        "OpenMP",
        "wrong",
        "one installer",
        "make clean",
    ),
    (
        with_variables(MAC, PYTORCH_ENABLE_MPS_FALLBACK="0"),
        "MPS fallback",
        "warning",
        "ends the run",
        "export PYTORCH_ENABLE_MPS_FALLBACK=1",
    ),
    (with_variables(MAC, DISABLE_MPS="1"), "DISABLE_MPS", "warning", "not use", "unset"),
    (
        with_variables(MAC, PYTORCH_MPS_HIGH_WATERMARK_RATIO="0.0"),
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "warning",
        "standstill",
        "unset PYTORCH_MPS",
    ),
    (
        with_variables(LINUX, KMP_DUPLICATE_LIB_OK="TRUE"),
        "KMP_DUPLICATE_LIB_OK",
        "warning",
        "wrong results",
        "unset KMP",
    ),
    (
        with_variables(WINDOWS, WORLD_SIZE="4"),
        "launcher",
        "warning",
        "one process of several",
        "set WORLD_SIZE=",
    ),
]


@pytest.mark.parametrize(
    ("facts", "name", "state", "why", "fix"),
    FINDINGS,
    ids=[f"{name}-{number}" for number, (_, name, *_) in enumerate(FINDINGS)],
)
def test_a_fault_of_the_machine_is_found_alone_with_its_fix(
    facts: Facts, name: str, state: str, why: str, fix: str
) -> None:
    (row,) = findings(facts)
    assert (row.name, row.state) == (name, state)
    assert why in row.why
    assert fix in row.fix


@pytest.mark.parametrize("facts", HEALTHY.values(), ids=HEALTHY)
def test_a_machine_without_a_fault_has_no_finding(facts: Facts) -> None:
    assert findings(facts) == []


def test_hydra_on_a_python_that_it_does_not_know_needs_another_python() -> None:
    rows = findings(replace(LINUX, python="3.14.0"))
    assert [row.name for row in rows] == ["Python", "harm in hydra-core"]
    assert all("PYTHON=python3.12" in row.fix for row in rows)


def test_malware_is_wrong_and_was_not_loaded() -> None:
    facts = with_version(seen(LINUX, finished=LOADED[:-1], policy={}), lightning="2.6.3")
    rows = {row.name: row for row in findings(facts)}
    assert rows["lightning"].state == "unknown"
    assert rows["harm in lightning"].state == "wrong"
    assert "passwords" in rows["harm in lightning"].why
    assert rows["auto"].state == "unknown"


def test_a_gpu_without_bf16_is_told_to_be_slow_with_it() -> None:
    (row,) = [row for row in judge(old_gpu("T4", "580.1", (7, 5))) if row.name == "bf16"]
    assert "cuda:0 emulated and slow" in row.found
    (row,) = [row for row in judge(SERVER) if row.name == "bf16"]
    assert "cuda:0 native" in row.found


@pytest.mark.parametrize(
    ("capability", "arch_list", "has"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 9), ("sm_80", "sm_90"), True),  # of the same generation
        ((9, 0), ("sm_90a",), True),
        ((7, 0), ("sm_75", "sm_80"), False),  # older than every one
        ((12, 0), ("sm_80", "sm_90"), False),  # newer
        ((12, 0), ("sm_90", "compute_90"), True),  # compiled by the driver
        ((10, 0), ("sm_75", "sm_100"), True),
    ],
)
def test_kernels_are_there_for_a_generation_or_as_code(
    capability: tuple[int, int], arch_list: tuple[str, ...], has: bool
) -> None:
    assert has_kernels(capability, arch_list) is has


def test_the_packages_that_need_a_broken_torch_are_unknown_not_ok() -> None:
    broken = seen(LINUX, errors={"torch": "OSError: libc10.so"}, finished=("hydra", "numpy"))
    rows = {row.name: row for row in judge(seen(broken, version="", works={}, bf16={}, policy={}))}
    assert rows["torch"].state == "wrong"
    assert "OSError: libc10.so" in rows["torch"].why
    assert rows["torch"].fix == 'python -m pip install --force-reinstall "torch"'
    assert rows["hydra-core"].state == "ok"
    for name in ("lightning", "torchmetrics", "PyTorch's build", "devices", "bf16", "auto"):
        assert rows[name].state == "unknown"
        assert rows[name].why


def test_an_environment_of_uv_is_mended_with_uv() -> None:
    facts = replace(LINUX, pip=False, nvidia=(Nvidia("RTX 4090", "580.1", "8.9"),))
    (row,) = findings(facts)
    assert row.fix.startswith('uv pip install --reinstall "torch" --index-url')


def test_a_process_that_dies_leaves_what_it_had_found() -> None:
    lines: list[dict[str, Any]] = [
        {"stage": "torch"},
        {"version": "2.13.0", "cuda": "13.0", "hip": None, "finished": ["torch"]},
        {"stage": "works on cpu"},
        {"works": {"cpu": ""}},
        {"stage": "works on cuda:0"},
    ]
    facts = read_notes(lines, "its process ended with status -11")
    assert facts.version == "2.13.0"
    assert facts.died == "works on cuda:0: its process ended with status -11"
    rows = {row.name: row for row in judge(replace(LINUX, torch=facts))}
    assert rows["torch"].state == "ok"
    assert rows["device cpu"].state == "ok"
    assert rows["device cuda:0"].state == "wrong"
    assert "status -11" in rows["device cuda:0"].why
    assert rows["lightning"].state == rows["auto"].state == "unknown"


def test_a_gpu_that_hangs_is_named_and_the_rest_is_known() -> None:
    (row,) = findings(seen(MAC, works={"cpu": ""}, died="works on mps: it took more than 120 s"))
    assert (row.name, row.state) == ("device mps", "wrong")
    assert "more than 120 s" in row.why
    assert "trainer.accelerator=cpu" in row.fix


def test_nvidia_smi_is_read() -> None:
    said = "NVIDIA H100 80GB HBM3, 580.65.06, 9.0\nNVIDIA A100, 580.65.06, 8.0\n"
    assert parse_smi(said) == (
        Nvidia("NVIDIA H100 80GB HBM3", "580.65.06", "9.0"),
        Nvidia("NVIDIA A100", "580.65.06", "8.0"),
    )
    assert parse_smi("Tesla K80, 470.57.02") == (Nvidia("Tesla K80", "470.57.02"),)
    assert parse_smi("") == ()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (None, None)),
        ({"memory.max": "max\n", "cpu.max": "max 100000\n"}, (None, None)),
        ({"memory.max": "4294967296\n", "cpu.max": "150000 100000\n"}, (4 * GB, 1.5)),
        ({"job/step/memory.max": "max", "job/memory.max": f"{GB}"}, (GB, None)),
    ],
)
def test_the_limits_of_a_container_are_read(
    tmp_path: Path, files: dict[str, str], expected: tuple[int | None, float | None]
) -> None:
    own = tmp_path / "proc/self/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text("4:memory:/job/step\n1:cpu,cpuacct:/job/step\n0::/job/step\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert limits(tmp_path) == expected


def test_versions_compare_by_their_numbers() -> None:
    assert number("2.13.0+cu130") == (2, 13, 0)
    assert number("2.15.0.dev20261101") > number("2.14.1")
    assert number("") == ()


# The command itself, as it is typed.


def run_doctor(
    *args: str, python: str | Path = sys.executable, before: Path | None = None
) -> subprocess.CompletedProcess[str]:
    paths = [*filter(None, [before]), PACKAGE.parent]
    path = os.pathsep.join(map(str, paths))
    return run(python, "-m", "image_project", "doctor", *args, PYTHONPATH=path)


def rows_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return {row["name"]: row for row in report["rows"]}


def test_here_it_looks_at_everything_and_its_status_says_what_it_found() -> None:
    done = run_doctor("--json")
    rows = rows_of(done)
    assert done.returncode == any(row["state"] == "wrong" for row in rows.values())
    assert rows["torch"]["state"] == "ok"
    assert rows["device cpu"] == {
        "name": "device cpu",
        "found": "trains a step",
        "state": "ok",
        "why": "",
        "fix": "",
    }
    assert rows["auto accelerator"]["found"] in ("cpu", "mps", "cuda")
    assert all(row["fix"] for row in rows.values() if row["state"] in ("warning", "wrong"))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise OSError('libc10.so: cannot open shared object file')", "libc10.so"),
        ("import os; os._exit(139)", "status 139"),
        ("raise SystemExit('no')", "no"),
        ("x = 1", "__version__"),  # a stub, or what is left of an old one
    ],
)
def test_it_works_where_torch_is_broken(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(source)
    done = run_doctor("--json", before=tmp_path)
    rows = rows_of(done)
    assert done.returncode == 1
    assert rows["torch"]["state"] == "wrong"
    assert why in rows["torch"]["why"]
    assert "pip install" in rows["torch"]["fix"]
    assert rows["lightning"]["state"] == "unknown"
    assert "auto accelerator" not in rows
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["lightning", pytest.param("hydra", marks=pytest.mark.slow)])
def test_it_works_where_another_package_is_broken(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise ImportError('half an installation')")
    rows = rows_of(run_doctor("--json", before=tmp_path))
    package_name = {"hydra": "hydra-core"}.get(name, name)
    assert rows[package_name]["state"] == "wrong"
    assert "half an installation" in rows[package_name]["why"]
    assert rows["device cpu"]["state"] == "ok"
    assert rows["auto"]["state"] == "unknown"


def test_it_works_where_nothing_is_installed(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = min((tmp_path / "bare").glob("[Sb]*/python*"))
    done = run_doctor(python=python)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "fix: uv pip install -e ." in done.stdout
    for name in ("torch", "lightning", "hydra-core"):
        assert ["wrong", name, "missing"] in [line.split() for line in done.stdout.splitlines()]


def test_a_driver_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(PACKAGE.parent)]))
    facts = probe.torch_facts({}, time_limit=2)
    assert facts.died == "torch: it took more than 2 seconds"


def test_malware_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = tmp_path / "touched"
    (tmp_path / "lightning.py").write_text(f"open({str(touched)!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(PACKAGE.parent)]))
    facts = probe.torch_facts({"lightning": "2.6.2"})
    assert not touched.exists()
    assert "hydra" in facts.finished
    assert "lightning" not in facts.finished


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_needs_only_python_and_even_an_old_one(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {
        alias.name.partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert imported <= sys.stdlib_module_names


def test_what_only_a_program_can_avoid_is_no_finding_of_the_machine() -> None:
    """`rehearse` looks for it; no version is free of it yet."""
    without_end = [harm for harm in known_harm.HARMS if harm.operators and not harm.before]
    assert without_end
    found = known_harm.versions_with_harm({"torch": "2.14.0"}, system="Darwin")
    assert not set(without_end) & set(found)


@pytest.mark.parametrize("harm", known_harm.HARMS, ids=lambda harm: f"{harm.package} {harm.before}")
def test_each_known_harm_has_a_source_and_a_way_out(harm: known_harm.Harm) -> None:
    assert harm.source.startswith("https://")
    assert harm.install or harm.fix or harm.python
    assert bool(harm.operators) == bool(harm.fix)
