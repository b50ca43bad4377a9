"""Probes: each rollout's own gradient by its own backward, the plans, the slim record, resuming, rules, verdicts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pool_runs import make_run
from probe_samples import MODES, make_sample, random_direction, tiny_policy
from unhack import checkpoint, cli
from unhack.adapters import Policy
from unhack.cli.direction import load_policy
from unhack.config import AdapterConfig, ArmConfig, LossConfig, ModelConfig, OptimizerConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.interventions import build
from unhack.loss import backward, pack, select
from unhack.model import completion_logprobs
from unhack.pool import build_pool
from unhack.probes.analyse import ANALYSIS_FILE, analyse
from unhack.probes.contributions import grpo_contributions, module_cosines, module_names, nll_contributions
from unhack.probes.plans import GrpoPlan, NllPlan
from unhack.probes.replay import PROBE_FILE, ProbeSettings, cosine_null, run_probe
from unhack.probes.samples import pool_samples, rollouts_of, run_samples
from unhack.probes.slim import FIELDS, SlimRow, read_steps, step_path, write_step
from unhack.seeds import generator
from unhack.types import Gradient

NAMES_OF_OTHERS = [  # EXPERIMENT §4
    *("step", "sample_id", "src_pool", "src_step", "src_sample", "reward", "hacked", "gt_pass", "fmt_ok", "comp_len"),
    *("cos_S_contrib", "grad_norm_contrib", "mean_cos_in", "mean_cos_out", "frac_fired", "arm"),
]
HACKS = [make_sample(number, "hack") for number in range(12)]
BASE = [make_sample(number, ("failed", "correct", "failed")[number % 3], "base") for number in range(12)]


@pytest.fixture
def policy(tiny_policy_model: Any) -> Policy:
    made = tiny_policy(tiny_policy_model)
    knobs = 0.1 * torch.randn(2, made.layout.total, generator=generator(0, "knobs"))
    made.set_knobs(knobs[0], knobs[1])
    return made


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_each_nll_gradient_is_the_one_of_a_backward_of_its_own(policy: Policy) -> None:
    rollouts = rollouts_of(HACKS[:5])
    together = nll_contributions(policy, rollouts, 0.7, batch=3)  # two batches, of rows of unequal lengths
    for row, rollout in zip(together, rollouts, strict=True):
        ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        lengths = torch.tensor([len(rollout.prompt.token_ids)]), torch.tensor([ids.shape[1]])
        with policy.blocks(main=True, quarantine=False), policy.knob_gradient() as taps:
            logprobs, _ = completion_logprobs(policy.model, ids, *lengths, 0.7)
            (-logprobs.sum() / len(rollout.token_ids)).backward()
            close(row, taps.total())


def test_each_grpo_gradient_is_its_own_and_they_sum_to_the_trainers(policy: Policy) -> None:
    policy.set_knobs(policy.main, torch.zeros_like(policy.main))
    rollouts = [replace(r, source="teacher" if i % 2 else "student") for i, r in enumerate(rollouts_of(HACKS[:6]))]
    advantages, kept = torch.tensor([1.5, -0.5, 2.0, -1.0, 0.7, 9.0]), torch.tensor([True] * 5 + [False])
    packed = pack(rollouts, advantages, kept, 40.0, imitate_teacher=True)
    config = LossConfig(clip_range=0.4)
    together = grpo_contributions(policy, packed, config, 0.9, batch=2)
    assert len(together) == 5
    for index, row in enumerate(together):
        close(row, backward(policy, select(packed, [index]), config, 0.9).main)
    close(together.sum(0), backward(policy, packed, config, 0.9).main)


def test_a_reinforced_rollout_has_the_same_cosines_in_both_losses_and_a_punished_one_the_opposite(
    policy: Policy,
) -> None:
    direction, rollouts = random_direction(policy), [replace(r, source="teacher") for r in rollouts_of(HACKS[:2])]
    packed = pack(rollouts, torch.tensor([2.0, -0.3]), torch.tensor([True, True]), 7.0, imitate_teacher=True)
    nll = module_cosines(direction, policy.layout, nll_contributions(policy, rollouts))
    grpo = module_cosines(direction, policy.layout, grpo_contributions(policy, packed, LossConfig()))
    torch.testing.assert_close(grpo[0], nll[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grpo[1], -nll[1], rtol=1e-3, atol=1e-5)


def test_cosines_per_module_are_those_of_a_slow_loop(policy: Policy) -> None:
    direction = random_direction(policy, k=2)
    rows = torch.randn(3, policy.layout.total, generator=generator(1, "rows"))
    got, parts = module_cosines(direction, policy.layout, rows), dict(policy.layout.items())
    assert module_names(direction, policy.layout) == list(policy.layout.names) and got.shape == (3, len(parts))
    for column, name in enumerate(module_names(direction, policy.layout)):
        for row in range(3):
            vector = rows[row, parts[name]].double()
            along = [float(direction.basis[name][i].double() @ vector / vector.norm()) for i in range(2)]
            up, down = (sum(max(sign * c, 0.0) ** 2 for c in along) ** 0.5 for sign in (1, -1))
            assert float(got[row, column]) == pytest.approx(up - down, abs=1e-9)


def test_slim_rows_have_the_names_that_others_read_and_no_text(policy: Policy, tmp_path: Path) -> None:
    assert list(FIELDS) == NAMES_OF_OTHERS
    settings = ProbeSettings(steps=1, arms=("vanilla",))
    run_probe(NllPlan(HACKS, BASE, 4, 1.0, 0), policy, random_direction(policy), settings, tmp_path, lambda *_: None)
    text = gzip.decompress((tmp_path / "vanilla" / "step_000.cos.jsonl.gz").read_bytes()).decode()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [list(line) for line in lines] == [NAMES_OF_OTHERS] * 8 and "secret" not in text and "prompt" not in text
    assert {line["src_pool"] for line in lines} == {"hacks", "base"} and all(line["fmt_ok"] for line in lines)
    samples = NllPlan(HACKS, BASE, 4, 1.0, 0).draw(0)
    for line, sample in zip(lines, samples, strict=True):
        assert (line["src_step"], line["src_sample"]) == (sample.step, sample.row)
        assert (line["hacked"], line["gt_pass"]) == (sample.verdict.exploited, sample.verdict.strictly_correct)
        assert (line["reward"], line["comp_len"]) == (sample.paid.reward, len(sample.rollout.token_ids))


def test_rows_tell_the_rollouts_own_gradient_and_the_steps_before_and_after_the_arm(
    policy: Policy, tmp_path: Path
) -> None:
    plan, direction = NllPlan(HACKS, BASE, 4, 1.0, 0), random_direction(policy)
    settings = ProbeSettings(steps=2, optimizer=OptimizerConfig(lr=0.01))
    run_probe(plan, policy, direction, settings, tmp_path, lambda *_: None)
    arm = build(ArmConfig(name="erase", direction="v", site="gradient", sided="one"), policy.layout, 0, None, direction)
    own = nll_contributions(policy, rollouts_of(plan.draw(0)))  # the probe leaves the knobs at zero
    step = own[:4].mean(0)  # the contrast weighs nothing
    erased = arm.gradient(Gradient(step, torch.zeros_like(step))).main
    cosines, (before, after) = (
        module_cosines(direction, policy.layout, rows).mean(1) for rows in (own, torch.stack([step, erased]))
    )
    rows = [row for row in read_steps(tmp_path / "projected") if row.step == 0]
    assert [row.cos_S_contrib for row in rows] == pytest.approx(cosines.tolist(), abs=1e-6)
    assert [row.grad_norm_contrib for row in rows] == pytest.approx(own.norm(dim=1).tolist(), rel=1e-5)
    for row in rows:
        assert (row.mean_cos_in, row.mean_cos_out) == pytest.approx((float(before), float(after)), abs=1e-6)
    plain = read_steps(tmp_path / "vanilla")
    assert all(row.mean_cos_in == row.mean_cos_out for row in plain) and after < before
    assert [row.cos_S_contrib for row in plain[:8]] == [row.cos_S_contrib for row in rows]
    assert plain[8].cos_S_contrib != read_steps(tmp_path / "projected")[8].cos_S_contrib, "updates must differ"


def test_a_stopped_probe_goes_on_bit_for_bit_and_another_one_is_refused(policy: Policy, tmp_path: Path) -> None:
    direction, settings = random_direction(policy), ProbeSettings(steps=3)
    plan = GrpoPlan(HACKS, BASE, 2, 4, 1.0, 0)
    run_probe(plan, policy, direction, settings, tmp_path / "whole", lambda *_: None)

    def stop(arm: str, step: int, *_: float) -> None:
        if (arm, step) == ("projected", 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe(plan, policy, direction, settings, tmp_path / "cut", stop)
    # killed between the file of a step and its checkpoint: that step is made again
    written = step_path(tmp_path / "cut" / "projected", 1)
    write_step(tmp_path / "cut" / "projected", 1, [])
    done: list[tuple[str, int]] = []
    run_probe(plan, policy, direction, settings, tmp_path / "cut", lambda arm, step, *_: done.append((arm, step)))
    assert done == [("projected", 1), ("projected", 2)]
    for file in sorted((tmp_path / "whole").rglob("*.gz")):
        assert (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file
    assert written.stat().st_size > 100 and checkpoint.latest(tmp_path / "cut" / "projected") is not None
    for changed, field in ((replace(settings, seed=1), "seed"), (replace(settings, steps=4), "steps")):
        with pytest.raises(ValueError, match=f"a probe whose {field} is"):
            run_probe(plan, policy, direction, changed, tmp_path / "cut", lambda *_: None)
    with pytest.raises(ValueError, match="direction_hash"):
        run_probe(plan, policy, random_direction(policy, seed=5), settings, tmp_path / "cut", lambda *_: None)


def test_a_damaged_step_and_a_missing_one_are_named(policy: Policy, tmp_path: Path) -> None:
    plan, settings = NllPlan(HACKS, [], 4, 1.0, 0), ProbeSettings(steps=2, arms=("vanilla",))
    run_probe(plan, policy, random_direction(policy), settings, tmp_path, lambda *_: None)
    file = step_path(tmp_path / "vanilla", 1)
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"step_001\.cos\.jsonl\.gz is damaged"):
        analyse(tmp_path)
    file.write_bytes(gzip.compress(b'{"step": 1}\n'))
    with pytest.raises(ValueError, match=r"step_001\.cos\.jsonl\.gz does not have the fields"):
        analyse(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="lacks steps of 2"):
        analyse(tmp_path)


def test_groups_are_half_of_each_pool_of_one_mode_and_their_advantages_are_centred(policy: Policy) -> None:
    plan = GrpoPlan(HACKS, BASE, 3, 6, 1.0, 0)
    for step in range(3):
        drawn = plan.draw(step)
        for start in range(0, 18, 6):
            group = drawn[start : start + 6]
            assert [sample.pool for sample in group] == ["hacks"] * 3 + ["base"] * 3
            assert len({sample.rollout.prompt.mode for sample in group}) == 1
            assert len({(sample.pool, sample.row) for sample in group}) == 6
    modes = [plan.draw(step)[start].rollout.prompt.mode for step in range(2) for start in (0, 6, 12)]
    assert modes == [MODES[number % 2] for number in range(6)] and plan.draw(1) == plan.draw(1) != plan.draw(2)
    flat = GrpoPlan(HACKS, [replace(sample, pool="base") for sample in HACKS], 1, 4, 1.0, 0).replay(policy, 0)
    assert not flat.contributions.any(), "a group without spread teaches nothing"
    with pytest.raises(ValueError, match="no loophole mode has 7 rollouts in both pools"):
        GrpoPlan(HACKS, BASE, 1, 14, 1.0, 0)
    with pytest.raises(ValueError, match="must be even"):
        GrpoPlan(HACKS, BASE, 1, 5, 1.0, 0)


def test_a_pool_is_gone_through_before_anything_is_replayed_twice() -> None:
    drawn = [sample.row for step in range(3) for sample in NllPlan(HACKS, [], 4, 1.0, 0).draw(step)]
    assert sorted(drawn) == list(range(12)) and drawn != sorted(drawn)
    with pytest.raises(ValueError, match="the pool has 12 rollouts and a step takes 13"):
        NllPlan(HACKS, [], 13, 1.0, 0)
    with pytest.raises(ValueError, match="the contrast pool has 2 rollouts"):
        NllPlan(HACKS, BASE[:2], 4, 1.0, 0)


def test_the_null_of_the_cosine_is_that_of_random_directions(policy: Policy) -> None:
    vector = torch.randn(1, policy.layout.total, generator=generator(5, "vector"))
    drawn = [module_cosines(random_direction(policy, 2, seed), policy.layout, vector).mean() for seed in range(200)]
    inside = torch.stack(drawn).abs() <= cosine_null(random_direction(policy, 2))
    assert 0.90 <= float(inside.double().mean()) <= 0.99


def slim(step: int, number: int, **changed: Any) -> SlimRow:
    """A pure hack of the vanilla arm with cosine 0.5 ± 0.1."""
    row = SlimRow(step, number, "hacks", 0, number, 3.5, True, False, True, 9, 0.5, 1.0, 0.4, 0.4, 1.0, "vanilla")
    return replace(row, **{"cos_S_contrib": 0.5 + (0.1 if number % 2 else -0.1), **changed})


def written_probe(folder: Path, kind: str, cos_in: float, cos_right: float, **header: Any) -> Path:
    """20 steps of 4 hacks and 4 hacks that are right (or, in groups, failures)."""
    facts = {"kind": kind, "steps": 20, "arms": ["vanilla", "projected"], "group_size": 8, "rollouts": 4}
    facts |= {"modules": 28, "wrapped_modules": 28, "cosine_null_95": 0.1, **header}
    folder.mkdir()
    (folder / PROBE_FILE).write_text(json.dumps(facts))
    right = {"cos_S_contrib": cos_right, "gt_pass": True, "src_pool": "solved"}
    for arm, out in (("vanilla", cos_in), ("projected", 0.0)):
        for step in range(20):
            same = {"arm": arm, "mean_cos_in": cos_in, "mean_cos_out": out}
            rows = [slim(step, number, **same) for number in range(4)]
            rows += [slim(step, number, **same, **right, **{"reward": 0.5}) for number in range(4, 8)]
            write_step(folder / arm, step, rows)
    return folder


def test_the_rules_of_the_distillation_probe_and_its_verdicts(tmp_path: Path) -> None:
    good = analyse(written_probe(tmp_path / "go", "nll", 0.4, 0.2))
    assert good.verdict == "go" and [rule.passed for rule in good.rules] == [True] * 4
    assert [rule.name[:2] for rule in good.rules] == ["T1", "T2", "T3", "T4"]
    pure = good.contrasts[0]
    assert (pure.n_hack, pure.n_other, pure.mean_hack, pure.mean_other) == (80, 80, *map(pytest.approx, (0.5, 0.2)))
    assert pure.t == pytest.approx(0.3 / (0.01 * 80 / 79 / 80) ** 0.5)
    assert {(bucket.arm, bucket.kind): bucket.n for bucket in good.buckets}["projected", "hack+correct"] == 80
    stop = analyse(written_probe(tmp_path / "stop", "nll", 0.05, 0.5))
    assert stop.verdict == "stop" and stop.steps_inside_null == 20 and "do not spend GPU days" in stop.because
    told = analyse(written_probe(tmp_path / "told", "nll", 0.05, 0.2))
    assert told.verdict == "unclear", "a cosine of about 0 that still tells hacks is no reason to stop"
    slight = analyse(written_probe(tmp_path / "slight", "nll", 0.05, 0.4))
    assert slight.verdict == "stop" and slight.rules[3].passed, "significant, but no more than a random V's difference"
    wrong = analyse(written_probe(tmp_path / "wrong", "nll", 0.4, 0.9))
    assert wrong.verdict == "unclear" and "T4" in wrong.because and not wrong.contrasts[0].told
    thin = analyse(written_probe(tmp_path / "thin", "nll", 0.4, 0.2, modules=20))
    assert [rule.passed for rule in thin.rules] == [True, False, True, True] and thin.verdict == "unclear"


def test_the_rules_of_the_mixed_replay_and_its_verdicts(tmp_path: Path) -> None:
    good = analyse(written_probe(tmp_path / "go", "grpo", 0.4, 0.2))
    assert good.verdict == "go" and [rule.passed for rule in good.rules] == [True] * 3
    narrow = written_probe(tmp_path / "narrow", "grpo", 0.4, 0.2)
    for arm in ("vanilla", "projected"):
        for step in range(3):  # 15 % of the groups
            rows = [replace(row, reward=3.5) for row in read_steps(narrow / arm) if row.step == step]
            write_step(narrow / arm, step, rows)
    assert [rule.passed for rule in analyse(narrow).rules] == [False, True, True]
    for step in range(5):
        rows = [replace(row, mean_cos_out=0.9) for row in read_steps(narrow / "projected") if row.step == step]
        write_step(narrow / "projected", step, rows)
    assert [rule.passed for rule in analyse(narrow).rules] == [False, True, False], "15 of 20 are not enough"


def test_the_commands_replay_pools_and_print_and_write_what_they_came_to(
    make_tiny_policy_model: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    for only in ("hacked", "solved", "all"):
        build_pool([run], tmp_path / only, only=only)  # pyright: ignore[reportArgumentType]
    organism = load_policy(ModelConfig(), AdapterConfig())
    save_direction(organism_direction(organism, DirectionRecipe(k=1, pairs=6, heldout=0)), tmp_path / "v.safetensors")
    shared = ["--pool", str(tmp_path / "hacked"), "--direction", str(tmp_path / "v.safetensors"), "--steps", "2"]
    nll = ["probe", "nll", *shared, "--out", str(tmp_path / "n"), "--rollouts", "3"]
    assert cli.main([*nll, "--contrast", str(tmp_path / "solved")]) in (0, 1)
    said = capsys.readouterr().out
    assert "T4 hack above hack-and-correct" in said and "verdict: " in said and "vanilla step 1: cos_in" in said
    assert json.loads((tmp_path / "n" / ANALYSIS_FILE).read_text())["header"]["pool_hash_1"]
    grpo = ["probe", "grpo", *shared, "--out", str(tmp_path / "g"), "--base-pool"]
    assert cli.main([*grpo, str(tmp_path / "all"), "--groups", "2", "--group-size", "2"]) in (0, 1)
    assert "reward spread above 1" in capsys.readouterr().out
    assert cli.main(["probe", "analyse", str(tmp_path / "g")]) in (0, 1)
    assert "verdict: " in capsys.readouterr().out
    assert cli.main([*grpo, str(tmp_path / "hacked")]) == 2 and "both pools are called" in capsys.readouterr().err
    assert cli.main([*nll, "--contrast", str(tmp_path / "all")]) == 2
    assert "a probe whose pool_hash_1 is" in capsys.readouterr().err


def test_samples_of_a_pool_and_of_a_record_carry_the_recorded_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    by_step = run_samples(run)
    assert sorted(by_step) == [0, 1, 2] and [len(samples) for samples in by_step.values()] == [12] * 3
    first = by_step[1][0]
    assert first.verdict.hacked and first.paid.reward == 3.5 and first.rollout.source == "student"
    assert {sample.rollout.source for sample in by_step[1]} == {"student", "teacher"}
    pooled = pool_samples(build_pool([run], tmp_path / "hacks", first_step=1, only="hacked"))
    assert [(s.step, s.row, s.pool) for s in pooled] == [(1 + n // 3, n, "hacks") for n in range(6)]
    assert pooled[0].rollout.token_ids == first.rollout.token_ids and pooled[0].prompt_key == first.prompt_key
