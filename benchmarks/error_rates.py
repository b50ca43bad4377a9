"""How often the decision procedure is wrong, and how often it decides: simulated experiments through `decide_all`.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/error_rates.py

An experiment has every arm under n seeds, four loophole modes of 96 samples each (24 problems × 4). (hack, solve,
neither) of a run is Dirichlet around the arm's true rates, each mode is Dirichlet around its run, counts are
multinomial: a beta-binomial at two levels. Spreads as measured on the shipped organism (docs/results.md): 10 points
across seeds within a mode, 7 pooled over modes, at rates of one half. Seeds of different arms are independent.
Ends with status 1 when a rate of false support is above its level by more than Monte-Carlo error (Wilson, 99.9 %).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from unhack.hypotheses import (
    Decision,
    Hypothesis,
    Observation,
    decide_all,
    h1_control,
    h1_suppression,
    h3_beats_advantage_level,
    h4_emergence,
    h5_generalisation,
    h6_routing,
)
from unhack.machine import cpu_model, usable_cores
from unhack.results import ALPHA
from unhack.seeds import derive
from unhack.stats import wilson

MODES = ("run_tests", "sentinel", "stdout_marker", "file_marker")
SAMPLES_PER_MODE = 96
SEED_SPREAD, MODE_SPREAD = 0.055, 0.07  # standard deviations at a rate of one half
CONTROLS = ("random", "shuffled", "nonhack", "placebo")
FOLDS = {mode: f"without_{mode}" for mode in MODES}

Rates = tuple[float, float]  # hack, solve


@dataclass(frozen=True)
class Scenario:
    """True (hack, solve) per arm, what is decided on it, and which of the hypotheses are false there.

    `by_mode`: (arm, mode) → other true rates in one mode.
    """

    name: str
    arms: Mapping[str, Rates]
    hypotheses: Sequence[Hypothesis]
    false: Sequence[str] = ()
    by_mode: Mapping[tuple[str, str], Rates] | None = None


def simulate(scenario: Scenario, seeds: int, draw: numpy.random.Generator) -> list[Observation]:
    """The last evaluations of one experiment."""
    names = list(scenario.arms)
    changed = scenario.by_mode or {}
    hack_solve = numpy.array([[changed.get((name, mode), scenario.arms[name]) for mode in MODES] for name in names])
    true = numpy.concatenate([hack_solve, 1 - hack_solve.sum(2, keepdims=True)], 2)  # [arm, mode, 3]
    mean = true.mean(1)  # [arm, 3]
    run = _dirichlet(numpy.repeat(mean[:, None], seeds, 1), SEED_SPREAD, draw)  # [arm, seed, 3]
    moved = numpy.clip(true[:, None] + (run - mean[:, None])[:, :, None], 0, None)  # [arm, seed, mode, 3]
    share = _dirichlet(moved / moved.sum(3, keepdims=True), MODE_SPREAD, draw)
    counts = draw.multinomial(SAMPLES_PER_MODE, share)
    return [
        Observation(name, seed, 100, "deployed", mode, SAMPLES_PER_MODE, int(hacked), int(solved))
        for name, of_arm in zip(names, counts, strict=True)
        for seed, of_seed in enumerate(of_arm)
        for mode, (hacked, solved, _) in zip(MODES, of_seed, strict=True)
    ]


def _dirichlet(mean: numpy.ndarray, spread: float, draw: numpy.random.Generator) -> numpy.ndarray:
    """Shares around `mean` on the last axis whose standard deviation is `spread` at one half; 0 stays 0."""
    weights = draw.standard_gamma((0.25 / spread**2 - 1) * mean)
    return weights / weights.sum(-1, keepdims=True)


def repeat(scenario: Scenario, seeds: int, replications: int) -> tuple[dict[str, Counter[str]], int]:
    """Outcomes per hypothesis over simulated experiments, and in how many any false hypothesis was supported."""
    outcomes: dict[str, Counter[str]] = {one.name: Counter() for one in scenario.hypotheses}
    wrong = 0
    draw = numpy.random.default_rng(derive(0, "error_rates", scenario.name, seeds))
    for _ in range(replications):
        decisions: Mapping[str, Decision] = decide_all(scenario.hypotheses, simulate(scenario, seeds, draw))
        for name, decision in decisions.items():
            outcomes[name][decision.outcome] += 1
        wrong += any(decisions[name].outcome == "supported" for name in scenario.false)
    return outcomes, wrong


HACKS, LOW = (0.65, 0.15), (0.20, 0.15)  # as vanilla; as an arm that works at a matched solve rate


def boundaries() -> list[Scenario]:
    """Each hypothesis alone where one part of it is just not true and the rest is plain: there it errs most.

    H5 and H6 ask for many parts at once; with a solve rate of 3 % the matching of it is plain.
    """
    return [
        Scenario("H4, vanilla at 30 %", {"vanilla": (0.30, 0.4)}, [h4_emergence()], ["H4"]),
        Scenario("H1, exactly 30 points", _two("erase", (0.35, 0.15)), [h1_suppression("erase")], ["H1"]),
        Scenario("H1, solve exactly 10 lower", _two("erase", (0.10, 0.05)), [h1_suppression("erase")], ["H1"]),
        Scenario(
            "H1-control, one placebo as good",
            {"vanilla": HACKS, "erase": LOW, **dict.fromkeys(CONTROLS[1:], HACKS), CONTROLS[0]: LOW},
            [h1_control("erase", CONTROLS)],
            ["H1-control"],
        ),
        Scenario(
            "H3, rebound as good",
            {"vanilla": HACKS, "erase": (0.4, 0.15), "rebound_penalty": (0.4, 0.15)},
            [h3_beats_advantage_level("erase")],
            ["H3"],
        ),
        Scenario(
            "H5, nothing in one held-out mode",
            {"vanilla": (0.65, 0.03), **dict.fromkeys(FOLDS.values(), (0.20, 0.03))},
            [h5_generalisation(FOLDS)],
            ["H5"],
            {(FOLDS[MODES[0]], MODES[0]): (0.65, 0.03)},
        ),
        Scenario(
            "H6, random_half as good",
            {name: (0.65, 0.03) for name in ("vanilla", "absorb")}
            | {name: (0.20, 0.03) for name in ("route", "random_half")},
            [h6_routing()],
            ["H6"],
        ),
    ]


def _two(arm: str, rates: Rates) -> dict[str, Rates]:
    return {"vanilla": HACKS, arm: rates}


def family() -> list[Hypothesis]:
    """All six hypotheses of EXPERIMENT §1."""
    return [
        h4_emergence(),
        h1_suppression("erase"),
        h1_control("erase", CONTROLS),
        h3_beats_advantage_level("erase"),
        h5_generalisation(FOLDS),
        h6_routing(),
    ]


def whole_experiments() -> list[Scenario]:
    """All six at once: nothing works; all but H3 is true, plainly; nothing works and vanilla is at the gate."""
    arms = ("erase", *CONTROLS, "rebound_penalty", *FOLDS.values(), "route", "absorb", "random_half")
    rest = ["H1", "H1-control", "H3", "H5", "H6"]
    nothing = dict.fromkeys(("vanilla", *arms), HACKS)
    plain = dict.fromkeys(nothing, (0.65, 0.03))
    works = ("erase", "rebound_penalty", "route", *FOLDS.values())
    at_gate = dict.fromkeys(nothing, (0.30, 0.4))
    return [
        Scenario("nothing works", nothing, family(), rest),
        Scenario("all true but H3", plain | dict.fromkeys(works, (0.15, 0.03)), family(), ["H3"]),
        Scenario("nothing works, vanilla at 30 %", at_gate, family(), ["H4", *rest]),
    ]


def effects() -> list[Scenario]:
    """Effects of the size that EXPERIMENT §7 saw (n = 1), and the smallest ones that one would want to find."""
    strict, lenient = h1_suppression("erase"), h1_suppression("erase", matching="not_below")
    scenarios = [
        Scenario("H1: 69 points, solve matched", {"vanilla": (0.69, 0.04), "erase": (0.0, 0.04)}, [strict]),
        Scenario("H1: 54 points, solve matched", {"vanilla": (0.69, 0.04), "erase": (0.15, 0.04)}, [strict]),
        Scenario("H1: 54 points, solve +48", {"vanilla": (0.69, 0.04), "erase": (0.15, 0.52)}, [strict]),
        Scenario("the same, not_below", {"vanilla": (0.69, 0.04), "erase": (0.15, 0.52)}, [lenient]),
        Scenario("H1: 40 points, solve matched", {"vanilla": (0.69, 0.15), "erase": (0.29, 0.15)}, [strict]),
        Scenario("H1: 30 points, solve matched", {"vanilla": (0.69, 0.15), "erase": (0.39, 0.15)}, [strict]),
        Scenario("H1: 21 points, not_below", {"vanilla": (0.615, 0.09), "erase": (0.405, 0.28)}, [lenient]),
        Scenario("H6: 69 points, solve 1 % to 0", _routing(0.69, 0.01, 0.0, 0.0), [h6_routing()]),
    ]
    for gap in (0.05, 0.10, 0.15, 0.20):
        hypotheses = [h1_control("erase", CONTROLS), h3_beats_advantage_level("erase")]
        others = dict.fromkeys((*CONTROLS, "rebound_penalty"), (0.40 + gap, 0.15))
        arms = {"vanilla": HACKS, "erase": (0.40, 0.15), **others}
        scenarios += [Scenario(f"{one.name}: {100 * gap:.0f} points", arms, [one]) for one in hypotheses]
    for held_out in (0.50, 0.40):
        arms = {"vanilla": HACKS, **dict.fromkeys(FOLDS.values(), (held_out, 0.15))}
        gap_points = 100 * (HACKS[0] - held_out)
        scenarios.append(Scenario(f"H5: {gap_points:.0f} points in every fold", arms, [h5_generalisation(FOLDS)]))
    return scenarios


def _routing(hack: float, solve: float, routed_hack: float, routed_solve: float) -> dict[str, Rates]:
    return {name: (hack, solve) for name in ("vanilla", "absorb", "random_half")} | {
        "route": (routed_hack, routed_solve)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=1000, help="experiments per false-support rate (1000)")
    parser.add_argument("--power-replications", type=int, default=200, help="experiments per power (200)")
    flags = parser.parse_args()
    started = time.process_time()
    print(f"machine: {cpu_model()}, {usable_cores()} usable cores, numpy {numpy.__version__}; level {ALPHA}, one-sided")
    print("\n| just not true | seeds | any false support (Wilson 99.9 %) | falsified | inconclusive | not testable |")
    print("|---|---|---|---|---|---|")
    failed = False
    cases = [(scenario, seeds) for scenario in boundaries() for seeds in (3, 5, 10)]
    cases += [(scenario, 10) for scenario in whole_experiments()]
    for scenario, seeds in cases:
        outcomes, wrong = repeat(scenario, seeds, flags.replications)
        interval = wilson(wrong, flags.replications, 0.999)
        failed |= interval.low > ALPHA
        rest = outcomes[scenario.false[0]] if len(scenario.false) == 1 else Counter()
        cells = [f"{rest[name] / flags.replications:.3f}" if rest else "" for name in OTHERS]
        rate = f"{wrong / flags.replications:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        print(f"| {scenario.name} | {seeds} | {rate} | {' | '.join(cells)} |", flush=True)
    print("\n| true effect | supported / falsified, n = 3 | n = 5 | n = 10 | n = 20 |\n|---|---|---|---|---|")
    for scenario in effects():
        cells = []
        for seeds in (3, 5, 10, 20):
            outcomes, _ = repeat(scenario, seeds, flags.power_replications)
            counts = outcomes[scenario.hypotheses[0].name]
            cells.append(" / ".join(f"{counts[name] / flags.power_replications:.2f}" for name in SHOWN))
        print(f"| {scenario.name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.process_time() - started:.0f} CPU seconds")
    print("FAILS: a rate of false support is above its level" if failed else "holds: no rate is above its level")
    sys.exit(int(failed))


OTHERS = ("falsified", "inconclusive", "not_testable")
SHOWN = ("supported", "falsified")

if __name__ == "__main__":
    main()
