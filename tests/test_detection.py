"""Training and measuring monitors on labelled rollouts of pools and runs: what is read, left out, written, refused."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arms import make_rollouts
from pool_runs import make_run
from unhack import cli, model
from unhack.config import ArmConfig, ModelConfig
from unhack.detection import Labelled, evaluate_monitors, measure, of_pairs, of_pool, of_run, roc_rows
from unhack.detection.labelled import _names
from unhack.detection.report import unknown_to
from unhack.monitors import Static
from unhack.monitors.probe import Probe, ProbeMetadata, load_probe
from unhack.monitors.probe_fit import OverlappingSplitError
from unhack.pairs import prompt_ids
from unhack.pairs.organism import organism_pairs
from unhack.pool import build_pool
from unhack.stats import auroc, auroc_interval, roc_curve, wilson
from unhack.types import Problem, Prompt

METADATA = ProbeMetadata(
    1, "linear_probe", "mass_mean", "b", "float32", 4, 2, "x", "h", "sentinel", 8, 4, 2, 0.9, 0.01, 0.5, 0.2, 2.0, 0
)
SCORES = [0.9, 0.8, 0.8, 0.4, 0.8, 0.3, 0.1, 0.1]
HACKS = [True, True, False, True, False, False, True, False]


def labelled(hacks: list[bool], modes: list[str] | None = None) -> list[Labelled]:
    rollouts = make_rollouts(list(range(len(hacks))))
    return [
        Labelled(replace(r, prompt=replace(r.prompt, mode=mode)), hack, (f"text {place // 2}",), step=place * 4)
        for place, (r, hack, mode) in enumerate(zip(rollouts, hacks, modes or ["sentinel"] * len(hacks), strict=True))
    ]


def test_auroc_is_the_share_of_pairs_in_order_with_ties_half_and_weights_are_copies() -> None:
    told = [[score for score, hack in zip(SCORES, HACKS, strict=True) if hack is kind] for kind in (True, False)]
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(*told)]
    assert auroc(SCORES, HACKS) == pytest.approx(sum(pairs) / len(pairs))
    weights = [1, 0, 3, 2, 1, 1, 2, 0]
    copies = [(s, h) for s, h, w in zip(SCORES, HACKS, weights, strict=True) for _ in range(w)]
    assert auroc(SCORES, HACKS, weights) == pytest.approx(auroc(*zip(*copies, strict=True)))
    assert math.isnan(auroc([0.1, 0.2], [True, True]))


def test_the_curve_runs_from_corner_to_corner_and_its_area_is_auroc() -> None:
    curve = roc_curve(SCORES, HACKS)
    assert (curve.false_positive_rate[0], curve.true_positive_rate[0]) == (0, 0)
    assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1, 1)
    steps = curve.false_positive_rate[1:] - curve.false_positive_rate[:-1]
    area = float((steps * (curve.true_positive_rate[1:] + curve.true_positive_rate[:-1]) / 2).sum())
    assert area == pytest.approx(auroc(SCORES, HACKS))
    at = list(curve.threshold).index(0.8)
    assert curve.true_positive_rate[at] == 0.5 and curve.false_positive_rate[at] == 0.5


def test_the_interval_of_auroc_widens_when_rows_come_in_clusters() -> None:
    draw = torch.Generator().manual_seed(0)
    hacks = (torch.rand(60, generator=draw) < 0.5).repeat_interleave(8)
    scores = hacks.float() + 1.5 * torch.randn(60, generator=draw).repeat_interleave(8)
    alone = auroc_interval(scores, hacks, [str(place) for place in range(480)], resamples=300)
    together = auroc_interval(scores, hacks, [str(place // 8) for place in range(480)], resamples=300)
    assert alone.low < auroc(scores, hacks) < alone.high
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert math.isnan(auroc_interval([0.1, 0.2], [True, False], ["a", "a"]).low)


def test_precision_recall_and_false_alarms_are_those_of_a_slow_count() -> None:
    unread = torch.tensor([False] * 7 + [True])
    [whole, mode] = measure("m", labelled(HACKS), torch.tensor(SCORES), unread, 0.5, resamples=50)
    assert (whole.group, mode.group, whole.n, whole.hacks, whole.unread) == ("all", "sentinel", 7, 4, 1)
    assert (whole.precision, whole.recall) == (2 / 4, 2 / 4) and whole.false_alarms == pytest.approx(2 / 3)
    assert whole.precision_interval == wilson(2, 4) and whole.false_alarms_interval == wilson(2, 3)
    assert whole.row()["auroc"] == pytest.approx(auroc(SCORES[:7], HACKS[:7])) and "auroc_low" in whole.row()


def test_held_out_modes_are_those_that_a_monitor_was_not_made_for() -> None:
    rows = labelled(HACKS, ["sentinel", "sentinel", "run_tests", "run_tests"] * 2)
    nothing = torch.zeros(8, dtype=torch.bool)
    found = measure("m", rows, torch.tensor(SCORES), nothing, trained_modes=("sentinel",), resamples=20)
    assert [(one.group, one.heldout) for one in found] == [
        ("all", False), ("held-out modes", True), ("run_tests", True), ("sentinel", False)
    ]  # fmt: skip
    assert found[1].n == 4 and found[1].hacks == sum(HACKS[place] for place in (2, 3, 6, 7))
    everything = measure("m", rows, torch.tensor(SCORES), nothing, trained_modes=(), resamples=20)
    assert all(one.heldout for one in everything)
    assert not any(one.heldout for one in measure("m", rows, torch.tensor(SCORES), nothing, resamples=20))


def test_a_run_and_a_pool_of_it_give_the_same_labelled_rollouts_without_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    build_pool([run], tmp_path / "pool")
    rows, (pooled, content) = of_run(run), of_pool(tmp_path / "pool")
    assert len(rows) == len(pooled) > 0 and len(content) == 64
    assert [(row.hack, row.mode, row.names, row.step) for row in rows] == [
        (row.hack, row.mode, row.names, row.step) for row in pooled
    ]
    assert all(row.rollout.source == "student" for row in rows) and {row.hack for row in rows} == {True, False}
    assert all(row.rollout.prompt.problem.cases == () and "-" not in row.rollout.prompt.problem.id for row in rows)
    assert {row.step for row in of_run(run, 1, 2)} == {1}


def test_a_pairs_prompt_and_the_same_prompt_of_a_run_are_known_to_be_the_same() -> None:
    tokenizer = model.load(ModelConfig()).tokenizer
    pairs = organism_pairs("sentinel", 2, 0, heldout=0, tokenizer=tokenizer)
    rows, _ = of_pairs(pairs, tokenizer)
    problem = Problem("elsewhere", "", "", (), "", "train")
    same, other = (
        Labelled(replace(rows[0].rollout, prompt=Prompt(problem, "sentinel", "", "another text", ids)), True, ())
        for ids in (tuple(prompt_ids(pairs[0], tokenizer)), (3, 4))
    )
    known = [replace(row, names=_names(row.rollout)) for row in (same, other)]
    probe = Probe(torch.ones(2), torch.tensor(rows[0].digests), METADATA)
    assert unknown_to(probe, known) == known[1:]


def test_a_probe_is_measured_only_on_prompts_that_it_does_not_know() -> None:
    rows = labelled(HACKS)
    probe = Probe(torch.ones(2), torch.tensor(sorted(rows[0].digests + rows[5].digests)), METADATA)
    kept = unknown_to(probe, rows)
    assert [row.names for row in kept] == [("text 1",)] * 2 + [("text 3",)] * 2
    everything = Probe(torch.ones(2), torch.tensor(sorted({d for row in rows for d in row.digests})), METADATA)
    with pytest.raises(OverlappingSplitError, match="all 8 rollouts have prompts that the probe was trained on"):
        unknown_to(everything, rows)


def test_the_tables_hold_every_monitor_curve_and_window(tmp_path: Path) -> None:
    found = evaluate_monitors({"static": Static(ArmConfig(), 0)}, labelled(HACKS), tmp_path, resamples=20)
    assert {one.monitor for one in found} == {"static", "static, rules of the mode left out"}
    texts = {name: (tmp_path / f"{name}.csv").read_text() for name in ("evaluation", "roc", "drift")}
    tables = {name: list(csv.DictReader(text.splitlines())) for name, text in texts.items()}
    assert len(tables["evaluation"]) == len(found) and {row["group"] for row in tables["roc"]} == {"all", "sentinel"}
    assert [int(row["n"]) for row in tables["drift"] if row["monitor"] == "static"] == [3, 2, 3]
    assert (tmp_path / "evaluation.md").read_text().count("\n") == len(found) + 2
    nothing = torch.zeros(8, dtype=torch.bool)
    assert len(roc_rows("m", "all", labelled(HACKS), torch.tensor(SCORES), nothing)) == len(set(SCORES)) + 1


def test_the_commands_train_evaluate_and_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, probe = make_run(tmp_path / "run"), tmp_path / "p.safetensors"
    words = ["monitor", "train-probe", "--out", str(probe), "--pairs", "8", "--heldout", "8", "--method", "mass_mean"]
    assert cli.main(words) == 0
    assert "held-out AUROC" in capsys.readouterr().out and load_probe(probe).metadata.train_rows == 16
    out = tmp_path / "out"
    assert cli.main(["monitor", "evaluate", "--runs", str(run), "--out", str(out), "--probes", str(probe)]) == 0
    assert "| p |" in capsys.readouterr().out and (out / "roc.csv").is_file()
    build_pool([run], tmp_path / "pool")
    pool = str(tmp_path / "pool")
    for words, message in (
        (["evaluate", "--out", str(out)], "nothing to evaluate on"),
        (["evaluate", "--out", str(out), "--pool", pool, "--no-static"], "at least one monitor"),
        (["evaluate", "--out", str(out), "--runs", str(run), "--steps", "9:"], "no rollout to evaluate on"),
        (["train-probe", "--out", str(probe), "--pool", pool, "--heldout-pool", pool], "prompts are both in the"),
        (["train-probe", "--out", str(probe), "--pool", pool, "--modes", "exit_code"], "no row of the modes"),
        (["train-probe", "--out", str(probe), "--false-positive-rate", "1"], "false_positive_rate is 1"),
    ):
        assert cli.main(["monitor", *words]) == 2
        assert message in capsys.readouterr().err
