"""Commands on frozen rollouts, without RL: `probe nll | grpo | analyse | classify` (docs/probes.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from unhack.config import AdapterConfig, ModelConfig, OptimizerConfig

if TYPE_CHECKING:
    from unhack.adapters import Policy
    from unhack.probes.analyse import Analysis
    from unhack.probes.classify import Reading, Row, Scorer
    from unhack.probes.plans import GrpoPlan, NllPlan
    from unhack.probes.samples import Sample


@dataclass(frozen=True)
class Opened:
    """What a command reads: the untrained policy, and the rollouts of its pools (the second may be empty)."""

    policy: Policy
    temperature: float
    first: list[Sample]
    second: list[Sample]
    hashes: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """Flags that both probes share."""

    pool: Path
    """Pool of hacks to replay (unhack pool build --only hacked)."""
    direction: Path
    """The direction (.safetensors) of gradients."""
    out: Path
    """Folder of the record; one that was stopped is gone on with."""
    steps: int = 20
    """Optimizer steps of each arm."""
    arms: tuple[Literal["vanilla", "projected"], ...] = ("vanilla", "projected")
    """The step's gradient as it is; erased against the direction."""
    sided: Literal["one", "two"] = "one"
    """Of the projection, at the gradient: the hackward half only, or all of it."""
    seed: int = 0
    """Draws the rollouts of every step."""
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def _replay(self, opened: Opened, plan: NllPlan | GrpoPlan) -> int:
        from unhack.directions import load_direction
        from unhack.probes.replay import ProbeSettings, run_probe

        direction = load_direction(self.direction, opened.policy)
        asked = ProbeSettings(self.steps, self.arms, self.sided, self.seed, self.optimizer, opened.hashes)
        run_probe(plan, opened.policy, direction, asked, self.out, _tell)
        return _analyse(self.out)


@dataclass(frozen=True, kw_only=True)
class Nll(_Probe):
    """Replay a frozen pool of hacks and learn it by heart: does its gradient lie along the direction?"""

    contrast: Path | None = None
    """Another pool, read beside it under the same policy and not learnt (--only solved has hacks that are right)."""
    rollouts: int = 8
    """Rollouts of the pool in each step, and as many of the contrast."""

    def run(self) -> int:
        """Replay both arms, then analyse."""
        from unhack.check_config import check_bound
        from unhack.probes.plans import NllPlan

        check_bound("rollouts", self.rollouts)
        opened = _opened(self.model, self.adapter, self.pool, self.contrast)
        plan = NllPlan(opened.first, opened.second, self.rollouts, opened.temperature, self.seed)
        return self._replay(opened, plan)


@dataclass(frozen=True, kw_only=True)
class Grpo(_Probe):
    """Replay groups that are half hacks and half base rollouts, with advantages; the reward has variance by design."""

    base_pool: Path
    """Pool of the base model's own rollouts (a run's first steps, --only all)."""
    groups: int = 4
    """Groups in each step."""
    group_size: int = 8
    """Rollouts of a group, half of each pool."""

    def run(self) -> int:
        """Replay both arms, then analyse."""
        from unhack.check_config import check_bound
        from unhack.probes.plans import GrpoPlan

        check_bound("groups", self.groups)
        opened = _opened(self.model, self.adapter, self.pool, self.base_pool)
        halves = opened.first, opened.second
        plan = GrpoPlan(*halves, self.groups, self.group_size, opened.temperature, self.seed)
        return self._replay(opened, plan)


@dataclass(frozen=True)
class Analyse:
    """Print what a probe came to, and write it to analysis.json beside the record."""

    folder: tyro.conf.Positional[Path]
    """Folder of `probe nll` or `probe grpo`."""

    def run(self) -> int:
        """Buckets, contrasts, rules, verdict; 1 when the verdict is stop."""
        return _analyse(self.folder)


@dataclass(frozen=True)
class Classify:
    """How well directions tell hacks from clean rollouts, beside random directions and a ceiling fitted to labels."""

    out: Path
    """The table as CSV."""
    direction: tuple[Path, ...] = ()
    """Artifacts of `unhack direction extract`, placebos too."""
    concept: tuple[Path, ...] = ()
    """Artifacts of `unhack direction concept`."""
    runs: tuple[Path, ...] = ()
    """Finished runs: their reinforced rollouts, window after window of steps."""
    pool: Path | None = None
    """Or a pool: its rollouts that were paid, read by the base model."""
    policy: Literal["trajectory", "base", "final"] = "trajectory"
    """Who reads a run's rollouts: the policy that sampled them (made again from the record), the first, or the last."""
    window_steps: int = 10
    """Steps whose rollouts are judged together; 1: each step by itself."""
    modes: tuple[str, ...] = ()
    """Rollouts under these loophole modes only (default: all)."""
    null_directions: int = 200
    """Haar-random directions behind each 95th percentile."""
    ceiling: bool = True
    """Also fit a read-out to the labels, cross-validated by prompt."""
    seed: int = 0
    """Draws random directions and folds."""
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def run(self) -> int:
        """Read, judge, print, write."""
        from unhack.check_config import check_bound, check_modes
        from unhack.cli.quiet import quiet_libraries
        from unhack.files import write_atomic
        from unhack.probes.classify import csv_text

        if bool(self.runs) == (self.pool is not None):
            raise ValueError("give --runs or --pool: what the directions are to be tested on")
        names = [path.stem for path in (*self.direction, *self.concept)]
        if not names or len(set(names)) < len(names) or "ceiling" in names:
            raise ValueError("give --direction or --concept, files of different names, by which rows are called")
        check_bound("window_steps", self.window_steps)
        check_bound("null_directions", self.null_directions)
        check_modes("modes", self.modes)
        quiet_libraries()
        rows: list[Row] = []
        for judged in self._of_pool() if self.pool else (part for run in self.runs for part in self._of_run(run)):
            rows += judged
            write_atomic(self.out, csv_text(rows))  # after every window: a replay is slow
            print(classifier_table(judged, header=len(rows) == len(judged)), flush=True)
        print(LEGEND)
        print(f"wrote {self.out}; n = {len(self.runs) or 1} {'run' if self.runs else 'pool'}(s)")
        return 0

    def _of_run(self, run: Path) -> Iterator[list[Row]]:
        from unhack.probes.classify import policy_of, read_run

        policy = policy_of(run)
        scorers = self._scorers(policy)
        readings = read_run(run, policy, list(scorers.values()), self.window_steps, self.policy, self.modes)
        for window, reading in readings:
            yield self._judged(run.name, window, reading, scorers, policy)

    def _of_pool(self) -> Iterator[list[Row]]:
        from unhack.probes.classify import chosen, read

        assert self.pool is not None
        opened = _opened(self.model, self.adapter, self.pool, None)
        of_modes = [sample for sample in opened.first if not self.modes or sample.rollout.prompt.mode in self.modes]
        scorers = self._scorers(opened.policy)
        reading = read(opened.policy, list(scorers.values()), *chosen(of_modes, "paid"))
        yield self._judged(self.pool.name, "pool", reading, scorers, opened.policy)

    def _judged(
        self, source: str, window: str, reading: Reading, scorers: dict[str, Scorer], policy: Policy
    ) -> list[Row]:
        from unhack.probes.classify import rows_of

        return rows_of(
            source, window, reading, scorers, policy, null_directions=self.null_directions, ceiling=self.ceiling,
            seed=self.seed,
        )  # fmt: skip

    def _scorers(self, policy: Policy) -> dict[str, Scorer]:
        """By the stems of their files, each refused unless it belongs to the policy."""
        from unhack.directions import load_direction
        from unhack.directions.concept import load_concept

        found: dict[str, Scorer] = {path.stem: load_direction(path, policy) for path in self.direction}
        return found | {path.stem: load_concept(path, policy.model, policy.model_hash) for path in self.concept}


def _opened(model: ModelConfig, adapter: AdapterConfig, first: Path, second: Path | None) -> Opened:
    """ValueError for pools of another tokenizer, and for two that do not go together."""
    from unhack.cli.direction import load_policy
    from unhack.pool import load_pool
    from unhack.probes.samples import pool_samples
    from unhack.teacher import check_tokens

    if second is not None and first.resolve().name == second.resolve().name:
        raise ValueError(f"both pools are called {first.name}, by which their rollouts are told apart: rename one")
    pools = [load_pool(path) for path in (first, *([] if second is None else [second]))]
    policy = load_policy(model, adapter)
    for pool in pools:
        check_tokens(pool, policy.tokenizer)
        for name in ("temperature", "reward"):
            if pool.header[name] != pools[0].header[name]:
                raise ValueError(f"{pool.path}: its {name} is not that of {pools[0].path}: make pools of like runs")
    samples = [*map(pool_samples, pools), []]
    hashes: dict[str, object] = {f"pool_hash_{number}": pool.content_hash for number, pool in enumerate(pools)}
    return Opened(policy, float(pools[0].header["temperature"]), samples[0], samples[1], hashes)


def _tell(arm: str, step: int, cos_in: float, cos_out: float) -> None:
    print(f"{arm} step {step}: cos_in {cos_in:+.3f}, cos_out {cos_out:+.3f}", flush=True)


def _analyse(folder: Path) -> int:
    from unhack.probes.analyse import analyse, write_analysis

    found = analyse(folder)
    write_analysis(folder, found)
    print(analysis_text(found))
    return 1 if found.verdict == "stop" else 0


def analysis_text(found: Analysis) -> str:
    """Buckets, contrasts, rules and verdict for a terminal."""
    lines = [f"{'arm':10} {'pool':16} {'kind':12} {'n':>5} {'mean cos':>9} {'sem':>6} {'cos > 0':>8} {'norm':>9}"]
    for bucket in found.buckets:
        lines.append(
            f"{bucket.arm:10} {bucket.pool:16.16} {bucket.kind:12} {bucket.n:5} {bucket.mean_cos:+9.3f} "
            f"{bucket.sem_cos:6.3f} {bucket.positive_share:8.0%} {bucket.mean_norm:9.3g}"
        )
    lines.append("")
    for contrast in found.contrasts:
        lines.append(
            f"{contrast.name}: {contrast.mean_hack:+.3f} (n = {contrast.n_hack}) against {contrast.mean_other:+.3f} "
            f"(n = {contrast.n_other}), Welch t = {contrast.t:.2f}, p = {contrast.p:.2g}"
        )
    null = found.header["cosine_null_95"]
    lines.append(
        f"null: |cos_in| of random directions, 95th percentile {null:.3f}; a difference must exceed {2 * null:.3f}"
    )
    lines.append("")
    for rule in found.rules:
        state = "not run" if rule.passed is None else "passed" if rule.passed else "FAILED"
        lines.append(f"{state:8} {rule.name}: {rule.said}")
    lines.append(f"\nverdict: {found.verdict}: {found.because}")
    return "\n".join(lines)


LEGEND = (
    "(95%): of random directions of the same rows. prec.: of the tenth with the highest scores. base: share of hacks. "
    "ceiling: fitted to the labels, tested on other prompts."
)


def classifier_table(rows: Sequence[Row], header: bool = True) -> str:
    """The rows for a terminal: each number with the 95th percentile of random directions behind it."""
    heading = (
        f"{'steps':>9} {'score':16} {'side':17} {'hack':>5} {'clean':>5} {'AUROC':>6} {'(95%)':>7} {'F0.5':>6} "
        f"{'(95%)':>7} {'prec.':>6} {'(95%)':>7} {'base':>5}"
    )
    lines = [heading] if header else []
    for row in rows:
        told = (
            f"{_number(value):>6} {'(' + _number(null) + ')':>7}"
            for value, null in (
                (row.auroc, row.auroc_null_95),
                (row.f05, row.f05_null_95),
                (row.precision, row.precision_null_95),
            )
        )
        base = _number(row.hack_share) if row.hacks + row.clean else "—"
        lines.append(
            f"{row.window:>9} {row.score:16} {row.side:17} {row.hacks:5} {row.clean:5} {' '.join(told)} {base:>5}"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.2f}"
