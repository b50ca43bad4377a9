"""Gradient → the update that the optimizer would make, without making it, so that an arm may change it first.

    torch's own AdamW (or SGD) steps a displacement that is zero; what it moved by is the update, and the displacement
    goes back to zero. Decoupled weight decay, which needs the parameter's value, is added by hand:
    update = −lr · adam(g) − lr · weight_decay · knob

lr rises linearly over `warmup_steps`, then follows a cosine to `final_lr_frac · lr` at the last step.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.config import OptimizerConfig
from unhack.types import Gradient, KnobLayout, Update

BLOCKS = ("main", "quarantine")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of 0-based `step`: `lr` at the end of the warm-up, `final_lr_frac · lr` at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_frac + (1 - config.final_lr_frac) * cosine)


class Proposer:
    """Keeps the optimizer's moments and the step count; proposes one `Update` per `Gradient`.

    Both blocks are clipped by the norm of main's gradient: main and quarantine carry the same gradient in several
    arms, and their joint norm would count it twice (√2).
    """

    def __init__(
        self, layout: KnobLayout, config: OptimizerConfig, total_steps: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.total_steps, self.step = config, total_steps, 0
        self._moved = [torch.zeros(layout.total, device=device, requires_grad=True) for _ in BLOCKS]
        if config.kind == "adamw":
            self._optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                self._moved, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=0.0
            )
        else:
            self._optimizer = torch.optim.SGD(self._moved, lr=config.lr)

    @torch.no_grad()
    def propose(self, gradient: Gradient, main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]) -> Update:
        """The delta that this step would add to each block; advances the moments and the schedule by one step.

        `main` and `quarantine` are the present knobs, read for weight decay only.
        """
        lr = learning_rate(self.config, self.step, self.total_steps)
        norm = float(torch.linalg.vector_norm(gradient.main))
        clip = self.config.clip_norm
        scale = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0  # + 1e-6 as in torch.nn.utils.clip_grad_norm_
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        for moved, part in zip(self._moved, (gradient.main, gradient.quarantine), strict=True):
            moved.grad = part.detach() * scale
        self._optimizer.step()
        deltas: list[Tensor] = []
        for moved, knobs in zip(self._moved, (main, quarantine), strict=True):
            deltas.append(moved.detach() - lr * self.config.weight_decay * knobs)
            moved.zero_()
            moved.grad = None
        self.step += 1
        metrics = {
            "optimizer/lr": lr,
            "optimizer/gradient_norm": norm,
            "optimizer/clip_scale": scale,
            "optimizer/update_norm": float(torch.linalg.vector_norm(deltas[0])),
        }
        return Update(deltas[0], deltas[1], metrics)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for the checkpoint: the step count and each block's moments (float32 [K])."""
        tensors = {"step": torch.tensor(self.step)}
        for name, moved in zip(BLOCKS, self._moved, strict=True):
            for key, value in self._optimizer.state[moved].items():
                tensors[f"{name}.{key}"] = torch.as_tensor(value).clone()
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`'s tensors, bit for bit.

        Raises:
            ValueError: the moments are of another number of knobs.
        """
        self.step = int(tensors["step"])
        for name, moved in zip(BLOCKS, self._moved, strict=True):
            state: dict[str, Tensor] = {}
            for key, value in tensors.items():
                block, _, field = key.partition(".")
                if block != name:
                    continue
                if value.dim() and value.shape != moved.shape:
                    raise ValueError(
                        f"optimizer state {key} has shape {tuple(value.shape)}, expected "
                        f"{tuple(moved.shape)}: resume with the model and rank of the checkpoint"
                    )
                state[field] = value.clone() if field == "step" else value.to(moved.device, copy=True)
            self._optimizer.state[moved] = state
