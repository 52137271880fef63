"""Error feedback: what compression takes from one update is kept, and is part of the next.

EF14 (Seide et al. 2014; Stich et al., arXiv 1809.07599): with delta the change and e the residual,

    e <- decay e + delta,   send C(e),   e <- e - C(e).

EF21 (Richtarik et al., arXiv 2106.05203): the receiver keeps an estimate g of delta, and is sent what is wrong with it,

    send C(delta - g),   g <- g + C(delta - g).

C(x) is what the receiver decodes, number type and dropped zeros included: then sent and kept add up to what there was.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fedsrd.core.tensors import Delta, add_to

Feedback = Literal["none", "ef14", "ef21"]


def key(how: Feedback, name: str) -> str:
    """What the memory of one tensor is called: the residual of EF14, the estimate of EF21."""
    return f"{'estimate' if how == 'ef21' else 'residual'}/{name}"


def compensated(how: Feedback, name: str, delta: Tensor, memory: Mapping[str, Tensor], decay: float = 1.0) -> Tensor:
    """What is to be compressed: delta with what was kept, or less what the receiver knows.

    Args:
        how: the rule.
        name: of the tensor.
        delta: its change, any shape, float32.
        memory: of the last time, under `key`s.
        decay: of EF14's residual.
    """
    kept = memory.get(key(how, name))
    if how == "none" or kept is None:
        return delta
    return delta - kept if how == "ef21" else delta.add(kept, alpha=decay)


def remembered(
    how: Feedback, wanted: Mapping[str, Tensor], arrives: Delta, memory: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The next memory: all of `memory`, with the entries of the tensors that were compressed replaced.

    Args:
        how: the rule.
        wanted: of `compensated`, by tensor.
        arrives: what the receiver decodes; a tensor that is not there arrives as zero.
        memory: of the last time.
    """
    if how == "none":
        return dict(memory)
    renewed = {key(how, name) for name in wanted}
    found = {name: tensor for name, tensor in memory.items() if name not in renewed}
    for name, tensor in wanted.items():
        sent = arrives.get(name)
        if how == "ef14":
            # A copy: what is sent may lie in the same memory.
            found[key(how, name)] = tensor if sent is None else add_to(tensor.clone(), sent, -1.0)
        elif sent is not None:
            before = memory.get(key(how, name))
            found[key(how, name)] = sent.dense() if before is None else add_to(before.clone(), sent, 1.0)
        elif key(how, name) in memory:
            found[key(how, name)] = memory[key(how, name)]
    return found
