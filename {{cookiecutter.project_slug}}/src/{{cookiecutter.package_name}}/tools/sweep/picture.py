"""The pictures of a search, drawn by Optuna."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from optuna.trial import TrialState

ENOUGH = 5  # finished runs, from which on importances mean something


def draw(study: optuna.Study, metric: str, folder: Path) -> None:
    """Write history.png and parallel.png, and importances.png once there are a few runs."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    drawn: dict[str, Any] = {
        "history": plots.plot_optimization_history,
        "parallel": plots.plot_parallel_coordinate,
    }
    values = {trial.value for trial in finished}
    if len(finished) >= ENOUGH and len(values) > 1 and len(finished[0].params) > 1:
        drawn["importances"] = plots.plot_param_importances
    for name, plot in drawn.items() if finished else ():
        with warnings.catch_warnings():
            # Optuna calls its pictures experimental, and Matplotlib warns of axes with one value.
            warnings.simplefilter("ignore")
            axes = plot(study, target_name=metric)
            axes.figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
            plt.close(axes.figure)
