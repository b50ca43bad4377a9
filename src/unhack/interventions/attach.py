"""Run an arm inside a foreign training loop, through the optimizer's own hooks (ENGINEERING, decision 1).

The gradient hook runs first in `optimizer.step()` (`register_step_pre_hook`), after whatever clipping the loop did
before; the update hook runs after the step (`register_step_post_hook`) and replaces the delta that the optimizer has
just applied. Only `gradient` and `update` act here: rewards, prompts and deployment are the foreign loop's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.interventions.base import Intervention
from unhack.types import Gradient, Update


class Attachment:
    """An arm hooked into one optimizer; `metrics` holds the last step's, `remove()` (or `with`) unhooks it."""

    def __init__(
        self,
        arm: Intervention,
        optimizer: torch.optim.Optimizer,
        main: Mapping[str, Tensor],
        quarantine: Mapping[str, Tensor] | None,
    ) -> None:
        self.arm = arm
        self.metrics: dict[str, float] = {}
        if type(arm).blocks is not Intervention.blocks:
            raise ValueError(
                f"arm '{arm.name}' decides for every rollout which block learns from it, which a foreign loop does not "
                "ask: run it with `unhack train`"
            )
        self._main = _ordered(arm, main, "main")
        self._quarantine = None if quarantine is None else _ordered(arm, quarantine, "quarantine")
        if self._quarantine is None and arm.trains_quarantine:
            raise ValueError(f"arm '{arm.name}' trains the quarantine; pass attach(..., quarantine=) its parameters")
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(id(parameter) not in stepped for parameter in [*self._main, *(self._quarantine or [])]):
            raise ValueError("attach() was given parameters that this optimizer does not step; pass its own knobs")
        self._before: tuple[Tensor, Tensor] | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Unhook the arm from the optimizer."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Attachment:
        """Use as `with attach(...)`: unhooked at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unhook."""
        self.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradient = self.arm.gradient(Gradient(_flat_gradient(self._main), self._flat_quarantine_gradient()))
        _write_gradient(self._main, gradient.main)
        if self._quarantine is not None:
            _write_gradient(self._quarantine, gradient.quarantine)
        self.metrics = dict(gradient.metrics)
        self._before = (_flat(self._main), self._flat_quarantine())

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        assert self._before is not None, "the pre-step hook runs first"
        main, quarantine = self._before
        proposed = Update(_flat(self._main) - main, self._flat_quarantine() - quarantine)
        update = self.arm.update(proposed)
        if not torch.equal(update.main, proposed.main):
            _write(self._main, main + update.main)
        if self._quarantine is not None and not torch.equal(update.quarantine, proposed.quarantine):
            _write(self._quarantine, quarantine + update.quarantine)
        self.metrics |= update.metrics

    def _flat_quarantine(self) -> Float[Tensor, " K"]:
        return torch.zeros_like(_flat(self._main)) if self._quarantine is None else _flat(self._quarantine)

    def _flat_quarantine_gradient(self) -> Float[Tensor, " K"]:
        if self._quarantine is None:
            return torch.zeros_like(_flat(self._main))
        return _flat_gradient(self._quarantine)


def attach(
    arm: Intervention,
    optimizer: torch.optim.Optimizer,
    main: Mapping[str, Tensor],
    quarantine: Mapping[str, Tensor] | None = None,
) -> Attachment:
    """Hook `arm` into `optimizer`.

    `main`, `quarantine`: module name of the arm's layout -> its knob parameter (any shape with that many elements).
    Raises ValueError if a module is missing, has another size, or is not stepped by this optimizer.
    """
    return Attachment(arm, optimizer, main, quarantine)


def _ordered(arm: Intervention, parameters: Mapping[str, Tensor], block: str) -> list[Tensor]:
    if set(parameters) != set(arm.layout.names):
        wrong = sorted(set(parameters) ^ set(arm.layout.names))[0]
        raise ValueError(f"attach(): the {block} parameters and the arm's layout differ at module {wrong}")
    for name, size in zip(arm.layout.names, arm.layout.sizes, strict=True):
        if parameters[name].numel() != size:
            raise ValueError(f"attach(): {block} parameter {name} has {parameters[name].numel()} elements, not {size}")
    return [parameters[name] for name in arm.layout.names]


def _flat(parameters: list[Tensor]) -> Float[Tensor, " K"]:
    return torch.cat([parameter.detach().flatten().float() for parameter in parameters])


def _flat_gradient(parameters: list[Tensor]) -> Float[Tensor, " K"]:
    """All gradients in layout order; a parameter without one counts as zero."""
    zeroed = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.detach().flatten().float() for gradient in zeroed])


def _write(parameters: list[Tensor], flat: Float[Tensor, " K"]) -> None:
    with torch.no_grad():
        for parameter, values in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.copy_(values.view_as(parameter))


def _write_gradient(parameters: list[Tensor], flat: Float[Tensor, " K"]) -> None:
    for parameter, values in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(values.view_as(parameter))
        elif bool(values.any()):
            parameter.grad = values.view_as(parameter).to(parameter).clone()
