"""Commands on monitors: `monitor train-probe | evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unhack.config import ArmConfig, EndpointConfig, ModelConfig

if TYPE_CHECKING:
    from unhack.adapters import Policy
    from unhack.detection import Labelled
    from unhack.model import LoadedModel


@dataclass(frozen=True)
class TrainProbe:
    """Fit a linear probe on the base model's activations, from contrast pairs or from a frozen labelled pool."""

    out: Path
    """The artifact to write (.safetensors)."""
    pool: Path | None = None
    """A frozen pool (`unhack pool build`) whose strict verdicts are the labels; without it pairs are used."""
    heldout_pool: Path | None = None
    """Another pool to choose the layer and set the threshold on; it may share no prompt with the first."""
    pairs_file: Path | None = None
    """Your own pairs (.jsonl or .md); without it, and without a pool, pairs for the organism are generated."""
    selection: str = "all"
    """Generated pair families, joined by +."""
    pairs: int = 64
    """Generated train pairs."""
    heldout: int = 32
    """Generated held-out pairs."""
    method: Literal["mass_mean", "logistic"] = "logistic"
    """mass_mean: difference of the two means; logistic: regression with an L2 penalty."""
    layer: int | None = None
    """Decoder layer, from 0 (default: of all layers the one with the largest held-out AUROC)."""
    modes: tuple[str, ...] = ()
    """Train on rollouts under these loophole modes only (default: all)."""
    false_positive_rate: float = 0.01
    """Share of the held-out clean rollouts that may lie above the threshold."""
    heldout_frac: float = 0.3
    """Share of the pool's prompts that is held out, without --heldout-pool."""
    l2: float = 1.0
    """Strength of the logistic probe's penalty."""
    seed: int = 0
    """Seed of the split and of generated pairs."""
    model: ModelConfig = field(default_factory=ModelConfig)

    def run(self) -> int:
        """Fit, write, print what every layer came to."""
        from unhack.check_config import ABOVE_ZERO, Bound, check_bound, check_modes
        from unhack.cli.quiet import quiet_libraries
        from unhack.detection import ProbeRecipe, train_probes
        from unhack.model import load
        from unhack.monitors.probe import save_probe

        check_bound("false_positive_rate", self.false_positive_rate, Bound(0, 1, open_high=True))
        check_bound("heldout_frac", self.heldout_frac, Bound(0, 1, open_low=True, open_high=True))
        check_bound("l2", self.l2, ABOVE_ZERO)
        check_modes("modes", self.modes)
        if self.heldout_pool is not None and self.pool is None:
            raise ValueError("--heldout-pool belongs to --pool: name the pool to train on too")
        if self.pool is not None and self.pairs_file is not None:
            raise ValueError("--pool and --pairs-file are two training sets: name one of them")
        quiet_libraries()
        loaded = load(self.model)
        train, heldout, source = self._rows(loaded)
        recipe = ProbeRecipe(
            (self.method,), self.layer, self.heldout_frac, self.false_positive_rate, self.modes, self.l2, self.seed
        )
        trained = train_probes(loaded, train, source, recipe, heldout)[self.method]
        save_probe(trained.probe, self.out)
        known = trained.probe.metadata
        print(f"wrote {self.out}: {self.method} probe after layer {known.layer}, {known.modes}")
        print(f"{known.train_rows} training and {known.heldout_rows} held-out rollouts ({known.heldout_clean} clean)")
        for fitted in trained.layers:
            print(f"  layer {fitted.layer}: held-out AUROC {fitted.heldout_auroc:.3f}")
        return 0

    def _rows(self, loaded: LoadedModel) -> tuple[list[Labelled], list[Labelled], str]:
        """Training rows, held-out rows (none: split by prompt), and where they come from."""
        from unhack.detection import of_pool
        from unhack.detection.pair_probe import PairProbeRecipe, probe_pairs, rows_of_pairs
        from unhack.pairs import load_pairs

        if self.pool is not None:
            rows, content = of_pool(self.pool)
            held = [] if self.heldout_pool is None else of_pool(self.heldout_pool)[0]
            return rows, held, f"pool {content}"
        if self.pairs_file is not None:
            return rows_of_pairs(loaded, load_pairs(self.pairs_file))
        chosen = PairProbeRecipe(self.selection, self.pairs, self.heldout, seed=self.seed)
        return rows_of_pairs(loaded, probe_pairs(loaded, chosen))


@dataclass(frozen=True)
class Evaluate:
    """Measure monitors against strict verdicts on a frozen pool or on finished runs: tables and ROC curves."""

    out: Path
    """Folder for evaluation.csv, evaluation.md, roc.csv and drift.csv."""
    pool: Path | None = None
    """A frozen pool, beside --runs or instead of them."""
    runs: tuple[Path, ...] = ()
    """Folders of runs."""
    steps: str = ":"
    """Training steps A:B of the runs, from A up to but not including B; either may be left out."""
    probes: tuple[Path, ...] = ()
    """Probes (`unhack monitor train-probe`)."""
    static: bool = True
    """Whether to measure the static rules."""
    activations: Literal["base", "final"] = "base"
    """Whose activations probes read: the base model's, or those of the one run's final policy."""
    threshold: float = 0.5
    """A rollout is flagged when its score is above it."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def run(self) -> int:
        """Read the monitors, write the tables, print them."""
        from unhack.check_config import DECAY, check_bound
        from unhack.cli.pool import step_range
        from unhack.cli.quiet import quiet_libraries
        from unhack.detection import evaluate_monitors, markdown, of_pool, of_run
        from unhack.monitors import Monitor, build_monitor, check_monitor

        check_bound("threshold", self.threshold, DECAY)
        if self.pool is None and not self.runs:
            raise ValueError("nothing to evaluate on: give --pool, --runs or both")
        quiet_libraries()
        arms = {"static": ArmConfig(monitor="static")} if self.static else {}
        arms |= {path.stem: ArmConfig(monitor="probe", monitor_path=str(path)) for path in self.probes}
        if self.endpoint.url:
            arms["judge"] = ArmConfig(monitor="judge", endpoint=replace(self.endpoint, on_failure="mask"))
        if len(arms) < self.static + len(self.probes) + bool(self.endpoint.url) or not arms:
            raise ValueError("give at least one monitor, and probes whose files have different names")
        first, end = step_range(self.steps)
        rows: list[Labelled] = [] if self.pool is None else of_pool(self.pool)[0]
        for run in self.runs:
            rows += of_run(run, first, end)
        if not rows:
            raise ValueError("no rollout to evaluate on at these steps: widen --steps")
        monitors: dict[str, Monitor] = {}
        policy = self._policy() if self.probes else None
        for name, arm in arms.items():
            check_monitor(arm)
            monitors[name] = build_monitor(arm, 0)
            if policy is not None:
                monitors[name].bind(policy)
        found = evaluate_monitors(monitors, rows, self.out, self.threshold)
        print(markdown(found), end="")
        return 0

    def _policy(self) -> Policy:
        """The model with its knobs at zero, or as the one run left them."""
        from unhack import model, record
        from unhack.adapters import Policy
        from unhack.config import AdapterConfig

        if self.activations == "base":
            return Policy.wrap(model.load(self.model), AdapterConfig())
        if len(self.runs) != 1:
            raise ValueError(f"--activations final needs one run, not {len(self.runs)}: it reads that run's adapter")
        config = record.config_of(self.runs[0])
        policy = Policy.wrap(model.load(config.model), config.adapter)
        policy.load(self.runs[0] / "adapter")
        return policy
