"""Sound: convolutions, attention over patches, detection, segmentation, geometry."""

import torch
import torch.nn.functional as F
import torchmetrics
from cases import Task, batches, images, sound
from torch import Tensor, nn


class Classifier(Task):
    """Loss, accuracy and predictions of any network that ends in logits."""

    net: nn.Module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self(inputs), targets)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self.log("val/loss", F.cross_entropy(logits, targets))
        self.log("val/acc", (logits.argmax(-1) == targets).float().mean())

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.validation_step(batch)

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self(batch[0]).softmax(-1)


@sound()
class SmallCNN(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, groups=4),
            nn.GroupNorm(4, 16),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16, 4),
        )

    data = staticmethod(images)


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x)).relu_()
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return out.relu()


@sound()
class ResNetSGD(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 16, 2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    def configure_optimizers(self):
        decay = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 1e-4}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @staticmethod
    def data():
        return images(size=32)


@sound()
class UNetSegmentation(Task):
    settings = {"gradient_clip_val": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        deep = self.down2(skip)
        return self.out(torch.cat([skip, self.up(deep)], 1)).squeeze(1)

    def training_step(self, batch):
        x, masks = batch
        logits = self(x)
        probabilities = logits.sigmoid()
        overlap = (probabilities * masks).sum((1, 2))
        dice = 1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + masks.sum((1, 2)) + 1)
        return F.binary_cross_entropy_with_logits(logits, masks) + dice.mean()

    @staticmethod
    def data():
        return batches(torch.randn(8, 3, 16, 16), (torch.rand(8, 16, 16) > 0.5).float())


@sound()
class InterpolatingDecoder(Task):
    """Upsampling by interpolation, pixel shuffle, reflection padding, and a perceptual L1."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect")
        self.b = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")

    def training_step(self, batch):
        x, _ = batch
        small = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        up = F.pixel_shuffle(self.a(small), 2)
        up = F.interpolate(up, size=(32, 32), mode="nearest")
        up = F.interpolate(self.b(up), size=(16, 16), mode="bicubic", align_corners=True)
        return (
            F.l1_loss(up, x)
            + F.smooth_l1_loss(up, x)
            + F.huber_loss(F.pad(up, (1, 1, 1, 1)), F.pad(x, (1, 1, 1, 1)))
        )

    data = staticmethod(images)


@sound()
class PatchTransformer(Classifier):
    """A ViT: patches by a convolution, a class token, learned positions, encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(
            16, 4, 32, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])

    data = staticmethod(images)


@sound()
class SpatialTransformer(Classifier):
    """affine_grid and grid_sample, with gradients through the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 6))
        nn.init.zeros_(self.locate[1].weight)
        with torch.no_grad():
            self.locate[1].bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(14), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))

    data = staticmethod(images)


@sound()
class MetricsInTheStep(Classifier):
    """torchmetrics as modules, updated in the steps and logged as objects."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
        metrics = torchmetrics.MetricCollection(
            {
                "acc": torchmetrics.classification.MulticlassAccuracy(4),
                "f1": torchmetrics.classification.MulticlassF1Score(4),
                "confusion": torchmetrics.classification.MulticlassConfusionMatrix(4),
            }
        )
        self.train_acc = torchmetrics.classification.MulticlassAccuracy(4)
        self.val_metrics = metrics.clone(prefix="val/")

    def training_step(self, batch):
        x, y = batch
        logits = self(x)
        self.train_acc(logits, y)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, y, label_smoothing=0.1)

    def validation_step(self, batch):
        x, y = batch
        self.val_metrics.update(self(x), y)

    def on_validation_epoch_end(self):
        values = self.val_metrics.compute()
        self.log("val/acc", values["val/acc"])
        self.val_metrics.reset()

    data = staticmethod(images)


@sound()
class MeanMetricOfLosses(Task):
    """Aggregated by torchmetrics, with a regression metric beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 1)
        self.loss_mean = torchmetrics.MeanMetric()
        self.r2 = torchmetrics.R2Score()
        self.mae = torchmetrics.MeanAbsoluteError()

    def training_step(self, batch):
        x, y = batch
        preds = self.net(x).squeeze(-1)
        loss = F.mse_loss(preds, y)
        self.loss_mean.update(loss.detach())
        self.mae(preds, y)
        self.log_dict({"train/loss": loss, "train/mae": self.mae})
        return loss

    def validation_step(self, batch):
        x, y = batch
        self.r2.update(self.net(x).squeeze(-1), y)
        self.log("val/r2", self.r2)

    @staticmethod
    def data():
        return batches(torch.randn(8, 16), torch.randn(8))


@sound()
class WeightedLossWithBuffer(Classifier):
    """Class weights and a normalisation as buffers, as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 1.0, 0.5]))
        self.register_buffer(
            "mean", torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1), persistent=False
        )

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self((x - self.mean) / 0.25), y, weight=self.weights)

    data = staticmethod(images)


@sound()
class MixUpOnTheDevice(Classifier):
    """Mixing with a permutation and a coefficient made on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))

    def training_step(self, batch):
        x, y = batch
        share = torch.rand(len(x), 1, device=self.device)
        order = torch.randperm(len(x), device=self.device)
        mixed = share[..., None, None] * x + (1 - share[..., None, None]) * x[order]
        targets = F.one_hot(y, 4).to(x.dtype)
        targets = share * targets + (1 - share) * targets[order]
        return F.cross_entropy(self(mixed), targets)

    data = staticmethod(images)


@sound()
class FocalAndKL(Classifier):
    """Distillation from a frozen teacher, and a focal loss by gather."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
        self.teacher = (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4)).requires_grad_(False).eval()
        )

    def training_step(self, batch):
        x, y = batch
        logs = F.log_softmax(self(x), -1)
        picked = logs.gather(1, y[:, None]).squeeze(1)
        focal = (-((1 - picked.exp()) ** 2) * picked).mean()
        with torch.no_grad():
            soft = F.softmax(self.teacher(x) / 2, -1)
        return focal + F.kl_div(logs, soft, reduction="batchmean")

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.net.parameters(), lr=1e-3, momentum=0.9)

    data = staticmethod(images)


@sound()
class BoxRegression(Task):
    """IoU of boxes by clamp, min and max; the unmatched are masked out by weights, not by index."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        x, boxes, valid = batch
        preds = self.net(x)
        p = torch.cat([preds[:, :2], preds[:, :2] + F.softplus(preds[:, 2:])], 1)
        left_top = torch.max(p[:, :2], boxes[:, :2])
        right_bottom = torch.min(p[:, 2:], boxes[:, 2:])
        overlap = (right_bottom - left_top).clamp(min=0).prod(1)
        area = (p[:, 2:] - p[:, :2]).prod(1) + (boxes[:, 2:] - boxes[:, :2]).prod(1)
        iou = overlap / (area - overlap).clamp(min=1e-6)
        weights = valid.float()
        return ((1 - iou) * weights).sum() / weights.sum().clamp(min=1)

    @staticmethod
    def data():
        corner = torch.rand(8, 2)
        return batches(torch.randn(8, 16), torch.cat([corner, corner + 1], 1), torch.rand(8) > 0.3)


@sound()
class Volumetric(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(),
            nn.MaxPool3d(2), nn.ConvTranspose3d(4, 4, 2, 2), nn.Flatten(), nn.Linear(4 * 512, 4),
        )  # fmt: skip

    @staticmethod
    def data():
        return batches(torch.randn(8, 1, 8, 8, 8), torch.randint(0, 4, (8,)))


@sound()
class WholeFoldedImages(Task):
    """unfold and fold: a convolution by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(27, 27)

    def training_step(self, batch):
        x, _ = batch
        columns = F.unfold(x, 3, padding=1).transpose(1, 2)
        back = F.fold(self.net(columns).transpose(1, 2), x.shape[2:], 3, padding=1)
        return (back - x).square().mean()

    data = staticmethod(images)
