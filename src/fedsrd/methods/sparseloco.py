"""SparseLoCo: the largest changes in few bits, with error feedback that forgets, and averaging at the server.

Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo" (arXiv 2508.15706): DiLoCo whose outer momentum
is the clients' own error feedback. With delta a client's change and e what it kept,

    e <- beta e + delta,   send Q(TopK(e)),   e <- e - Q(TopK(e)),   x <- x + eta mean_i Q(TopK(e_i)).

The paper takes 1 to 3 % of the elements, the largest of every chunk of 4096, in two bits, and beta = 0.95. Here the
largest are those of a matrix, and the number type is the recipe's: `[wire.uplink] values = "int2"` is its two bits.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedsrd.core import sparsify
from fedsrd.core.feedback import Feedback
from fedsrd.methods.fedavg import FedAvg, FedAvgOptions
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import Fraction, Sparsifier


class SparseLoCoOptions(FedAvgOptions):
    """Options of FedAvg, with the paper's sparsifier and feedback."""

    sparsifier: Sparsifier = "magnitude"
    ratio: Literal["adaptive", "fixed", "budget"] = "fixed"
    alpha: Fraction = 0.97
    rescale: sparsify.Rescale = "none"
    feedback: Feedback = "ef14"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.95


@register
class SparseLoCo(FedAvg):
    """The largest changes up, what anybody sent down."""

    name = "sparseloco"
    summary = "largest changes with decaying error feedback, averaged"
    Options = SparseLoCoOptions
