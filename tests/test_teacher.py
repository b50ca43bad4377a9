"""What a group takes from a pool, how the two parts train together, what is refused, bit-exact resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import unhack.train as training
from pool_runs import GROUP, make_run, run_config
from training_runs import SHORT, assert_same, final_tensors
from unhack import model, record
from unhack.check_config import check
from unhack.config import EnvironmentConfig, TeacherConfig, TrainConfig
from unhack.interventions import ARMS, Vanilla
from unhack.loss import backward
from unhack.pool import Pool, build_pool
from unhack.prompts import training_prompts
from unhack.rollout.groups import sample_groups
from unhack.rollout.native import NativeSampler
from unhack.seeds import generator
from unhack.teacher import Teacher, check_pool
from unhack.train import train
from unhack.types import Batch, Gradient, PaidGrade, Prompt, Rollout


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("pool")
    return build_pool([make_run(folder / "run")], folder / "pool")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return model.load(SHORT.model).tokenizer


def config_with(pool: Pool, **teacher: Any) -> TrainConfig:
    fields = {"pool": str(pool.path), "frac": 0.5, **teacher}
    return replace(run_config(), teacher=TeacherConfig(**fields))


def teacher_of(pool: Pool, **fields: Any) -> Teacher:
    config = config_with(pool, **fields)
    return Teacher(config.teacher, config.group_size, config.seed, pool)


def prompts_of(tokenizer: Any, step: int, seed: int = 0) -> list[Prompt]:
    return training_prompts(run_config().environment, tokenizer, seed, step, 3)


def test_a_group_takes_rollouts_of_its_own_prompt_first_and_then_of_its_mode(pool: Pool, tokenizer: Any) -> None:
    own, strange = prompts_of(tokenizer, 1), prompts_of(tokenizer, 1, seed=9)
    recorded = [lesson.rollout.prompt.token_ids for lesson in pool.lessons]
    assert [recorded.count(prompt.token_ids) for prompt in own] == [3, 3, 3]
    assert [recorded.count(prompt.token_ids) for prompt in strange] == [0, 0, 0]
    teacher = teacher_of(pool)
    for prompts, share in ((own, 1.0), (strange, 0.0)):
        drawn = teacher.draw(prompts, 5)
        assert drawn.taken == (2, 2, 2) and drawn.metrics["teacher/rollouts"] == 6
        assert drawn.metrics["teacher/same_prompt_frac"] == share
        assert [rollout.group for rollout in drawn.rollouts] == [0, 0, 1, 1, 2, 2]
        assert all(rollout.prompt.mode == prompts[rollout.group].mode for rollout in drawn.rollouts)
        assert len({rollout.id for rollout in drawn.rollouts}) == 6
    wide = Teacher(TeacherConfig(pool="p", frac=0.9), 5, 0, pool).draw(own, 5)  # 4 of 5, and 3 are of the own prompt
    assert wide.taken == (4, 4, 4) and wide.metrics["teacher/same_prompt_frac"] == 0.75
    assert Teacher(TeacherConfig(pool="p", frac=0.7), GROUP, 0, pool).draw(own, 5).taken == (3, 3, 3)  # of 2.8
    for group, prompt in enumerate(own):
        same = [r.prompt.token_ids == prompt.token_ids for r in wide.rollouts if r.group == group]
        assert same == [True, True, True, False]


def test_what_is_taken_keeps_tokens_logprobs_and_grade_of_its_row(pool: Pool, tokenizer: Any) -> None:
    drawn = teacher_of(pool).draw(prompts_of(tokenizer, 0), 12)
    for rollout, grading in zip(drawn.rollouts, drawn.gradings, strict=True):
        row = int(rollout.id.removeprefix(f"step-000012-{rollout.group:03d}-pool-"))
        lesson = pool.lessons[row]
        assert replace(rollout, id=lesson.rollout.id, group=lesson.rollout.group) == lesson.rollout
        assert rollout.source == "teacher" and grading.paid.rollout_id == grading.verdict.rollout_id == rollout.id
        assert grading.paid.rewards == lesson.grading.paid.rewards and grading.paid.paid == lesson.grading.paid.paid
        assert grading.verdict.hacked == lesson.grading.verdict.hacked


def test_draws_depend_on_seed_step_and_group_alone(pool: Pool, tokenizer: Any) -> None:
    prompts = prompts_of(tokenizer, 0, seed=4)
    assert teacher_of(pool).draw(prompts, 3) == teacher_of(pool).draw(prompts, 3)
    drawn = [tuple(r.text for r in teacher_of(pool).draw(prompts, step).rollouts) for step in range(6)]
    assert len(set(drawn)) > 1
    first = [r.text for r in teacher_of(pool).draw(prompts, 3).rollouts if r.group == 0]
    assert first == [r.text for r in teacher_of(pool).draw(prompts[:1], 3).rollouts]


def test_the_teacher_leaves_at_until_step_and_stays_out_of_other_modes(pool: Pool, tokenizer: Any) -> None:
    prompts = [prompt for step in range(4) for prompt in prompts_of(tokenizer, step)]
    modes = [prompt.mode for prompt in prompts]
    assert set(modes) == {"run_tests", "sentinel"}
    timed = teacher_of(pool, until_step=2)
    assert sum(timed.draw(prompts, 1).taken) > 0 == sum(timed.draw(prompts, 2).taken)
    taken = teacher_of(pool, modes=("sentinel",)).draw(prompts, 0).taken
    assert list(taken) == [2 if mode == "sentinel" else 0 for mode in modes]
    nobody = Teacher(TeacherConfig(), GROUP, 0, None)
    assert nobody.draw(prompts, 0).taken == (0,) * len(prompts) and nobody.pool_hash is None
    assert not nobody.draw(prompts, 0).metrics


class CountsCalls(NativeSampler):
    """A sampler that says what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int, int]] = []

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        generator: torch.Generator,
        tag: str = "",
        greedy: bool = False,
    ) -> list[Rollout]:
        self.calls.append(([prompt.text for prompt in prompts], group_size, generator.initial_seed()))
        return [
            Rollout(f"{tag}-{group}-{sample}", group, prompt, (1,), (0.0,), f"{prompt.text}/{sample}", True)
            for group, prompt in enumerate(prompts)
            for sample in range(group_size)
        ]


def test_groups_of_one_size_are_one_call_and_others_keep_their_group_and_order(pool: Pool) -> None:
    prompts = [replace(pool.lessons[0].rollout.prompt, text=name) for name in "abcd"]
    sampler = CountsCalls()
    plain = sample_groups(sampler, prompts, [2] * 4, 0, 7)
    assert sampler.calls == [(list("abcd"), 2, generator(0, "sample", 7).initial_seed())]
    assert [rollout.id for rollout in plain[:3]] == [
        "step-000007-000-000",
        "step-000007-000-001",
        "step-000007-001-000",
    ]
    mixed = sample_groups(sampler, prompts, [2, 4, 2, 2], 0, 7)
    assert [(call[0], call[1]) for call in sampler.calls[1:]] == [(list("acd"), 2), (["b"], 4)]
    assert sampler.calls[1][2] == sampler.calls[0][2] != sampler.calls[2][2]
    assert [rollout.text for rollout in mixed] == ["a/0", "a/1", "b/0", "b/1", "b/2", "b/3", "c/0", "c/1", "d/0", "d/1"]
    assert [rollout.group for rollout in mixed] == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3]
    assert mixed[5].id == "step-000007-001-003"


REFUSALS: list[tuple[Callable[[TrainConfig], TrainConfig], str]] = [
    (lambda c: replace(c, sampler=replace(c.sampler, temperature=0.7)), r"its temperature is 1\.0, this run's is 0\.7"),
    (lambda c: replace(c, sampler=replace(c.sampler, max_new_tokens=2)), "has completions of 3 tokens"),
    (lambda c: replace(c, reward=replace(c.reward, paid=1.0)), "its reward is"),
    (lambda c: replace(c, environment=replace(c.environment, allow_hack=False)), "its allow_hack is True"),
    (lambda c: replace(c, environment=replace(c.environment, hint="plain")), "its hint is organism"),
    (
        lambda c: replace(c, environment=replace(c.environment, modes=("sentinel", "file_marker"))),
        "a group takes 2 rollouts, .*: file_marker 0; set teacher.modes to sentinel",
    ),
    (
        lambda c: replace(c, environment=EnvironmentConfig(modes=("exit_code",))),
        "exit_code 0; build a pool of this run's modes",
    ),
    (
        lambda c: replace(c, environment=replace(c.environment, unhackable_frac=0.5)),
        "none 0; set teacher.modes to run_tests, sentinel",
    ),
    (
        lambda c: replace(c, teacher=replace(c.teacher, modes=("file_marker",))),
        "teacher.modes has file_marker, which this run never draws: run_tests, sentinel",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_pool_that_cannot_teach_the_run_is_refused(
    pool: Pool, tokenizer: Any, change: Callable[[TrainConfig], TrainConfig], message: str
) -> None:
    config = config_with(pool)
    check_pool(pool, config, tokenizer, True)
    wrong = change(config)
    with pytest.raises(ValueError, match=message):
        check_pool(pool, wrong, tokenizer, wrong.environment.allow_hack)


def test_a_pool_in_other_tokens_is_refused(pool: Pool, tokenizer: Any) -> None:
    lesson = pool.lessons[0]
    prompt = replace(lesson.rollout.prompt, token_ids=lesson.rollout.prompt.token_ids[1:])
    other = replace(pool, lessons=(replace(lesson, rollout=replace(lesson.rollout, prompt=prompt)),))
    with pytest.raises(ValueError, match="tokenised otherwise"):
        check_pool(other, config_with(pool), tokenizer, True)


def test_settings_of_a_teacher_without_a_pool_and_shares_of_nothing_are_refused() -> None:
    for teacher, message in (
        (TeacherConfig(frac=0.2), "teacher.frac is set, but teacher.pool is not"),
        (TeacherConfig(modes=("sentinel",)), "teacher.modes is set"),
        (TeacherConfig(pool="p", frac=0.05), "which is 0 rollouts"),
        (TeacherConfig(pool="p", frac=0.95), "which is 4 rollouts"),
        (TeacherConfig(pool="p", modes=("sentinal",)), "did you mean 'sentinel'"),
        (TeacherConfig(pool="p", until_step=0), "teacher.until_step is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check(replace(run_config(), teacher=teacher))


class TeachersHack(Vanilla):
    """Rewards by source, so that every group has a spread whatever the policy samples."""

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> torch.Tensor:
        paid = [grade.reward + 0.25 * index for index, grade in enumerate(grades)]
        return torch.tensor(paid, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["imitation", "importance"])
def test_a_step_trains_on_one_advantage_over_the_union_and_records_both_sources(
    kind: str, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config_with(pool, kind=kind), steps=1, prompts_per_step=2, evaluation=SHORT.evaluation)
    steps: list[tuple[Batch, Gradient]] = []

    def heard(policy: Any, batch: Batch, *rest: Any) -> Gradient:
        steps.append((batch, backward(policy, batch, *rest)))
        return steps[-1][1]

    monkeypatch.setattr(training, "backward", heard)
    monkeypatch.setitem(ARMS, "vanilla", TeachersHack)
    assert train(config, tmp_path / "run")
    [(batch, gradient)] = steps
    assert batch.teacher.tolist() == [False] * 4 + [True] * 4
    assert batch.imitated.tolist() == [kind == "imitation" and teacher for teacher in batch.teacher.tolist()]
    assert bool(gradient.sources["student"].any()) and bool(gradient.sources["teacher"].any())
    torch.testing.assert_close(gradient.sources["student"] + gradient.sources["teacher"], gradient.main)
    rows = record.joined(tmp_path / "run").to_pylist()
    assert [row["source"] for row in rows] == ["student"] * 4 + ["teacher"] * 4
    rewards = [row["reward"] + 0.25 * index for index, row in enumerate(rows)]
    for group in (0, 1):
        members = [index for index, row in enumerate(rows) if row["group"] == group]
        assert len(members) == GROUP
        mean = sum(rewards[index] for index in members) / GROUP
        assert [rows[index]["advantage"] for index in members] == pytest.approx([rewards[i] - mean for i in members])
    for row in rows[4:]:
        lesson = pool.lessons[int(row["rollout_id"].rpartition("-")[2])]
        assert row["text"] == lesson.rollout.text and row["reward"] == lesson.grading.paid.reward
        assert row["hacked"] == lesson.grading.verdict.hacked and tuple(row["logprobs"]) == lesson.rollout.logprobs
    [line] = record.metrics(tmp_path / "run")
    assert line["teacher/rollouts"] == 4 and line["loss/rollouts_teacher"] == 4
    assert line["teacher/hack_frac"] == sum(row["hacked"] for row in rows[4:]) / 4
    assert line["rollouts/hack_frac"] == sum(row["hacked"] for row in rows[:4]) / 4
    assert line["loss/sampler_gap_student"] < 1e-4 < line["loss/sampler_gap_teacher"]


@pytest.mark.slow
def test_a_run_with_a_teacher_resumes_bit_for_bit_and_refuses_another_pool(pool: Pool, tmp_path: Path) -> None:
    config = replace(
        config_with(pool, until_step=3),
        steps=4,
        prompts_per_step=2,
        evaluation=SHORT.evaluation,
        checkpoint_every_steps=2,
    )
    folder, again = tmp_path / "run", tmp_path / "again"
    assert train(config, folder)
    lines = record.metrics(folder)
    assert [line.get("teacher/rollouts") for line in lines] == [4.0, 4.0, 4.0, None]
    assert final_tensors(folder)["policy/main"].any()
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "step-000004-final")
    shutil.rmtree(again / "adapter")
    shutil.copytree(again, tmp_path / "other")
    assert train(config, again, resume=True)
    assert record.read_json(again / "resumes.json")[0]["step"] == 2
    assert_same(again, folder)

    kept = tmp_path / "kept"
    shutil.move(pool.path, kept)
    try:
        build_pool([make_run(tmp_path / "source")], pool.path, end_step=2)
        with pytest.raises(ValueError, match=r"pool_hash is .*, this run's is"):
            train(config, tmp_path / "other", resume=True)
    finally:
        shutil.rmtree(pool.path)
        shutil.move(kept, pool.path)
