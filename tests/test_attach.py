"""Arms inside a foreign training loop, through a real optimizer's hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from arms import LAYOUT, flat, make_arm, make_direction, zeros
from unhack.directions import alignment, project
from unhack.interventions import attach
from unhack.types import Update


def fresh_knobs() -> dict[str, Tensor]:
    return {name: torch.nn.Parameter(flat("start")[part].clone()) for name, part in LAYOUT.items()}


def joined(knobs: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([knobs[name].detach() for name in LAYOUT.names])


def step_with(knobs: dict[str, Tensor], optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    for name, part in LAYOUT.items():
        knobs[name].grad = gradient[part].clone()
    optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_attached_update_arm_erases_every_step_of_a_foreign_optimizer(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    direction = make_direction()
    plain, erased = fresh_knobs(), fresh_knobs()
    before = joined(erased)
    plain_optimizer, optimizer = make(plain.values(), lr=0.1), make(erased.values(), lr=0.1)
    with attach(make_arm("erase", direction), optimizer, erased) as attachment:
        for step in range(3):
            before = joined(erased)
            step_with(plain, plain_optimizer, flat("g", step))
            step_with(erased, optimizer, flat("g", step))
            moved = joined(erased) - before
            assert alignment(direction, LAYOUT, moved, site="update").abs_cos < 1e-5
            assert attachment.metrics["update/hackward_in"] > 0
    assert torch.equal(erased["untouched"], plain["untouched"])
    step_with(erased, optimizer, flat("g", 5))
    free = make_arm("measure", direction).update(Update(joined(erased) - before, zeros()))
    assert free.metrics["update/abs_cos_v"] > 1e-3  # unhooked at the end of the block


def test_attached_gradient_arm_hands_the_optimizer_the_projected_gradient() -> None:
    direction, knobs = make_direction(), fresh_knobs()
    optimizer = torch.optim.SGD(knobs.values(), lr=0.5)
    attach(make_arm("erase", direction, site="gradient", sided="one"), optimizer, knobs)
    step_with(knobs, optimizer, flat("g"))
    kept = project(direction, LAYOUT, flat("g"), site="gradient", sided="one").kept
    torch.testing.assert_close(joined(knobs), flat("start") - 0.5 * kept)


def test_attached_route_needs_and_fills_the_quarantine() -> None:
    knobs, quarantine = fresh_knobs(), {name: torch.nn.Parameter(k.detach() * 0) for name, k in fresh_knobs().items()}
    optimizer = torch.optim.SGD([*knobs.values(), *quarantine.values()], lr=1.0)
    arm = make_arm("route", site="gradient")
    with pytest.raises(ValueError, match="trains the quarantine"):
        attach(arm, optimizer, knobs)
    attach(arm, optimizer, knobs, quarantine)
    step_with(knobs, optimizer, flat("g"))
    torch.testing.assert_close(joined(knobs) + joined(quarantine), flat("start") - flat("g"))
    assert joined(quarantine).any()


def test_attach_refuses_foreign_or_misshapen_parameters() -> None:
    knobs = fresh_knobs()
    optimizer = torch.optim.SGD(knobs.values(), lr=1.0)
    with pytest.raises(ValueError, match="does not step"):
        attach(make_arm("vanilla"), optimizer, fresh_knobs())
    with pytest.raises(ValueError, match="differ at module second"):
        attach(make_arm("vanilla"), optimizer, {name: knobs[name] for name in ("first", "untouched")})
    with pytest.raises(ValueError, match="has 5 elements, not 8"):
        attach(make_arm("vanilla"), optimizer, {**knobs, "first": knobs["untouched"]})
