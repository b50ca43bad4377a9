"""What every test shares: shapes and types checked at run time, one thread, no network, a private cache."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

from jaxtyping import install_import_hook

install_import_hook("unhack", "beartype.beartype")  # before any module of unhack is imported

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

torch.set_num_threads(1)
settings.register_profile("unhack", deadline=None, derandomize=True, database=None)  # the same examples on every run
settings.load_profile("unhack")


def build_tiny_policy_model(seed: int = 0, vocab_size: int = 64, layers: int = 2) -> Qwen3ForCausalLM:
    """A random Qwen3 of about 20,000 parameters in float32; weights are large enough that gradients are not noise."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model.eval()


@pytest.fixture
def tiny_policy_model() -> Qwen3ForCausalLM:
    """A fresh tiny model, the same weights in every test."""
    return build_tiny_policy_model()


@pytest.fixture
def make_tiny_policy_model() -> Callable[..., Qwen3ForCausalLM]:
    """`make_tiny_policy_model(seed=0, vocab_size=64, layers=2)` for tests that need several or other sizes."""
    return build_tiny_policy_model


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`$UNHACK_CACHE` points into this test session, so that no test reads what another run left."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNHACK_CACHE", str(folder))
        yield folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, still open for inspection."""
    from unhack import plots

    figures: list[Figure] = []
    save = plots.save

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures
