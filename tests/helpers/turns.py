"""A client's and a server's turn of a method alone, without a federation around them."""

import numpy as np
from toy import ToyTrainer, moved

from fedsrd.methods import ClientContext, Contribution, RoundContext, ServerContext


def answered(method, state, number=1, key=1, client=None, weight=1.0, memory=None, size=0.05):
    """What a client sends after a random step, and what it keeps."""
    context = ClientContext(number, 0, client or f"c{key}", None, memory or {})
    plan = method.local_plan(state, context)
    after = moved(plan.start, plan.trained, np.random.default_rng(key), size)
    if plan.gradient_hook is not None:
        ToyTrainer(key).train(plan, number, None)
    delta, kept = method.client_update(plan, after, context)
    return Contribution(context.client, delta, weight), kept


def answers(method, state, number=1, keys=(1, 2, 3), weights=(0.2, 0.3, 0.5), **options):
    """Several clients' contributions."""
    pairs = zip(keys, weights, strict=True)
    return [answered(method, state, number, key, weight=weight, **options)[0] for key, weight in pairs]


def served(method, state, contributions, number=1, memory=None, clients=None, optimizer=None):
    """The server's broadcast, and what it keeps."""
    context = ServerContext(number, 0, clients or len(contributions), memory or {}, optimizer=optimizer)
    return method.server_update(state, contributions, context)


def applied(method, state, broadcast, number=1):
    """The next state."""
    return method.apply(state, broadcast, RoundContext(number, 0))
