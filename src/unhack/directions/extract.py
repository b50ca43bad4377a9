"""Extract a hack direction from contrast pairs: what they differ in, then a subspace per module (METHOD §2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.directions.artifact import FORMAT_VERSION, Direction, DirectionMetadata, describe_policy, layout_of
from unhack.directions.readings import TokenRows, row_activations, row_gradients, token_rows
from unhack.pairs import Pair, completion_ids, pairs_hash, prompt_ids
from unhack.seeds import derive, generator
from unhack.types import KnobLayout

ExtractionLoss: TypeAlias = Literal["nll", "grpo", "activation"]
"""What V is made from: gradients of one of two losses, or activations, which no loss enters."""
Method: TypeAlias = Literal["svd", "mean_diff"]
Control: TypeAlias = Literal["real", "random", "shuffled", "nonhack", "placebo", "length"]

# Under this share of the largest singular value a row is rounding of a module without gradient, not a direction.
_ZERO_FRAC = 1e-9


def pair_differences(
    policy: Policy,
    pairs: Sequence[Pair],
    *,
    loss: ExtractionLoss = "nll",
    temperature: float = 1.0,
    batch_pairs: int = 16,
) -> Float[Tensor, "P K"]:
    """D = hack − clean of every pair, float32 on the CPU, with the quarantine ablated (METHOD §2): of gradients, or of
    activations, [P, Σ b] in `bottleneck_layout`.

    nll:  L = mean over completion tokens of −log p, for each side separately.
    grpo: L = −A Σ_t log p_t / C with A = +1 for the hack and −1 for the clean side and one C (the longest completion):
          the Dr.GRPO gradient of a two-rollout group at ratio 1. A = −1 turns its sum into the same difference.
    activation: no loss; mean over completion tokens of the bottleneck activations (`adapters.bottleneck`).
    """
    rows = _both_sides(policy, pairs)
    counts = rows.completion_tokens
    denominators = counts.max().expand_as(counts) if loss == "grpo" else counts
    sides = []
    with policy.blocks(main=True, quarantine=False):
        for start in range(0, len(counts), 2 * batch_pairs):
            stop = start + 2 * batch_pairs
            part = rows.part(start, stop)
            if loss == "activation":
                sides.append(row_activations(policy, part))
            else:
                sides.append(row_gradients(policy, part, denominators[start:stop], temperature))
    both = torch.cat(sides)  # [B, K]
    return both[0::2] - both[1::2]


def _both_sides(policy: Policy, pairs: Sequence[Pair]) -> TokenRows:
    """Hack of pair p in row 2p, clean in row 2p + 1."""
    texts = []
    for pair in pairs:
        prompt = prompt_ids(pair, policy.tokenizer)
        texts += [(prompt, completion_ids(side, policy.tokenizer)) for side in (pair.hack, pair.clean)]
    return token_rows(texts, policy.device)


def subspaces(
    differences: Float[Tensor, "P K"],
    layout: KnobLayout,
    k: int,
    method: Method = "svd",
    drop_bottom_frac: float = 0.0,
) -> tuple[dict[str, Float[Tensor, "_ _"]], float]:
    """(rows of V per module [≤ k, r], noise floor): METHOD §2.

    svd:       first k right singular vectors of the module's D.
    mean_diff: the unit mean of D (k must be 1); its "singular value" is that mean's norm.
    Each row is flipped so that most pairs have D_p·v > 0 (a tie keeps the row whose largest entry is positive). The
    kept singular values of all modules are pooled, and rows under their `drop_bottom_frac` quantile are dropped.
    Raises ValueError if k does not fit the pairs or the adapter, or if nothing is left.
    """
    _check_request(differences, layout, k, method, drop_bottom_frac)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, part in layout.items():
        module = differences[:, part].double()
        if method == "svd":
            _, values, vectors = torch.linalg.svd(module, full_matrices=False)
            found[name] = values[:k], _oriented(vectors[:k], module)
        else:
            mean = module.mean(0)
            norm = mean.norm()
            found[name] = norm[None], _oriented((mean / norm.clamp_min(1e-300))[None], module)
    pooled = torch.cat([values for values, _ in found.values()])
    floor = max(float(pooled.quantile(drop_bottom_frac)), _ZERO_FRAC * float(pooled.max()))
    kept = {name: (values >= floor) & (values > 0) for name, (values, _) in found.items()}
    basis = {name: found[name][1][keep].float().contiguous() for name, keep in kept.items() if bool(keep.any())}
    if not basis:
        raise ValueError("the two sides of the pairs do not differ in any module; check that the two sides differ")
    return basis, floor


def _check_request(
    differences: Float[Tensor, "P K"], layout: KnobLayout, k: int, method: Method, drop_bottom_frac: float
) -> None:
    if not 1 <= k <= min(len(differences), *layout.sizes):
        raise ValueError(
            f"k = {k} rows cannot come from {len(differences)} pairs and modules of {min(layout.sizes)} knobs or more; "
            "use a smaller k, more pairs or a larger adapter rank"
        )
    if method == "mean_diff" and k != 1:
        raise ValueError(f"method mean_diff gives one row per module, not k = {k}; set k to 1 or use method svd")
    if not 0.0 <= drop_bottom_frac < 1.0:
        raise ValueError(f"drop_bottom_frac is {drop_bottom_frac}; it is a share, 0 (drop nothing) up to below 1")


def _oriented(rows: Float[Tensor, "k r"], differences: Float[Tensor, "P r"]) -> Float[Tensor, "k r"]:
    """Each row with the sign that most pairs agree with; a tie has its largest entry positive, whatever LAPACK gave."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = torch.where(largest < 0, -rows, rows)
    along = differences @ rows.T  # [P, k]
    flip = (along < 0).sum(0) > (along > 0).sum(0)
    return torch.where(flip[:, None], -rows, rows)


def extract(
    policy: Policy,
    pairs: Sequence[Pair],
    k: int,
    *,
    loss: ExtractionLoss = "nll",
    method: Method = "svd",
    drop_bottom_frac: float = 0.0,
    control: Control = "real",
    seed: int = 0,
    selection: str | None = None,
    temperature: float = 1.0,
) -> Direction:
    """The direction V of `pairs` (all of them: pass the train split) in the policy's present state, or a control of it.

    random:   Haar rows, as many per module as the real V has. shuffled: hack and clean swapped within a random half of
    the pairs; under `svd` this cannot move the subspace (D and its row-flipped copy have the same right singular
    vectors), only the orientation of the rows, so a two-sided arm is the same with it: use `mean_diff` for a shuffled
    control of that arm. nonhack, placebo, length: the same computation; the caller passes pairs of that family.
    `selection` names the pairs in the artifact (default: their families). Raises ValueError as `subspaces` does.
    """
    if not pairs:
        raise ValueError("no pairs to extract a direction from")
    if not policy.linear_in_knob and loss != "activation":
        raise ValueError(
            f"adapter.kind is {policy.kind}: its A moves, so a direction of its knobs does not keep its meaning; use "
            "spectral or fixed_a_lora, a direction of activations, or an arm without a direction"
        )
    differences = pair_differences(policy, pairs, loss=loss, temperature=temperature)
    if control == "shuffled":
        differences = differences * half_swapped(len(pairs), seed)[:, None]
    basis, floor = subspaces(differences, layout_of(policy, loss), k, method, drop_bottom_frac)
    if control == "random":
        basis = random_basis(basis, seed)
    metadata = DirectionMetadata(
        format_version=FORMAT_VERSION,
        **describe_policy(policy),
        pairs_hash=pairs_hash(pairs),
        selection=selection or "+".join(dict.fromkeys(pair.family for pair in pairs)),
        control=control,
        method=method,
        loss=loss,
        temperature=temperature,
        k=k,
        drop_bottom_frac=drop_bottom_frac,
        noise_floor=floor,
        seed=seed,
    )
    return Direction(basis, metadata, tuple(pairs))


def extract_again(policy: Policy, direction: Direction, number: int) -> Direction:
    """`direction` from its own pairs and in its own words, in the policy's present state: its refresh `number`, from 1.

    What is random in a control (rows of `random`, swapped labels of `shuffled`) is drawn anew for each number, so that
    the control moves, too; the draw is the same whenever it is made. ValueError for an artifact without pairs.
    """
    check_repeatable(direction)
    said = direction.metadata
    words: dict[str, Any] = {name: getattr(said, name) for name in ("loss", "method", "drop_bottom_frac", "control")}
    words |= {"selection": said.selection, "temperature": said.temperature}
    again = extract(policy, direction.pairs, said.k, seed=derive(said.seed, "refresh", number), **words)
    return again.to(next(iter(direction.basis.values())).device)


def check_repeatable(direction: Direction) -> None:
    """ValueError for an artifact without pairs."""
    if not direction.pairs:
        raise ValueError(
            "arm.refresh_every_steps is set, but the direction's artifact does not hold its pairs, as artifacts of "
            "earlier versions do not: extract it again (unhack direction extract)"
        )


def random_basis(like: dict[str, Float[Tensor, "_ _"]], seed: int) -> dict[str, Float[Tensor, "_ _"]]:
    """Haar-distributed orthonormal rows with the same modules and shapes as `like`."""
    return {
        name: haar_rows(rows.shape[0], rows.shape[1], generator(seed, "random_direction", name))
        for name, rows in like.items()
    }


def haar_rows(k: int, r: int, source: torch.Generator) -> Float[Tensor, "k r"]:
    """k orthonormal rows in r dimensions, uniform over all such frames (QR of a Gaussian, R's diagonal positive)."""
    q, upper = torch.linalg.qr(torch.randn(r, k, generator=source, dtype=torch.float64))
    signs = torch.where(torch.diagonal(upper) < 0, -1.0, 1.0)
    return (q * signs).T.float().contiguous()


def half_swapped(count: int, seed: int) -> Float[Tensor, " P"]:
    """−1 for a random half of the pairs, +1 for the others."""
    signs = torch.ones(count)
    signs[torch.randperm(count, generator=generator(seed, "shuffled"))[: count // 2]] = -1.0
    return signs
