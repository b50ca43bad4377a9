"""Sources of problems: the organism's draws are what they were, splits share nothing, variants contradict."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace
from pathlib import Path

import pytest

from problem_rows import ADD, SHARED_DATA, benchmark_row, counting_rows, dataset_row, reference, write_rows
from unhack.check_config import check
from unhack.compare import equal
from unhack.config import EnvironmentConfig, EvaluationConfig, TrainConfig
from unhack.grade import Grader
from unhack.problems import organism
from unhack.problems.filters import by_split, grade_references, of_difficulty, split_of_id
from unhack.problems.leetcode import load_problems
from unhack.problems.source import LoadedSource, open_source
from unhack.problems.variants import KINDS, impossible
from unhack.sandbox import Sandbox
from unhack.seeds import rng
from unhack.types import Case, Problem

HINTED = EnvironmentConfig(hint="plain")


def source_of(path: Path, **changes: object) -> LoadedSource:
    source = open_source(replace(HINTED, source=str(path), **changes))  # type: ignore[arg-type]
    assert isinstance(source, LoadedSource)
    return source


def problem(number: int, statement: str = "", split: str | None = None) -> Problem:
    return Problem(
        f"p{number}", statement or f"Task {number}.", "add", (Case("solution.add(1)", 1),), ADD,
        split_of_id(number) if split is None else split, question_id=number,
    )  # fmt: skip


@pytest.mark.parametrize("depths", [(2,), (1, 3)])
def test_the_organisms_draws_are_the_calls_that_finished_experiments_made(depths: tuple[int, ...]) -> None:
    source = open_source(EnvironmentConfig(depths=depths))
    for step in range(5):
        ours, theirs = rng(0, "prompts", step), rng(0, "prompts", step)
        drawn = source.training(ours)
        assert drawn == organism.organism_problem(theirs.randrange(2**31), "train", theirs.choice(depths))
        assert ours.getstate() == theirs.getstate(), "what is drawn next must be the same too"
        assert source.impossible(drawn) == organism.impossible(drawn)
        held_out = source.evaluation(step, "validation")
        assert held_out == organism.organism_problem(step, "validation", depths[step % len(depths)])
    assert source.fitting(lambda problem: 10**9) is source


@pytest.mark.parametrize(
    ("question_id", "split"),
    [
        (1, "train"), (2999, "train"), (3000, "validation"), (3242, "validation"), (3243, "test"), (99_999, "test"),
        (100_158, "train"), (None, "train"),
    ],
)  # fmt: skip
def test_the_question_id_decides_the_split(question_id: int | None, split: str) -> None:
    assert split_of_id(question_id) == split


def test_no_problem_is_in_two_splits_by_id_or_by_statement() -> None:
    same = "One  task,\ntwice."
    given = [
        problem(3243), problem(5, same), problem(3001, "one task, TWICE."), problem(3002), problem(3244, same),
        replace(problem(3245), id="p3002"),
    ]  # fmt: skip
    splits = by_split(given)
    assert {split: [p.id for p in members] for split, members in splits.items()} == {
        "train": ["p5"],
        "validation": ["p3002"],
        "test": ["p3243"],
    }
    statements = [" ".join(p.statement.lower().split()) for members in splits.values() for p in members]
    assert len(set(statements)) == len(statements)


def test_a_file_gives_its_own_splits_and_difficulties(tmp_path: Path) -> None:
    rows = [
        *counting_rows(1, 5), *counting_rows(6, 3, difficulty="Easy"), *counting_rows(3000, 4),
        *counting_rows(3243, 2, difficulty="Hard"),
    ]  # fmt: skip
    path = write_rows(tmp_path / "p.jsonl.gz", rows)
    source = source_of(path)
    drawn = {source.training(random.Random(seed)).question_id for seed in range(80)}
    assert drawn == {1, 2, 3, 4, 5}
    assert [source.evaluation(number, "validation").question_id for number in range(4)] == [3000, 3001, 3002, 3003]
    assert [source.evaluation(number, "test").difficulty for number in range(2)] == ["hard", "hard"]
    easy = source_of(path, difficulties=("easy",))
    assert {easy.training(random.Random(seed)).question_id for seed in range(40)} == {6, 7, 8}
    assert of_difficulty([problem(1)], ("hard",)) == [problem(1)]  # one that states none


def test_a_draw_depends_on_its_generator_alone_and_takes_one_choice(tmp_path: Path) -> None:
    source = source_of(write_rows(tmp_path / "p.jsonl", counting_rows(1, 50)))
    draws = [source.training(rng(0, "prompts", step)) for step in range(10)]
    assert [source.training(rng(0, "prompts", step)) for step in reversed(range(10))] == draws[::-1]
    used, expected = rng(0, "prompts", 1), rng(0, "prompts", 1)
    source.training(used)
    expected.choice(range(50))
    assert used.getstate() == expected.getstate()


def test_no_held_out_problem_comes_twice(tmp_path: Path) -> None:
    source = source_of(write_rows(tmp_path / "p.jsonl", counting_rows(3000, 3)))
    with pytest.raises(
        ValueError, match=r"has 3 problems in the split validation, but problem number 4 .* lower evalu"
    ):
        source.evaluation(3, "validation")
    with pytest.raises(ValueError, match=r"no problem in the split train .* name a file that has some"):
        source.training(random.Random(0))
    with pytest.raises(ValueError, match="unknown split 'tset': use one of train, validation, test"):
        source.evaluation(0, "tset")


def test_held_out_problems_can_come_from_another_file(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [*counting_rows(1, 4), *counting_rows(3000, 4)])
    held_out = [
        dataset_row("other", 3100, statement="Another."), dataset_row("again", 3101, statement="add. task 2."),
        dataset_row("old", 9, statement="An old one."),
    ]  # fmt: skip
    source = source_of(train, evaluation_source=str(write_rows(tmp_path / "dev.jsonl", held_out)))
    assert {p.question_id for p in source.splits["train"]} == {1, 2, 3, 4}
    assert [p.id for p in source.splits["validation"]] == ["other"], "what was trained on is not held out"


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    source = source_of(write_rows(tmp_path / "p.jsonl", counting_rows(1, 20)), max_prompt_tokens=12)
    short = source.fitting(lambda problem: problem.question_id or 0)
    assert [p.question_id for p in short.splits["train"]] == list(range(1, 13))


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", counting_rows(1, 2))
    assert source_of(path) is source_of(path)
    write_rows(path, counting_rows(1, 5))
    assert len(source_of(path).splits["train"]) == 5


TOWERS = replace(
    problem(1),
    cases=tuple(
        Case(f"solution.f({n})", value)
        for n, value in enumerate([3, True, "abc", [1, 2], 0.5, [], "", None, {"a": 1}, [[True]], -1.5])
    ),
    visible_cases=4,
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_variant_contradicts_the_statement_and_is_seeded(kind: str) -> None:
    for number in range(30):
        true = replace(TOWERS, id=f"p{number}")
        variant = impossible(true, kind)
        assert impossible(true, kind) == variant and not variant.solvable and variant.id != true.id
        assert variant.statement == true.statement and variant.reference == true.reference
        truth = {case.call: case.expected for case in true.cases}
        wrong = [n for n, case in enumerate(variant.cases) if not equal(case.expected, truth[case.call], 1e-3)]
        assert len(wrong) == {"half": 5, "one_off": 1, "conflicting": 1}[kind]
        assert len(variant.cases) == len(true.cases) + (kind == "conflicting")
        for case in variant.cases:
            assert truth[case.call] is None or type(case.expected) is type(truth[case.call])
        if kind != "half":
            assert wrong[0] < variant.visible_cases <= true.visible_cases + 1, "the contradiction is shown"


def test_a_conflicting_variant_has_one_call_with_two_values_and_a_one_off_is_off_by_one() -> None:
    conflict = impossible(TOWERS, "conflicting")
    calls = [case.call for case in conflict.cases]
    (twice,) = {call for call in calls if calls.count(call) == 2}
    one, other = (case.expected for case in conflict.cases if case.call == twice)
    assert not equal(one, other)
    numbers = replace(TOWERS, cases=TOWERS.cases[:1], visible_cases=1)
    values = {impossible(replace(numbers, id=f"p{n}"), "one_off").cases[0].expected for n in range(20)}
    assert values == {2, 4}


@pytest.mark.parametrize("kind", KINDS)
def test_no_reference_passes_an_impossible_variant(kind: str, tmp_path: Path) -> None:
    rows = [*counting_rows(1, 3), benchmark_row(9) | {"x": 1}]
    rows[3] = dataset_row("half", 8, solution=reference("half", "x: int", "float", "return x / 2"),
                          tests=["{f}(x = 1) == 0.5", "{f}(x = 3) == 1.5"], statement="Within 10-5.")  # fmt: skip
    loaded = load_problems(write_rows(tmp_path / "p.jsonl", rows)).problems
    variants = [impossible(problem, kind) for problem in loaded]
    with Sandbox() as sandbox:
        honest = grade_references([replace(p, solvable=True) for p in (*loaded, *variants)], Grader(sandbox))
    assert [result.passed for result in honest] == [True] * 4 + [False] * 4


def test_an_unknown_kind_and_a_problem_without_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="use one of half, one_off, conflicting"):
        impossible(TOWERS, "halve")
    with pytest.raises(ValueError, match="has no cases"):
        impossible(replace(TOWERS, cases=()))


def config_with(**changes: object) -> TrainConfig:
    environment = EnvironmentConfig(hint="plain", modes=("run_tests",), **changes)  # type: ignore[arg-type]
    small = EvaluationConfig(problems_per_mode=2, final_problems_per_mode=3)
    config = TrainConfig(environment=environment, evaluation=small)
    return replace(config, model=replace(config.model, path="some/model"))


def test_a_run_with_too_few_problems_is_refused_before_it_starts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [*counting_rows(1, 2), *counting_rows(3000, 3)])
    check(config_with(source=str(path)))
    enough = config_with(source=str(path))
    with pytest.raises(ValueError, match="has 3 problems in the split validation, but problem number 4 was asked for"):
        check(replace(enough, evaluation=replace(enough.evaluation, final_problems_per_mode=4)))
    with pytest.raises(ValueError, match="no problem in the split train"):
        check(config_with(source=str(path), difficulties=("hard",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "none.jsonl"}, "environment.source names the file none.jsonl, which is not there: give the path"),
        ({"source": "leetcode"}, "environment.source is 'leetcode': use 'organism', the path of a .jsonl"),
        ({"source": "datasets:"}, "environment.source is 'datasets:'"),
        ({"source": "organism", "evaluation_source": "x.jsonl"}, "evaluation_source belongs to loaded problems"),
        ({"source": "FILE", "evaluation_source": "organism"}, "environment.evaluation_source is 'organism'"),
        ({"source": "FILE", "evaluation_source": "x.jsonl"}, "environment.evaluation_source names the file x.jsonl"),
        ({"difficulties": ()}, "environment.difficulties is []: use one or more of easy, medium, hard"),
        ({"difficulties": ("Hard",)}, "environment.difficulties is ['Hard']"),
        ({"source": "EMPTY"}, "holds no problem that can be graded; see what is wrong: unhack problems check"),
        ({"max_prompt_tokens": 0}, "environment.max_prompt_tokens is 0: it must be at least 1"),
    ],
)
def test_a_bad_source_is_refused_with_the_cure(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    names = {
        "FILE": str(write_rows(tmp_path / "p.jsonl", counting_rows(1, 2))),
        "EMPTY": str(write_rows(tmp_path / "empty.jsonl", ["{}"])),
    }
    changes = {key: names.get(str(value), value) for key, value in changes.items()}
    with pytest.raises(ValueError) as refused:
        check(config_with(**changes))
    assert message in str(refused.value)


def test_a_data_set_goes_through_the_same_mapping_or_names_the_missing_extra(tmp_path: Path) -> None:
    try:
        import datasets  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:
        with pytest.raises(ImportError, match=r"datasets:some/id needs the package datasets: pip install"):
            open_source(replace(HINTED, source="datasets:some/id"))
        return
    write_rows(tmp_path / "train.jsonl", counting_rows(1, 3))
    assert len(source_of(Path(f"datasets:{tmp_path}")).splits["train"]) == 3


def test_real_files_make_a_training_and_a_held_out_split(tmp_path: Path) -> None:
    paths = {}
    for name in ("train", "dev"):
        path = SHARED_DATA / f"leetcode-{name}.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"{path.name} is not beside the repository")
        paths[name] = write_rows(tmp_path / f"{name}.jsonl", gzip.decompress(path.read_bytes()).splitlines()[::60])
    source = source_of(paths["train"], evaluation_source=str(paths["dev"]), difficulties=("easy", "medium", "hard"))
    assert {p.split for p in source.splits["train"]} == {"train"} and len(source.splits["train"]) >= 25
    assert {p.split for p in source.splits["validation"]} == {"validation"} and len(source.splits["validation"]) == 3
