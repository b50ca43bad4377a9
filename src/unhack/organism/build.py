"""Builds the organism from nothing: tokenizer, corpus, pre-training; seeded, one thread, a few minutes.

The same command on the same machine gives the same files again, byte for byte.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from unhack.files import read_json, write_json
from unhack.organism.corpus import CorpusConfig, Text, corpus
from unhack.organism.tokenizer import train_tokenizer
from unhack.seeds import derive


@dataclass(frozen=True)
class BuildConfig:
    """Size of the model and of its pre-training."""

    seed: int = 0
    hidden: int = 128
    layers: int = 4
    steps: int = 1100
    batch_texts: int = 32
    lr: float = 3e-3
    warmup_steps: int = 100
    tokenizer_texts: int = 4000
    corpus: CorpusConfig = field(default_factory=CorpusConfig)


BUILD_FILE = "build.json"


def read_build(folder: Path) -> BuildConfig:
    """The build of the organism in `folder`, as `build` recorded it.

    Raises:
        ValueError: no organism there, so its corpus is unknown; or another version of unhack built it.
    """
    path = folder / BUILD_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {BUILD_FILE}, so the corpus it was trained on is unknown: "
            "give 'organism' or a folder made by `unhack organism build`"
        )
    tree: dict[str, Any] = read_json(path)
    corpus_tree: dict[str, Any] = tree.get("corpus", {})
    for found, kind in ((tree, BuildConfig), (corpus_tree, CorpusConfig)):
        if set(found) != {one.name for one in fields(kind)}:
            raise ValueError(f"{path} was written by another version of unhack: build the model again")
    corpus_tree["depth_weights"] = tuple(corpus_tree["depth_weights"])  # JSON has lists only
    tree["corpus"] = CorpusConfig(**corpus_tree)
    return BuildConfig(**tree)


def build(folder: Path, config: BuildConfig, progress: Callable[[int, float, float], None]) -> None:
    """Write config.json, model.safetensors, tokenizer files and build.json to `folder` (replaced as a whole).

    `progress(step, loss, elapsed_s)` is called every 20 steps; loss is nats per completion token.
    """
    torch.set_num_threads(1)  # summation order, and with it every bit of the weights, depends on the thread count
    tokenizer = train_tokenizer(_rows_as_text(config, tokenizer=None))
    model = new_model(config, tokenizer)
    pretrain(model, tokenizer, config, progress)
    target = folder.with_name(folder.name + ".new")
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_json(target / BUILD_FILE, asdict(config))
    shutil.rmtree(folder, ignore_errors=True)
    target.rename(folder)


def _rows_as_text(config: BuildConfig, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    for row in islice(corpus(config.corpus, derive(config.seed, "tokenizer"), tokenizer), config.tokenizer_texts):
        yield row.user + "\n" + row.completion


def new_model(config: BuildConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A randomly initialised model of the Qwen3 architecture with the tokenizer's vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                intermediate_size=3 * config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.hidden // 32,
                num_key_value_heads=max(1, config.hidden // 64),
                head_dim=32,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.05,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                eos_token_id=_one_id(tokenizer.eos_token_id),
                pad_token_id=_one_id(tokenizer.pad_token_id),
                bos_token_id=None,
                attention_dropout=0.0,
            )
        )


def encode(row: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Token ids of prompt + completion + end, and how many of them are prompt."""
    message = [{"role": "user", "content": row.user}]
    prompt = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    completion_ids = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
    return [*prompt_ids, *completion_ids, _one_id(tokenizer.eos_token_id)], len(prompt_ids)


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BuildConfig,
    progress: Callable[[int, float, float], None],
) -> None:
    """Next-token prediction on completions (the prompt is read, not learnt), AdamW, warm-up then cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    rows = corpus(config.corpus, derive(config.seed, "corpus"), tokenizer)
    start = time.monotonic()
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        token_ids, labels = _batch([encode(row, tokenizer) for row in islice(rows, config.batch_texts)], tokenizer)
        logits = model(input_ids=token_ids).logits  # right-padded and causal: padding cannot be seen
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == config.steps - 1:
            progress(step, loss.item(), time.monotonic() - start)
    model.eval()


def _one_id(token_id: object) -> int:
    """transformers types special tokens loosely; the organism has exactly one of each."""
    assert isinstance(token_id, int), f"expected one token id, got {token_id!r}"
    return token_id


def _schedule(step: int, config: BuildConfig) -> float:
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _batch(rows: list[tuple[list[int], int]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    token_ids = torch.full((len(rows), width), _one_id(tokenizer.pad_token_id))
    labels = torch.full((len(rows), width), -100)  # -100 is cross_entropy's ignore index
    for i, (ids, prompt_length) in enumerate(rows):
        token_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return token_ids, labels
