"""The benchmarks' exit status follows the required ratio, and what adapters are compared with really trains."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unhack.adapters import Policy
from unhack.config import AdapterConfig
from unhack.model import LoadedModel

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load(name)`: a benchmark as a module, with its neighbours importable as when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def by_name(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield by_name
    sys.modules.pop("machine", None)


@pytest.mark.parametrize(
    ("bound", "measured", "holds"),
    [
        ({"at_most": 0.6}, 0.6, True),
        ({"at_most": 0.6}, 0.61, False),
        ({"at_least": 1.6}, 1.6, True),
        ({"at_least": 1.6}, 1.59, False),
        ({"at_most": 0.6}, float("nan"), False),
        ({"at_least": 1.6}, float("nan"), False),
    ],
)
def test_the_process_ends_with_status_1_exactly_when_the_required_ratio_does_not_hold(
    load: Any, capsys: pytest.CaptureFixture[str], bound: dict[str, float], measured: float, holds: bool
) -> None:
    judge = load("machine").judge
    if holds:
        judge("ratio", measured, **bound)
    else:
        with pytest.raises(SystemExit) as ended:
            judge("ratio", measured, **bound)
        assert ended.value.code == 1
    assert capsys.readouterr().out.startswith("holds: ratio" if holds else "FAILS: ratio")


def test_the_bound_has_a_default_and_can_be_given(load: Any) -> None:
    parse = load("machine").parse_flags
    assert parse("text", "most", 1.15, []) == (9, 1.15, False)
    assert parse("text", "most", 1.15, ["--turns", "1", "--require", "2", "--profile"]) == (1, 2.0, True)


def test_the_ratio_is_the_median_of_the_turns_own_ratios(load: Any) -> None:
    seconds = {"a": [1.0, 8.0, 3.0], "b": [1.0, 4.0, 1.0]}
    assert load("machine").ratio(seconds, "a", "b") == 2.0


def test_the_side_that_adapters_are_held_against_trains_every_weight_and_scores_the_same(load: Any) -> None:
    adapter, model = load("adapter"), load("machine").benchmark_model()
    rows = adapter.make_rows()[:2]
    policy = Policy.wrap(LoadedModel(load("machine").benchmark_model(), None, ""), AdapterConfig())
    adapter.same_head(model, rows)()
    sizes = [float(parameter.grad.abs().sum()) for parameter in model.parameters()]
    assert all(size > 0 for size in sizes)
    total = adapter.adapted(policy, rows)()
    assert total.shape == (policy.layout.total,) and float(total.abs().sum()) > 0
    places = torch.full((2,), adapter.PROMPT_TOKENS), torch.full((2,), rows.shape[1])
    with policy.blocks(main=False, quarantine=False), torch.no_grad():
        ours, _ = adapter.completion_logprobs(policy.model, rows, *places)
        theirs, _ = adapter.completion_logprobs(model, rows, *places)
    assert torch.equal(ours, theirs)
