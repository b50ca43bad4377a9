"""A concept direction as an artifact: extraction from pairs, controls, validation on held-out pairs, file.

The formulas are `residual.py`'s. A file is only meaningful for the base weights and the layer that it was read from, so
`load_concept` checks every header field and refuses by the field's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from unhack import stats
from unhack.directions.artifact import parse_header, read_artifact
from unhack.directions.extract import Control, haar_rows, half_swapped
from unhack.directions.residual import check_layer, cosines, decoder_layers, default_layer, pair_residuals
from unhack.files import write_atomic
from unhack.model import LoadedModel
from unhack.pairs import Pair, pairs_hash, select
from unhack.pairs.choose import chosen_pairs, with_control
from unhack.seeds import generator

FORMAT_VERSION = 1
KIND = "residual_concept"
_UNIT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ConceptMetadata:
    """Where a concept direction comes from; every field is a header entry of the artifact."""

    format_version: int
    kind: str  # residual_concept, to tell it from a direction of knobs
    base_model: str  # hash of the base weights
    dtype: str
    layer: int  # counted from 0; the residual stream after it
    layers: int
    pairs_hash: str
    selection: str
    control: str
    seed: int


@dataclass(frozen=True)
class Concept:
    """A unit vector in the residual stream, on the CPU, float32; it points from clean to hack."""

    vector: Float[Tensor, " hidden"]
    metadata: ConceptMetadata

    @property
    def content_hash(self) -> str:
        """SHA-256 over the layer and the vector's values."""
        plain = self.vector.detach().to("cpu", torch.float32).contiguous()
        digest = hashlib.sha256(f"{self.metadata.layer}{tuple(plain.shape)}".encode())
        digest.update(plain.numpy().tobytes())
        return digest.hexdigest()


def extract_concept(
    loaded: LoadedModel,
    pairs: Sequence[Pair],
    *,
    layer: int | None = None,
    control: Control = "real",
    seed: int = 0,
    selection: str | None = None,
) -> Concept:
    """The concept of `pairs` (all of them: pass the train split) in the model's present state, or a control of it.

    random: a Haar-random unit vector. shuffled: hack and clean swapped within a random half of the pairs. nonhack,
    placebo, length: the same computation; the caller passes pairs of that family.
    Raises ValueError without pairs, for a layer that is not there, and for pairs that do not differ there.
    """
    if not pairs:
        raise ValueError("no pairs to extract a concept direction from")
    model = loaded.model
    layer = default_layer(model) if layer is None else layer
    hack, clean = pair_residuals(model, loaded.tokenizer, pairs, layer)
    differences = (hack - clean).double()
    if control == "shuffled":
        differences = differences * half_swapped(len(pairs), seed)[:, None]
    mean = differences.mean(0)
    if not float(mean.norm()) > 0:
        raise ValueError(f"the pairs do not differ after layer {layer}; check that the two sides differ")
    vector = (mean / mean.norm()).float()
    if control == "random":
        vector = haar_rows(1, len(vector), generator(seed, "random_concept"))[0]
    metadata = ConceptMetadata(
        format_version=FORMAT_VERSION,
        kind=KIND,
        **describe_model(model, loaded.hash),
        layer=layer,
        pairs_hash=pairs_hash(pairs),
        selection=selection or "+".join(dict.fromkeys(pair.family for pair in pairs)),
        control=control,
        seed=seed,
    )
    return Concept(vector, metadata)


def describe_model(model: PreTrainedModel, model_hash: str) -> dict[str, Any]:
    """The header fields that tie a concept to a base model; `model_hash` is that of its weights before any wrapping."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {"base_model": model_hash, "dtype": dtype, "layers": len(decoder_layers(model))}


@dataclass(frozen=True)
class ConceptRecipe:
    """What `unhack direction concept` is asked for; as `DirectionRecipe`, for the residual stream."""

    selection: str = "run_tests"
    control: Control = "real"
    layer: int | None = None  # None: the middle of the 60–75 % band
    pairs: int = 64
    heldout: int = 32
    length_matched: bool = True
    depths: tuple[int, ...] = (2,)
    pairs_seed: int = 0
    seed: int = 0


def concept_pairs(loaded: LoadedModel, recipe: ConceptRecipe) -> list[Pair]:
    """Train and held-out pairs of the recipe for the bundled organism."""
    return chosen_pairs(
        with_control(recipe.selection, recipe.control),
        recipe.pairs,
        recipe.pairs_seed,
        heldout=recipe.heldout,
        length_matched=recipe.length_matched,
        tokenizer=loaded.tokenizer,
        depths=recipe.depths,
    )


def organism_concept(loaded: LoadedModel, recipe: ConceptRecipe) -> Concept:
    """Extract the recipe's concept from its train pairs."""
    pairs = select(concept_pairs(loaded, recipe), "train")
    return extract_concept(
        loaded, pairs, layer=recipe.layer, control=recipe.control, seed=recipe.seed, selection=recipe.selection
    )


@dataclass(frozen=True)
class ConceptCheck:
    """How held-out pairs lie to the concept, beside Haar-random unit vectors.

    auroc: P(a hack side scores above a clean one), ties half. share_positive: share of pairs whose hack side scores
    above its own clean side. mean_hack, mean_clean: mean cos; rebound pays attention only above 0.
    null_auroc: samples for random vectors, each folded up to ≥ 0.5 (the sign of a random vector means nothing).
    """

    pairs: int
    auroc: float
    share_positive: float
    mean_hack: float
    mean_clean: float
    null_auroc: Float[Tensor, " n"]

    @property
    def null_high(self) -> float:
        """95th percentile of the null."""
        return float(self.null_auroc.quantile(0.95))

    @property
    def gate(self) -> bool:
        """Better than 95 % of random vectors are, whichever way round these are read."""
        return self.auroc > self.null_high

    def text(self) -> str:
        """Two lines for a terminal."""
        return (
            f"{self.pairs} held-out pairs: AUROC {self.auroc:.3f} (random vectors: mean "
            f"{float(self.null_auroc.mean()):.3f}, 95th percentile {self.null_high:.3f}); hack above its own clean "
            f"side in {self.share_positive:.0%}; mean cos {self.mean_hack:+.3f} hack, {self.mean_clean:+.3f} clean\n"
            f"gate (AUROC above the 95th percentile of random vectors): {'passed' if self.gate else 'FAILED'}"
        )


def verify_concept(
    loaded: LoadedModel, concept: Concept, heldout_pairs: Sequence[Pair], *, null_samples: int = 200, seed: int = 0
) -> ConceptCheck:
    """Score the two sides of `heldout_pairs` with the concept and with random vectors. ValueError without pairs."""
    if not heldout_pairs:
        raise ValueError("no held-out pairs to verify the concept direction on")
    sides = pair_residuals(loaded.model, loaded.tokenizer, heldout_pairs, concept.metadata.layer)
    hack, clean = (cosines(side, concept.vector) for side in sides)
    drawn = generator(seed, "null_concept")
    null: list[float] = []
    for _ in range(null_samples):
        vector = haar_rows(1, len(concept.vector), drawn)[0]
        area = auroc(cosines(sides[0], vector), cosines(sides[1], vector))
        null.append(max(area, 1 - area))
    return ConceptCheck(
        pairs=len(heldout_pairs),
        auroc=auroc(hack, clean),
        share_positive=float((hack > clean).float().mean()),
        mean_hack=float(hack.mean()),
        mean_clean=float(clean.mean()),
        null_auroc=torch.tensor(null, dtype=torch.float64),
    )


def auroc(positives: Float[Tensor, " n"], negatives: Float[Tensor, " m"]) -> float:
    """`stats.auroc` of two samples."""
    scores = torch.cat([positives, negatives]).double().tolist()
    return stats.auroc(scores, [True] * len(positives) + [False] * len(negatives))


def save_concept(concept: Concept, path: Path) -> None:
    """Write the artifact: the vector, every metadata field and the content hash in the header (JSON values)."""
    header = {name: json.dumps(value) for name, value in asdict(concept.metadata).items()}
    header["content_hash"] = json.dumps(concept.content_hash)
    vector = concept.vector.detach().to("cpu", torch.float32).contiguous()
    write_atomic(path, save({"concept": vector}, metadata=header))


def load_concept(path: Path | str, model: PreTrainedModel | None = None, model_hash: str = "") -> Concept:
    """Read an artifact and refuse it, naming the field, unless all of it is sound.

    `model`, `model_hash`: the model that it must belong to, wrapped or not, and the hash of its base weights.
    Raises ValueError with the field and the cure.
    """
    path = Path(path)
    header, tensors = read_artifact(path, "concept direction", "unhack direction concept")
    refusal = partial(_refusal, path)
    if "kind" not in header or json.loads(header["kind"]) != KIND or set(tensors) != {"concept"}:
        raise refusal("kind", "does not say that it is a concept direction of the residual stream")
    concept = Concept(tensors["concept"], parse_header(header, ConceptMetadata, FORMAT_VERSION, refusal))
    if "content_hash" not in header or json.loads(header["content_hash"]) != concept.content_hash:
        raise refusal("content_hash", "does not match the vector")
    if not abs(float(concept.vector.double().norm()) - 1) < _UNIT_TOLERANCE:  # also refuses NaN
        raise refusal("concept", "is not a unit vector")
    if model is not None:
        check_layer(model, concept.metadata.layer)
        for name, wanted in describe_model(model, model_hash).items():
            found = getattr(concept.metadata, name)
            if found != wanted:
                raise refusal(name, f"is {found!r}, but {wanted!r} is needed here")
    return concept


def _refusal(path: Path, name: str, problem: str) -> ValueError:
    return ValueError(
        f"concept direction {path}: field '{name}' {problem}; extract it again for this model "
        "(unhack direction concept)"
    )
