"""Will an experiment train on MPS, on CUDA and on the CPU? No GPU is needed to know.

    python -m <package> rehearse                          # the default, for all three
    python -m <package> rehearse experiment=NAME          # the same overrides as train
    python -m <package> rehearse targets=[mps] memory=16GB
    python -m <package> rehearse --json                   # the report on stdout, and nothing else

Exit status 0: it would train everywhere; 1: somewhere it fails, or that is unknown.
"""

import contextlib
import logging
import sys

from omegaconf import DictConfig

from ...engine import cli
from ...engine.errors import UserError
from . import TARGETS, Verdict

log = logging.getLogger(__name__)


def rehearse(cfg: DictConfig) -> list[Verdict]:
    """Rehearse the experiment that `cfg` describes, and try it for real where a target is here.

    Args:
        cfg: configs/rehearse.yaml, composed with the overrides of a train command.
    """
    for target in (*cfg.targets, *cfg.rehearse.skip):
        if target not in TARGETS:
            raise UserError(f"targets={target} must be one of: {', '.join(TARGETS)}.")
    from .experiment import Experiment  # imports PyTorch

    experiment = Experiment(cfg)
    verdicts = []
    for target in cfg.targets:
        if reason := cfg.rehearse.skip.get(target):
            verdicts.append(Verdict(target, f"not: {reason}", [], skipped=True))
        else:
            verdicts.append(experiment.on(target))
    return verdicts


def main() -> None:
    as_json = "--json" in sys.argv[1:]
    sys.argv = [arg for arg in sys.argv if arg != "--json"]  # the rest is Hydra's

    def program(cfg: DictConfig) -> None:
        from . import report

        if as_json:
            logging.disable(logging.INFO)
        with contextlib.redirect_stdout(sys.stderr):  # what a step prints is no part of the report
            verdicts = rehearse(cfg)
        if as_json:
            print(report.as_json(verdicts))
        else:
            report.show(verdicts)
            if cfg.memory is None:
                print("\nMemory was not checked. Add memory=16GB for a device of that size.")
        if not report.succeeds(verdicts):
            sys.exit(1)

    cli.run(program, "rehearse")


if __name__ == "__main__":
    main()
