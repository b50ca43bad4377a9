"""What the adapted layers read: bottleneck activations, averaged over a completion's tokens.

    h_m = mean over completion tokens t of P_m x_mt        P_m [b, in] = the layer's `bottleneck` (Vh; A; A0)

x_mt is the input of layer m at token t under the policy's active blocks. P is frozen and linear, so inputs are averaged
first and read once.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unhack.adapters.policy import Policy
from unhack.model import backbone


@torch.no_grad()
def pooled_bottlenecks(
    policy: Policy, token_ids: Int[Tensor, "B T"], prompt_lengths: Int[Tensor, " B"], lengths: Int[Tensor, " B"]
) -> Float[Tensor, "B _"]:
    """h of every row, modules side by side as in `policy.bottleneck_layout`, float32 on the policy's device.

    Rows are prompt + completion, right-padded; `lengths` counts both. One forward without the head.
    """
    places = torch.arange(token_ids.shape[1], device=token_ids.device)
    inside = (places >= prompt_lengths.unsqueeze(1)) & (places < lengths.unsqueeze(1))
    pools = {name: _Pool(inside) for name in policy.modules}
    handles = [module.register_forward_pre_hook(pools[name]) for name, module in policy.modules.items()]
    try:
        backbone(policy.model)(input_ids=token_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    parts = [pools[name].mean @ module.bottleneck.T for name, module in policy.modules.items()]
    return torch.cat(parts, dim=1)


class _Pool:
    """A forward pre-hook that keeps the mean [B, in] of the layer's input over the positions `inside` [B, T]."""

    def __init__(self, inside: Bool[Tensor, "B T"]) -> None:
        self.weights = inside.float() / inside.sum(1, keepdim=True)
        self.mean = torch.empty(0)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        (inputs,) = arguments  # [B, T, in]
        self.mean = torch.einsum("bt,bti->bi", self.weights, inputs.float())
