"""A frozen model with its adapters: owns the knobs, switches blocks, collects gradients, saves and loads.

    theta = (main, quarantine), two flat float32 vectors [K] in the order of `layout`

Deployed model: quarantine off. KL reference: both off, which is the base model bit for bit, so no second model is held.
Merged weights are rebuilt lazily: changing the knobs only forgets them, switching blocks back and forth does not.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from unhack.adapters.block_init import load_statistics
from unhack.adapters.kinds import builder
from unhack.adapters.linear import AdaptedLinear
from unhack.adapters.svd_cache import content_hash, write_tensors
from unhack.config import AdapterConfig
from unhack.model import LoadedModel
from unhack.types import KnobLayout, Mask, Update

WRAPPED = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj")
"""Last part of the names of the linear layers that are wrapped, besides `in_proj*` and `out_proj`."""

FORMAT = "unhack-knobs-2"

Setting = tuple[bool, bool]
"""(main on, quarantine on)."""

LEARNS: Mapping[Mask, Setting] = {"keep": (True, False), "absorb": (True, True), "route": (False, True)}
"""Which blocks get a gradient under a mask."""


def wrapped_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The attention and MLP linear layers of `model` by name, in module order; never embeddings or the head.

    Raises:
        ValueError: the model has none, or holds an adapter already.
    """
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
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
    """Knob gradients of the backwards that ran since the taps were opened (see `Policy.knob_gradient`).

    A block that does not learn under the mask has gradient zero. Where the blocks enter the model only through their
    sum (`spectral`, `fixed_a_lora`), both have the same gradient.
    """

    def __init__(self, taps: tuple[Tensor, ...], learns: Setting) -> None:
        self._taps, self._learns = taps, learns

    def rows(self, quarantine: bool = False) -> Float[Tensor, "rows K"]:
        """dL/dmain (or dL/dquarantine) of each rollout when opened with `rollouts=B`, else one row for the batch."""
        block = int(quarantine)
        parts = [torch.zeros_like(tap) if tap.grad is None else tap.grad for tap in self._taps]
        rows = torch.cat([part if part.dim() == 2 else part[:, block] for part in parts], dim=1)
        return rows if self._learns[block] else torch.zeros_like(rows)

    def total(self, quarantine: bool = False) -> Float[Tensor, " K"]:
        """dL/dmain (or dL/dquarantine), summed over rows."""
        return self.rows(quarantine).sum(0)

    def clear(self) -> None:
        """Forget what was collected; later backwards start from zero."""
        for tap in self._taps:
            tap.grad = None


class Policy:
    """A causal language model whose attention and MLP layers carry knobs, of whatever kind.

    Attributes: `model` (the wrapped HF model, frozen), `tokenizer`, `layout` (where each module's knobs lie),
    `main` and `quarantine` (flat float32 [K] on the model's device; change them by `apply` or `set_knobs` only),
    `modules` (name → adapted layer), `model_hash`, `basis_hash`, `kind`, `rank`, `statistics_hash` (of the input
    statistics that the adapters started from, None without). `basis_hash` covers the kind, every
    wrapped weight and every frozen tensor beside it (U and Vh; A; initial A and B): knobs and directions mean something
    else in another basis of the same weight. Knobs are displacements: at zero every kind is the base model.
    """

    def __init__(self, loaded: LoadedModel, config: AdapterConfig, modules: Mapping[str, AdaptedLinear]) -> None:
        self.model, self.tokenizer, self.model_hash = loaded.model, loaded.tokenizer, loaded.hash
        self.config, self.kind, self.rank = config, config.kind, config.rank
        self.modules = dict(modules)
        self._like = next(iter(modules.values()))  # all are of one kind
        self.layout = KnobLayout(tuple(modules), tuple(module.size for module in modules.values()))
        self.weight_hashes = {name: content_hash(module.base_weight) for name, module in modules.items()}
        self.basis_hashes = {name: [content_hash(part) for part in module.basis] for name, module in modules.items()}
        described = json.dumps([self.kind, self.weight_hashes, self.basis_hashes])
        self.basis_hash = hashlib.sha256(described.encode()).hexdigest()
        path = config.statistics
        self.statistics_hash = None if path is None else load_statistics(Path(path), loaded.hash).content_hash
        device = self._like.base_weight.device
        self._main = torch.zeros(self.layout.total, device=device)
        self._quarantine = torch.zeros(self.layout.total, device=device)
        self._setting: Setting = (True, True)
        self._merged: dict[Setting, list[Tensor | None]] = {}

    @classmethod
    def wrap(cls, loaded: LoadedModel, config: AdapterConfig) -> Policy:
        """Replace the attention and MLP linear layers of `loaded.model` (in place) by adapted ones, knobs at zero.

        `config.computation`: `auto` is `merged`. Sampling needs W_eff anyway, and with it built a merged backward never
        takes more multiplications than the factored one (each kind counts); benchmarks/adapter.py measures both.

        Raises:
            ValueError: nothing to wrap, wrapped before, settings that the kind cannot work with, or a rank that does
                not fit a layer.
        """
        linears = wrapped_linears(loaded.model)
        make = builder(config, loaded.hash)
        modules = {name: make(name, linear) for name, linear in linears.items()}  # all, before the model is changed
        for name, module in modules.items():
            loaded.model.set_submodule(name, module)
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
    def bottleneck_layout(self) -> KnobLayout:
        """Where each module's bottleneck activations lie in the flat vector of `adapters.bottleneck`."""
        sizes = tuple(module.bottleneck.shape[0] for module in self.modules.values())
        return KnobLayout(tuple(self.modules), sizes)

    @property
    def linear_in_knob(self) -> bool:
        """Whether weights are linear in the knobs: only then does a direction of knobs keep its meaning."""
        return self._like.linear_in_knob

    @property
    def device(self) -> torch.device:
        """Where the knobs and the model are."""
        return self._main.device

    @torch.no_grad()
    def set_knobs(self, main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]) -> None:
        """Copy in new values for both blocks and forget all merged weights."""
        assert self._like.through is None, "knobs cannot change under the mask route"
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
        knobs = self._like.combine(self._main * float(main_on), self._quarantine * float(quarantine_on))
        merged = self._merged.get(self._setting)
        for index, (name, piece) in enumerate(self.layout.items()):
            module = self.modules[name]
            module.knob = knobs[..., piece] if bool(knobs[..., piece].any()) else None
            module.merged = merged[index] if merged is not None else None

    @contextmanager
    def knob_gradient(self, rollouts: int | None = None, mask: Mask | None = None) -> Iterator[GradientTaps]:
        """Collect dL/dknob of every backward of a forward made inside.

        With `rollouts=B` each row of the batch is collected by itself ([B, K], summing to the total); every forward
        inside must then have B rows. Costs two more products per layer, so ask only when it is needed.
        `mask` holds for every forward inside (rollouts of other masks go into other batches); None: the blocks as they
        are, both learn. `route` keeps a second set of merged weights, W + Δ(quarantine), by which gradients go on.

            with policy.knob_gradient() as taps:
                loss(policy.model).backward()
            gradient = taps.total()
        """
        modules = list(self.modules.values())
        rows = 1 if rollouts is None else rollouts
        taps = tuple(torch.zeros(m.tap_shape(rows), device=self.device, requires_grad=True) for m in modules)
        for module, tap in zip(modules, taps, strict=True):
            assert module.tap is None, "knob_gradient is already open"
            module.tap = tap
        try:
            with nullcontext() if mask is None else self._masked(mask):
                yield GradientTaps(taps, (True, True) if mask is None else LEARNS[mask])
        finally:
            for module in modules:
                module.tap = None

    @contextmanager
    def _masked(self, mask: Mask) -> Iterator[None]:
        through: list[Tensor | None] = [None] * len(self.modules)
        if mask == "route":
            with self.blocks(main=False, quarantine=True):
                # detached: at zero it is the base's own parameter, which assigning would register a second time
                through = [module.weight.detach() for module in self.modules.values()]
        # A quarantine at zero is absent already: no second set of merged weights for arms that never train it.
        present = mask != "keep" or not bool(self._quarantine.any())
        with nullcontext() if self._setting == (True, present) else self.blocks(main=True, quarantine=present):
            self._pass_through(through)
            try:
                yield
            finally:
                self._pass_through([None] * len(through))

    def _pass_through(self, weights: list[Tensor | None]) -> None:
        for module, weight in zip(self.modules.values(), weights, strict=True):
            module.through = weight

    def save(self, folder: Path) -> None:
        """Write knobs.safetensors with the adapter's kind, rank and the hashes of every wrapped weight and basis."""
        metadata = {
            "format": FORMAT,
            "kind": self.kind,
            "rank": json.dumps(self.rank),
            "weights": json.dumps(self.weight_hashes),
            "bases": json.dumps(self.basis_hashes),
            **self._settings(),
        }
        tensors = {"main": self._main.cpu(), "quarantine": self._quarantine.cpu()}
        write_tensors(folder / "knobs.safetensors", tensors, metadata)

    def load(self, folder: Path) -> None:
        """Take up the knobs that `read` gives."""
        self.set_knobs(*self.read(folder))

    def read(self, folder: Path) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """(main, quarantine), on the CPU, that were saved over the same base weights in the same basis.

        Raises:
            ValueError: another format, kind, rank, base weight or basis; names the field, or the module that differs.
        """
        path = folder / "knobs.safetensors"
        if not path.exists():
            raise ValueError(f"no adapter at {path}: give the folder that Policy.save wrote")
        with safe_open(path, framework="pt") as file:
            self._check_metadata(path, file.metadata() or {})
            return file.get_tensor("main"), file.get_tensor("quarantine")

    def _settings(self) -> dict[str, str]:
        return {name: json.dumps(getattr(self.config, name)) for name in self._like.settings}

    def _check_metadata(self, path: Path, metadata: dict[str, str]) -> None:
        wanted = {"format": FORMAT, "kind": self.kind, "rank": json.dumps(self.rank), **self._settings()}
        for key, mine in wanted.items():
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
                    f"{path}: the {self._like.basis_name} of {name} is not the one it was trained in "
                    f"({self._like.basis_cure})"
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
