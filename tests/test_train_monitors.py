"""penalty and screening with each monitor from end to end: two steps, save, resume, deploy, other inputs refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from byte_tokenizer import BYTE_VOCABULARY
from judge_server import Judge, serving
from training_runs import SHORT, assert_same, final_tensors, unexplained_metrics
from unhack import model, record
from unhack.adapters import Policy
from unhack.config import ArmConfig, EndpointConfig, TrainConfig
from unhack.detection import ProbeRecipe, of_pairs, train_probes
from unhack.evaluate import deployed_knobs
from unhack.monitors.probe import save_probe
from unhack.monitors.probe_fit import Method
from unhack.pairs import select
from unhack.pairs.organism import organism_pairs
from unhack.train import train

pytestmark = pytest.mark.slow


@pytest.fixture
def server(make_tiny_policy_model: Callable[..., PreTrainedModel]) -> Iterator[Judge]:
    with serving(make_tiny_policy_model(vocab_size=BYTE_VOCABULARY)) as judge:
        yield judge


def write_probe(path: Path, method: Method = "mass_mean", seed: int = 0) -> str:
    loaded = model.load(SHORT.model)
    pairs = organism_pairs("run_tests+sentinel", 6, seed, heldout=4, tokenizer=loaded.tokenizer)
    train_rows, held = (of_pairs(select(pairs, split), loaded.tokenizer)[0] for split in ("train", "heldout"))
    save_probe(train_probes(loaded, train_rows, "pairs", ProbeRecipe((method,)), held)[method].probe, path)
    return str(path)


def arm_of(name: str, monitor: str, server: Judge, folder: Path) -> ArmConfig:
    fields: dict[str, Any] = {"name": name, "monitor": monitor}
    if monitor == "probe":
        fields["monitor_path"] = write_probe(folder / "probe.safetensors")
        fields["monitor_threshold"] = 0.3
    if monitor == "judge":
        fields["endpoint"] = EndpointConfig(
            url=server.url, model="tiny", backoff_s=0.01, cache=str(folder / "cache"), max_total_tokens=10**7
        )
    return ArmConfig(**fields)


def resumed(config: TrainConfig, folder: Path, again: Path) -> None:
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "step-000002-final")
    shutil.rmtree(again / "adapter")
    assert train(config, again, resume=True)
    assert record.read_json(again / "resumes.json")[0]["step"] == 1


@pytest.mark.parametrize("name", ["penalty", "screening"])
@pytest.mark.parametrize("monitor", ["static", "probe", "judge"])
def test_an_arm_with_a_monitor_trains_resumes_and_deploys_what_it_saved(
    name: str, monitor: str, server: Judge, tmp_path: Path
) -> None:
    config, folder = replace(SHORT, arm=arm_of(name, monitor, server, tmp_path)), tmp_path / "run"
    assert train(config, folder)
    assert final_tensors(folder)["policy/main"].any(), "two steps without a single kept group: nothing was tested"
    environment = record.read_json(folder / "env.json")
    assert not environment["uses_oracle"] and environment["inputs_hash"]
    assert unexplained_metrics(folder) == []
    lines = record.metrics(folder)
    assert all(line["monitor/unread_frac"] == 0 and 0 <= line["monitor/score_mean"] <= 1 for line in lines)
    if monitor == "judge":
        assert 0 < len(server.requests) <= 2 * 8 and lines[-1]["judge/spent_tokens"] > 0
    if monitor == "probe":
        assert lines[0]["monitor/obfuscation_gap"] == 0 != lines[1]["monitor/obfuscation_gap"]
    before = len(server.requests)
    resumed(config, folder, tmp_path / "again")
    assert_same(tmp_path / "again", folder)
    assert len(server.requests) == before, "what is asked again is in the cache"
    fresh = Policy.wrap(model.load(config.model), config.adapter)
    fresh.load(folder / "adapter")
    assert torch.equal(fresh.main, final_tensors(folder)["policy/main"])
    with deployed_knobs(fresh, fresh.main, torch.zeros_like(fresh.quarantine)), torch.no_grad():
        logits = fresh.model(torch.arange(24).view(2, 12) % 50 + 3).logits
    torch.testing.assert_close(fresh.deployed_model()(torch.arange(24).view(2, 12) % 50 + 3).logits, logits)


def test_a_run_survives_a_judge_that_breaks_and_says_so(server: Judge, tmp_path: Path) -> None:
    arm = arm_of("screening", "judge", server, tmp_path)
    server.failures_first = 10**6
    down = replace(arm, endpoint=replace(arm.endpoint, retries=0))
    assert train(replace(SHORT, arm=down), tmp_path / "masked")
    assert [line["judge/unreachable_frac"] for line in record.metrics(tmp_path / "masked")] == [1.0, 1.0]
    assert [line["loss/rollouts"] for line in record.metrics(tmp_path / "masked")] == [0.0, 0.0], "all masked"
    assert not final_tensors(tmp_path / "masked")["policy/main"].any()
    neutral = replace(arm, endpoint=replace(down.endpoint, on_failure="neutral"))
    assert train(replace(SHORT, arm=neutral), tmp_path / "neutral")
    assert [line["monitor/flagged_frac"] for line in record.metrics(tmp_path / "neutral")] == [0.0, 0.0]
    assert final_tensors(tmp_path / "neutral")["policy/main"].any(), "vanilla, then"


def test_a_run_is_not_resumed_with_another_probe_under_the_same_name(server: Judge, tmp_path: Path) -> None:
    arm = arm_of("penalty", "probe", server, tmp_path)
    config = replace(SHORT, arm=arm)
    assert train(config, tmp_path / "run")
    write_probe(tmp_path / "probe.safetensors", seed=1)
    with pytest.raises(ValueError, match="inputs_hash is"):
        train(config, tmp_path / "run", resume=True)
