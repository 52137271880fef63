"""Reconstruct (server): aggregate the clients' full weights exactly, without ever building one (arXiv 2510.04601, 4.2).

Averaging B and A separately is not averaging their products. FedSRD averages W_i = (B + dB_i)(A + dA_i). With
sum p_i = 1,

    W = sum_i p_i (B + dB_i)(A + dA_i),        W - B A = sum_i p_i (B dA_i + dB_i A + dB_i dA_i),

and whatever the server needs of them are products with thin matrices. `Mean` makes those from the sparse deltas
themselves: time and memory grow with what the clients sent, and W - B A comes without the big product B A that cancels
on paper and not in floating point. `LowRank` is the careful way, dense factors in float64, for matrices that are small
or badly conditioned, and what `Mean` is held against.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsrd.core.lora import FACTORS, Factor, LoraPair, tensor_name
from fedsrd.core.sparse import to_csr
from fedsrd.core.tensors import Delta, add_weighted

KEPT_CLIENTS = 16
"""Up to so many clients a module's deltas are kept between products; beyond, memory would grow with the clients."""


class LowRank(NamedTuple):
    """The matrix left @ right, kept as its two factors: left (out_features, k), right (k, in_features), float64."""

    left: Tensor
    right: Tensor

    def __add__(self, other: "LowRank") -> "LowRank":  # type: ignore[override]
        """The sum of the two matrices; inner sizes add up."""
        return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 0))


class Mean:
    """W of one module, for products with thin matrices, in float32.

    A product costs O(non-zeros c) for what the clients sent and O((out + in) r c) for B and A. Memory is that of the
    module's deltas in compressed rows while the clients are few, else of one client's at a time.

    Args:
        module: the module's name.
        pair: the global B (out_features, r) and A (r, in_features).
        deltas: what each client sent; this module's part is looked up when it is needed, and again when it is needed
            again, so that deltas may lie on a disk.
        weights: p_i, positive, with sum 1.
    """

    def __init__(self, module: str, pair: LoraPair, deltas: Sequence[Delta], weights: Sequence[float]) -> None:
        self.module = module
        self.pair = pair
        self.deltas = deltas
        self.weights = weights
        self._kept: dict[tuple[int, Factor, bool], Tensor | None] = {}

    def change_times(self, thin: Tensor, own: Tensor, moving: Factor) -> Tensor:
        """(W - B A) @ thin, or (W - B A)^T @ thin.

        With s_i = dA_i thin this is B sum p_i s_i + sum_i p_i dB_i (A thin + s_i).

        Args:
            thin: (in_features, c) float32; for the transpose (out_features, c).
            own: A @ thin, or B^T @ thin, (r, c), which the caller knows.
            moving: "B" for W - B A, "A" for its transpose: the factor on whose side the result is.

        Returns:
            (out_features, c) float32; for the transpose (in_features, c).
        """
        small, average = self._inner(thin, moving)
        outer = self.pair.B if moving == "B" else self.pair.A.T
        return self._outer(
            outer @ average, [weight * (own + s) for s, weight in zip(small, self.weights, strict=True)], moving
        )

    def disagreement_times(self, thin: Tensor, moving: Factor) -> Tensor:
        """C @ thin, or C^T @ thin, of what the clients disagree on: C = sum p_i (dB_i - mean dB)(dA_i - mean dA).

        As sum p_i = 1 this is sum_i p_i dB_i (s_i - sum_j p_j s_j) with s_i = dA_i thin. Arguments as `change_times`.
        """
        small, average = self._inner(thin, moving)
        features = self.pair.B.shape[0] if moving == "B" else self.pair.A.shape[1]
        apart = [weight * (s - average) for s, weight in zip(small, self.weights, strict=True)]
        return self._outer(torch.zeros(features, thin.shape[1]), apart, moving)

    def averages(self, moving: Factor) -> tuple[Tensor, Tensor]:
        """B + mean dB (out_features, r) and (A + mean dA)^T (in_features, r), or the other way round for "A"."""
        B, A = (
            add_weighted(
                start.clone(memory_format=torch.contiguous_format),
                tensor_name(self.module, factor),
                self.deltas,
                self.weights,
            )
            for factor, start in zip(FACTORS, self.pair, strict=True)
        )
        # Sparse products read rows: a transposed view would cost them several times as much.
        return (B, A.T.contiguous()) if moving == "B" else (A.T.contiguous(), B)

    def _inner(self, thin: Tensor, moving: Factor) -> tuple[list[Tensor], Tensor]:
        """Each client's change of the factor that does not move, times `thin`; and the mean of these."""
        rank = self.pair.A.shape[0]
        average = torch.zeros(rank, thin.shape[1])
        small = []
        for client, weight in enumerate(self.weights):
            delta = self._csr(client, "A" if moving == "B" else "B", moving == "A")
            small.append(torch.zeros_like(average) if delta is None else torch.mm(delta, thin))
            average.add_(small[-1], alpha=weight)
        return small, average

    def _outer(self, result: Tensor, small: Sequence[Tensor], moving: Factor) -> Tensor:
        """`result` plus each client's change of the moving factor times its small matrix."""
        for client, own in enumerate(small):
            delta = self._csr(client, moving, moving == "A")
            if delta is not None:
                torch.addmm(result, delta, own, out=result)
        return result

    def _csr(self, client: int, factor: Factor, transposed: bool) -> Tensor | None:
        key = (client, factor, transposed)
        if key in self._kept:
            return self._kept[key]
        sparse = self.deltas[client].get(tensor_name(self.module, factor))
        made = to_csr(sparse, transposed=transposed) if sparse is not None and sparse.count else None
        if len(self.weights) <= KEPT_CLIENTS:
            self._kept[key] = made
        return made

    def _dense(self, client: int) -> LoraPair:
        """One client's dB and dA; what was not sent is zero."""
        dense = []
        for factor, like in zip(FACTORS, self.pair, strict=True):
            sparse = self.deltas[client].get(tensor_name(self.module, factor))
            dense.append(torch.zeros_like(like) if sparse is None else sparse.dense())
        return LoraPair(*dense)

    def careful(self, *, change: bool) -> LowRank:
        """W, or W - B A from the deltas alone, as dense factors in float64.

        Their inner size is (m + 1) r, or in_features where that is less: then the one factor is the matrix itself, and
        memory does not grow with the number of clients m. Uses sum p_i = 1 and

            (B + dB_i)(A + dA_i) - B A = dB_i A + (B + dB_i) dA_i.
        """
        B, A = self.pair.B.double(), self.pair.A.double()
        whole = (len(self.weights) + 1) * A.shape[0] > A.shape[1]
        first = torch.zeros_like(B) if change else B.clone()
        summed = torch.zeros(len(B), A.shape[1], dtype=torch.float64) if whole else None
        lefts, rights = [], []
        for client, weight in enumerate(self.weights):
            dB, dA = self._dense(client)
            first.add_(dB, alpha=weight)
            if summed is not None:
                summed.addmm_(B + dB, dA.double(), alpha=weight)
            else:
                lefts.append(weight * (B + dB))
                rights.append(dA.double())
        if summed is not None:
            return LowRank(summed.addmm_(first, A), torch.eye(A.shape[1], dtype=torch.float64))
        return LowRank(torch.cat([first, *lefts], 1), torch.cat([A, *rights], 0))


def project(matrix: LowRank, rank: int) -> LowRank:
    """The best approximation of `matrix` of rank `rank` (truncated SVD; Eckart and Young, 1936), exact.

    With left = Q_l T_l and right^T = Q_r T_r (thin QR), matrix = Q_l (T_l T_r^T) Q_r^T, and the SVD of the small middle
    is the SVD of the whole. Costs O((out + in) k^2 + k^3) time for inner size k, O((out + in) k) memory.

    Args:
        matrix: the matrix to approximate, inner size k >= 1.
        rank: inner size of the result, at most min(out_features, in_features).
    """
    q_left, t_left = torch.linalg.qr(matrix.left)
    q_right, t_right = torch.linalg.qr(matrix.right.T)
    u, s, vh = torch.linalg.svd(t_left @ t_right.T, full_matrices=False)
    return LowRank(q_left @ (u[:, :rank] * s[:rank]), vh[:rank] @ q_right.T)


def best_pair(matrix: LowRank, rank: int) -> LoraPair:
    """The factors of `project`: B = U S (out_features, rank), A = V^T (rank, in_features), float32, largest first.

    Of the two signs of a component, the one that makes the largest element of its row of A positive: singular vectors
    have no sign of their own, and a run must not depend on rounding. Zeros fill up what a small matrix lacks.
    """
    left, right = project(matrix, min(rank, matrix.left.shape[0], matrix.right.shape[1]))
    largest = right.gather(1, right.abs().argmax(1, keepdim=True)).squeeze(1)
    sign = torch.where(largest < 0, -1.0, 1.0).to(right.dtype)
    missing = rank - len(right)
    B = torch.nn.functional.pad(left * sign, (0, missing))
    A = torch.nn.functional.pad(right * sign.unsqueeze(1), (0, 0, 0, missing))
    return LoraPair(B.float(), A.float())
