"""Coefficients, projections and cosines of flat knob vectors against a direction (METHOD §3).

Sign. V is a direction of **NLL gradients**, hack minus clean. The optimizer steps against the gradient, so a positive
component of a gradient along V moves the parameters along −V and lowers the hack's NLL relative to the clean one's:
at the site `gradient`, positive = hackward. A parameter delta is the other way round: at the site `update` the
negative component along V is hackward, and cos(update, V) > 0 means moving along +V, away from the hack.

All arithmetic is in float64: an erased update must have no component along V down to the rounding of its own storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unhack.directions.artifact import Direction
from unhack.types import KnobLayout

Site: TypeAlias = Literal["gradient", "update"]
Sided: TypeAlias = Literal["one", "two", "reverse"]

FIRED_THRESHOLD = 1e-6
_HACKWARD_SIGN: dict[Site, float] = {"gradient": 1.0, "update": -1.0}


@dataclass(frozen=True)
class Projection:
    """`kept` = g' (or δ'), `removed` = overshoot · Vᵀ c_use; without norm preservation kept + removed is the input."""

    kept: Float[Tensor, " K"]
    removed: Float[Tensor, " K"]


@dataclass(frozen=True)
class Alignment:
    """How one flat vector lies to a direction; means run over the direction's modules, zero vectors count as 0.

    hackward_frac: mean ‖relu(±c)‖ / ‖g‖, the one-sided fraction (+ at `gradient`, − at `update`).
    fired_frac:    share of modules whose one-sided fraction exceeds 1e-6.
    cos:           mean of `signed_cosine`, + along +V at either site.
    abs_cos:       max over modules of ‖V g‖ / ‖g‖.
    """

    hackward_frac: float
    fired_frac: float
    cos: float
    abs_cos: float


def shared_variance(first: Direction, second: Direction) -> tuple[float, float]:
    """(overlap of two subspaces, overlap expected of a random one), means over the modules that both have.

    Per module ‖V₁ V₂ᵀ‖²_F / min(k₁, k₂): mean squared cosine of the principal angles, 1 when one contains the other;
    for a Haar-random subspace of r dimensions max(k₁, k₂) / r is expected. The orientation of rows does not matter.
    Raises ValueError for directions of different bases, or without a module in common.
    """
    if first.metadata.basis != second.metadata.basis:
        raise ValueError("the directions were made in different bases: extract both for one model and adapter")
    second.check_side(first.side)
    overlaps, expected = [], []
    for name in first.basis.keys() & second.basis.keys():
        one, other = first.basis[name].double(), second.basis[name].double()
        overlaps.append(float((one @ other.T).square().sum()) / min(len(one), len(other)))
        expected.append(max(len(one), len(other)) / one.shape[1])
    if not overlaps:
        raise ValueError("the directions have no module in common")
    return sum(overlaps) / len(overlaps), sum(expected) / len(expected)


def coefficients(direction: Direction, layout: KnobLayout, flat: Float[Tensor, " K"]) -> dict[str, Float[Tensor, " _"]]:
    """c = V g of every module of the direction: module name -> [k], float64."""
    wide = flat.double()
    return {name: rows @ wide[part] for name, rows, part in _modules(direction, layout)}


def coefficients_of_rows(
    direction: Direction, layout: KnobLayout, rows: Float[Tensor, "B K"]
) -> Iterator[tuple[Float[Tensor, "B _"], Float[Tensor, " B"]]]:
    """(c = V g of every row, ‖g‖ of every row) module by module, float64, over the direction's modules."""
    for _, basis, part in _modules(direction, layout):
        wide = rows[:, part].double()
        yield wide @ basis.T, wide.norm(dim=1)


def lift(direction: Direction, layout: KnobLayout, weights: Mapping[str, Float[Tensor, " _"]]) -> Float[Tensor, " K"]:
    """Vᵀ c of every module as one flat float32 vector, zero where the direction has no rows: the adjoint of V g."""
    device = next(iter(direction.basis.values())).device
    flat = torch.zeros(layout.total, device=device)
    for name, rows, part in _modules(direction, layout):
        flat[part] = (rows.T @ weights[name].to(rows)).float()
    return flat


def project(
    direction: Direction,
    layout: KnobLayout,
    flat: Float[Tensor, " K"],
    *,
    site: Site,
    sided: Sided,
    overshoot: float = 1.0,
    preserve_norm: bool = False,
) -> Projection:
    """Split a gradient or an update into what stays and what is removed along V, module by module (METHOD §3).

    c = V g; c_use = the hackward half of c (`one`), c (`two`), 2c (`reverse`);
    removed = overshoot · Vᵀ c_use; kept = g − removed, with `preserve_norm` times ‖g‖ / ‖g − removed‖ per module.
    A module without rows, or with nothing to remove, passes bit for bit.
    """
    kept, removed, wide = flat.clone(), torch.zeros_like(flat), flat.double()
    for _, rows, part in _modules(direction, layout):
        vector = wide[part]
        taken = overshoot * (rows.T @ _used(rows @ vector, site, sided))
        rest = vector - taken
        if preserve_norm:
            rest_norm = rest.norm()
            rest = torch.where(rest_norm > 0, rest * (vector.norm() / rest_norm), rest)
        kept[part], removed[part] = rest.to(flat.dtype), taken.to(flat.dtype)
    return Projection(kept, removed)


def signed_cosine(c: Float[Tensor, "*batch k"], norm: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """(‖relu(c)‖ − ‖relu(−c)‖) / ‖g‖ for c = V g: in [−1, 1], 0 for a zero vector.

    For k = 1 it is the ordinary cosine v·g / ‖g‖; for any k it is the cosine to the span of V when all rows agree in
    sign, and one-sided fraction along +V minus one-sided fraction along −V in general.
    """
    difference = c.relu().norm(dim=-1) - (-c).relu().norm(dim=-1)
    return torch.where(norm > 0, difference / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))


def alignment(direction: Direction, layout: KnobLayout, flat: Float[Tensor, " K"], *, site: Site) -> Alignment:
    """Summarise how `flat` lies to the direction (see `Alignment`); `site` fixes which sign is hackward."""
    wide = flat.double()
    pieces = [(rows @ wide[part], wide[part].norm()) for _, rows, part in _modules(direction, layout)]
    c = pad_sequence([piece for piece, _ in pieces], batch_first=True)  # [modules, k]; zeros change no norm
    norm = torch.stack([piece for _, piece in pieces])
    safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
    hackward = (_HACKWARD_SIGN[site] * c).relu().norm(dim=1) / safe
    return Alignment(
        hackward_frac=float(hackward.mean()),
        fired_frac=float((hackward > FIRED_THRESHOLD).double().mean()),
        cos=float(signed_cosine(c, norm).mean()),
        abs_cos=float((c.norm(dim=1) / safe).max()),
    )


def _used(c: Float[Tensor, " k"], site: Site, sided: Sided) -> Float[Tensor, " k"]:
    """c_use: which part of the coefficients is removed."""
    if sided == "one":
        sign = _HACKWARD_SIGN[site]
        return sign * (sign * c).relu()
    return c if sided == "two" else 2.0 * c


def _modules(direction: Direction, layout: KnobLayout) -> Iterator[tuple[str, Float[Tensor, "_ _"], slice]]:
    """(module name, its rows in float64, its slice), over the direction's modules in the layout's order."""
    for name, part in layout.items():
        rows = direction.basis.get(name)
        if rows is not None:
            assert rows.shape[1] == part.stop - part.start, f"{name}: call Direction.check_layout first"
            yield name, rows.double(), part
