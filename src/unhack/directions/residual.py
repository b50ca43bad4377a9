"""Concept directions in the residual stream: what hacks look like at one layer while they are written (METHOD §2, §4).

    m(x)    = mean over completion tokens of the residual stream after layer L          [hidden]
    concept = v / ‖v‖,   v = mean over pairs of m(hack) − m(clean)
    score   = cos(m(response), concept)

L is in the 60–75 % band of depth by default. The vector belongs to the base model, not to an adapter: it is extracted
before training, and read on the policy as it trains. After Wu & Tang 2026 (arXiv:2604.01476), who take their concept
from general pairs of sentences; ours come from the same authored pairs as every other direction here.
Not here: the artifact (`concept.py`), and what arms do with a score (`interventions/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unhack.model import backbone
from unhack.pairs import Pair, completion_ids, prompt_ids

BAND = (0.60, 0.75)
"""Share of the layers at and below the one that is read."""

BATCH_ROWS = 64
"""Rows of one forward: bounds its activations."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of `model`, first to last: the one list under its backbone that has num_hidden_layers entries.

    Raises:
        ValueError: there is no such list, or more than one.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    lists = [part for part in backbone(model).modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if len(lists) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of {count} decoder layers, and a concept direction needs "
            "one: use a model of the Llama or Qwen kind"
        )
    return lists[0]


def default_layer(model: PreTrainedModel) -> int:
    """The layer whose output is nearest to the middle of the 60–75 % band of depth, counted from 0."""
    count = len(decoder_layers(model))
    return max(1, round(count * sum(BAND) / 2)) - 1


def check_layer(model: PreTrainedModel, layer: int) -> None:
    """ValueError unless the model has decoder layer number `layer`, counted from 0."""
    count = len(decoder_layers(model))
    if not 0 <= layer < count:
        raise ValueError(f"the layer is {layer}: this model has the layers 0 to {count - 1}")


@torch.no_grad()
def response_residuals(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], layer: int
) -> Float[Tensor, "B hidden"]:
    """m(x) of each row (prompt ids, completion ids): float32, on the CPU. Completions have at least one token.

    One forward over the whole rows without gradient, with the knobs as they are; the head is not run.
    """
    return layer_residuals(model, rows, [layer])[0]


@torch.no_grad()
def layer_residuals(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], layers: Sequence[int]
) -> Float[Tensor, "L B hidden"]:
    """`response_residuals` after each of `layers`, in their order, from one forward."""
    for layer in layers:
        check_layer(model, layer)
    means: list[Tensor] = []
    taps = [_Tap() for _ in layers]
    handles = [decoder_layers(model)[at].register_forward_hook(tap) for at, tap in zip(layers, taps, strict=True)]
    try:
        for start in range(0, len(rows), BATCH_ROWS):
            chunk = rows[start : start + BATCH_ROWS]
            prompts = torch.tensor([len(prompt) for prompt, _ in chunk], device=model.device)
            lengths = torch.tensor([len(prompt) + len(completion) for prompt, completion in chunk], device=model.device)
            token_ids = torch.zeros(len(chunk), int(lengths.max()), dtype=torch.long, device=model.device)
            for index, (prompt, completion) in enumerate(chunk):
                whole = torch.tensor([*prompt, *completion], device=model.device)
                token_ids[index, : len(whole)] = whole
            backbone(model)(input_ids=token_ids, use_cache=False)  # right-padded and causal: no mask needed
            place = torch.arange(token_ids.shape[1], device=model.device)
            response = (place >= prompts.unsqueeze(1)) & (place < lengths.unsqueeze(1))  # [B, T]
            summed = torch.stack([(tap.taken().float() * response.unsqueeze(2)).sum(1) for tap in taps])
            means.append((summed / response.sum(1, keepdim=True)).cpu())
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(means, dim=1)


class _Tap:
    """A forward hook that keeps the layer's output until it is taken."""

    def __init__(self) -> None:
        self._hidden: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output  # older transformers return a tuple

    def taken(self) -> Float[Tensor, "B T hidden"]:
        hidden, self._hidden = self._hidden, None
        assert hidden is not None, "the layer was not run"
        return hidden


def pair_residuals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], layer: int
) -> tuple[Float[Tensor, "P hidden"], Float[Tensor, "P hidden"]]:
    """m of the hack sides and of the clean sides."""
    rows = [
        (prompt_ids(pair, tokenizer), completion_ids(side, tokenizer))
        for pair in pairs
        for side in (pair.hack, pair.clean)
    ]
    means = response_residuals(model, rows, layer)
    return means[0::2], means[1::2]


def cosines(residuals: Float[Tensor, "B hidden"], concept: Float[Tensor, " hidden"]) -> Float[Tensor, " B"]:
    """cos(m, concept) of each row, float32."""
    exact, unit = residuals.double(), concept.double()
    return ((exact @ unit) / (exact.norm(dim=1) * unit.norm()).clamp_min(1e-300)).float()
