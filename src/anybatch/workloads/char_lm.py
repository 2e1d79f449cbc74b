"""A tiny character transformer on the help texts of Python itself: AdamW, sizes in tokens, no download."""

from __future__ import annotations

import math
import re
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from anybatch.errors import InputError
from anybatch.workload import Workload

Batch = tuple[Tensor, Tensor]
CONTEXT = 64  # characters
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
OTHER = len(ALPHABET)  # the token of every other character
EVERY = 10  # one window of so many is evaluated on


def char_lm() -> Workload:
    """Build the character model: windows of 64 characters of `pydoc_data.topics`, AdamW tuned at 16 windows.

    A sample is a window, the loss a mean over its characters, sizes are counted in characters (tokens). Every tenth
    window is evaluated on. Paragraphs that the topics repeat are kept once, so that none is on both sides.

    The text is that of the running Python: from version to version it grows by some percent, and losses with it.
    Compare figures of one Python version alone.

    Returns:
        The workload.

    Raises:
        InputError: this Python comes without `pydoc_data`.

    Example:
        >>> workload = char_lm()
        >>> workload.base_batch_size, workload.batch_size_of(workload.train_set[:3])
        (16, 192)
    """
    tokens = encode(read_text())
    num_windows = (len(tokens) - 1) // CONTEXT
    inputs = tokens[: num_windows * CONTEXT].view(num_windows, CONTEXT)
    targets = tokens[1 : num_windows * CONTEXT + 1].view(num_windows, CONTEXT)
    held_out = torch.arange(num_windows) % EVERY == EVERY - 1
    return Workload(
        name="char-lm",
        model=CharTransformer,
        train_set=TensorDataset(inputs[~held_out], targets[~held_out]),
        eval_set=TensorDataset(inputs[held_out], targets[held_out]),
        loss=next_character,
        metric=BitsPerCharacter,
        optimizer=_adamw,
        batch_size_of=count_tokens,
        base_batch_size=16,
        epochs=4,
    )


def read_text() -> str:
    """Return the help topics of this Python in the order of their names, each paragraph once.

    Returns:
        Some 400,000 characters.

    Raises:
        InputError: this Python comes without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "workload 'char-lm' needs pydoc_data, which this Python lacks. Use a full build of Python."
        ) from error
    paragraphs = (paragraph for name in sorted(topics) for paragraph in re.split("\n\n+", topics[name].strip("\n")))
    return "\n\n".join(dict.fromkeys(paragraphs))


def encode(text: str) -> Tensor:
    r"""Return the tokens of a text: newline and printable ASCII each have one, all other characters share one.

    Args:
        text: any.

    Returns:
        int64 of shape (characters,), below 97.

    Example:
        >>> encode("\n ~é").tolist()
        [0, 1, 95, 96]
    """
    token_of = {character: token for token, character in enumerate(ALPHABET)}
    return torch.tensor([token_of.get(character, OTHER) for character in text])


def next_character(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the next character in nats, a scalar."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def count_tokens(batch: Batch) -> int:
    """Return how many characters of a batch are predicted."""
    return batch[1].numel()


class BitsPerCharacter:
    """Mean cross-entropy of the next character, in bits."""

    higher_is_better = False

    def __init__(self) -> None:
        self.num_bits = 0.0
        self.num_characters = 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch."""
        size = count_tokens(batch)
        self.num_bits += float(next_character(model, batch)) / math.log(2) * size
        self.num_characters += size

    def merge(self, other: Self) -> None:
        """Add another rank's counts."""
        self.num_bits += other.num_bits
        self.num_characters += other.num_characters

    def compute(self) -> dict[str, float]:
        """Return {"bits_per_character": at least 0}; NaN of no samples."""
        mean = self.num_bits / self.num_characters if self.num_characters else float("nan")
        return {"bits_per_character": mean}


class CharTransformer(nn.Module):
    """Two pre-norm blocks of width 64 with 4 heads on (N, T) tokens, T at most 64; no dropout, no tied weights."""

    def __init__(self, width: int = 64, num_heads: int = 4, num_blocks: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(OTHER + 1, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(_Block(width, num_heads) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, OTHER + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, T, 97) logits of the character after each of (N, T) tokens."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))


class _Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each behind a norm and around a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_heads = nn.Linear(width, 3 * width)
        self.from_heads = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.to_heads(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, T, width / heads)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.from_heads(mixed.transpose(1, 2).flatten(2))
        return x + self.perceptron(x)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Keep norms and biases, which are vectors, outside weight decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.008)
