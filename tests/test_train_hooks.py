"""What passes through one step: every hook decides, arms are blind, non-finite numbers stop the run and are named."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unhack.train as training
from training_runs import (
    SHORT,
    SMALL,
    final_tensors,
    steps_done,
)
from unhack import checkpoint, model, record
from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.interventions import ARMS, Blocks, Vanilla
from unhack.loss import NonFiniteError
from unhack.monitors import Deaf
from unhack.problems.organism import impossible, organism_problem
from unhack.prompts import render
from unhack.train import RunStoppedError, train
from unhack.types import Gradient, KnobLayout, PaidGrade, Prompt, Rollout, Update, Verdict


class EveryRolloutCounts(Vanilla):
    """Rewards by place in the group: every group has a spread, so every step has a gradient."""

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Tensor:
        return torch.arange(len(rollouts), dtype=torch.float32)


class Hears(Deaf):
    """Writes down that it was told, and how much."""

    def __init__(self, called: list[str]) -> None:
        self.called = called

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        self.called.append(f"told {len(verdicts)}")


class Decides(EveryRolloutCounts):
    """Changes what passes through every hook, and writes down the order in which they are called."""

    @property
    def uses_oracle(self) -> bool:
        return True

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int) -> None:
        super().__init__(config, layout, seed)
        self.called: list[str] = []

    @property
    def oracle(self) -> Deaf:
        return Hears(self.called)

    def screened(self, rollouts: Sequence[Rollout]) -> Tensor:
        self.called.append("screened")
        return torch.arange(len(rollouts)) == 3

    def prompt(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        self.called.append("prompt")
        return prompts[:1]

    def blocks(self, rollouts: Sequence[Rollout]) -> Blocks:
        self.called.append("blocks")
        main = torch.arange(len(rollouts)) > 0
        return Blocks(main, torch.zeros_like(main))

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Tensor:
        self.called.append("rewards")
        return super().rewards(grades, rollouts)

    def advantages(self, advantages: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        self.called.append("advantages")
        return advantages * 10

    def gradient(self, gradient: Gradient) -> Gradient:
        self.called.append("gradient")
        return replace(gradient, main=torch.full_like(gradient.main, 0.01))

    def update(self, update: Update) -> Update:
        self.called.append("update")
        assert torch.allclose(update.main, update.main[0]) and bool(update.main[0] != 0)
        return replace(update, main=torch.full_like(update.main, 0.25), quarantine=torch.ones_like(update.quarantine))

    def deployed(self, main: Tensor, quarantine: Tensor) -> tuple[Tensor, Tensor]:
        self.called.append("deployed")
        return super().deployed(main, quarantine)


def test_a_nan_in_the_gradient_stops_the_run_and_names_step_rollouts_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.backward, []

    def spoil(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    def spoilt_from_the_second_step(policy: Policy, *rest: Any) -> Gradient:
        calls.append(rest)
        hooked = policy.model.get_submodule("model.norm")
        handle = hooked.register_forward_hook(spoil) if len(calls) == 2 else None
        try:
            return real(policy, *rest)
        finally:
            if handle is not None:
                handle.remove()

    monkeypatch.setattr(training, "backward", spoilt_from_the_second_step)
    monkeypatch.setitem(ARMS, "vanilla", EveryRolloutCounts)
    with pytest.raises(RunStoppedError) as stopped:
        train(SHORT, tmp_path / "run")
    message = str(stopped.value)
    assert message.startswith("step 1: the gradient is not finite for rollouts step-000001-000-000, ")
    assert message.count("step-000001-") == 8 and "NaN" not in message
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-000001'}" in message
    assert steps_done(tmp_path / "run") == 1
    assert (tmp_path / "run" / "rollouts" / "step-000001.parquet").is_file(), "the rollouts that it names are kept"
    saved = checkpoint.latest(tmp_path / "run")
    assert saved is not None and all(tensor.isfinite().all() for tensor in saved.tensors.values())


@pytest.mark.slow
def test_a_policy_that_overflows_stops_the_run_although_its_rollouts_earn_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(SHORT, optimizer=replace(SHORT.optimizer, lr=1e30), checkpoint_every_steps=5)
    monkeypatch.setitem(ARMS, "vanilla", EveryRolloutCounts)
    with pytest.raises(RunStoppedError, match=r"^step 1: the sampler's log-probability .*there is no checkpoint") as e:
        train(wild, tmp_path / "run")
    assert len(re.findall(r"step-000001-\d{3}-\d{3}", str(e.value))) == 8
    newest = r"the only checkpoint, .*step-000001-final, holds the broken weights: start anew"
    message = rf"step 1: the sampler's log-probability is not finite for rollouts eval.*{newest}"
    with pytest.raises(RunStoppedError, match=message):
        train(replace(wild, steps=1), tmp_path / "one step: the last evaluation notices")


def test_an_update_that_is_not_finite_is_never_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(EveryRolloutCounts):
        def update(self, update: Update) -> Update:
            return replace(update, main=update.main / 0)

    monkeypatch.setitem(ARMS, "vanilla", Breaks)
    with pytest.raises(RunStoppedError, match=r"step 0: the update is not finite .* there is no checkpoint") as stopped:
        train(SHORT, tmp_path / "run")
    assert isinstance(stopped.value.__cause__, NonFiniteError) and len(stopped.value.__cause__.rollout_ids) == 8
    assert steps_done(tmp_path / "run") == 0


def test_an_arm_cannot_tell_an_impossible_problem_and_what_it_chooses_keeps_the_real_one() -> None:
    tokenizer = model.load(SMALL.model).tokenizer
    possible = organism_problem(0, "train", 2)
    drawn = [render(problem, "none", "", tokenizer) for problem in (possible, impossible(possible))]
    shown: list[Prompt] = []

    class Looks(Vanilla):
        def prompt(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
            shown.extend(prompts)
            return [replace(prompts[1], text="reworded"), prompts[1]]

    chosen = training.chosen_prompts(Looks(ArmConfig(), KnobLayout((), ()), 0), drawn)
    assert chosen == [replace(drawn[1], text="reworded"), drawn[1]]
    rollouts = [Rollout(str(number), number, prompt, (), (), "", True) for number, prompt in enumerate(drawn)]
    for first, second in (shown, [rollout.prompt for rollout in training.blind(rollouts)]):
        assert first.problem == replace(second.problem, id=first.problem.id) and first.problem.cases == ()
        assert first.problem.reference == "" and "impossible" not in repr(second)


def test_every_hook_is_called_in_data_flow_order_and_decides_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[training.Run] = []
    real = training._finish
    monkeypatch.setattr(training, "_finish", lambda run: (runs.append(run), real(run))[1])
    monkeypatch.setitem(ARMS, "vanilla", Decides)
    assert train(SHORT, tmp_path / "run")
    [run] = runs
    assert isinstance(run.arm, Decides)
    step = ["prompt", "told 4", "screened", "rewards", "advantages", "blocks", "gradient", "update"]
    assert run.arm.called == ["deployed", *step, *step, "deployed"]
    rows = record.rollouts(tmp_path / "run").to_pylist()
    assert [row["advantage"] for row in rows] == [None, 0.0, 10.0, None] * 2  # one prompt: the last is screened
    # (in no statistic, not in the gradient), the first has no block to train
    assert record.read_json(tmp_path / "run" / "env.json")["uses_oracle"] is True
    tensors = final_tensors(tmp_path / "run")
    assert bool((tensors["policy/main"] == 0.5).all() and (tensors["policy/quarantine"] == 2).all())
    assert (tmp_path / "run" / "eval" / "rollouts" / "step-000002-deployed.parquet").stat().st_size > 0


def test_the_loop_never_asks_which_arm_it_runs() -> None:
    tree = ast.parse(Path(training.__file__).read_text())
    asked = [node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.While)]
    asked += [node.subject for node in ast.walk(tree) if isinstance(node, ast.Match)]
    assert not [ast.unparse(test) for test in asked if re.search(r"\barm\b", ast.unparse(test))]


@pytest.mark.slow  # test_loss.py has the quick one
def test_the_size_of_micro_batches_does_not_change_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "vanilla", EveryRolloutCounts)
    plain = replace(SHORT, steps=1, optimizer=replace(SHORT.optimizer, kind="sgd", lr=1.0, warmup_steps=0))
    knobs = []
    for rollouts in (64, 3):
        folder = tmp_path / str(rollouts)
        assert train(replace(plain, loss=replace(plain.loss, micro_batch_rollouts=rollouts)), folder)
        knobs.append(final_tensors(folder)["policy/main"])
    assert record.metrics(tmp_path / "3")[0]["loss/rollouts"] == 8
    torch.testing.assert_close(knobs[1], knobs[0], rtol=1e-4, atol=1e-6 * float(knobs[0].abs().max()) + 1e-9)
