"""The table: what a user adds to a train command for each idiom of Lightning."""

from dataclasses import dataclass

PACKAGE = "idioms_project"
HERE = f"{PACKAGE}.idioms"
L = "lightning.pytorch"


@dataclass(frozen=True)
class Idiom:
    """
    Args:
        task: the class of the task, below the package's folder `idioms`.
        overrides: of the command line.
        data: the class of the datamodule; None: the task has loaders of its own.
        first: at which call of training_step the first process is killed.
        quick: whether it is among those that are tried every time.
        tests: whether there is something to test.
        needs: a package that may not be here.
        evaluate: overrides of `evaluate`.
    """

    task: str
    overrides: tuple[str, ...] = ()
    data: str | None = "data.Points"
    first: int = 11
    quick: bool = False
    tests: bool = True
    needs: str = ""
    evaluate: tuple[str, ...] = ()

    def command(self) -> tuple[str, ...]:
        data = (f"data._target_={HERE}.{self.data}",) if self.data else ()
        group = "data=own" if self.data else "~data"
        return ("task=own", f"task._target_={HERE}.{self.task}", group, *data, *self.overrides)


def callback(name: str, target: str, **values: object) -> tuple[str, ...]:
    """Add a callback: `+callbacks.NAME={_target_: ...}`."""
    text = ", ".join([f"_target_: {target}", *(f"{k}: {v}" for k, v in values.items())])
    return (f"+callbacks.{name}={{{text}}}",)


def shipped(name: str, **values: object) -> tuple[str, ...]:
    return callback("own", f"{L}.callbacks.{name}", **values)


REGRESSION = "regression.Regression"
NO_BEST = ("~callbacks.best", "~callbacks.early_stopping")
FOLDER = "'${run_dir}/own'"

DOUBLE = (f"+trainer.plugins=[{{_target_: {L}.plugins.precision.DoublePrecision}}]",)

IDIOMS = {
    # Tasks
    "save_hyperparameters": Idiom(REGRESSION, ("+task.lr=0.02", "+data.seed=3"), quick=True),
    "save_hyperparameters of modules and partials": Idiom(
        "regression.Given",
        (
            "+task.net={_target_: torch.nn.Linear, in_features: 8, out_features: 1}",
            "+task.optimizer={_target_: torch.optim.Adam, _partial_: true, lr: 0.01}",
            "+task.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true, patience: 1}",
        ),
        quick=True,
    ),
    "no test_step": Idiom("regression.NoTest", (), "data.OnlyTrain", tests=False, quick=True),
    "dict from training_step, None": Idiom("regression.LossDict"),
    "torchmetrics collection": Idiom("regression.Metrics", quick=True),
    "MetricTracker": Idiom("regression.Tracked"),
    "outputs kept for the epoch's end": Idiom("regression.Epochs"),
    "metric of every second epoch": Idiom(
        "regression.Rare",
        ("monitor=val/rare", "trainer.max_epochs=5"),
    ),
    "metric that comes late": Idiom(
        "regression.Late", ("monitor=val/late", "trainer.max_epochs=5"), first=23
    ),
    "configure_model": Idiom("regression.Configured"),
    "LBFGS": Idiom("regression.WithLBFGS", first=31),
    "optimizer_step, clipping, backward": Idiom("regression.WarmUp"),
    "OneCycleLR by steps": Idiom("regression.OneCycle"),
    "LambdaLR of NumPy": Idiom("regression.NumpySchedule"),
    "LazyLinear": Idiom("regression.Lazy"),
    "ReduceLROnPlateau": Idiom("regression.Plateau"),
    "state in the checkpoint": Idiom("regression.Remembers"),
    "inference_mode=False": Idiom("regression.Gradients", ("+trainer.inference_mode=false",)),
    "-1 and should_stop": Idiom("regression.Stops", ("trainer.max_epochs=6",)),
    "loaders of the task": Idiom("regression.OwnLoaders", data=None),
    "configure_callbacks": Idiom(
        "regression.OwnCallbacks", ("trainer.max_epochs=8", "~callbacks.early_stopping")
    ),
    "training_step(dataloader_iter)": Idiom("regression.Iterator"),
    "own sub-package": Idiom(REGRESSION),
    # Manual optimization
    "GAN": Idiom("by_hand.GAN", quick=True),
    "accumulation by hand": Idiom("by_hand.Accumulates"),
    "truncated back-propagation": Idiom("by_hand.Truncated", data="data.Sequences", first=11),
    # Data
    "dict batches, workers": Idiom(
        "regression.DictRegression", ("+data.num_workers=2",), "data.DictPoints"
    ),
    "dict batches": Idiom("regression.DictRegression", (), "data.DictPoints"),
    "random_split without a seed": Idiom(REGRESSION, (), "data.SplitAnew"),
    "stream": Idiom(REGRESSION, (), "data.Stream", quick=True),
    "several validation loaders": Idiom(
        "regression.Several",
        ("monitor=val/loss/dataloader_idx_0",),
        "data.TwoValidations",
        quick=True,
    ),
    "CombinedLoader max_size_cycle": Idiom("regression.Zipped", (), "data.Named"),
    "CombinedLoader max_size": Idiom("regression.Zipped", (), "data.MaxSize"),
    "CombinedLoader min_size": Idiom("regression.Zipped", (), "data.MinSize", first=5),
    "CombinedLoader sequential": Idiom("regression.Zipped", (), "data.Sequential"),
    "reload_dataloaders_every_n_epochs=1": Idiom(
        REGRESSION, ("+trainer.reload_dataloaders_every_n_epochs=1",), "data.Reloaded"
    ),
    "reload_dataloaders_every_n_epochs=2": Idiom(
        REGRESSION, ("+trainer.reload_dataloaders_every_n_epochs=2",)
    ),
    "transfer hooks, datamodule state": Idiom(REGRESSION, (), "data.Stateful"),
    "batches of an own class": Idiom("regression.PartsRegression", (), "data.OwnBatches"),
    # Fine-tuning and averages
    "BackboneFinetuning": Idiom(
        "finetuning.Transfer",
        shipped(
            "BackboneFinetuning",
            unfreeze_backbone_at_epoch=2,
            lambda_func=f"{{_target_: hydra.utils.get_method, path: {HERE}.finetuning.double}}",
        ),
        quick=True,
    ),
    "BaseFinetuning": Idiom(
        "finetuning.Transfer", callback("own", f"{HERE}.finetuning.UnfreezeAt")
    ),
    "requires_grad and eval() in a hook": Idiom("finetuning.Frozen"),
    "EMAWeightAveraging": Idiom(
        "finetuning.Transfer", shipped("EMAWeightAveraging", decay=0.8), quick=True
    ),
    "WeightAveraging": Idiom(
        "finetuning.Transfer", callback("own", f"{HERE}.callbacks.EveryStepAveraging")
    ),
    "StochasticWeightAveraging": Idiom(
        REGRESSION,
        shipped("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1),
    ),
    # Callbacks that ship with Lightning
    "LearningRateFinder": Idiom(
        REGRESSION, shipped("LearningRateFinder", num_training_steps=20), first=33
    ),
    "BatchSizeFinder": Idiom(
        REGRESSION,
        shipped("BatchSizeFinder", steps_per_trial=1, max_trials=2, init_val=4),
        first=11,
    ),
    "GradientAccumulationScheduler": Idiom(
        REGRESSION,
        (
            "+callbacks.own={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {_target_: "
            + HERE
            + ".callbacks.accumulation}}",
        ),
    ),
    "Timer": Idiom(REGRESSION, shipped("Timer", duration="'00:00:10:00'")),
    "LambdaCallback": Idiom(REGRESSION, callback("own", f"{HERE}.callbacks.by_lambda")),
    "a callback with state": Idiom(REGRESSION, callback("own", f"{HERE}.callbacks.Counter")),
    "on_exception": Idiom(REGRESSION, callback("own", f"{HERE}.callbacks.SaysWhy")),
    "OnExceptionCheckpoint": Idiom(REGRESSION, shipped("OnExceptionCheckpoint", dirpath=FOLDER)),
    "ModelPruning": Idiom(
        REGRESSION,
        shipped(
            "ModelPruning",
            pruning_fn="l1_unstructured",
            amount=0.2,
            use_lottery_ticket_hypothesis="false",
        ),
    ),
    "DeviceStatsMonitor": Idiom(REGRESSION, ("show=[default,device_stats]",), needs="psutil"),
    "ModelSummary": Idiom(REGRESSION, (*shipped("ModelSummary", max_depth=2),)),
    "RichModelSummary": Idiom(REGRESSION, ("show=[default,model_summary]",)),
    "TQDMProgressBar": Idiom(REGRESSION, ("~show", *shipped("TQDMProgressBar"))),
    "RichProgressBar": Idiom(REGRESSION, ("~show", *shipped("RichProgressBar"))),
    "own ModelCheckpoint": Idiom(
        REGRESSION,
        (
            *NO_BEST,
            *shipped(
                "ModelCheckpoint",
                monitor="val/loss",
                dirpath=FOLDER,
                filename="'{epoch}-{step}'",
                save_top_k=2,
                save_last="true",
            ),
        ),
        quick=True,
    ),
    "ModelCheckpoint every_n_train_steps": Idiom(
        REGRESSION,
        shipped("ModelCheckpoint", every_n_train_steps=4, save_top_k=-1, dirpath=FOLDER),
    ),
    "ModelCheckpoint named after val/loss": Idiom(
        REGRESSION,
        shipped(
            "ModelCheckpoint",
            monitor="train/loss",
            filename="'{epoch}-{val/loss:.3f}'",
            save_top_k=-1,
            dirpath=FOLDER,
        ),
    ),
    "ModelCheckpoint beside ours": Idiom(
        REGRESSION, shipped("ModelCheckpoint", monitor="train/loss", dirpath=FOLDER)
    ),
    # The Trainer's options
    "accumulate_grad_batches, clipping by value": Idiom(
        REGRESSION,
        (
            "trainer.accumulate_grad_batches=2",
            "trainer.gradient_clip_val=0.1",
            "+trainer.gradient_clip_algorithm=value",
        ),
    ),
    "val_check_interval": Idiom(REGRESSION, ("trainer.val_check_interval=3",)),
    "val_check_interval across epochs": Idiom(
        REGRESSION, ("trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null")
    ),
    "limit_*_batches": Idiom(
        REGRESSION,
        (
            "trainer.limit_train_batches=5",
            "trainer.limit_val_batches=0.5",
        ),
        first=9,
    ),
    "limit_val_batches=0": Idiom(REGRESSION, ("trainer.limit_val_batches=0",)),
    "overfit_batches": Idiom(REGRESSION, ("trainer.overfit_batches=3",), first=5),
    "num_sanity_val_steps=-1": Idiom(REGRESSION, ("+trainer.num_sanity_val_steps=-1",)),
    "max_steps": Idiom(REGRESSION, ("trainer.max_steps=23",)),
    "simple profiler": Idiom(REGRESSION, ("trainer.profiler=simple",)),
    "advanced profiler": Idiom(REGRESSION, ("trainer.profiler=advanced",)),
    "plugins": Idiom(
        REGRESSION, (f"+trainer.plugins=[{{_target_: {L}.plugins.io.AsyncCheckpointIO}}]",)
    ),
    "precision plugin": Idiom(REGRESSION, DOUBLE, evaluate=DOUBLE),
    "precision=64-true": Idiom(REGRESSION, ("trainer.precision=64-true",)),
    "precision=bf16-mixed": Idiom(REGRESSION, ("trainer.precision=bf16-mixed",)),
    "detect_anomaly": Idiom(REGRESSION, ("+trainer.detect_anomaly=true",)),
    "barebones": Idiom(
        REGRESSION, ("+trainer.use_distributed_sampler=false", "trainer.deterministic=true")
    ),
    # Loggers
    "~logger": Idiom(REGRESSION, ("~logger",)),
    "self.logger.experiment": Idiom("regression.Pictures", ("logger=tensorboard",), quick=True),
    "no best": Idiom(REGRESSION, ("~callbacks.best",)),
    "~callbacks": Idiom(REGRESSION, ("~callbacks",)),
    "no model, optimizer, scheduler": Idiom(REGRESSION, ("~model", "~optimizer", "~scheduler")),
}
IDIOMS["deterministic"] = IDIOMS.pop("barebones")
