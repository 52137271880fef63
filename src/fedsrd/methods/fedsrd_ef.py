"""FedSRD with error feedback: what its sparsifiers do not send is kept, at both ends, and nothing is rescaled.

FedSRD (Yan et al., arXiv 2510.04601) loses what is not sent; error feedback (Stich et al., arXiv 1809.07599) sends it
later. The defaults are what served best here (docs/results.md): the most important 8 % of the elements each way, plain
averages of both factors. FedSRD's other parts are switches as ever: `server = "alternate"` aggregates in full-rank
space and moves one factor in turn, `project` takes the rank-r approximation first.
"""

from typing import Literal

from fedsrd.core import sparsify
from fedsrd.core.feedback import Feedback
from fedsrd.methods.fedsrd import FedSRD, FedSRDOptions
from fedsrd.methods.feedback import ServerFeedback
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import Fraction


class FedSRDEFOptions(FedSRDOptions):
    """Options of FedSRD, with feedback at both ends."""

    ratio: Literal["adaptive", "fixed", "budget"] = "fixed"
    alpha: Fraction = 0.92
    rescale: sparsify.Rescale = "none"
    feedback: Feedback = "ef14"
    server: Literal["alternate", "svd", "average"] = "average"
    project: bool = False
    download: Literal["random", "importance", "none"] = "importance"
    download_sparsity: Fraction = 0.92
    server_feedback: ServerFeedback = "ef14"


@register
class FedSRDEF(FedSRD):
    """Importance-sparse both ways; what is not sent is kept."""

    name = "fedsrd-ef"
    summary = "FedSRD's importance both ways, error feedback at both ends, plain averages"
    Options = FedSRDEFOptions
