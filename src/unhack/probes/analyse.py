"""What a probe's slim record says: buckets, Welch's t, the acceptance rules of EXPERIMENT §4, and a verdict.

The verdict (EXPERIMENT §4's decision rule, spelled out):
    stop     the step's cosine is inside the null on every vanilla step, and no contrast tells hacks: no GPU days
    go       it is above the null on most of them, a contrast tells hacks, and every rule passed
    unclear  anything else; the failed rules are named

A contrast tells hacks when Welch's t is significant with hacks above, and the difference of the means exceeds twice the
null. Welch's t takes V as given: with enough rollouts a random V has a significant one, too, in half of all cases with
hacks above. Mean cosines are V's products with mean unit vectors, whose difference is at most 2 long: hence twice.
A rollout's cosine counts in buckets and contrasts where its gradient is not zero. Rollouts of one prompt or of one step
are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unhack.files import read_object, write_json
from unhack.probes.replay import PROBE_FILE
from unhack.probes.slim import SlimRow, read_steps
from unhack.stats.comparisons import welch
from unhack.stats.summary import mean_sem
from unhack.types import PlainValue

ANALYSIS_FILE = "analysis.json"
ALPHA = 0.05
POOL_HACK_SHARE = 0.9  # T1
COVERED_SHARE = 0.9  # T2
OUT_BELOW_IN_SHARE = 0.8  # T3: 16 of 20
SPREAD, SPREAD_SHARE = 1.0, 0.9  # reward spread above 1 in so many of the groups


@dataclass(frozen=True)
class Bucket:
    """Rollouts of one arm, pool and kind."""

    arm: str
    pool: str
    kind: str
    n: int
    mean_cos: float
    sem_cos: float
    positive_share: float
    mean_norm: float


@dataclass(frozen=True)
class Contrast:
    """Welch's t of the cosines of two kinds under the vanilla arm; `null_95` is twice that of one cosine."""

    name: str
    n_hack: int
    n_other: int
    mean_hack: float
    mean_other: float
    t: float
    p: float
    null_95: float

    @property
    def significant(self) -> bool:
        """p < 0.05 with hacks above."""
        return self.p < ALPHA and self.t > 0

    @property
    def told(self) -> bool:
        """Whether the cosine tells hacks from the others by more than a random V's would."""
        return self.significant and self.mean_hack - self.mean_other > self.null_95


@dataclass(frozen=True)
class Rule:
    """One acceptance test; `passed` None: what it needs was not run."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class Analysis:
    """Everything that `unhack probe analyse` prints."""

    header: Mapping[str, PlainValue]
    buckets: tuple[Bucket, ...]
    contrasts: tuple[Contrast, ...]
    rules: tuple[Rule, ...]
    steps_inside_null: int
    steps_above_null: int
    vanilla_steps: int
    verdict: str
    because: str


def analyse(out: Path) -> Analysis:
    """Read a probe's folder. ValueError if there is none, or a step of an arm is missing."""
    header = read_object(out / PROBE_FILE)
    rows = {arm: read_steps(out / arm) for arm in header["arms"]}
    for arm, own in rows.items():
        if {row.step for row in own} != set(range(header["steps"])):
            raise ValueError(f"{out / arm} lacks steps of {header['steps']}: go on with the same unhack probe command")
    vanilla = rows.get("vanilla", [])
    contrasts = _contrasts(vanilla, 2 * header["cosine_null_95"])
    rules = _nll_rules(header, rows, contrasts) if header["kind"] == "nll" else _grpo_rules(header, rows)
    entering = _of_steps(vanilla, lambda row: row.mean_cos_in)
    null = header["cosine_null_95"]
    inside, above = sum(abs(cos) <= null for cos in entering), sum(cos > null for cos in entering)
    verdict, because = _decide(len(entering), inside, above, contrasts, rules)
    buckets = tuple(bucket for own in rows.values() for bucket in _buckets(own))
    return Analysis(header, buckets, contrasts, rules, inside, above, len(entering), verdict, because)


def write_analysis(out: Path, found: Analysis) -> None:
    """analysis.json beside the record; a number that does not exist is null."""
    write_json(out / ANALYSIS_FILE, _plain(asdict(found)))


def _plain(value: PlainValue) -> PlainValue:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _buckets(rows: Sequence[SlimRow]) -> list[Bucket]:
    found = []
    for arm, pool, kind in sorted({(row.arm, row.src_pool, row.kind) for row in rows}):
        mine = [row for row in rows if (row.src_pool, row.kind) == (pool, kind) and row.grad_norm_contrib > 0]
        cosines = [row.cos_S_contrib for row in mine]
        mean = mean_sem(cosines)
        share = sum(cos > 0 for cos in cosines) / len(cosines) if cosines else math.nan
        norm = sum(row.grad_norm_contrib for row in mine) / len(mine) if mine else math.nan
        found.append(Bucket(arm, pool, kind, len(mine), mean.mean, mean.sem, share, norm))
    return found


def _contrasts(rows: Sequence[SlimRow], null: float) -> tuple[Contrast, ...]:
    """Pure hacks against what else was paid: both are reinforced where there are advantages."""
    moved = [row for row in rows if row.grad_norm_contrib > 0]
    hack = [row.cos_S_contrib for row in moved if row.pure_hack]
    found = []
    for kind in ("hack+correct", "correct"):
        other = [row.cos_S_contrib for row in moved if row.kind == kind]
        told = welch(hack, other)
        first, second = mean_sem(hack).mean, mean_sem(other).mean
        name = f"hack against {kind}"
        found.append(Contrast(name, len(hack), len(other), first, second, told.statistic, told.p_value, null))
    return tuple(found)


def _nll_rules(
    header: Mapping[str, PlainValue], rows: Mapping[str, Sequence[SlimRow]], contrasts: Sequence[Contrast]
) -> tuple[Rule, ...]:
    replayed = [row for own in rows.values() for row in own if row.sample_id < header["rollouts"]]
    share = sum(row.hacked for row in replayed) / len(replayed)
    covered = header["modules"] / header["wrapped_modules"]
    pure = contrasts[0]
    enough = not math.isnan(pure.p)
    said = f"cos {pure.mean_hack:+.3f} (n = {pure.n_hack}) against {pure.mean_other:+.3f} (n = {pure.n_other})"
    return (
        Rule("T1 pool hack rate", share >= POOL_HACK_SHARE, f"{share:.0%} (at least {POOL_HACK_SHARE:.0%})"),
        Rule(
            "T2 modules covered",
            covered >= COVERED_SHARE,
            f"{header['modules']} of {header['wrapped_modules']} (at least {COVERED_SHARE:.0%})",
        ),
        _out_below_in("T3", rows),
        Rule(
            "T4 hack above hack-and-correct",
            pure.significant if enough else None,
            f"{said}, Welch t = {pure.t:.2f}, p = {pure.p:.2g}" if enough else f"{said}: too few to test",
        ),
    )


def _grpo_rules(header: Mapping[str, PlainValue], rows: Mapping[str, Sequence[SlimRow]]) -> tuple[Rule, ...]:
    groups: dict[tuple[str, int, int], list[float]] = {}
    for own in rows.values():
        for row in own:
            groups.setdefault((row.arm, row.step, row.sample_id // header["group_size"]), []).append(row.reward)
    wide = [max(rewards) - min(rewards) > SPREAD for rewards in groups.values()]
    share = sum(wide) / len(wide)
    entering = _of_steps(rows.get("vanilla", []), lambda row: row.mean_cos_in)
    positive = sum(cos > 0 for cos in entering)
    return (
        Rule("reward spread above 1", share >= SPREAD_SHARE, f"in {share:.0%} of groups (at least {SPREAD_SHARE:.0%})"),
        Rule(
            "cos_in above 0 in vanilla",
            positive > len(entering) / 2 if entering else None,
            f"on {positive} of {len(entering)} steps (more than half)",
        ),
        _out_below_in("out below in", rows),
    )


def _out_below_in(name: str, rows: Mapping[str, Sequence[SlimRow]]) -> Rule:
    changes = _of_steps(rows.get("projected", []), lambda row: row.mean_cos_out - row.mean_cos_in)
    below, needed = sum(change < 0 for change in changes), math.ceil(OUT_BELOW_IN_SHARE * len(changes))
    title = name if name.startswith("out") else f"{name} out below in when projected"
    return Rule(title, below >= needed if changes else None, f"on {below} of {len(changes)} steps (at least {needed})")


def _of_steps(rows: Sequence[SlimRow], value: Callable[[SlimRow], float]) -> list[float]:
    """One value of each step: what its lines share."""
    return [value(row) for row in {row.step: row for row in rows}.values()]


def _decide(
    steps: int, inside: int, above: int, contrasts: Sequence[Contrast], rules: Sequence[Rule]
) -> tuple[str, str]:
    told = [contrast.name for contrast in contrasts if contrast.told]
    if not steps:
        return "unclear", "the vanilla arm was not run"
    where = f"of {steps} vanilla steps {inside} have a cos_in inside the null of random directions, {above} above it"
    if inside == steps and not told:
        return "stop", f"{where}, and no contrast tells hacks: do not spend GPU days on this direction"
    failed = [rule.name for rule in rules if not rule.passed]
    said = f"{where}; told apart: {', '.join(told) or 'nothing'}"
    if above <= steps / 2 or not told or failed:
        return "unclear", f"{said}; failed or not run: {', '.join(failed) or 'none'}"
    return "go", f"{said}; every rule passed"
