"""A frozen model with its adapters: owns the knobs, switches blocks, collects gradients, saves and loads.

    theta = (main, quarantine), two flat float32 vectors [K] in the order of `layout`

Deployed model: quarantine off. KL reference: both off, which is the base model bit for bit, so no second model is held.
Merged weights are rebuilt lazily: changing the knobs only forgets them, switching blocks back and forth does not.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from unhack.adapters.spectral import SpectralLinear
from unhack.adapters.svd_cache import SingularBasis, cached_decomposition, content_hash, write_tensors
from unhack.config import AdapterConfig
from unhack.model import LoadedModel
from unhack.types import KnobLayout, Update

WRAPPED = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj")
"""Last part of the names of the linear layers that are wrapped, besides `in_proj*` and `out_proj`."""

FORMAT = "unhack-knobs-2"

Setting = tuple[bool, bool]
"""(main on, quarantine on)."""


def wrapped_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The attention and MLP linear layers of `model` by name, in module order; never embeddings or the head.

    Raises:
        ValueError: the model has none, or holds an adapter already.
    """
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, SpectralLinear):
            raise ValueError(f"{name} is already wrapped: load the model afresh to wrap it again")
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and (last in WRAPPED or last.startswith("in_proj") or last == "out_proj"):
            found[name] = module
    if not found:
        raise ValueError(
            f"no linear layer to adapt in {type(model).__name__}: expected nn.Linear modules named like "
            f"{', '.join(WRAPPED)}, in_proj* or out_proj"
        )
    return found


class GradientTaps:
    """Knob gradients of the backwards that ran since the taps were opened (see `Policy.knob_gradient`)."""

    def __init__(self, taps: tuple[Tensor, ...]) -> None:
        self._taps = taps

    def rows(self) -> Float[Tensor, "rows K"]:
        """dL/dknob of each row: of each rollout when opened with `rollouts=B`, else one row for the whole batch."""
        return torch.cat([torch.zeros_like(t) if t.grad is None else t.grad for t in self._taps], dim=1)

    def total(self) -> Float[Tensor, " K"]:
        """dL/dknob summed over rows; the same vector is the gradient of `main` and of `quarantine`."""
        return self.rows().sum(0)

    def clear(self) -> None:
        """Forget what was collected; later backwards start from zero."""
        for tap in self._taps:
            tap.grad = None


class Policy:
    """A causal language model whose attention and MLP layers carry spectral knobs.

    Attributes: `model` (the wrapped HF model, frozen), `tokenizer`, `layout` (where each module's knobs lie),
    `main` and `quarantine` (flat float32 [K] on the model's device; change them by `apply` or `set_knobs` only),
    `modules` (name → SpectralLinear), `model_hash`, `basis_hash`, `kind`, `rank`. `basis_hash` covers the kind, every
    wrapped weight and every U and Vh: knobs and directions mean something else in another basis of the same weight.
    """

    def __init__(self, loaded: LoadedModel, config: AdapterConfig, modules: dict[str, SpectralLinear]) -> None:
        self.model, self.tokenizer, self.model_hash = loaded.model, loaded.tokenizer, loaded.hash
        self.config, self.kind, self.rank = config, config.kind, config.rank
        self.modules = modules
        self.layout = KnobLayout(tuple(modules), tuple(module.rank for module in modules.values()))
        self.weight_hashes = {name: content_hash(module.base_weight) for name, module in modules.items()}
        self.basis_hashes = {name: [content_hash(part) for part in module.basis] for name, module in modules.items()}
        described = json.dumps([self.kind, self.weight_hashes, self.basis_hashes])
        self.basis_hash = hashlib.sha256(described.encode()).hexdigest()
        device = next(iter(modules.values())).base_weight.device
        self._main = torch.zeros(self.layout.total, device=device)
        self._quarantine = torch.zeros(self.layout.total, device=device)
        self._setting: Setting = (True, True)
        self._merged: dict[Setting, list[Tensor | None]] = {}

    @classmethod
    def wrap(cls, loaded: LoadedModel, config: AdapterConfig) -> Policy:
        """Replace the attention and MLP linear layers of `loaded.model` (in place) by adapted ones, knobs at zero.

        `config.computation`: `auto` is `merged`. Sampling needs W_eff anyway, and with it built a merged backward never
        takes more multiplications than the factored one (`spectral.py`); benchmarks/adapter.py measures both.

        Raises:
            ValueError: nothing to wrap, wrapped before, or a rank below 1.
        """
        if config.rank is not None and config.rank < 1:
            raise ValueError(f"adapter.rank is {config.rank}: give at least 1, or leave it out for full rank")
        modules: dict[str, SpectralLinear] = {}
        for name, linear in wrapped_linears(loaded.model).items():
            u, _, vh = cached_decomposition(linear.weight)
            basis = SingularBasis(u[:, : config.rank].contiguous(), vh[: config.rank].contiguous())
            modules[name] = SpectralLinear(linear, basis, factored=config.computation == "factored")
            loaded.model.set_submodule(name, modules[name])
        loaded.model.requires_grad_(False)
        return cls(loaded, config, modules)

    @property
    def main(self) -> Float[Tensor, " K"]:
        """Knobs of the deployed block."""
        return self._main

    @property
    def quarantine(self) -> Float[Tensor, " K"]:
        """Knobs of the block that deployment leaves out."""
        return self._quarantine

    @property
    def device(self) -> torch.device:
        """Where the knobs and the model are."""
        return self._main.device

    @torch.no_grad()
    def set_knobs(self, main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]) -> None:
        """Copy in new values for both blocks and forget all merged weights."""
        self._main = main.detach().to(self.device, torch.float32, copy=True)
        self._quarantine = quarantine.detach().to(self.device, torch.float32, copy=True)
        self._merged.clear()
        self._activate()

    def apply(self, update: Update) -> None:
        """Add an update to both blocks."""
        self.set_knobs(self._main + update.main, self._quarantine + update.quarantine)

    @contextmanager
    def blocks(self, main: bool, quarantine: bool) -> Iterator[None]:
        """Run the model with only these blocks: reference = (False, False), deployed = (True, False).

        The knobs themselves are untouched, and the setting before is restored. New knobs may be set inside.
        """
        before = self._setting
        self._switch((main, quarantine))
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, setting: Setting) -> None:
        self._merged[self._setting] = [module.merged for module in self.modules.values()]
        self._setting = setting
        self._activate()

    @torch.no_grad()
    def _activate(self) -> None:
        """Hand each module its knobs and its merged weight (if built) under the present setting."""
        main_on, quarantine_on = self._setting
        knobs = self._main * float(main_on) + self._quarantine * float(quarantine_on)
        merged = self._merged.get(self._setting)
        for index, (name, piece) in enumerate(self.layout.items()):
            module = self.modules[name]
            module.knob = knobs[piece] if bool(knobs[piece].any()) else None
            module.merged = merged[index] if merged is not None else None

    @contextmanager
    def knob_gradient(self, rollouts: int | None = None) -> Iterator[GradientTaps]:
        """Collect dL/dknob of every backward of a forward made inside.

        With `rollouts=B` each row of the batch is collected by itself ([B, K], summing to the total); every forward
        inside must then have B rows. Costs two more products per layer, so ask only when it is needed.

            with policy.knob_gradient() as taps:
                loss(policy.model).backward()
            gradient = taps.total()
        """
        rows = 1 if rollouts is None else rollouts
        taps = tuple(torch.zeros(rows, m.rank, device=self.device, requires_grad=True) for m in self.modules.values())
        for module, tap in zip(self.modules.values(), taps, strict=True):
            assert module.tap is None, "knob_gradient is already open"
            module.tap = tap
        try:
            yield GradientTaps(taps)
        finally:
            for module in self.modules.values():
                module.tap = None

    def save(self, folder: Path) -> None:
        """Write knobs.safetensors with the adapter's kind, rank and the hashes of every wrapped weight and basis."""
        metadata = {
            "format": FORMAT,
            "kind": self.kind,
            "rank": json.dumps(self.rank),
            "weights": json.dumps(self.weight_hashes),
            "bases": json.dumps(self.basis_hashes),
        }
        tensors = {"main": self._main.cpu(), "quarantine": self._quarantine.cpu()}
        write_tensors(folder / "knobs.safetensors", tensors, metadata)

    def load(self, folder: Path) -> None:
        """Read knobs that were saved over the same base weights in the same basis.

        Raises:
            ValueError: another format, kind, rank, base weight or basis; names the field, or the module that differs.
        """
        path = folder / "knobs.safetensors"
        if not path.exists():
            raise ValueError(f"no adapter at {path}: give the folder that Policy.save wrote")
        with safe_open(path, framework="pt") as file:
            self._check_metadata(path, file.metadata() or {})
            self.set_knobs(file.get_tensor("main"), file.get_tensor("quarantine"))

    def _check_metadata(self, path: Path, metadata: dict[str, str]) -> None:
        for key, mine in (("format", FORMAT), ("kind", self.kind), ("rank", json.dumps(self.rank))):
            if metadata.get(key) != mine:
                raise ValueError(f"{path}: {key} is {metadata.get(key)}, this policy's is {mine}: wrap with the same")
        weights: dict[str, Any] = json.loads(metadata["weights"])
        for name in dict.fromkeys([*weights, *self.weight_hashes]):
            if weights.get(name) != self.weight_hashes.get(name):
                raise ValueError(f"{path}: the base weight of {name} is not the one it was trained on: load that model")
        bases: dict[str, Any] = json.loads(metadata["bases"])
        for name, mine in self.basis_hashes.items():
            if bases[name] != mine:
                raise ValueError(
                    f"{path}: the singular basis of {name} is not the one it was trained in (another machine or LAPACK "
                    "gives other vectors for nearly equal singular values): use the $UNHACK_CACHE of that machine"
                )

    @torch.no_grad()
    def deployed_model(self) -> nn.Module:
        """A plain copy of the model with `main` merged into ordinary `nn.Linear` layers; this policy is untouched."""
        replaced: dict[int, Any] = {}
        with self.blocks(main=True, quarantine=False):
            for module in self.modules.values():
                linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
                linear.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
                if module.bias is not None:
                    linear.bias = nn.Parameter(module.bias.clone(), requires_grad=False)
                replaced[id(module)] = linear.eval()
        return copy.deepcopy(self.model, replaced)  # the memo swaps each adapted layer for its plain one
