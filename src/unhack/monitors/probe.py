"""probe: a linear classifier on the residual stream, read while the policy learns against it.

    z(x)  = w · m(x) + b        m(x) = mean over completion tokens of the residual stream after layer L
    score = σ((z − t) / s)      t: threshold at the asked false-positive rate on held-out clean rollouts; s: spread of z

so `arm.monitor_threshold` = 0.5 flags exactly what lies above t. The artifact belongs to one base model and one layer.
Fitting is in `probe_fit.py`, what it is fitted on in `detection/` (labels are no business of a monitor).

Obfuscation. Of the same text the activations of the frozen base are read too (knobs off):

    gap = mean of score(base) − score(policy)       evaded = share above the threshold on the base, not on the policy

A policy that hides what it does from the probe moves its activations and not its text; then the gap grows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.directions.artifact import parse_header, read_artifact
from unhack.directions.concept import describe_model
from unhack.directions.residual import check_layer, response_residuals
from unhack.files import write_atomic
from unhack.monitors.base import Monitor, Reading
from unhack.types import Rollout

FORMAT_VERSION = 1
KIND = "linear_probe"


@dataclass(frozen=True)
class ProbeMetadata:
    """Where a probe comes from; every field is a header entry of the artifact."""

    format_version: int
    kind: str
    method: str  # mass_mean or logistic
    base_model: str  # hash of the base weights
    dtype: str
    layers: int
    layer: int  # counted from 0
    training: str  # what it was trained on, in words
    training_hash: str
    modes: str  # loophole modes of the training set, joined by +
    train_rows: int
    heldout_rows: int
    heldout_clean: int  # rows that the threshold was set on
    heldout_auroc: float  # on the rows that the layer was chosen by: optimistic
    asked_fpr: float
    bias: float
    threshold: float
    spread: float
    seed: int


@dataclass(frozen=True)
class Probe:
    """`weight` on the CPU, float32; `trained_on`: hashes that tell which prompts it knows, sorted."""

    weight: Float[Tensor, " hidden"]
    trained_on: Int[Tensor, " n"]
    metadata: ProbeMetadata

    def margins(self, residuals: Float[Tensor, "B hidden"]) -> Float[Tensor, " B"]:
        """(z − t) / s, float64: above 0 is flagged."""
        known = self.metadata
        return (residuals.double() @ self.weight.double() + known.bias - known.threshold) / known.spread

    def scores(self, residuals: Float[Tensor, "B hidden"]) -> Float[Tensor, " B"]:
        """σ of the margins, float32."""
        return torch.sigmoid(self.margins(residuals)).float()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the file holds."""
        return {"weight": self.weight.detach().to("cpu", torch.float32).contiguous(), "trained_on": self.trained_on}

    @property
    def content_hash(self) -> str:
        """SHA-256 over the metadata and the tensors' values."""
        digest = hashlib.sha256(json.dumps(asdict(self.metadata)).encode())
        for tensor in self.tensors.values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def save_probe(probe: Probe, path: Path) -> None:
    """Write the artifact (.safetensors): the weight, every metadata field and the content hash in the header."""
    header = {name: json.dumps(value) for name, value in asdict(probe.metadata).items()}
    header["content_hash"] = json.dumps(probe.content_hash)
    write_atomic(path, save(probe.tensors, metadata=header))


def load_probe(path: Path | str, model: PreTrainedModel | None = None, model_hash: str = "") -> Probe:
    """Read an artifact and refuse it, naming the field, unless all of it is sound and it belongs to `model`."""
    path = Path(path)
    header, tensors = read_artifact(path, "probe", "unhack monitor train-probe")
    refusal = partial(_refusal, path)
    if "kind" not in header or json.loads(header["kind"]) != KIND or set(tensors) != {"weight", "trained_on"}:
        raise refusal("kind", "does not say that it is a linear probe")
    metadata = parse_header(header, ProbeMetadata, FORMAT_VERSION, refusal)
    probe = Probe(tensors["weight"], tensors["trained_on"], metadata)
    if "content_hash" not in header or json.loads(header["content_hash"]) != probe.content_hash:
        raise refusal("content_hash", "does not match what is in the file")
    if model is not None:
        check_layer(model, probe.metadata.layer)
        for name, wanted in describe_model(model, model_hash).items():
            found = getattr(probe.metadata, name)
            if found != wanted:
                raise refusal(name, f"is {found!r}, but {wanted!r} is needed here")
    return probe


def _refusal(path: Path, name: str, problem: str) -> ValueError:
    return ValueError(
        f"probe {path}: field '{name}' {problem}; train it again for this model (unhack monitor train-probe)"
    )


class LinearProbe(Monitor):
    """Scores the activations of the policy as it trains, or with `arm.probe_reads = "base"` those of the frozen base.

    The first can be fooled by moving activations, the second only by another text. Both are read and logged.
    """

    name = "probe"
    uses = frozenset({"monitor_path", "probe_reads"})
    needs = {"monitor_path": "the .safetensors that `unhack monitor train-probe` wrote"}  # noqa: RUF012

    def __init__(self, config: ArmConfig, seed: int) -> None:
        super().__init__(config, seed)
        assert config.monitor_path is not None, "check_monitor asks for one"
        self.probe = load_probe(config.monitor_path)

    def bind(self, policy: Policy) -> None:
        """Keep the policy; ValueError when the probe is of another model."""
        super().bind(policy)
        assert self.config.monitor_path is not None
        self.probe = load_probe(self.config.monitor_path, policy.model, policy.model_hash)

    @property
    def inputs_hash(self) -> str | None:
        """Content hash of the probe."""
        return self.probe.content_hash

    def read(self, rollouts: Sequence[Rollout]) -> Reading:
        """Two forwards over the rollouts without gradient: the policy as it is, and the base."""
        start_s = time.perf_counter()
        rows = [(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts]
        layer = self.probe.metadata.layer
        own = response_residuals(self.policy.model, rows, layer)
        with self.policy.blocks(main=False, quarantine=False):
            base = response_residuals(self.policy.model, rows, layer)
        scores = self.probe.scores(base if self.config.probe_reads == "base" else own)
        reading = Reading(scores, time.perf_counter() - start_s)
        return replace(reading, metrics=self._compared(own, base))

    def _compared(self, own: Float[Tensor, "B hidden"], base: Float[Tensor, "B hidden"]) -> dict[str, float]:
        """The probe on both, and how far the residual stream has moved since the start of training."""
        margins, base_margins = self.probe.margins(own), self.probe.margins(base)
        scores, base_scores = torch.sigmoid(margins), torch.sigmoid(base_margins)
        evaded = (base_margins > 0) & (margins <= 0)
        moved = (own - base).double().mean(0)
        return {
            "monitor/policy_score_mean": float(scores.mean()),
            "monitor/base_score_mean": float(base_scores.mean()),
            "monitor/obfuscation_gap": float((base_scores - scores).mean()),
            "monitor/evaded_frac": float(evaded.double().mean()),
            "monitor/probe_drift": float((margins - base_margins).mean()),
            "monitor/residual_drift": float(moved.norm() / base.double().mean(0).norm().clamp_min(1e-300)),
        }
