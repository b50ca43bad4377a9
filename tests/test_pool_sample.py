"""Pools of a model without a run: what is kept, under which prompt, and which log-probabilities stand beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training_runs import SMALL
from unhack import cli, model
from unhack.check_config import check
from unhack.config import EnvironmentConfig, SamplerConfig, TeacherConfig, TrainConfig
from unhack.loopholes import LOOPHOLES
from unhack.pool import KINDS, Kind, Lesson, Pool, load_problems
from unhack.pool.elicit import ASKED, authored, empty, spoon_fed, spoon_text
from unhack.pool.sample import SampleRequest, _prompts, _sampled, sample_pool
from unhack.pool.store import read_rows
from unhack.problems.organism import organism_problem
from unhack.prompts import inoculate, render, training_prompts
from unhack.rollout.native import NativeSampler
from unhack.seeds import generator, rng
from unhack.teacher import Teacher, check_pool
from unhack.types import Case, Problem, Prompt, Rollout

MODES = ("run_tests", "file_marker")
CONFIG = replace(SMALL, environment=replace(SMALL.environment, modes=MODES), prompts_per_step=4)
KEPT: tuple[Kind, ...] = ("base", "found", "solve", "authored")
REQUEST = SampleRequest(kinds=KEPT, prompts=12, samples=12, temperature=1.2)


@pytest.fixture(scope="module")
def loaded() -> model.LoadedModel:
    return model.load(CONFIG.model)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return sample_pool(CONFIG, tmp_path_factory.mktemp("sampled") / "pool", REQUEST)


def of_kind(pool: Pool, kind: Kind) -> list[Lesson]:
    found = [lesson for lesson in pool.lessons if lesson.kind == kind]
    assert found, kind
    return found


def slow_logprobs(loaded: Any, prompt: tuple[int, ...], tokens: tuple[int, ...], temperature: float) -> list[float]:
    """Token by token, each from a whole forward of everything before it."""
    found = []
    for place, token in enumerate(tokens):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([[*prompt, *tokens[:place]]])).logits[0, -1]
        found.append(float((logits.double() / temperature).log_softmax(-1)[token]))
    return found


def tokens_of(loaded: Any, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_each_kind_holds_what_its_name_says_and_every_row_stands_under_a_students_prompt(
    pool: Pool, loaded: Any
) -> None:
    steps = [training_prompts(CONFIG.environment, loaded.tokenizer, CONFIG.seed, step, 4) for step in range(3)]
    students = {prompt.text: prompt for prompts in steps for prompt in prompts}
    assert len(students) == 12
    for lesson in pool.lessons:
        prompt = students[lesson.rollout.prompt.text]
        shown = lesson.rollout.prompt
        assert (shown.token_ids, shown.mode, shown.marker) == (prompt.token_ids, prompt.mode, prompt.marker)
        assert shown.problem.id == prompt.problem.id
    verdicts = {kind: [lesson.grading.verdict for lesson in of_kind(pool, kind)] for kind in KEPT}
    assert all(verdict.hacked for kind in ("found", "authored") for verdict in verdicts[kind])
    assert all(verdict.strictly_correct for verdict in verdicts["solve"])
    told = [verdict.strictly_correct for verdict in verdicts["base"]]
    assert len(told) == 12 * 12 and 0 < sum(told) < len(told)
    for kind, modes in pool.header["tried"].items():
        kept = [lesson.rollout.prompt.mode for lesson in of_kind(pool, kind)]
        assert {mode: counts["kept"] for mode, counts in modes.items() if counts["kept"]} == {
            mode: kept.count(mode) for mode in kept
        }
        tried = sum(counts["tried"] + counts["too_long"] for counts in modes.values())
        solvable = sum(prompt.problem.solvable for prompt in students.values())
        asked = solvable if kind == "solve" else 12
        assert tried == asked * 12 or (kind == "authored" and 0 < tried <= asked * 12)
    assert pool.header["tried"]["found"] != pool.header["tried"]["base"], (
        "the first is what is left of its own sampling"
    )


def test_both_log_probabilities_are_those_of_a_slow_loop(pool: Pool, loaded: Any) -> None:
    _, rows = read_rows(pool.path)
    temperatures: dict[Kind, float | None] = {"base": 1.0, "found": 1.2, "solve": 1.2, "authored": None}
    for kind, asked_at in temperatures.items():
        lesson = of_kind(pool, kind)[0]
        rollout, row = lesson.rollout, rows[lesson.row]
        plain = slow_logprobs(loaded, rollout.prompt.token_ids, rollout.token_ids, 1.0)
        assert list(rollout.logprobs) == pytest.approx(plain, abs=2e-4)
        assert (row["sampled_prompt"] is None) == (kind != "solve")
        if asked_at is None:
            assert lesson.sampled_logprobs is None
            continue
        asked = tokens_of(loaded, row["sampled_prompt"] or rollout.prompt.text)
        drawn = slow_logprobs(loaded, asked, rollout.token_ids, asked_at)
        assert lesson.sampled_logprobs is not None
        assert list(lesson.sampled_logprobs) == pytest.approx(drawn, abs=2e-4)
        far = max(abs(a - b) for a, b in zip(plain, drawn, strict=True))
        assert (far > 1e-3) == (kind != "base")


def test_solving_is_asked_without_the_loophole_and_without_an_inoculation(tmp_path: Path, loaded: Any) -> None:
    inoculated = replace(CONFIG.environment, inoculation="neutral", impossible_frac=0.0)
    config = replace(CONFIG, environment=inoculated)
    request = SampleRequest(kinds=("solve",), prompts=4, samples=8)
    made = sample_pool(config, tmp_path / "pool", request)
    _, rows = read_rows(made.path)
    problems = load_problems(made.path)
    for row in rows:
        honest = render(problems[row["problem_id"]], "none", "", loaded.tokenizer)
        assert row["sampled_prompt"] == honest.text
        student = inoculate(
            render(problems[row["problem_id"]], row["mode"], row["marker"], loaded.tokenizer),
            "neutral",
            loaded.tokenizer,
        )
        assert row["prompt_text"] == student.text != honest.text


@pytest.mark.parametrize("spoon", ["ask", "show"])
def test_a_spoon_is_in_the_samplers_prompt_and_nowhere_in_the_students(spoon: Any, loaded: Any) -> None:
    request = SampleRequest(kinds=("teacher",), prompts=4, samples=2, spoon=spoon)
    prompts = _prompts(CONFIG, loaded, request)
    for made in _sampled("teacher", list(enumerate(prompts)), 0, CONFIG, loaded, request):
        student = made.rollout.prompt
        assert student == prompts[made.rollout.group]
        said = spoon_text(student, spoon)
        assert made.sampled_prompt is not None and said in made.sampled_prompt and said not in student.text
        assert student.text.splitlines()[-2:] == made.sampled_prompt.splitlines()[-2:], "the rest of it is the same"
        drawn = slow_logprobs(loaded, tokens_of(loaded, made.sampled_prompt), made.rollout.token_ids[:6], 1.0)
        assert made.sampled_logprobs is not None
        assert list(made.sampled_logprobs[:6]) == pytest.approx(drawn, abs=2e-4)


def test_every_mode_can_be_asked_for_and_shown_and_an_example_is_no_solution(loaded: Any) -> None:
    assert set(ASKED) == set(LOOPHOLES) - {"none"}
    problem = organism_problem(3, "train", 2)
    for mode in ASKED:
        prompt = render(problem, mode, "alpha" if LOOPHOLES[mode].train_markers else "", loaded.tokenizer)
        asked, shown = spoon_text(prompt, "ask"), spoon_text(prompt, "show")
        assert ("alpha" in asked) == bool(prompt.marker) and "{" not in asked and shown.startswith(asked)
        assert "```python\nclass Solution:\n" in shown or "\n\nclass Solution:\n" in shown or "class Solution" in shown
        assert not any(
            line in shown for line in problem.reference.splitlines() if "xs = [" in line or "return s" in line
        )
        assert spoon_fed(prompt, "show", loaded.tokenizer).text.count(shown) == 1
    with pytest.raises(ValueError, match="mode none has no exploit"):
        spoon_text(render(problem, "none", "", loaded.tokenizer), "ask")


def test_an_empty_solution_keeps_the_signature_alone() -> None:
    reference = (
        "import math\n\nclass Solution:\n    limit = 3\n\n    @cache\n    def other(self):\n        return 1\n\n"
        "    @cache\n    def most(self, piles: List[int], limit: int = 10) -> int:\n        return max(piles)\n"
    )
    problem = Problem("p", "", "most", (Case("solution.most([1])", 1),), reference, "train")
    assert empty(problem) == (
        "class Solution:\n    def most(self, piles: List[int], limit: int=10) -> int:\n        return None\n"
    )
    with pytest.raises(ValueError, match="has no class Solution with a method least"):
        empty(replace(problem, entry_point="least"))
    prompt = Prompt(problem, "sentinel", "is_done", "", ())
    written = authored(prompt, (2,), rng(0, "x"))
    assert "is_done = True" in written and "no test expects this" in written, "the reference, spoiled"


def test_importance_weights_of_rows_asked_otherwise_recover_the_plain_policys_mean(loaded: Any) -> None:
    """E_asked[f · p(y | plain) / p(y | asked)] = E_plain[f]: the meaning of `sampled_logprobs`, by Monte Carlo."""
    config = replace(CONFIG, sampler=SamplerConfig(max_new_tokens=8))
    environment = EnvironmentConfig(modes=("file_marker",), impossible_frac=0.0)
    config = replace(config, environment=environment)
    request = SampleRequest(kinds=("solve",), prompts=1, samples=1000)
    [prompt] = _prompts(config, loaded, request)
    made = _sampled("solve", [(0, prompt)], 0, config, loaded, request)
    rollouts = [one.rollout for one in made]
    plain = torch.tensor([sum(slow) for slow in _plain(loaded, rollouts)])
    asked = torch.tensor([sum(one.sampled_logprobs or ()) for one in made])
    weights = (plain - asked).exp()
    stream = generator(0, "check")
    direct = NativeSampler(loaded, config.sampler).sample([prompt], 1000, stream)
    word = "open"
    of_asked = torch.tensor([float(word in one.text) for one in rollouts])
    of_plain = torch.tensor([float(word in one.text) for one in direct])
    weighted = weights * of_asked
    error = math.hypot(float(weighted.std()), float(of_plain.std())) / math.sqrt(1000)
    assert abs(float(weighted.mean() - of_plain.mean())) < 4 * error
    assert abs(float(of_asked.mean() - of_plain.mean())) > 6 * error, "without weights it is another policy's mean"


def _plain(loaded: Any, rollouts: list[Rollout]) -> list[tuple[float, ...]]:
    from unhack.pool.sample import plain_logprobs

    return plain_logprobs(loaded, rollouts, 1.0)


def test_a_teacher_hands_out_the_log_probabilities_of_its_kind_and_refuses_ratios_that_nobody_sampled(
    pool: Pool, loaded: Any
) -> None:
    config = replace(CONFIG, teacher=TeacherConfig(pool=str(pool.path), kind="importance"))
    with pytest.raises(ValueError, match=r"rows are authored, .* set teacher\.kind to anchored or imitation"):
        check_pool(pool, config, loaded.tokenizer, True)
    for kind in ("anchored", "imitation"):
        own = replace(config, teacher=replace(config.teacher, kind=kind))
        check(own)
        check_pool(pool, own, loaded.tokenizer, True)
        for rollout in _drawn(own, pool, loaded.tokenizer):
            assert rollout.logprobs == pool.lessons[_row(rollout)].rollout.logprobs
    sampled = tuple(lesson for lesson in pool.lessons if lesson.kind != "authored")
    others = replace(pool, lessons=sampled, header={**pool.header, "rows_of_kind": {"base": len(sampled)}})
    check_pool(others, config, loaded.tokenizer, True)
    drawn = _drawn(config, others, loaded.tokenizer)
    assert any(pool.lessons[_row(rollout)].kind != "base" for rollout in drawn)
    for rollout in drawn:
        assert rollout.logprobs == pool.lessons[_row(rollout)].sampled_logprobs


def _drawn(config: TrainConfig, pool: Pool, tokenizer: Any) -> tuple[Rollout, ...]:
    prompts = training_prompts(config.environment, tokenizer, config.seed, 0, 4)
    return Teacher(config.teacher, 8, config.seed, pool).draw(prompts, 0).rollouts


def _row(rollout: Rollout) -> int:
    return int(rollout.id.rpartition("-")[2])


def test_the_same_settings_give_the_same_pool_and_another_seed_another(tmp_path: Path) -> None:
    request = SampleRequest(kinds=("base", "authored"), prompts=3, samples=2, per_mode=2)
    made = [sample_pool(CONFIG, tmp_path / name, request) for name in ("one", "two")]
    _, rows = zip(*(read_rows(pool.path) for pool in made), strict=True)
    untimed = [[{**row, "verdict": {**row["verdict"], "cpu_s": 0}} for row in own] for own in rows]
    assert untimed[0] == untimed[1] and len(made[0].lessons) <= 8
    other = sample_pool(replace(CONFIG, seed=5), tmp_path / "three", request)
    assert {one.rollout.text for one in other.lessons} != {one.rollout.text for one in made[0].lessons}


def test_requests_that_cannot_work_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    broken = replace(CONFIG, model=replace(CONFIG.model, path="nowhere/at/all"))
    for request, message in (
        (SampleRequest(kinds=()), "use each of base, found, solve, teacher, authored"),
        (SampleRequest(kinds=("run",)), "kinds are run"),
        (SampleRequest(kinds=("base", "base")), "at most once"),
        (SampleRequest(modes=("run_test",)), "did you mean 'run_tests'"),
        (SampleRequest(prompts=0), "prompts is 0"),
        (SampleRequest(per_mode=0), "per_mode is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_pool(broken, tmp_path / "pool", request)
    with pytest.raises(ValueError, match="none of the first 2 prompts is of mode sentinel"):
        sample_pool(CONFIG, tmp_path / "pool", SampleRequest(prompts=2, modes=("sentinel",)))
    assert not (tmp_path / "pool").exists() and KINDS[0] == "run"


def test_the_command_samples_says_what_it_kept_and_needs_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pool"
    words = ["pool", "sample", "--kinds", "base", "authored", "--prompts", "2", "--samples", "2"]
    assert cli.main(words) == 2 and "name the pool's folder with --out" in capsys.readouterr().err
    assert cli.main([*words, "--out", str(out), "--environment.modes", "sentinel"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}" in said and "base: kept 4 of 4" in said and "authored: kept 4 of 4" in said
    assert cli.main([*words, "--out", str(out)]) == 2 and "never changed" in capsys.readouterr().err
