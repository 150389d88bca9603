"""A multi-layer perceptron for small images or feature vectors."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, batch norm, ReLU and dropout, `num_layers` times, then one linear layer.

    Args:
        in_features: how many numbers one input has, over all of its dimensions.
        num_classes: how many logits come out.
        width: units of a hidden layer.
        num_layers: hidden layers.
        dropout: probability of dropping a hidden unit.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 256,
        num_layers: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if min(in_features, num_classes, width) < 1 or num_layers < 0:
            raise ValueError("in_features, num_classes and width must be 1 or more, num_layers 0.")
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(num_layers):
            layers += [
                nn.Linear(in_features, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Dropout(dropout),
            ]
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # (batch, ...) -> (batch, num_classes)
