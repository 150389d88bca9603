"""The bar of a terminal."""

import lightning as L
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from {{ cookiecutter.package_name }}.callbacks import Bar

FEW = {"val/loss": 3.0584, "val/bits_per_byte": 4.4123}
MANY = {f"val/metric_{number}": 0.5 for number in range(9)}


@pytest.mark.parametrize("metrics", [FEW, MANY], ids=["few", "many"])
def test_the_bar_is_one_line_of_a_narrow_terminal(
    metrics: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bar = Bar()
    trainer = L.Trainer(callbacks=[bar], logger=False, enable_checkpointing=False)
    trainer.state.fn = TrainerFn.FITTING
    bar.on_train_start(trainer, L.LightningModule())
    assert bar.progress is not None
    assert bar._metric_component is not None
    bar.train_progress_bar_id = bar._add_task(1200, "Epoch 30/30")
    bar._metric_component.update(metrics)
    (line,) = bar.progress.console.render_lines(bar.progress.get_renderable())
    bar.teardown(trainer, L.LightningModule(), "fit")
    text = "".join(part.text for part in line)
    assert len(text) == 80
    assert "Epoch 30/30" in text
    assert "0/1200" in text
    if metrics == FEW:
        assert "val/loss 3.058 val/bits_per_byte 4.412" in text
    else:
        assert "val/metric_0 0.500" in text
        assert "…" in text
