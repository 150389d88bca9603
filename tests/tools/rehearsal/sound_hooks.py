"""Sound: what Lightning calls beside the steps, and what people ask of the Trainer."""

from collections import namedtuple
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from cases import Linear, Task, batches, sound
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset


@sound()
class ScheduleOfTheWholeTraining(Linear):
    """The number of steps comes from the Trainer, which looks at the loader for it."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Described(L.LightningDataModule):
    num_classes = 4

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        self.rows = torch.randn(8, 16), torch.randint(0, self.num_classes, (8,))

    def train_dataloader(self):
        return batches(*self.rows)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x + 0.1 * torch.randn_like(x), y


@sound()
class BuiltWhenTheDataAreKnown(Task):
    """Layers made in configure_model from what the datamodule says; augmented on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Linear | None = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Linear(16, self.trainer.datamodule.num_classes)

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", self.training_step(batch), sync_dist=True)

    data = staticmethod(Described)


@sound()
class BuiltInSetup(Task):
    def setup(self, stage: str) -> None:
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 4))

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


@sound()
class GatheredAtTheEndOfTheEpoch(Linear):
    """Outputs of the steps in a list, joined when the epoch ends."""

    def on_validation_epoch_start(self) -> None:
        self.outputs: list[Tensor] = []

    def validation_step(self, batch):
        logits = self.net(batch[0])
        self.outputs.append((logits.argmax(-1) == batch[1]).float())

    def on_validation_epoch_end(self) -> None:
        self.log("val/acc", torch.cat(self.outputs).mean())
        self.outputs.clear()


@sound()
class FrozenBackbone(Task):
    """In eval mode without gradients; only the head is optimized."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()

    def training_step(self, batch):
        with torch.no_grad():
            features = self.backbone(batch[0])
        return F.cross_entropy(self.head(features), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), foreach=True)


@sound()
class AccumulatedByHand(Linear):
    """Manual optimization with its own accumulation, clipping and scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1]) / 2
        self.manual_backward(loss)
        if (batch_idx + 1) % 2 == 0:
            optimizer = self.optimizers()
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


@sound()
class WarmUpInOptimizerStep(Linear):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (self.trainer.global_step + 1) / 500) * 1e-3
        optimizer.step(closure=optimizer_closure)

    def on_after_backward(self) -> None:
        for p in self.parameters():
            torch.nan_to_num_(p.grad)


class Graph:
    """A batch with a method .to(), as PyTorch Geometric's and Hugging Face's have."""

    def __init__(self, x: Tensor, edges: Tensor, y: Tensor) -> None:
        self.x, self.edges, self.y = x, edges, y

    def to(self, device: Any, **options: Any) -> "Graph":
        return Graph(*(part.to(device, **options) for part in (self.x, self.edges, self.y)))


class Graphs(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Graph:
        return Graph(
            torch.full((5, 16), index / 8), torch.randint(0, 5, (2, 7)), torch.tensor([index % 4])
        )


def first(graphs: list[Graph]) -> Graph:
    return graphs[0]


@sound()
class BatchesThatMoveThemselves(Linear):
    def training_step(self, batch: Graph):
        source, target = batch.edges
        summed = torch.zeros_like(batch.x).index_add_(0, target, batch.x[source])
        return F.cross_entropy(self.net(summed.mean(0, keepdim=True)), batch.y)

    @staticmethod
    def data():
        return DataLoader(Graphs(), 1, collate_fn=first)


Pair = namedtuple("Pair", ["inputs", "targets"])


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(16):
            yield Pair(torch.full((16,), float(index)), index % 4)


@sound()
class StreamOfNamedTuples(Task):
    """An IterableDataset has no length."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch.inputs), batch.targets)

    @staticmethod
    def data():
        return DataLoader(Stream(), batch_size=4)


class Lines(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(2 + index % 3, 8), index % 4


def pack(rows: Any) -> tuple[PackedSequence, Tensor]:
    return pack_sequence([x for x, _ in rows], enforce_sorted=False), torch.tensor(
        [y for _, y in rows]
    )


@sound()
class PackedByTheCollateFunction(Task):
    """Packed on the CPU by the loader, so that no length has to come back."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 8), nn.Linear(8, 4)

    def training_step(self, batch):
        packed, y = batch
        return F.cross_entropy(self.head(self.rnn(packed)[1][-1]), y)

    @staticmethod
    def data():
        return DataLoader(Lines(), 4, collate_fn=pack)


class Bytes(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
        return image, torch.tensor(index % 4, dtype=torch.int32), torch.rand(8, 8).half()


@sound()
class BytesNormalizedOnTheDevice(Task):
    """uint8 pictures, int32 labels and half-precision weights, as loaders give them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(192, 4)

    def training_step(self, batch):
        image, label, weight = batch
        x = image.to(self.dtype).div(255).sub(0.5) * weight[:, None].float()
        return F.cross_entropy(self.net(x.flatten(1)), label.long())

    @staticmethod
    def data():
        return DataLoader(Bytes(), 4)


class Opened(Dataset):
    """Holds a handle, and leaves it behind when a worker is given the dataset."""

    transform = staticmethod(lambda x: x * 2)  # of the class, which is not pickled

    def __init__(self) -> None:
        import threading

        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "lock"}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(torch.full((16,), 0.1 * index)), index % 4


@sound()
class HandleLeftBehind(Linear):
    @staticmethod
    def data():
        return DataLoader(Opened(), 4, num_workers=1)


@sound()
class HyperparametersWithoutTheNet(Linear):
    """What is not plain is left out; types and devices of PyTorch are plain."""

    def __init__(
        self,
        net: nn.Module | None = None,
        dtype: Any = torch.float32,
        place: Any = torch.device("cpu"),
        sizes: Any = None,
    ) -> None:
        super().__init__()
        sizes = sizes or {"widths": [16, 4], "names": ("a", None), "rate": 0.1}
        self.save_hyperparameters(ignore=["net"])
        self.net = net or nn.Linear(16, 4)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["prototypes"] = {"means": torch.zeros(4), "order": [3, 2, 1]}


@sound()
class LoggersThatMayBeMissing(Linear):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch)
        if self.logger is not None and batch_idx % 50 == 0:
            self.logger.log_metrics({"own": 1.0}, step=self.global_step)
        self.log("lr", self.optimizers().param_groups[0]["lr"], prog_bar=True)
        self.log("epoch", float(self.current_epoch))
        return loss

    def configure_callbacks(self):
        return [L.pytorch.callbacks.ModelSummary(max_depth=1)]
