"""Batches for a causal language model whose loss counts the response only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsrd import rng
from fedsrd.data.prompt import Encoded

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences aligned at their ends.

    Attributes:
        ids: (batch, length) int64 token ids, padded on the left.
        mask: (batch, length) int64, 0 on padding.
        positions: (batch, length) int64, counted from each sequence's first token.
        labels: (batch, longest response) int64: the last tokens, IGNORED where not of a response.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor

    @property
    def response_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())


def padded(sequences: Sequence[Sequence[int]], fill: int, *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Sequences filled up to the longest, and their mask: both (sequences, longest) int64, the mask 0 on filling."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, place] = 1
    return ids, mask


def collate(examples: Sequence[Encoded], pad_id: int) -> Batch:
    """Pads on the left, so that all responses end together and logits are needed for the last positions only.

    Masks go by length, never by the padding's id: many tokenizers pad with their end-of-text token.
    """
    ids, mask = padded([[*e.prompt, *e.response] for e in examples], pad_id)
    labels, _ = padded([e.response for e in examples], IGNORED)
    return Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), labels)


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences one behind the other, without padding; positions begin anew with each, and so models tell them apart.

    Attributes:
        ids: (1, tokens) int64.
        positions: (1, tokens) int64, counted from each sequence's first token.
        kept: (response tokens,) int64: the places whose next token is one of a response.
        labels: (response tokens,) int64: these tokens.
    """

    ids: Tensor
    positions: Tensor
    kept: Tensor
    labels: Tensor

    @property
    def response_tokens(self) -> int:
        return len(self.labels)


def pack(examples: Sequence[Encoded]) -> Packed:
    """Packs sequences whose prompts are not empty."""
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    labels: list[int] = []
    for example in examples:
        first = len(ids) + len(example.prompt) - 1
        kept += range(first, first + len(example.response))
        ids += [*example.prompt, *example.response]
        positions += range(len(example.prompt) + len(example.response))
        labels += example.response
    return Packed(torch.tensor([ids]), torch.tensor([positions]), torch.tensor(kept), torch.tensor(labels))


def packed_loss(model: Any, batch: Packed, device: torch.device) -> Tensor:
    """As `response_loss`, of a packed batch; logits are computed for the response tokens alone."""
    output = model(
        input_ids=batch.ids.to(device),
        position_ids=batch.positions.to(device),
        logits_to_keep=batch.kept.to(device),
        use_cache=False,
    )
    return torch.nn.functional.cross_entropy(output.logits[0].float(), batch.labels.to(device), reduction="sum")


def response_loss(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """Sum over the batch's response tokens of their negative log-likelihood, a scalar in nats, float32.

    The logits of the prompt are never computed.
    """
    logits, labels = _responses(model, batch, device)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def response_losses(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """The same by sequence: (batch,) float32."""
    logits, labels = _responses(model, batch, device)
    losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    return losses.view(len(batch.labels), -1).sum(1)


def _responses(model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (batch x longest response, vocabulary) float32, and their labels."""
    keep = batch.labels.shape[1] + 1
    output = model(
        input_ids=batch.ids.to(device),
        attention_mask=batch.mask.to(device),
        position_ids=batch.positions.to(device),
        logits_to_keep=keep,
        use_cache=False,
    )
    return output.logits[:, -keep:-1].flatten(0, 1).float(), batch.labels.to(device).flatten()


def draw(count: int, wanted: int, start: int, seed: int, *names: str | int) -> list[int]:
    """`wanted` indices into `count` examples, from place `start` of an endless sequence of shuffled epochs.

    Every example comes once an epoch. The sequence follows from the seed and the names alone, so a run that resumes,
    or a client that missed a round, sees the same batches as if nothing had happened.
    """
    found: list[int] = []
    place = start
    while len(found) < wanted:
        epoch, offset = divmod(place, count)
        order = rng.generator(seed, "data order", *names, epoch).permutation(count)
        found += order[offset : offset + wanted - len(found)].tolist()
        place = start + len(found)
    return found
