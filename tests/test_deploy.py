"""The files of `deploy/`: sound by the tools of each place, and their commands train."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
import venv
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from conftest import bake, run

PACKAGE = "my_lightning_project"
NAMES = {
    "default": "my-lightning-project",
    "a digit first": "3d-net",
    "a number": "2048",
    "a number with an exponent": "1e5",
    "a word of YAML": "null",
    "one letter": "a",
    "longest": "x" * 50,
    "many dashes": "a-" * 24 + "a",
}
LABEL = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1035, the strictest that Kubernetes asks for
TOOLS = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
FAST = ("debug=fast", "trainer.accelerator=cpu")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="clusters and images run Linux")


@pytest.fixture(scope="module", params=NAMES)
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of each name, whatever its package must then be called."""
    return bake(tmp_path_factory.mktemp("named"), project_slug=NAMES[request.param])


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(tmp_path_factory.mktemp("deployed"))


def tool(name: str) -> str:
    """Its path; the tests' environment brings it on Linux."""
    found = shutil.which(name, path=TOOLS)
    if found is None:
        pytest.skip(f"there is no {name} here")
    return found


def test_without_the_option_nothing_speaks_of_it(tmp_path: Path) -> None:
    bare = bake(tmp_path / "bare", deploy="no")
    assert not (bare / "deploy").exists()
    texts = (path for path in bare.rglob("*") if path.is_file() and path.suffix != ".py")
    for path in texts:
        assert "deploy/" not in path.read_text(encoding="utf-8"), path
    assert not (bare / ".dockerignore").exists()
    whole = bake(tmp_path / "whole")
    assert "deploy/README.md" in (whole / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_every_file(baked: Path) -> None:
    text = (baked / "deploy" / "README.md").read_text(encoding="utf-8")
    for path in (baked / "deploy").iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text


def test_hadolint_finds_nothing(named: Path) -> None:
    done = run(tool("hadolint"), "--no-color", named / "deploy" / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_nothing(named: Path) -> None:
    task = yaml.safe_load((named / "deploy" / "skypilot.yaml").read_text(encoding="utf-8"))
    script = named.parent / "run.sh"
    script.write_text(f"#!/usr/bin/env bash\n{task['setup']}\n{task['run']}", encoding="utf-8")
    for checked in (named / "deploy" / "slurm.sbatch", script):
        done = run(tool("shellcheck"), checked)
        assert done.returncode == 0, done.stdout


# Kubernetes


def manifests(project: Path) -> dict[str, dict]:
    text = (project / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


def trainer(project: Path) -> dict:
    return manifests(project)["Job"]["spec"]["template"]["spec"]["containers"][0]


def test_kubernetes_knows_every_field(named: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    parts = manifests(named)
    for part in parts.values():
        validate(part, "1.31", strict=True)  # where podFailurePolicy became stable
        validate(part, "1.37", strict=True)
    parts["Job"]["spec"]["backOffLimit"] = parts["Job"]["spec"].pop("backoffLimit")
    with pytest.raises(Exception, match="backOffLimit"):
        validate(parts["Job"], "1.37", strict=True)


def test_the_parts_for_kubernetes_find_each_other_by_names_that_it_takes(named: Path) -> None:
    parts = manifests(named)
    job, service = parts["Job"], parts["Service"]
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert re.fullmatch(LABEL, f"{name}-9999") and re.fullmatch(LABEL, service["metadata"]["name"])
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    claim = parts["PersistentVolumeClaim"]["metadata"]["name"]
    assert re.fullmatch(LABEL, claim)
    assert {"claimName": claim} in [v.get("persistentVolumeClaim") for v in pod["volumes"]]
    assert {mount["name"] for mount in trainer(named)["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    (endpoint,) = [word for word in trainer(named)["command"] if "--rdzv-endpoint=" in word]
    assert endpoint == f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:29500"
    image = trainer(named)["image"].rpartition("/")[2]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*:latest", image)


def test_the_figures_for_kubernetes_agree(baked: Path) -> None:
    job = manifests(baked)["Job"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in trainer(baked)["env"]}
    assert int(environment["MACHINES"]) == job["completions"] == job["parallelism"]
    assert environment["GPUS"] == trainer(baked)["resources"]["limits"]["nvidia.com/gpu"]
    grace = job["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace


@pytest.mark.parametrize(
    ("status", "disrupted", "action"),
    [
        (143, False, "Ignore"),  # told to stop
        (137, True, "Ignore"),  # preempted, and killed in the end
        (1, True, "Ignore"),  # torchrun's status after a signal
        (1, False, "Count"),  # an error
        (137, False, None),  # out of memory: counted, as Kubernetes does by itself
    ],
)
def test_a_disruption_is_no_failure_for_kubernetes(
    baked: Path, status: int, disrupted: bool, action: str | None
) -> None:
    job = manifests(baked)["Job"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    taken = None
    for rule in reversed(job["podFailurePolicy"]["rules"]):  # the first that fits
        if rule.get("onPodConditions") == [{"type": "DisruptionTarget", "status": "True"}]:
            fits = disrupted
        else:
            assert rule["onExitCodes"]["operator"] == "In"
            assert rule["onExitCodes"]["containerName"] == trainer(baked)["name"]
            fits = status in rule["onExitCodes"]["values"]
        taken = rule["action"] if fits else taken
    assert taken == action


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@on_linux
def test_the_command_for_kubernetes_trains(baked: Path, tmp_path: Path) -> None:
    """As its pod would start it, with two processes in place of GPUs, and found on this machine."""
    environment = {entry["name"]: entry["value"] for entry in trainer(baked)["env"]} | {"GPUS": "2"}
    words = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word)
        for word in trainer(baked)["command"]
    ]
    words = [re.sub(r"endpoint=\S+", f"endpoint=127.0.0.1:{free_port()}", w) for w in words]
    program = shutil.which(words[0], path=TOOLS)
    here = {**environment, "PYTHONPATH": str(baked / "src"), "OMP_NUM_THREADS": "1"}
    done = run(program, *words[1:], *FAST, "trainer.devices=2", cwd=tmp_path, **here)
    assert done.returncode == 0, done.stderr
    assert "2 devices" in done.stdout and "test/acc" in done.stdout
    assert (
        trainer(baked)["volumeMounts"][0]["mountPath"] == "/workspace/runs"
    )  # in the image's WORKDIR


# SkyPilot


@on_linux
def test_the_command_for_skypilot_trains(baked: Path, tmp_path: Path) -> None:
    """As on one machine with one GPU. Its runs go to the folder that is mounted."""
    task = yaml.safe_load((baked / "deploy" / "skypilot.yaml").read_text(encoding="utf-8"))
    here = {
        "HOME": str(tmp_path),
        "PATH": TOOLS,
        "PYTHONPATH": str(baked / "src"),
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n",
        "OVERRIDES": " ".join((*FAST, "seed=1")),
    }
    assert set(task["envs"]) == {"BUCKET", "OVERRIDES"}
    done = run("bash", "-c", task["run"], cwd=baked, **here)
    assert done.returncode == 0, done.stderr
    (mounted,) = task["file_mounts"]
    (written,) = (tmp_path / mounted.removeprefix("~/")).glob("*/config.yaml")
    assert yaml.safe_load(written.read_text(encoding="utf-8"))["seed"] == 1


READ_TASK = """
import sys, yaml, sky
task = sky.Task.from_yaml_config(yaml.safe_load(sys.stdin), env_overrides=[("BUCKET", sys.argv[1])])
print(task.name, *(resource.use_spot for resource in task.resources))
print(*((place, store.name, store.mode.value) for place, store in task.storage_mounts.items()))
"""


@pytest.mark.slow
@on_linux
def test_skypilot_reads_the_task(tmp_path: Path) -> None:
    """By its own parser, in an environment of its own: it brings half a gigabyte."""
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    # Its own versions, not those of the template.
    install = run(python, "-m", "pip", "install", "-q", "skypilot==0.14.1", PIP_CONSTRAINT="")
    assert install.returncode == 0, install.stderr

    def read(text: str, bucket: str = "my-runs") -> subprocess.CompletedProcess[str]:
        command = [str(python), "-c", READ_TASK, bucket]
        env = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        return subprocess.run(
            command, input=text, env=env, capture_output=True, text=True, check=False
        )

    for number, slug in enumerate(NAMES.values()):
        project = bake(tmp_path / str(number), project_slug=slug)
        text = (project / "deploy" / "skypilot.yaml").read_text(encoding="utf-8")
        done = read(text)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first.split() == [f"train-{project.name}", *["True"] * 4]
        assert second == "('~/runs', 'my-runs', 'MOUNT_CACHED')"
    assert read(text.replace("use_spot", "use_spots")).returncode != 0
    assert read(text.replace("num_nodes", "num_machines")).returncode != 0


# The container: each step of its Dockerfile, without a container.

STEP = re.compile(r"^([A-Z]+) (.*?)(?<!\\)$", re.MULTILINE | re.DOTALL)


def steps(project: Path) -> list[tuple[str, str]]:
    text = (project / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    return STEP.findall(text)


def context(project: Path) -> list[str]:
    """The files that a build can see: by .dockerignore the last pattern that fits decides."""
    patterns = (project / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = []
    for path in sorted(project.rglob("*")):
        name = path.relative_to(project)
        ignored = False
        for pattern in (line for line in patterns if line and not line.startswith("#")):
            bare = pattern.removeprefix("!").removeprefix("**/")
            deep = "**/" in pattern
            for part in (name, *name.parents[:-1]):  # a folder's pattern holds for what is in it
                if fnmatchcase(part.name if deep else part.as_posix(), bare):
                    ignored = not pattern.startswith("!")
        if path.is_file() and not ignored:
            seen.append(name.as_posix())
    return seen


def test_an_image_gets_the_sources_and_no_secret(baked: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(baked, project)
    secrets = (".env", "src/.env", f"src/{PACKAGE}/.env", "data/x", "runs/a/b.ckpt", "id_rsa")
    for name in (*secrets, f"src/{PACKAGE}/__pycache__/train.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    seen = context(project)
    sources = [path for path in (project / "src").rglob("*") if path.suffix in (".py", ".yaml")]
    assert set(seen) == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        *(path.relative_to(project).as_posix() for path in sources),
    }
    assert not re.search(r"(?i)(ARG|ENV).*(key|token|password|secret)", str(steps(baked)))


def test_a_container_is_not_root_and_caches_what_takes_long(baked: Path) -> None:
    made = steps(baked)
    assert ("USER", "1000") in made
    kinds = [kind for kind, _ in made]
    sources = made.index(("COPY", "src ./src"))
    torch = next(i for i, (kind, text) in enumerate(made) if "requirements.txt" in text)
    assert torch < sources
    copied = [text for kind, text in made[:torch] if kind == "COPY"]
    assert copied == ["pyproject.toml ./"]
    assert kinds.index("USER") > sources and kinds[-1] == "ENTRYPOINT"
    allowed = tomllib.loads((baked / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.fullmatch(r"python:(3\.\d+)-bookworm", made[0][1])
    assert version and "3.11" <= version[1] < "3.14"
    assert allowed["requires-python"] == ">=3.11,<3.14"


@on_linux
def test_every_step_of_the_dockerfile_works_and_its_entrypoint_trains(
    baked: Path, tmp_path: Path
) -> None:
    """In folders and an environment in place of an image, with the packages that are here."""
    root = place = tmp_path / "root"
    root.mkdir()
    environment = tmp_path / "environment"
    venv.create(environment)
    (site,) = environment.glob("lib/*/site-packages")
    outer = [path for path in sys.path if path.endswith("site-packages")]
    (site / "outer.pth").write_text("\n".join(outer))
    # The system's, not on the machine of whoever runs this; and the pip that is there.
    for name, does in (("useradd", ""), ("install", ""), ("pip", 'exec python -m pip "$@"')):
        (environment / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (environment / "bin" / name).chmod(0o755)
    here = {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip takes that for yes
        "OMP_NUM_THREADS": "1",
    }
    given = {"DEVICE": "cpu", "EXTRAS": "tensorboard"}
    for kind, text in steps(baked):
        if kind == "WORKDIR":
            place = root / text.removeprefix("/")
            place.mkdir(parents=True, exist_ok=True)
        elif kind == "ARG":
            name, _, default = text.partition("=")
            here[name] = given.get(name, default)
        elif kind == "ENV":
            here |= dict(word.split("=") for word in text.split())
        elif kind == "COPY":
            *sources, target = text.split()
            copy_into(baked, sources, place / target)
        elif kind == "RUN":
            command = re.sub(r"^--mount=\S+\s+", "", text.replace("\\\n", ""))
            done = run("sh", "-c", command, cwd=place, **here)
            assert done.returncode == 0, done.stderr
        elif kind == "ENTRYPOINT":
            done = run(*json.loads(text), *FAST, cwd=place, **here)
            assert done.returncode == 0, done.stderr
            assert "test/acc" in done.stdout
    assert "tensorboard>=" in (root / "app" / "requirements.txt").read_text(encoding="utf-8")
    assert (site / PACKAGE / "configs" / "train.yaml").is_file()
    assert list((root / "workspace" / "runs").glob("debug/*/config.yaml"))


def copy_into(project: Path, sources: list[str], target: Path) -> None:
    for name in context(project):
        for source in sources:
            if name == source:
                shutil.copy(project / name, target)
            elif name.startswith(f"{source}/"):
                copied = target / name.removeprefix(f"{source}/")
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(project / name, copied)
