"""Runs of a generated project that are killed, stopped and robbed of their disk, one fault each.

    python faults.py FOLDER PACKAGE VARIANT[,VARIANT] FAULT[=TIMES][,FAULT] [OVERRIDE ...]

A variant is one of VARIANTS, or of LANGUAGE where that is what the project models. For each the
undisturbed run comes first. After each fault the same command is given again, and what it
leaves must be the undisturbed run's, bit for bit: the weights, the best weights, and every logged
number. PyTorch is imported once: each run is a fork of this process, whose command line is the real
one. Prints a line of JSON for each fault.
"""

import contextlib
import csv
import functools
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = (
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=10",
    "trainer.limit_val_batches=3",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
    "save.every_n_steps=3",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "one_cycle": ("scheduler=one_cycle",),
    "plateau": (
        "scheduler=plateau",
        "scheduler.scheduler.patience=0",
        "+scheduler.scheduler.threshold=0.5",
    ),
    "accumulate": ("trainer.accumulate_grad_batches=4", "save.every_n_steps=1"),
    "val_check": ("trainer.val_check_interval=0.25",),
    "early_stopping": (
        "callbacks.early_stopping.patience=1",
        "+callbacks.early_stopping.min_delta=0.05",
        "trainer.max_epochs=8",
        "+trainer.min_epochs=3",
        "monitor=val/acc",
        "mode=max",
        "scheduler=constant",
    ),
    "workers": ("data._target_=jobs.DigitsInWorkers",),
    "augment": ("data._target_=jobs.DigitsInWorkers", "data.augment=true"),
    "max_steps": ("trainer.max_steps=24",),
    "every_second_epoch": (
        "trainer.check_val_every_n_epoch=2",
        "trainer.max_epochs=4",
        "trainer.limit_train_batches=8",
        "scheduler=plateau",
        "+scheduler.frequency=2",
    ),
}


def users(task: str, data: str, *options: str) -> tuple[str, ...]:
    """Return the options of a job that has a task and a datamodule of its own, in jobs.py."""
    return (
        "task=own",
        f"task._target_=jobs.{task}",
        "data=own",
        f"data._target_=jobs.{data}",
        *options,
    )


SHIPPED = "lightning.pytorch.callbacks"
VARIANTS |= {
    "users_dict": users("DictClassifier", "DictBlobs"),
    "users_stream": users("Classifier", "StreamedBlobs"),
    "users_gan": users("GAN", "Blobs"),
    "users_unfreeze": users("Classifier", "Blobs", "+callbacks.own={_target_: jobs.unfreeze}"),
    "users_ema": users(
        "Classifier",
        "Blobs",
        f"+callbacks.own={{_target_: {SHIPPED}.EMAWeightAveraging, decay: 0.8}}",
    ),
    "users_validations": users("Classifier", "TwoValidations", "monitor=val/loss/dataloader_idx_1"),
}
OWN_CONFIGS = Path(__file__).parent / "idioms" / "configs"
TEXT_SIZE = 100_000  # bytes, about, of the texts in `own_text`
TINY_GPT = ("model.context=16", "model.width=16", "model.num_layers=1", "model.num_heads=2")
LANGUAGE: dict[str, tuple[str, ...]] = {
    "default": TINY_GPT,
    "dropout": (*TINY_GPT, "model.dropout=0.2", "model.positions=rotary"),
    "accumulate": (*TINY_GPT, "trainer.accumulate_grad_batches=4", "save.every_n_steps=1"),
    "own_text": (*TINY_GPT, "data.path={folder}/texts"),
    "workers": (*TINY_GPT, "data._target_=jobs.TextInWorkers"),
}


class Project:
    """The modules of the generated package, and its runs below `folder`."""

    def __init__(self, package: str, folder: Path) -> None:
        from hydra.utils import get_class  # not on top: pytest reads this file for its names

        def module(name: str) -> Any:
            return importlib.import_module(f"{package}.{name}")

        self.train, self.resume = module("train"), module("engine.resume.callback")
        self.RunFolder = module("engine.run").RunFolder
        starter = module("engine.cli").defaults("train", ())
        identity = module("engine.run.identity")
        identity.essence = functools.cache(identity.essence)  # of the same code in every fork
        identity.identity(starter)
        self.get_class = get_class
        self.task = self.starters_task = get_class(starter.task._target_)
        self.variants, slow = VARIANTS, ("sklearn.datasets", "sklearn.model_selection")
        if self.task.__name__ == "LanguageModelingTask":
            self.variants, slow = LANGUAGE, ("pydoc_data.topics",)
            self.corpus = module("data.corpus")
        os.environ["PACKAGE"] = package  # for jobs.py
        get_class(starter.data._target_)
        for name in ("matplotlib.pyplot", *slow):
            importlib.import_module(name)  # once, and not in every fork
        self.folder = folder
        self.dice = random.Random(0)
        self.batches, self.seconds = 0, 0.0  # of the undisturbed run
        self.kills, self.kills_in_writes = 0, 0

    def start(self, options: tuple[str, ...], prepare: Callable[[], None] = lambda: None) -> int:
        """The pid of a fork that gives the command `train`, after `prepare` in it."""
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        status = 70
        try:
            output = os.open(self.folder / "output.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            os.chdir(self.folder)
            sys.argv = ["train", f"runs_dir={self.folder}/runs", *SMALL, *options]
            sys.argv += [f"--config-dir={OWN_CONFIGS}"]
            prepare()
            self.train.main()
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr, flush=True)
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            status = 1
        finally:
            sys.stdout.flush()
            os._exit(status)

    def train_once(
        self, options: tuple[str, ...], prepare: Callable[[], None] = lambda: None
    ) -> int:
        """The exit status of a whole command; of a killed one, minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(options, prepare), 0)[1])

    def take(self, options: tuple[str, ...]) -> None:
        """Let faults happen in the task that these options name."""
        named = [one.partition("=")[2] for one in options if one.startswith("task._target_=")]
        self.task = self.get_class(named[-1]) if named else self.starters_task

    @property
    def run(self) -> Any:
        (folder,) = (self.folder / "runs").iterdir()
        return self.RunFolder(folder)

    def result(self) -> dict[str, Any]:
        """What must not depend on where a run was stopped."""
        run = self.run
        newest = load(run.checkpoints()[0])
        for path in run.path.glob("checkpoints/*.ckpt"):
            load(path)  # every file is whole, and plain data
        with (run.path / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        tokens = sorted(self.folder.glob("data/tokens/*.tokens"))
        return {
            "tokens": [path.read_bytes() for path in tokens],
            "weights": digest(run.last),
            "best": digest(run.best),
            # The last one is taken before the last step; after an early stop it may be another.
            "newest": {
                run.checkpoints()[0].name: repr(
                    (newest["lr_schedulers"], newest["optimizer_states"])
                )
            },
            "rows": rows,
            "metrics": json.loads(run.metrics.read_text()),
        }


def load(checkpoint: Path) -> dict[str, Any]:
    import torch  # not on top: pytest reads this file for its names

    return torch.load(checkpoint, map_location="cpu", weights_only=True)


def digest(checkpoint: Path) -> str:
    state = load(checkpoint)["state_dict"]
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def batches(checkpoint: Path) -> int:
    loops = load(checkpoint)["loops"]["fit_loop"]
    return int(loops["epoch_loop.batch_progress"]["total"]["completed"])


def at_call(owner: Any, name: str, count: int, do: Callable[[], None]) -> None:
    """Call `do` at the beginning of the `count`-th call of a method or function."""
    whole, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            do()
        return whole(*args, **kwargs)

    setattr(owner, name, disturbed)


def send(*numbers: int) -> Callable[[], None]:
    def now() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return now


def send_to_all(number: int) -> Callable[[], None]:
    """To the loader's workers too, as a terminal and some clusters do."""
    return lambda: os.killpg(0, number)


def fail() -> None:
    raise ConnectionAbortedError("a fault of the test")


class Fault:
    """What happens to a run, and the exit status that it must end with."""

    def __init__(self, happens: Callable[[Project], None], status: int) -> None:
        self.happens = happens
        self.status = status


def step(count: int, do: Callable[[], None]) -> Callable[[Project], None]:
    """At a batch, from 1; -1 is the last of the run."""

    def happens(project: Project) -> None:
        batch = count if count > 0 else project.batches + 1 + count
        at_call(project.task, "training_step", batch, do)

    return happens


def validation(count: int, do: Callable[[], None]) -> Callable[[Project], None]:
    return lambda project: at_call(project.task, "validation_step", count, do)


def long_validation(count: int, do: Callable[[], None]) -> Callable[[Project], None]:
    """A checkpoint is taken before a validation that takes long; here every one does."""

    def happens(project: Project) -> None:
        project.resume.LONG_VALIDATION_SECONDS, project.resume.MAX_OVERHEAD = -1, 1e9
        validation(count, do)(project)

    return happens


def test(do: Callable[[], None]) -> Callable[[Project], None]:
    return lambda project: at_call(project.task, "test_step", 1, do)


def torn_write(count: int) -> Callable[[Project], None]:
    """Half of the `count`-th file that torch.save writes, then a kill."""

    def happens(project: Project) -> None:
        import torch

        save, calls = torch.save, iter(range(1, 1_000_000))

        def half(checkpoint: Any, file: Any) -> None:
            if next(calls) < count:
                save(checkpoint, file)
                return
            whole = io.BytesIO()
            save(checkpoint, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half

    return happens


def before_rename(count: int) -> Callable[[Project], None]:
    return lambda project: at_call(Path, "replace", count, send(signal.SIGKILL))


def no_number(count: int) -> Callable[[Project], None]:
    """A loss that is nan at the `count`-th step."""

    def happens(project: Project) -> None:
        whole, calls = project.task.training_step, iter(range(1, 1_000_000))

        def disturbed(*args: Any, **kwargs: Any) -> Any:
            loss = whole(*args, **kwargs)
            return loss * float("nan") if next(calls) == count else loss

        project.task.training_step = disturbed

    return happens


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
FAULTS = {
    "sigkill_in_epoch": Fault(step(17, send(KILL)), -KILL),
    "sigkill_at_first_batch": Fault(step(11, send(KILL)), -KILL),
    "sigkill_at_last_batch": Fault(step(20, send(KILL)), -KILL),
    "sigkill_before_any_checkpoint": Fault(step(2, send(KILL)), -KILL),
    "sigkill_in_validation": Fault(validation(7, send(KILL)), -KILL),
    "sigkill_in_test": Fault(test(send(KILL)), -KILL),
    "sigterm_in_epoch": Fault(step(17, send(TERM)), 128 + TERM),
    "sigterm_at_first_batch": Fault(step(11, send(TERM)), 128 + TERM),
    "sigterm_at_last_batch": Fault(step(20, send(TERM)), 128 + TERM),
    "sigterm_at_the_very_last_batch": Fault(step(-1, send(TERM)), 128 + TERM),
    "sigterm_in_validation": Fault(validation(7, send(TERM)), 128 + TERM),
    "sigterm_in_long_validation": Fault(long_validation(7, send(TERM)), 128 + TERM),
    "sigterm_to_the_group": Fault(step(17, send_to_all(TERM)), 128 + TERM),
    "sigint_to_the_group": Fault(step(17, send_to_all(INT)), 128 + INT),
    "sigterm_in_test": Fault(test(send(TERM)), 128 + TERM),
    "sigterm_twice": Fault(step(17, send(TERM, TERM)), 128 + TERM),
    "sigint_in_epoch": Fault(step(17, send(INT)), 128 + INT),
    "sigint_at_last_batch": Fault(step(20, send(INT)), 128 + INT),
    "sigusr1_in_epoch": Fault(step(17, send(signal.SIGUSR1)), 128 + signal.SIGUSR1),
    "sigusr2_in_epoch": Fault(step(17, send(signal.SIGUSR2)), 128 + signal.SIGUSR2),
    "exception_in_epoch": Fault(step(17, fail), 1),
    "exception_at_first_batch": Fault(step(11, fail), 1),
    "exception_in_validation": Fault(validation(7, fail), 1),
    "nan_loss": Fault(no_number(17), 1),
    "killed_in_write": Fault(torn_write(5), -KILL),
    "killed_before_rename": Fault(before_rename(8), -KILL),
}


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoiled(project: Project, options: tuple[str, ...], spoil: Callable[[Path], None]) -> str:
    """The newest checkpoint of a killed run is not what was written."""
    project.train_once(options, lambda: step(17, send(KILL))(project))
    spoil(project.run.checkpoints()[0])
    status = project.train_once(options)
    aside = len(list(project.run.path.glob("checkpoints/*.broken")))
    return "" if (status, aside) == (0, 1) else f"status {status}, {aside} put aside"


def two_at_once(project: Project, options: tuple[str, ...]) -> str:
    """The second is refused; the first does not notice."""
    first = project.start(options, lambda: step(17, send(signal.SIGSTOP))(project))
    os.waitpid(first, os.WUNTRACED)
    status = project.train_once(options)
    said = "Another process is training" in (project.folder / "output.txt").read_text()
    os.kill(first, signal.SIGCONT)
    os.waitpid(first, 0)
    return "" if (status, said) == (1, True) else f"status {status}, {said=}"


def again_after_the_end(project: Project, options: tuple[str, ...]) -> str:
    project.train_once(options)
    before = {path: path.stat().st_mtime_ns for path in project.run.path.rglob("*.*")}
    status = project.train_once(options, lambda: at_call(project.task, "__init__", 1, fail))
    after = {path: path.stat().st_mtime_ns for path in project.run.path.rglob("*.*")}
    return "" if status == 0 and before == after else f"status {status}, something was written"


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def disk_full(project: Project, options: tuple[str, ...], freed: bool) -> str:
    """From batch 8 on; freed at batch 22 of the run, or only after it."""
    disk = project.folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)

    def happens() -> None:
        at_call(project.task, "training_step", 8, lambda: fill(disk))
        if freed:
            at_call(project.task, "training_step", 22, (disk / "filler").unlink)

    status = project.train_once(options, happens)
    if not freed:
        if status != 1:
            return f"status {status} on a full disk"
        (disk / "filler").unlink()
        status = project.train_once(options)
    return "" if status == 0 else f"status {status}"


def interrupted(project: Project, options: tuple[str, ...], fault: Fault) -> str:
    """Once by the fault, then not."""
    status = project.train_once(options, lambda: fault.happens(project))
    if status != fault.status:
        return f"ended with {status}, not {fault.status}"
    status = project.train_once(options)
    return "" if status == 0 else f"then ended with {status}"


def killed_at_random(project: Project, options: tuple[str, ...]) -> str:
    """Three times, at any moment; a slow disk makes many of them come in a write."""

    def slow_disk() -> None:
        os.fsync = lambda _: time.sleep(0.02)

    for _ in range(3):
        pid = project.start(options, slow_disk)
        time.sleep(project.dice.uniform(0, project.seconds))
        os.kill(pid, KILL)
        os.waitpid(pid, 0)
        project.kills += 1
        torn = list(project.folder.rglob("*.part"))
        project.kills_in_writes += bool(torn)
        for part in torn:
            part.unlink()  # counted; of the next kill there is another
    status = project.train_once(options)
    return "" if status == 0 else f"status {status}"


def killed_while_reading(project: Project, options: tuple[str, ...]) -> str:
    """Five times, at any moment while its own text becomes tokens, of which each starts anew."""
    pieces = 40

    def slow_reading() -> None:
        encode = project.corpus.ByteTokenizer.encode
        project.corpus.PIECE = TEXT_SIZE // pieces

        def slow(tokenizer: Any, text: str) -> Any:
            time.sleep(0.01)
            return encode(tokenizer, text)

        project.corpus.ByteTokenizer.encode = slow

    for _ in range(5):
        pid = project.start(options, slow_reading)
        while not list(project.folder.glob("data/tokens/*.part")):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return "nothing was read"
            time.sleep(0.005)
        time.sleep(project.dice.uniform(0, 0.01 * pieces))
        os.kill(pid, KILL)
        os.waitpid(pid, 0)
        project.kills += 1
        project.kills_in_writes += not list(project.folder.glob("data/tokens/*.tokens"))
    status = project.train_once(options)
    return "" if status == 0 else f"status {status}"


OTHER: dict[str, Callable[[Project, tuple[str, ...]], str]] = {
    "newest_truncated": lambda project, options: spoiled(project, options, truncate),
    "newest_empty": lambda project, options: spoiled(project, options, empty),
    "newest_has_a_bit_flipped": lambda project, options: spoiled(project, options, flip_a_bit),
    "two_at_once": two_at_once,
    "again_after_the_end": again_after_the_end,
    "disk_full_for_a_while": lambda project, options: disk_full(project, options, freed=True),
    "disk_full_to_the_end": lambda project, options: disk_full(project, options, freed=False),
}
AT_RANDOM = {"killed_at_random": killed_at_random, "killed_while_reading": killed_while_reading}


def cleared(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def every_checkpoint(project: Project, options: tuple[str, ...], stride: int) -> list[str]:
    """What differs after a resume from each `stride`-th checkpoint that a run can leave."""

    def keep() -> None:
        project.RunFolder.prune = lambda _: None

    options = (*options, "save.every_n_steps=1")
    home = project.folder
    project.folder = cleared(home / "whole")
    project.train_once(options, keep)
    whole, wanted = project.run, project.result()
    outcomes = []
    for checkpoint in whole.checkpoints()[::stride]:
        project.folder = cleared(home / "resumed")
        started = project.folder / "runs" / whole.path.name
        (started / "checkpoints").mkdir(parents=True)
        for path in (checkpoint, whole.best):
            shutil.copy(path, started / "checkpoints")
        shutil.copy(whole.path / "metrics.csv", started)
        status = project.train_once(options, keep)
        wrong = f"status {status}" if status else difference(project.result(), wanted)
        outcomes.append(wrong and f"{checkpoint.name}: {wrong}")
    project.folder = home
    return outcomes


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    both = found["newest"].keys() & wanted["newest"].keys()
    kinds = [key for key in wanted if key != "newest" and found[key] != wanted[key]]
    return ", ".join(
        [*kinds, *(name for name in both if found["newest"][name] != wanted["newest"][name])]
    )


def outcomes_of(
    project: Project,
    options: tuple[str, ...],
    fault: str,
    wanted: dict[str, Any],
) -> list[str]:
    """For each try what was wrong, or nothing."""
    home, (name, _, times) = project.folder, fault.partition("=")
    if name == "every_checkpoint":
        return every_checkpoint(project, options, int(times or 1))
    outcomes = []
    for _ in range(int(times or 1)):
        project.folder = cleared(home)
        if happens := (OTHER | AT_RANDOM).get(name):
            wrong = happens(project, options)
        else:
            wrong = interrupted(project, options, FAULTS[name])
        outcomes.append(wrong or difference(project.result(), wanted))
        if name.startswith("disk_full"):
            subprocess.run(["umount", project.folder / "runs"], check=True)
    return outcomes


def write_texts(folder: Path) -> None:
    """Two files of words, for the variants that read their own."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(1)
    words = ["".join(dice.choices("abcdefghé", k=dice.randint(1, 8))) for _ in range(200)]
    for name in ("one.txt", "two.md"):
        lines = (" ".join(dice.choices(words, k=12)) for _ in range(TEXT_SIZE // 100))
        (folder / name).write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    where, package, variants, faults, *overrides = sys.argv[1:]
    project = Project(package, Path(where).resolve())
    where = project.folder
    write_texts(where / "texts")
    for variant in variants.split(","):
        named = [option.replace("{folder}", str(where)) for option in project.variants[variant]]
        options = (*named, *overrides)
        project.take(options)
        project.folder = cleared(where / "undisturbed")
        started = time.monotonic()
        status = project.train_once(options)
        project.seconds = time.monotonic() - started
        assert status == 0, (project.folder / "output.txt").read_text()
        wanted = project.result()
        project.batches = batches(project.run.checkpoints()[0])
        for fault in faults.split(","):
            project.folder = cleared(where / "disturbed")
            project.kills = project.kills_in_writes = 0
            outcomes = outcomes_of(project, options, fault, wanted)
            line = {"variant": variant, "fault": fault.partition("=")[0]}
            line |= {"tried": len(outcomes), "exact": outcomes.count("")}
            if project.kills:
                line |= {"kills": project.kills, "in_writes": project.kills_in_writes}
            if any(outcomes):
                output = project.folder / "output.txt"
                line["wrong"] = [outcome for outcome in outcomes if outcome]
                line["output"] = output.read_text()[-1500:] if output.is_file() else ""
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
