"""Does a direction hold on pairs that it was not made from? Always shown beside its null (METHOD §2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.directions.algebra import coefficients, signed_cosine
from unhack.directions.artifact import Direction, layout_of
from unhack.directions.extract import ExtractionLoss, pair_differences
from unhack.pairs import Pair
from unhack.seeds import generator

_BINS = 20
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Verification:
    """Per module: how the mean held-out difference lies to V; and the same for Haar-random subspaces of the same k.

    cos: signed cosine (`algebra.signed_cosine`), + = the held-out hacks lie on V's hack side. one_sided_frac:
    ‖relu(V d)‖ / ‖d‖, whose expectation for a random subspace is about sqrt(k / 2r) (`null_expected_frac`, mean over
    modules). null_cos, null_one_sided_frac: samples, all modules pooled.
    """

    cos: dict[str, float]
    one_sided_frac: dict[str, float]
    null_expected_frac: float
    null_cos: Float[Tensor, " n"]
    null_one_sided_frac: Float[Tensor, " n"]
    pairs: int

    @property
    def share_positive(self) -> float:
        """Share of the direction's modules with cos > 0."""
        return sum(value > 0 for value in self.cos.values()) / len(self.cos)

    @property
    def mean_cos(self) -> float:
        """Mean cos over modules."""
        return sum(self.cos.values()) / len(self.cos)

    @property
    def median_cos(self) -> float:
        """Median cos over modules (the mean of the middle two when they are even in number)."""
        return float(torch.tensor(list(self.cos.values()), dtype=torch.float64).quantile(0.5))

    @property
    def mean_one_sided_frac(self) -> float:
        """Mean one-sided fraction over modules, to be read beside `null_expected_frac`."""
        return sum(self.one_sided_frac.values()) / len(self.one_sided_frac)

    @property
    def gate(self) -> bool:
        """cos > 0 in more than half of the modules."""
        return self.share_positive > 0.5

    @property
    def target(self) -> bool:
        """Mean cos > 0.2 and median > 0.3."""
        return self.mean_cos > 0.2 and self.median_cos > 0.3

    def histogram(self) -> tuple[list[float], list[float], list[float]]:
        """(21 bin edges over [−1, 1], share of modules per bin, share of null samples per bin)."""
        edges = torch.linspace(-1, 1, _BINS + 1, dtype=torch.float64)
        cos = torch.tensor(list(self.cos.values()), dtype=torch.float64)
        return edges.tolist(), _shares(cos), _shares(self.null_cos)

    def text(self) -> str:
        """The histogram beside its null, and whether gate and target are met, for a terminal."""
        edges, real, null = self.histogram()
        lines = [f"cos(mean of {self.pairs} held-out differences, V) per module: # V, . random subspace of the same k"]
        for low, high, share, null_share in zip(edges, edges[1:], real, null, strict=False):
            if share or null_share >= 0.5 / _BAR_WIDTH:
                lines.append(f"{low:+.1f} to {high:+.1f} {'#' * round(_BAR_WIDTH * share)}")
                lines.append(f"{'':12} {'.' * round(_BAR_WIDTH * null_share)}")
        null_high = float(self.null_one_sided_frac.quantile(0.95))
        return "\n".join(
            [
                *lines,
                f"mean {self.mean_cos:+.3f}, median {self.median_cos:+.3f}, positive in {self.share_positive:.0%} of "
                f"{len(self.cos)} modules (null: mean {float(self.null_cos.mean()):+.3f}, positive in "
                f"{float((self.null_cos > 0).double().mean()):.0%})",
                f"one-sided fraction {self.mean_one_sided_frac:.3f} (null: sqrt(k/2r) = {self.null_expected_frac:.3f}, "
                f"sampled {float(self.null_one_sided_frac.mean()):.3f}, 95th percentile {null_high:.3f})",
                f"gate (positive in more than half): {'passed' if self.gate else 'FAILED'}; "
                f"target (mean > 0.2, median > 0.3): {'reached' if self.target else 'not reached'}",
            ]
        )


def _shares(values: Float[Tensor, " n"]) -> list[float]:
    counts = torch.histc(values, bins=_BINS, min=-1.0, max=1.0)
    return (counts / max(1, len(values))).tolist()


def verify(
    policy: Policy,
    direction: Direction,
    heldout_pairs: Sequence[Pair],
    *,
    null_samples: int = 64,
    seed: int = 0,
) -> Verification:
    """Compare the mean difference of `heldout_pairs` (of gradients, or of activations) with V, module by module.

    It is taken with the direction's own loss and temperature. `null_samples` Haar subspaces per module.
    Raises ValueError if there are no pairs or the direction does not fit the policy's modules.
    """
    if not heldout_pairs:
        raise ValueError("no held-out pairs to verify the direction on")
    layout = layout_of(policy, direction.metadata.loss)
    direction.check_layout(layout)
    made_from: dict[str, ExtractionLoss] = {"nll": "nll", "grpo": "grpo", "activation": "activation"}
    loss = made_from[direction.metadata.loss]
    mean = pair_differences(policy, heldout_pairs, loss=loss, temperature=direction.metadata.temperature).mean(0)
    parts = dict(layout.items())
    signed, one_sided, expected, null_signed, null_one_sided = {}, {}, [], [], []
    for name, c in coefficients(direction, layout, mean).items():
        norm = mean[parts[name]].double().norm()
        signed[name] = float(signed_cosine(c, norm))
        one_sided[name] = float(c.relu().norm() / norm.clamp_min(1e-300))
        k, r = direction.basis[name].shape
        expected.append(math.sqrt(k / (2 * r)))
        null = haar_coefficients(k, r, null_samples, generator(seed, "null", name))
        null_signed.append(signed_cosine(null, torch.ones(len(null), dtype=null.dtype)))
        null_one_sided.append(null.relu().norm(dim=1))
    return Verification(
        signed,
        one_sided,
        sum(expected) / len(expected),
        torch.cat(null_signed),
        torch.cat(null_one_sided),
        len(heldout_pairs),
    )


def haar_coefficients(k: int, r: int, samples: int, source: torch.Generator) -> Float[Tensor, "n k"]:
    """V d / ‖d‖ for `samples` Haar-random k-subspaces V: k coordinates of a uniform point on the sphere in r."""
    points = torch.randn(samples, r, generator=source, dtype=torch.float64)
    return (points / points.norm(dim=1, keepdim=True))[:, :k]
