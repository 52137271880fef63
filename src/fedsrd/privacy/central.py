"""Differential privacy of clients with a server that is trusted to add the noise (McMahan et al., arXiv 1710.06963).

Every update is scaled down to an L2 norm C, over all tensors that travel, and the weighted sum gets Gaussian noise of
standard deviation sigma C max_i p_i on every element that all clients send this round, whatever anybody's is. Two runs
are neighbours where one client's updates are zero in one of them. What a client keeps as error feedback changes nothing
of that: the bound is on what is sent, and what came of earlier data is sent under the bounds of later rounds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsrd.core.tensors import Delta, SparseTensor, add_to, digest
from fedsrd.privacy.stream import Stream


@dataclass(frozen=True)
class CentralNoise:
    """What the server adds.

    Attributes:
        noise_multiplier: sigma, standard deviation of the noise in the sum, in clips of the largest weight.
        clip: C, L2 norm of an update.
        secret: gives 32 bytes that the noise comes from; who has them can take the noise away.
    """

    noise_multiplier: float
    clip: float
    secret: Callable[[], bytes]


def norm(delta: Delta) -> float:
    """L2 norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(sparse.values.double().pow(2).sum()) for sparse in delta.values()))


def clipped(delta: Delta, most: float) -> Delta:
    """The delta, scaled down to a norm of at most `most` as float32 has it; itself where it is within."""
    found = norm(delta)
    if found <= most:
        return delta
    # Products round; a hair less than the bound stays within it.
    return {name: sparse.scaled(most / found * (1 - 1e-6)) for name, sparse in delta.items()}


def noised_sum(deltas: Sequence[Delta], weights: Sequence[float], noise: CentralNoise, *names: str | int) -> Delta:
    """sum_i p_i clipped(delta_i) plus noise, on the elements that all know.

    Args:
        deltas: at least one; whole tensors, or elements of one draw.
        weights: one a delta.
        noise: how much, and from where.
        names: of the round.

    Raises:
        ValueError: elements were chosen by a client, so that their places say something of its data.
    """
    within = [clipped(delta, noise.clip) for delta in deltas]
    sums: dict[str, Tensor] = {}
    places: dict[str, SparseTensor] = {}
    for name in dict.fromkeys(name for delta in within for name in delta):
        sent = [(delta[name], weight) for delta, weight in zip(within, weights, strict=True) if name in delta]
        places[name] = sent[0][0]
        kinds = {(one.draw, one.positions is None) for one, _ in sent}
        if len(kinds) > 1:
            raise ValueError(f"clients send different elements of {name}: noise hides values, not places")
        if places[name].positions is not None and places[name].draw is None:
            raise ValueError(f"a client has chosen the elements of {name}: noise hides values, not places")
        total = torch.zeros(sent[0][0].shape, dtype=torch.float64)
        for sparse, weight in sent:
            add_to(total, SparseTensor(sparse.shape, sparse.positions, sparse.values.double()), weight)
        sums[name] = total.view(-1)
    # What is noised is in the noise's name: a round that is closed again with other updates has other noise.
    stream = Stream(noise.secret(), "clients", *names, digest(sums), repr((noise.noise_multiplier, noise.clip)))
    std = noise.noise_multiplier * noise.clip * max(weights)
    found = {}
    for name, total in sums.items():
        shape, draw = places[name].shape, places[name].draw
        where = None if draw is None else draw.positions(name, total.numel())
        values = total if where is None else total[where]
        values = values + std * torch.from_numpy(stream.normal(values.numel()))
        found[name] = SparseTensor(shape, where, values.float(), draw)
    return found
