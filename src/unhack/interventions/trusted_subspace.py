"""trusted_subspace: let the policy move only as a clean run moved, to the top-K output directions of its delta.

Source: TDGA, trusted-direction projection (Directional Alignment Mitigates Reward Hacking, 2026, arXiv:2605.25189);
METHOD §4. There the gradient is projected; here it is the update that Adam proposes, so that nothing outside of the
subspace is ever applied.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.adapters.output_directions import random_projection, top_projection
from unhack.interventions.base import Intervention
from unhack.types import Update


class TrustedSubspace(Intervention):
    """ΔW' = U_K U_Kᵀ ΔW per module, U_K = top-K left singular vectors of ΔW_clean, the delta of a finished clean run.

    In knobs:  spectral      ΔW_clean = U diag(d) Vh has U's columns as left singular vectors, in the order of |d|, so
                             δ'_i = δ_i for the K coordinates with the largest |d_i|, else 0.
               fixed_a_lora  ΔW_clean = B_clean A, and A has orthonormal rows, so U_K is B_clean's: δB' = U_K U_Kᵀ δB.
    `arm.preserve_norm`: δ' *= ‖δ‖ / ‖δ'‖ per module, because the plain form also shrinks the step (update/kept_frac is
    ‖δ'‖ / ‖δ‖ before that). `arm.trusted_control = "random"` draws the K coordinates (or a Haar frame) from the seed.
    Identity: an update that lies in the subspace; with spectral knobs every one does when K is the rank.
    """

    name = "trusted_subspace"
    uses = frozenset({"trusted_adapter", "trusted_k", "trusted_control", "preserve_norm"})
    linear_knobs_only = True

    def bind(self, policy: Policy) -> None:
        """Read the clean run's adapter, which must be of this model, kind and basis, and choose the directions."""
        assert self.config.trusted_adapter is not None, "arm_class asks for one"
        clean, _ = policy.read(Path(self.config.trusted_adapter))
        self._hash = hashlib.sha256(clean.cpu().numpy().tobytes()).hexdigest()
        k, randomly = self.config.trusted_k, self.config.trusted_control == "random"
        self._projections = {
            name: random_projection(policy.modules[name], name, k, self.seed)
            if randomly
            else top_projection(policy.modules[name], name, clean[part].to(policy.device), k)
            for name, part in self.layout.items()
        }

    @property
    def inputs_hash(self) -> str | None:
        """Hash of the clean run's knobs."""
        return self._hash

    def update(self, update: Update) -> Update:
        """The projected delta of `main`."""
        changed: list[Float[Tensor, " _"]] = []
        kept_frac: list[float] = []
        for name, part in self.layout.items():
            delta = update.main[part]
            kept, norm = self._projections[name](delta), float(delta.norm())
            kept_norm = float(kept.norm())
            if norm > 0:
                kept_frac.append(kept_norm / norm)
            changed.append(kept * (norm / kept_norm) if self.config.preserve_norm and kept_norm > 0 else kept)
        metrics = {**update.metrics, "update/kept_frac": sum(kept_frac) / max(1, len(kept_frac))}
        return replace(update, main=torch.cat(changed), metrics=metrics)
