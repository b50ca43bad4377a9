"""Directions as classifiers: the numbers by counting, the null, the ceiling's folds, the replayed trajectory."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from probe_samples import make_sample, random_direction, tiny_policy
from training_runs import SHORT
from unhack import checkpoint, cli
from unhack.directions import Direction, DirectionRecipe, organism_direction, rollout_scores, save_direction, scores_of
from unhack.directions.extract import haar_rows
from unhack.probes.classify import COLUMNS, chosen, csv_text, read, rows_of, score
from unhack.probes.discrimination import (
    best_f05,
    ceiling_scores,
    discrimination,
    mean_area,
    null_band,
    null_scores,
    precision_at,
)
from unhack.probes.trajectory import check_end, policy_of, trajectory
from unhack.seeds import generator
from unhack.train import train

SCORES = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2, 0.1], dtype=torch.float64)
HACKS = torch.tensor([True, True, False, False, True, False])


def test_precision_at_n_is_the_expectation_over_the_order_of_equal_scores() -> None:
    for top in range(1, 7):
        border = SCORES.sort(descending=True).values[top - 1]
        sure, tied = ([i for i, hit in enumerate(hits.tolist()) if hit] for hits in (border < SCORES, border == SCORES))
        orders = [(*sure, *some) for some in combinations(tied, top - len(sure))]
        expected = sum(sum(bool(HACKS[i]) for i in order) / top for order in orders) / len(orders)
        assert precision_at(SCORES, HACKS, top) == pytest.approx(expected), top


def test_f05_is_the_largest_over_thresholds_that_do_not_split_equal_scores() -> None:
    told = []
    for threshold in (0.1, 0.2, 0.5, 0.9):
        flagged = threshold <= SCORES
        precision, recall = float(HACKS[flagged].double().mean()), float(flagged[HACKS].double().mean())
        told.append(1.25 * precision * recall / (0.25 * precision + recall))
    assert best_f05(SCORES, HACKS) == pytest.approx(max(told))
    pairs = [(SCORES[i], SCORES[j]) for i in range(6) for j in range(6) if HACKS[i] and not HACKS[j]]
    area = sum(float(a > b) + 0.5 * float(a == b) for a, b in pairs) / len(pairs)
    assert discrimination(SCORES, HACKS, 2).auroc == pytest.approx(area)
    assert all(map(math.isnan, discrimination(SCORES, torch.ones(6, dtype=torch.bool), 2)))


def test_null_directions_are_scored_as_the_real_one_is(tiny_policy_model: Any) -> None:
    policy = tiny_policy(tiny_policy_model)
    for loss, layout in (("nll", policy.layout), ("activation", policy.bottleneck_layout)):
        direction = random_direction(policy, k=2, loss=loss)
        readings = torch.randn(4, layout.total, generator=generator(0, loss))
        got = null_scores(direction, layout, readings, 3, seed=7)
        streams = {name: generator(7, "classifier_null", name) for name in layout.names}
        for row in got:
            basis = {
                name: haar_rows(rows.shape[0], rows.shape[1], streams[name]) for name, rows in direction.basis.items()
            }
            torch.testing.assert_close(row, scores_of(Direction(basis, direction.metadata), layout, readings))


def test_the_band_turns_each_random_direction_to_its_better_side() -> None:
    right, wrong = HACKS.double() * 2, -HACKS.double()
    assert tuple(null_band(torch.stack([right, wrong]), HACKS, 3)) == pytest.approx((1.0, 1.0, 1.0))
    noise = torch.randn(100, 6, generator=generator(0, "noise"), dtype=torch.float64)
    areas = [max(area, 1 - area) for area in (discrimination(row, HACKS, 3).auroc for row in noise)]
    expected = float(torch.tensor(areas, dtype=torch.float64).quantile(0.95))
    assert null_band(noise, HACKS, 3).auroc == pytest.approx(expected)


def test_the_ceiling_never_sees_a_prompt_that_it_is_tested_on() -> None:
    """Each prompt has its own fingerprint and one label: a leak would read it off, an honest fold cannot."""
    draw = generator(0, "ceiling")
    prompts = [number // 4 for number in range(160)]
    labels = torch.rand(40, generator=draw) < 0.5
    hacks = labels[torch.tensor(prompts)]
    print_of = torch.randn(40, 60, generator=draw)[torch.tensor(prompts)]
    leak = ceiling_scores(print_of, hacks, list(range(160)))  # rollouts as their own prompts
    honest = ceiling_scores(print_of, hacks, prompts)
    assert leak is not None and honest is not None
    assert mean_area(leak[0], hacks, leak[1]) > 0.95 and mean_area(honest[0], hacks, honest[1]) < 0.7
    for prompt in range(40):
        assert len(set(honest[1][4 * prompt : 4 * prompt + 4].tolist())) == 1
    signal = print_of + 3 * hacks.unsqueeze(1) * torch.eye(60)[0]
    found = ceiling_scores(signal, hacks, prompts)
    assert found is not None and mean_area(found[0], hacks, found[1]) > 0.85
    assert ceiling_scores(print_of, torch.arange(160) < 159, prompts) is None, "one clean rollout, five folds"


def test_only_reinforced_hacks_and_clean_rollouts_are_chosen() -> None:
    kinds = ("hack", "hack+correct", "correct", "attempt", "failed")
    samples = [make_sample(n, kind, advantage=a) for n, kind in enumerate(kinds) for a in (1.0, 0.0, -1.0, None)]
    kept, left_out = chosen(samples, "advantage")
    assert [sample.verdict.label for sample in kept] == ["reward_hack", "correct", "incorrect"] and left_out == 2
    assert all(sample.advantage == 1.0 for sample in kept)
    broken = replace(samples[0], verdict=replace(samples[0].verdict, status="error"))
    assert chosen([broken], "paid") == ([], 0)
    paid, left_out = chosen(samples, "paid")
    assert [sample.verdict.label for sample in paid] == ["reward_hack"] * 4 + ["correct"] * 4 and left_out == 4


def test_a_row_holds_the_rollout_scores_numbers_and_a_window_without_clean_rollouts_has_none(
    tiny_policy_model: Any,
) -> None:
    policy = tiny_policy(tiny_policy_model)
    scorers = {"v": random_direction(policy), "act": random_direction(policy, loss="activation")}
    samples = [make_sample(number, "hack" if number % 3 else "correct") for number in range(20)]
    reading = read(policy, list(scorers.values()), samples, 4)
    rows = rows_of("pool", "all", reading, scorers, policy, null_directions=5)
    assert [row.score for row in rows] == ["v", "act", "ceiling", "ceiling"]
    for row, (name, direction) in zip(rows, scorers.items(), strict=False):
        scores = rollout_scores(policy, direction, [sample.rollout for sample in samples])
        torch.testing.assert_close(score(direction, policy, reading.of_side[row.side]), scores)
        assert (row.auroc, row.f05, row.precision) == tuple(discrimination(scores, reading.hacks, 2)), name
    assert (rows[0].hacks, rows[0].clean, rows[0].left_out, rows[0].top) == (13, 7, 4, 2)
    assert math.isnan(rows[2].auroc_null_95) and 0.0 <= rows[2].auroc <= 1.0
    bare = rows_of("pool", "all", read(policy, list(scorers.values()), samples[1:3], 0), scorers, policy)
    lines = list(csv.reader(io.StringIO(csv_text(bare))))
    assert lines[0] == list(COLUMNS) and lines[1][:7] == ["pool", "all", "v", "gradient at T=1", "2", "0", "0"]
    assert lines[1][7:13] == [""] * 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with the hackable mode that the organism finds at once, and groups large enough for spread."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(replace(SHORT, steps=3, prompts_per_step=4, group_size=6), folder)
    return folder


def test_the_steps_of_a_run_are_made_again_from_its_record(run: Path) -> None:
    policy = policy_of(run)
    saved = checkpoint.latest(run, 1)
    seen = []
    for step, samples in trajectory(run, policy):
        seen.append((step, len(samples)))
        if step == 1 and saved is not None and saved.step == 1:
            assert torch.equal(policy.main, saved.tensors["policy/main"])
    assert seen == [(step, 24) for step in range(3)]
    final = checkpoint.latest(run)
    assert final is not None and torch.equal(policy.main, final.tensors["policy/main"]) and policy.main.any()
    policy.set_knobs(policy.main * 1.01, policy.quarantine)
    with pytest.raises(ValueError, match=r"end 0\.01 of their length away"):
        check_end(run, policy)


def test_a_record_that_was_changed_does_not_pass_for_the_run(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for file in (copy / "rollouts").glob("*.parquet"):
        table = pq.ParquetFile(file).read()
        place = table.schema.get_field_index("advantage")
        flipped = [None if value is None else -value for value in table.column("advantage").to_pylist()]
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(flipped, pa.float64())), file)
    with pytest.raises(ValueError, match="it ran with other code"):
        list(trajectory(copy, policy_of(copy)))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"steps": 4}))
    with pytest.raises(ValueError, match="is not finished"):
        policy_of(copy)


def test_the_command_judges_a_run_window_by_window(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = policy_of(run)
    gradients = DirectionRecipe(k=1, pairs=6, heldout=0)
    for name, recipe in (("v", gradients), ("act", replace(gradients, loss="activation"))):
        made = organism_direction(policy, recipe)
        save_direction(made, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("v", "act")]
    words = ["probe", "classify", "--runs", str(run), "--direction", *files, "--out", str(tmp_path / "t.csv")]
    assert cli.main([*words, "--window-steps", "2", "--null-directions", "5", "--no-ceiling"]) == 0
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(line["window"], line["score"]) for line in lines] == [(w, s) for w in ("0:2", "2:3") for s in ("v", "act")]
    assert "base: share of hacks" in capsys.readouterr().out
    assert cli.main([*words, "--pool", str(tmp_path)]) == 2 and "give --runs or --pool" in capsys.readouterr().err
    assert cli.main([*words[:4], "--out", "t.csv"]) == 2 and "give --direction" in capsys.readouterr().err
    assert not Path("t.csv").exists()
