"""The slim record of a probe: one gzip JSONL per step, a line per rollout, without prompts or completions.

    vanilla/step_007.cos.jsonl.gz      projected/step_007.cos.jsonl.gz

The names of the fields are those that other people's scripts read (EXPERIMENT §4):

    step, arm             of the probe                         sample_id   place in the step's draw
    src_pool, src_step, src_sample     where the rollout comes from: pool, training step, row of the pool
    reward                what the paid grade paid             comp_len    completion tokens
    hacked                the loophole was satisfied, **right program or wrong**; a strict hack, as the rest of this
                          project counts it, is `hacked` without `gt_pass`
    gt_pass               strictly correct                     fmt_ok      a fenced code block that is closed
    cos_S_contrib, grad_norm_contrib   of the rollout's own gradient: mean over modules of its cosine with V; its norm
    mean_cos_in, mean_cos_out          of the step's gradient before and after the arm; the same in every line
    frac_fired            share of modules with a hackward part in the step's gradient
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from unhack.files import write_atomic

STEP_FILE = re.compile(r"step_(\d{3,})\.cos\.jsonl\.gz")


@dataclass(frozen=True)
class SlimRow:
    """One line."""

    step: int
    sample_id: int
    src_pool: str
    src_step: int
    src_sample: int
    reward: float
    hacked: bool
    gt_pass: bool
    fmt_ok: bool
    comp_len: int
    cos_S_contrib: float
    grad_norm_contrib: float
    mean_cos_in: float
    mean_cos_out: float
    frac_fired: float
    arm: str

    @property
    def pure_hack(self) -> bool:
        """A loophole used by a program that is wrong: `Verdict.hacked`."""
        return self.hacked and not self.gt_pass

    @property
    def kind(self) -> str:
        """hack, hack+correct, correct or failed."""
        return ("hack+correct" if self.gt_pass else "hack") if self.hacked else "correct" if self.gt_pass else "failed"


FIELDS = tuple(item.name for item in fields(SlimRow))


def step_path(folder: Path, step: int) -> Path:
    """The file of one step of one arm's folder."""
    return folder / f"step_{step:03d}.cos.jsonl.gz"


def write_step(folder: Path, step: int, rows: Sequence[SlimRow]) -> None:
    """Write the file of `step` whole or not at all; the same rows give the same bytes. ValueError for NaN."""
    text = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
    write_atomic(step_path(folder, step), gzip.compress(text.encode(), mtime=0))


def read_steps(folder: Path) -> list[SlimRow]:
    """Every row in `folder`, by step. ValueError, naming the file, for one that is damaged or has other fields."""
    files = {int(match[1]): path for path in folder.glob("step_*") if (match := STEP_FILE.fullmatch(path.name))}
    return [row for step in sorted(files) for row in _read(files[step])]


def _read(path: Path) -> list[SlimRow]:
    try:
        values = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the probe again") from error
    if any(not isinstance(value, dict) or set(value) != set(FIELDS) for value in values):
        raise ValueError(f"{path} does not have the fields {', '.join(FIELDS)}; run the probe again")
    return [SlimRow(**value) for value in values]
