"""An objective so small that a whole training run takes milliseconds."""

import torch
from torch import Tensor, nn

from gcpl_lab.training.loop import TrainingConfig

START = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
CONFIG = TrainingConfig(num_steps=12, learning_rate=0.05, warmup_steps=2, checkpoint_every=4)


class Quadratic:
    """Squared distance of ``scale * vectors`` to the batch."""

    def __init__(self) -> None:
        self.vectors, self.scale = nn.Parameter(START.clone()), nn.Parameter(torch.tensor(1.0))

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.vectors, self.scale]

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.scale * self.vectors - batch).square().mean()
        return {"loss": loss, "size": self.vectors.detach().abs().mean()}

    def state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trainable_parameters()]

    def is_as_at_the_start(self) -> bool:
        return same(self.state(), Quadratic().state())


class ScalingAccelerator:
    """fp16 on a GPU, as far as the loop sees it: gradients scaled by a real scaler, here on the CPU."""

    is_main_process = True

    def __init__(self, scale: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        self.autocast = torch.enable_grad  # nothing: that half precision works is torch's to prove

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)


def batch_at(step: int) -> Tensor:
    return torch.randn(2, 2, generator=torch.Generator().manual_seed(step))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
