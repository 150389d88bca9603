"""Lightning's loop over the batches of a validation, without what does nothing: see lean.py."""

from typing import Any

from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop

from .hooks import Hooks


class LeanValidation(_EvaluationLoop):
    hooks: Hooks | None = None  # None: Lightning's own loop runs

    def _evaluation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any
    ) -> None:
        hooks, trainer = self.hooks, self.trainer
        several = self.num_dataloaders > 1 or dataloader_iter is not None
        if hooks is None or several or trainer.sanity_checking:
            super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        progress, connector = self.batch_progress, trainer._logger_connector
        batch = hooks.move(trainer.precision_plugin.convert_input(batch))
        progress.increment_ready()
        connector.on_batch_start(batch)
        connector._current_fx = None  # until something is logged

        hooks.call("on_validation_batch_start", batch, batch_idx)
        progress.increment_started()
        output = hooks.step("validation_step", batch, batch_idx)
        progress.increment_processed()
        hooks.call("on_validation_batch_end", output, batch, batch_idx)

        logged = connector._current_fx is not None
        if logged:
            connector.on_batch_end()
        self._results.batch = self._results.batch_size = None
        progress.increment_completed()
        self._has_run = True
        if logged or any(result.meta.on_step for result in self._results.values()):
            connector.update_eval_step_metrics(self._seen_batches_per_dataloader[0])
        self._seen_batches_per_dataloader[0] += 1
