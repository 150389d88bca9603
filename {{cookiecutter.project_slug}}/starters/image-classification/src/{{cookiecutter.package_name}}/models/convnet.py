"""A small convolutional network for small images."""

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two blocks of two 3x3 convolutions, the second at half the resolution and twice the channels.

    Args:
        in_channels: channels of an image.
        image_size: height and width of an image, divisible by 2.
        num_classes: how many logits come out.
        width: channels of the first block.
        dropout: probability of dropping a feature before the last layer.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        *,
        width: int = 32,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, width) < 1 or image_size < 2:
            raise ValueError("in_channels, num_classes and width must be 1 or more, image_size 2.")
        self.layers = nn.Sequential(
            *_convolution(in_channels, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * (image_size // 2) ** 2, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # (batch, channels, size, size) -> (batch, num_classes)


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    # No bias: the batch norm that follows has one.
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
