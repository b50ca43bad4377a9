"""Checkpoints that survive kill -9: a folder appears under its name only when every byte in it is on disk.

    checkpoints/step-000010/tensors.safetensors     every tensor of the training state
    checkpoints/step-000010/state.json              plain state, step, size and SHA-256 of the tensor file
    checkpoints/step-000100-final/                  the same, never pruned
    checkpoints/step-000010-replaced/               steps aside while a new one of its step takes its place

`step` counts finished updates: a run resumed from step-000010 does update 10 next (counting from 0). Folders whose name
starts with a dot are being written or removed and are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from unhack.files import PARTIAL_SUFFIX, partial_path, read_json, sync_folder, write_synced
from unhack.types import PlainValue

KEEP = 2
NAME = re.compile(r"step-(\d{6,})(-final)?(-replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    """A training state after `step` updates, as it was given to `save`."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, PlainValue]
    path: Path


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, PlainValue], final: bool = False
) -> Path:
    """Write the checkpoint of `step` into the run folder `folder` and return its path.

    Keeps it, the one before it, and every final one. State is strict JSON (ValueError for NaN); floats survive exactly.
    An earlier checkpoint of the same step is replaced. One writer at a time: `RunRecord` holds the folder's lock.
    OSError as the system raises it; nothing half-written is left behind then.
    """
    root = folder / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(root)
    content = safetensors.torch.save({name: _packed(tensor) for name, tensor in tensors.items()})
    header = {"step": step, "tensor_bytes": len(content), "tensor_sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps({**header, "state": dict(state)}, allow_nan=False)

    path = root / f"step-{step:06d}{'-final' if final else ''}"
    partial = partial_path(path)
    replaced = path.with_name(f"{path.name}-replaced")
    try:
        partial.mkdir()
        write_synced(partial / "tensors.safetensors", content)
        write_synced(partial / "state.json", text.encode())
        sync_folder(partial)
        if path.exists():
            os.rename(path, replaced)  # still readable, so that a kill before the next line loses nothing
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # of a full disk: half a checkpoint would keep it full
    sync_folder(root)
    _remove(replaced)
    plain = [old for old in _paths(root) if "-final" not in old.name and old != path]
    for old in plain[: max(0, len(plain) - (KEEP - 1))]:
        _remove(old)
    return path


def latest(folder: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest intact checkpoint of the run folder `folder`, of step `at_most` or before; None if it has none.

    A damaged one is passed over with a warning: going on from the one before gives the same run, only later. ValueError
    if there are checkpoints and every one is damaged.
    """
    damage = ""
    for path in reversed(_paths(folder / "checkpoints", at_most)):
        damage = _damage(path)
        if not damage:
            return load(path)
        warnings.warn(f"passing over a damaged checkpoint: {damage}", stacklevel=2)
    if damage:
        raise ValueError(f"no checkpoint in {folder} is intact ({damage}); remove the folder's checkpoints and restart")
    return None


def load(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`, tensors on the CPU. ValueError if anything in it is missing or damaged."""
    if damage := _damage(path):
        raise ValueError(f"{damage}; remove {path} to go back to an earlier checkpoint")
    header = read_json(path / "state.json")
    tensors = safetensors.torch.load((path / "tensors.safetensors").read_bytes())
    return Checkpoint(header["step"], tensors, header["state"], path)


def _damage(path: Path) -> str:
    """What is wrong with the checkpoint in `path`, empty if nothing: copies and full disks do what kills cannot."""
    state_path, tensor_path = path / "state.json", path / "tensors.safetensors"
    if not state_path.is_file() or not tensor_path.is_file():
        return f"{path} lacks {'tensors.safetensors' if state_path.is_file() else 'state.json'}"
    try:
        header = json.loads(state_path.read_bytes())
    except ValueError:
        return f"{state_path} is not valid JSON"
    if not isinstance(header, dict) or not {"step", "state", "tensor_bytes", "tensor_sha256"} <= header.keys():
        return f"{state_path} is no checkpoint's state"
    content = tensor_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != header["tensor_sha256"]:
        return f"{tensor_path} is not what was written ({len(content)} of {header['tensor_bytes']} bytes)"
    return ""


def _packed(tensor: Tensor) -> Tensor:
    """A private contiguous copy on the CPU: safetensors refuses views and shared memory."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _paths(root: Path, at_most: int | None = None) -> list[Path]:
    """Checkpoint folders, oldest first; of one step: plain before final, and a replaced one before its replacement."""
    found = {path: match for path in root.glob("step-*") if (match := NAME.fullmatch(path.name))}
    found = {path: match for path, match in found.items() if at_most is None or int(match[1]) <= at_most}
    return sorted(found, key=lambda path: (int(found[path][1]), found[path][2] or "", not found[path][3]))


def _remove(path: Path) -> None:
    """Take the folder out of sight at once, then delete it: a half-deleted checkpoint is never seen."""
    if path.exists():
        hidden = partial_path(path)
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def _clear_leftovers(root: Path) -> None:
    """Remove what a killed writer left: hidden folders, and replaced ones whose replacement has arrived."""
    for leftover in root.glob(f".*{PARTIAL_SUFFIX}"):
        shutil.rmtree(leftover)
    for replaced in root.glob("*-replaced"):
        if replaced.with_name(replaced.name.removesuffix("-replaced")).exists():
            _remove(replaced)
