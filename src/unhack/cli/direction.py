"""Commands on hack directions: `direction extract | verify | show | concept | inputs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from unhack.config import AdapterConfig, ModelConfig

if TYPE_CHECKING:
    from unhack.adapters import Policy
    from unhack.pairs import Pair


@dataclass(frozen=True)
class Extract:
    """Make a hack direction V (or a control of it) from contrast pairs and write it as an artifact."""

    out: Path
    """The artifact to write (.safetensors)."""
    pairs_file: Path | None = None
    """Your own pairs (.jsonl or .md); without it pairs for the organism are generated."""
    selection: str = "run_tests"
    """Families of generated pairs, joined by +: a loophole, all, off_mode, a control; or authored (docs/pairs.md)."""
    control: Literal["real", "random", "shuffled", "nonhack", "placebo", "length"] = "real"
    """Which control to make instead of the real direction."""
    pairs: int = 64
    """Generated train pairs."""
    heldout: int = 16
    """Generated held-out pairs, for `direction verify`."""
    k: int = 4
    """Rows of V per module."""
    loss: Literal["nll", "grpo", "activation"] = "nll"
    """Whose gradients V is made from, or `activation`: of bottleneck activations, for gated_route."""
    method: Literal["svd", "mean_diff"] = "svd"
    """First k singular vectors, or the mean difference (k = 1)."""
    drop_bottom_frac: float = 0.0
    """Share of the pooled singular values to drop as noise."""
    length_matched: bool = True
    """Generated pairs whose two sides are equally long in tokens."""
    depths: tuple[int, ...] = (2,)
    """Operations composed in the generated pairs' tasks."""
    seed: int = 0
    """Seed of the pairs and of the controls."""
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def run(self) -> int:
        """Extract, write, verify on the held-out pairs, print."""
        from unhack.directions import DirectionRecipe, extract, organism_direction, recipe_pairs, save_direction, verify
        from unhack.pairs import load_pairs, select

        policy = load_policy(self.model, self.adapter)
        names = ("selection", "control", "k", "pairs", "heldout", "length_matched", "depths", "loss", "method")
        recipe = DirectionRecipe(
            **{name: getattr(self, name) for name in names},
            drop_bottom_frac=self.drop_bottom_frac,
            seed=self.seed,
            pairs_seed=self.seed,
        )
        if self.pairs_file is None:
            pairs, direction = recipe_pairs(policy, recipe), organism_direction(policy, recipe)
        else:
            pairs = load_pairs(self.pairs_file)
            direction = extract(
                policy, select(pairs, "train"), self.k, loss=self.loss, method=self.method, control=self.control,
                drop_bottom_frac=self.drop_bottom_frac, seed=self.seed, selection=self.pairs_file.name,
            )  # fmt: skip
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_direction(direction, self.out)
        print(f"wrote {self.out}: {len(direction.basis)} modules, k = {self.k}, control {self.control}")
        print(verify(policy, direction, select(pairs, "heldout")).text())
        return 0


@dataclass(frozen=True)
class Verify:
    """Test a direction on held-out pairs: cosines per module beside those of random subspaces."""

    artifact: tyro.conf.Positional[Path]
    """The direction (.safetensors)."""
    pairs_file: Path | None = None
    """Your own pairs (.jsonl or .md), of which the held-out ones are used."""
    selection: str | None = None
    """Families of generated pairs, or authored (default: those that the direction was made from)."""
    heldout: int = 32
    """Generated held-out pairs."""
    depths: tuple[int, ...] = (2,)
    """Operations composed in the generated pairs' tasks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def run(self) -> int:
        """Print the histogram beside its null; 1 when the gate (cos > 0 in most modules) fails."""
        from unhack.directions import load_direction, verify

        policy = load_policy(self.model, self.adapter)
        direction = load_direction(self.artifact, policy)
        metadata = direction.metadata
        verification = verify(policy, direction, self._pairs(policy, metadata.selection, metadata.seed))
        print(verification.text())
        return 0 if verification.gate else 1

    def _pairs(self, policy: Policy, selection: str, seed: int) -> Sequence[Pair]:
        from unhack.pairs import load_pairs, select
        from unhack.pairs.choose import chosen_pairs

        if self.pairs_file is not None:
            return select(load_pairs(self.pairs_file), "heldout")
        # Another stream of pairs than the extraction's. Of 32, one may by chance be a pair that it was made from: how
        # many there were is not in the artifact.
        chosen = self.selection or selection
        pairs = chosen_pairs(
            chosen, 1, seed + 1_000_003, heldout=self.heldout, tokenizer=policy.tokenizer, depths=self.depths
        )
        return select(pairs, "heldout")


@dataclass(frozen=True)
class Show:
    """Print what a direction artifact says about itself, and how much of its subspace others share."""

    artifact: tyro.conf.Positional[Path]
    """The direction (.safetensors)."""
    against: tuple[Path, ...] = ()
    """Other directions in the same basis, to compare with."""

    def run(self) -> int:
        """Print every field of the header, the modules, and a line for each direction to compare with."""
        from dataclasses import asdict

        from unhack.directions import load_direction, shared_variance

        direction = load_direction(self.artifact)
        for name, value in asdict(direction.metadata).items():
            print(f"{name:17} {value}")
        rows = [len(basis) for basis in direction.basis.values()]
        print(f"{'modules':17} {len(rows)} with {min(rows)} to {max(rows)} rows each")
        for name, basis in direction.basis.items():
            print(f"  {name}: {basis.shape[0]} rows of {basis.shape[1]} knobs")
        for path in self.against:
            shared, expected = shared_variance(direction, load_direction(path))
            print(f"shares {shared:.1%} of its subspace with {path} (a random one: {expected:.1%})")
        return 0


@dataclass(frozen=True)
class Concept:
    """Make a concept direction in the residual stream (or a control of it) from contrast pairs; base model only."""

    out: Path
    """The artifact to write (.safetensors)."""
    pairs_file: Path | None = None
    """Your own pairs (.jsonl or .md); without it pairs for the organism are generated."""
    selection: str = "run_tests"
    """Families of generated pairs, joined by +: a loophole, all, off_mode, a control; or authored (docs/pairs.md)."""
    control: Literal["real", "random", "shuffled", "nonhack", "placebo", "length"] = "real"
    """Which control to make instead of the real direction."""
    layer: int | None = None
    """Decoder layer after which the residual stream is read, from 0 (default: the middle of the 60-75 % band)."""
    pairs: int = 64
    """Generated train pairs."""
    heldout: int = 32
    """Generated held-out pairs, on which the concept is tested."""
    length_matched: bool = True
    """Generated pairs whose two sides are equally long in tokens."""
    depths: tuple[int, ...] = (2,)
    """Operations composed in the generated pairs' tasks."""
    seed: int = 0
    """Seed of the pairs and of the controls."""
    model: ModelConfig = field(default_factory=ModelConfig)

    def run(self) -> int:
        """Extract, write, test on the held-out pairs of the real selection, print."""
        from dataclasses import replace

        from unhack.cli.quiet import quiet_libraries
        from unhack.directions import concept
        from unhack.model import load
        from unhack.pairs import load_pairs, select

        quiet_libraries()
        loaded = load(self.model)
        names = ("selection", "control", "layer", "pairs", "heldout", "length_matched", "depths", "seed")
        recipe = concept.ConceptRecipe(**{name: getattr(self, name) for name in names}, pairs_seed=self.seed)
        if self.pairs_file is None:
            made = concept.organism_concept(loaded, recipe)
            heldout = select(concept.concept_pairs(loaded, replace(recipe, control="real")), "heldout")
        else:
            pairs = load_pairs(self.pairs_file)
            made = concept.extract_concept(
                loaded, select(pairs, "train"), layer=self.layer, control=self.control, seed=self.seed,
                selection=self.pairs_file.name,
            )  # fmt: skip
            heldout = select(pairs, "heldout")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        concept.save_concept(made, self.out)
        metadata = made.metadata
        print(f"wrote {self.out}: after layer {metadata.layer} of {metadata.layers}, control {metadata.control}")
        print(concept.verify_concept(loaded, made, heldout).text())
        return 0


@dataclass(frozen=True)
class Inputs:
    """Measure how contrast pairs differ at the inputs of the base model's layers, for `adapter.statistics`."""

    out: Path
    """The statistics to write (.safetensors)."""
    pairs_file: Path | None = None
    """Your own pairs (.jsonl or .md), of which the train ones are used; without it pairs are generated."""
    selection: str = "run_tests"
    """Families of generated pairs, joined by +: a loophole, all, off_mode, a control; or authored (docs/pairs.md)."""
    pairs: int = 64
    """Generated pairs."""
    length_matched: bool = True
    """Generated pairs whose two sides are equally long in tokens."""
    depths: tuple[int, ...] = (2,)
    """Operations composed in the generated pairs' tasks."""
    seed: int = 0
    """Seed of the pairs."""
    model: ModelConfig = field(default_factory=ModelConfig)

    def run(self) -> int:
        """Measure, write, print."""
        from unhack.adapters.block_init import save_statistics
        from unhack.cli.quiet import quiet_libraries
        from unhack.directions.inputs import StatisticsRecipe, input_statistics, statistics_pairs
        from unhack.model import load
        from unhack.pairs import load_pairs, select

        quiet_libraries()
        loaded = load(self.model)
        names = ("selection", "pairs", "length_matched", "depths")
        recipe = StatisticsRecipe(**{name: getattr(self, name) for name in names}, pairs_seed=self.seed)
        own = None if self.pairs_file is None else select(load_pairs(self.pairs_file), "train")
        pairs = statistics_pairs(loaded, recipe) if own is None else own
        statistics = input_statistics(loaded, pairs)
        save_statistics(statistics, self.out)
        print(f"wrote {self.out}: {len(statistics.differences)} layers, {len(pairs)} pairs; for adapter.statistics")
        return 0


def load_policy(model: ModelConfig, adapter: AdapterConfig) -> Policy:
    """The untrained model with its adapters."""
    from unhack.adapters import Policy
    from unhack.cli.quiet import quiet_libraries
    from unhack.model import load

    quiet_libraries()
    return Policy.wrap(load(model), adapter)
