"""What a hack direction is, and its artifact: one safetensors file whose header says all that it was made from.

An artifact is only meaningful for the base weights, adapter and basis that it was extracted in, so `load` checks every
header field and refuses by the field's name instead of projecting onto noise.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unhack.adapters import Policy
from unhack.files import write_atomic
from unhack.pairs import Pair, pairs_hash, parse_pair
from unhack.types import KnobLayout

Record = TypeVar("Record")
FORMAT_VERSION = 1
ACTIVATION = "activation"
_ORTHONORMAL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class DirectionMetadata:
    """Where a direction comes from; every field is a header entry of the artifact.

    `k` is the requested number of rows (the noise floor may leave fewer in a module); `noise_floor` is the singular
    value under which rows were dropped, `drop_bottom_frac` the quantile that gave it.
    """

    format_version: int
    base_model: str  # hash of the base weights
    basis: str  # Policy.basis_hash: over the wrapped weights and over every U and Vh
    dtype: str
    adapter_kind: str
    adapter_rank: int | None
    pairs_hash: str
    selection: str
    control: str
    method: str
    loss: str
    temperature: float
    k: int
    drop_bottom_frac: float
    noise_floor: float
    seed: int


@dataclass(frozen=True)
class Direction:
    """V of METHOD §2: for each touched module k orthonormal rows in its r knob dimensions, on the CPU, float32.

    Rows point along NLL gradients "hack minus clean". A module that is absent is not touched by any intervention.
    With the loss `activation` rows are in the module's bottleneck dimensions instead, along activations "hack minus
    clean": such a direction scores rollouts, and arms that act on gradients refuse it.
    With its `pairs` and its metadata it can be extracted again (`extract_again`); artifacts of before have none.
    """

    basis: dict[str, Float[Tensor, "_ _"]]  # module name -> [k, r]
    metadata: DirectionMetadata
    pairs: tuple[Pair, ...] = ()

    @property
    def side(self) -> str:
        """`gradient` or `activation`: which of the two the rows are directions of."""
        return ACTIVATION if self.metadata.loss == ACTIVATION else "gradient"

    def check_side(self, wanted: str) -> None:
        """Raise ValueError unless the direction is of the side `wanted`: in a spectral basis their shapes agree."""
        if self.side != wanted:
            raise ValueError(
                f"direction field 'loss': it is {self.metadata.loss}, a direction of {self.side}s, and this needs one "
                f"of {wanted}s; extract it with --loss {ACTIVATION if wanted == ACTIVATION else 'nll'}"
            )

    def check_layout(self, layout: KnobLayout) -> None:
        """Raise ValueError unless every module of the direction is in `layout` with the same number of knobs."""
        sizes = dict(zip(layout.names, layout.sizes, strict=True))
        for name, rows in self.basis.items():
            if name not in sizes:
                raise ValueError(
                    f"direction field 'modules': {name} is not a wrapped module of this model; "
                    "extract the direction again with this model and adapter (unhack direction extract)"
                )
            if rows.shape[1] != sizes[name]:
                raise ValueError(
                    f"direction field 'modules': {name} has {rows.shape[1]} knobs in the direction and {sizes[name]} "
                    "in this adapter; extract the direction again with this adapter's rank"
                )

    def to(self, device: torch.device | str) -> Direction:
        """The same direction with its rows on `device`."""
        return replace(self, basis={name: rows.to(device) for name, rows in self.basis.items()})

    @property
    def content_hash(self) -> str:
        """SHA-256 over module names, shapes and row values."""
        digest = hashlib.sha256()
        for name in sorted(self.basis):
            rows = self.basis[name].detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{tuple(rows.shape)}".encode())
            digest.update(rows.numpy().tobytes())
        return digest.hexdigest()


def layout_of(policy: Policy, loss: str) -> KnobLayout:
    """Where the modules' parts lie in the vectors that a direction made from `loss` is compared with."""
    return policy.bottleneck_layout if loss == ACTIVATION else policy.layout


def describe_policy(policy: Policy) -> dict[str, Any]:
    """The header fields that tie a direction to a wrapped model: base weights, basis, dtype, adapter kind and rank."""
    return {
        "base_model": policy.model_hash,
        "basis": policy.basis_hash,
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "adapter_kind": policy.kind,
        "adapter_rank": policy.rank,
    }


def save_direction(direction: Direction, path: Path) -> None:
    """Write the artifact: rows as tensors; in the header all metadata fields, the hash (JSON) and the pairs (JSONL)."""
    header = {name: json.dumps(value) for name, value in asdict(direction.metadata).items()}
    header["content_hash"] = json.dumps(direction.content_hash)
    header["pairs"] = "\n".join(json.dumps(asdict(pair)) for pair in direction.pairs)
    tensors = {name: rows.detach().to("cpu", torch.float32).contiguous() for name, rows in direction.basis.items()}
    write_atomic(path, save(tensors, metadata=header))


def load_direction(
    path: Path | str, policy: Policy | None = None, expect: Mapping[str, Any] | None = None
) -> Direction:
    """Read an artifact and refuse it, naming the field, unless all of it is sound.

    `policy`: the wrapped model that the direction must belong to (base weights, basis, dtype, adapter kind and rank,
    module sizes). `expect`: metadata fields that must have given values (`{"selection": "run_tests"}`).
    Raises ValueError with the field and the cure.
    """
    path = Path(path)
    header, basis = read_artifact(path, "direction artifact", "unhack direction extract")
    metadata = parse_header(header, DirectionMetadata, FORMAT_VERSION, partial(_refusal, path))
    direction = Direction(basis, metadata, _pairs(path, header, metadata))
    _check_content(path, direction, header)
    expected = {} if expect is None else dict(expect)
    if policy is not None:
        expected = {**describe_policy(policy), **expected}
        direction.check_layout(layout_of(policy, metadata.loss))
    for name, wanted in expected.items():
        if name not in asdict(metadata):
            raise ValueError(f"'{name}' is not a field of a direction artifact; fields: {', '.join(asdict(metadata))}")
        found = getattr(metadata, name)
        if found != wanted:
            raise _refusal(path, name, f"is {found!r}, but {wanted!r} is needed here")
    return direction


def _pairs(path: Path, header: Mapping[str, str], metadata: DirectionMetadata) -> tuple[Pair, ...]:
    """The pairs in the header; artifacts of earlier versions have none."""
    lines = enumerate(header.get("pairs", "").splitlines(), 1)
    pairs = tuple(parse_pair(line, f"direction {path}, pair {number} of its header") for number, line in lines)
    if pairs and pairs_hash(pairs) != metadata.pairs_hash:
        raise _refusal(path, "pairs_hash", "does not match the pairs in the header")
    return pairs


def _refusal(path: Path, name: str, problem: str) -> ValueError:
    return ValueError(
        f"direction {path}: field '{name}' {problem}; extract it again for this model, adapter and pairs "
        "(unhack direction extract)"
    )


def read_artifact(path: Path, what: str, command: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file, unchecked. ValueError with the cure when it is missing or torn."""
    if not path.is_file():
        raise ValueError(f"no {what} at {path}; make one with `{command}`")
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
            return handle.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); make it again: `{command}`") from error


def parse_header(
    header: Mapping[str, str], record: type[Record], version: int, refusal: Callable[[str, str], ValueError]
) -> Record:
    """`record` made from the JSON values of a safetensors header; refuses a field that is missing or of another type.

    `refusal(field, problem)` makes the ValueError; `record` has a field `format_version`, which must be `version`.
    """
    values: dict[str, Any] = {}
    for item in fields(cast("Any", record)):
        if item.name not in header:
            raise refusal(item.name, "is missing from the header")
        value = json.loads(header[item.name])
        if not _has_type(value, str(item.type)):
            raise refusal(item.name, f"is {value!r}, not of type {item.type}")
        values[item.name] = value
    if values["format_version"] != version:
        raise refusal("format_version", f"is {values['format_version']}, and only {version} is read here")
    return record(**values)


def _has_type(value: object, annotation: str) -> bool:
    if value is None:
        return annotation.endswith("None")
    if annotation.startswith("int"):
        return type(value) is int
    if annotation == "float":
        return type(value) in (int, float) and math.isfinite(float(str(value)))
    return isinstance(value, str) and value != ""


def _check_content(path: Path, direction: Direction, header: Mapping[str, str]) -> None:
    if "content_hash" not in header or json.loads(header["content_hash"]) != direction.content_hash:
        raise _refusal(path, "content_hash", "does not match the tensors")
    if not direction.basis:
        raise _refusal(path, "modules", "is empty")
    for name, rows in direction.basis.items():
        if rows.ndim != 2 or not 1 <= rows.shape[0] <= direction.metadata.k:
            raise _refusal(path, "k", f"is {direction.metadata.k}, but module {name} holds shape {tuple(rows.shape)}")
        gram = rows.double() @ rows.double().T
        worst = float((gram - torch.eye(rows.shape[0], dtype=torch.float64)).abs().max())
        if not worst < _ORTHONORMAL_TOLERANCE:  # also refuses NaN
            raise _refusal(path, "modules", f"has rows in {name} that are not orthonormal (off by {worst:.2g})")
