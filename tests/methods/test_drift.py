"""SCAFFOLD and FedDyn, through a whole federation, against the plain float64 reading of their papers' formulas.

What the gradient hook adds, what clients keep (a round away too), what the server keeps, and where the model goes.
"""

import numpy as np
import pytest
import torch
from toy import TABLE, Federation, ToyTrainer, build, config_of, moved

from fedsrd import wire
from fedsrd.core.tensors import GlobalState, SparseTensor, digest, initial_tensors
from fedsrd.federation import transition
from fedsrd.methods import ClientContext, Contribution

NAMES = list(TABLE.shapes)
CLIENTS = 4
WHO = [[0, 1, 2, 3], [0, 2], [1, 2, 3], [3], [0, 1, 2, 3], [0, 1]]
"""Who takes part, round by round: everybody is away in some, and comes back after one or several."""
UNIFORM = pytest.param({}, [8] * CLIENTS, id="uniform")
BY_EXAMPLES = pytest.param({"weighting": "examples", "max_share": 1.0}, [1, 5, 2, 8], id="by examples")
WEIGHTINGS = pytest.mark.parametrize(("server", "examples"), [UNIFORM, BY_EXAMPLES])


def zeros():
    return {name: np.zeros(shape) for name, shape in TABLE.shapes.items()}


def step_of(key, number):
    """What the toy trainer moves every tensor by in a round."""
    random = np.random.default_rng([key, number])
    return {name: 0.05 * random.standard_normal(shape) for name, shape in TABLE.shapes.items()}


def mean_gradient(key, number):
    """The mean of the gradients that the toy trainer shows its hook in a round."""
    total = zeros()
    for step in range(2):
        random = np.random.default_rng([key, number, step])
        for name, shape in TABLE.shapes.items():
            total[name] += random.standard_normal(shape) / 2
    return total


def federation_of(method, server, examples):
    keys = tuple(range(1, CLIENTS + 1))
    federation = Federation(method, keys=keys, **server)
    for trainer, count in zip(federation.trainers.values(), examples, strict=True):
        trainer.count = count
    return federation


def added(client):
    """What the hook of the client's last round adds to a gradient."""
    gradients = {name: torch.zeros(shape) for name, shape in TABLE.shapes.items()}
    client.trainer.seen[-1].gradient_hook(gradients)
    return gradients


def close(found, expected, atol=2e-6):
    for name in NAMES:
        np.testing.assert_allclose(found[name].double().numpy(), expected[name], rtol=1e-5, atol=atol)


@WEIGHTINGS
def test_scaffold(server, examples):
    """Algorithm 1 with eta_g = 1, p_i for 1 / |S|, and option II's c_i+ as the mean of the gradients at y."""
    federation = federation_of(build("scaffold"), server, examples)
    x = {name: tensor.double().numpy() for name, tensor in initial_tensors(TABLE, 0).items()}
    c, own = zeros(), [zeros() for _ in range(CLIENTS)]
    for number, present in enumerate(WHO, 1):
        federation.round(present)
        total = sum(examples[i] for i in present)
        following, change = {name: x[name].copy() for name in NAMES}, zeros()
        for i in present:
            close(added(federation.clients[i]), {name: c[name] - own[i][name] for name in NAMES})
            y = {name: x[name] + noise for name, noise in step_of(i + 1, number).items()}
            plus = mean_gradient(i + 1, number)
            for name in NAMES:
                following[name] += examples[i] / total * (y[name] - x[name])
                change[name] += plus[name] - own[i][name]
            own[i] = plus
        x = following
        # |S| / N times the mean over S.
        c = {name: c[name] + len(present) / CLIENTS * change[name] / len(present) for name in NAMES}
        close(federation.server.model(), x)
        close({name: federation.server.state.tensors[f"{name}.control"] for name in NAMES}, c)
        for i, client in enumerate(federation.clients):
            if client.memory.kept:
                close({name: client.memory.kept[f"{name}.control"] for name in NAMES}, own[i])
            else:
                assert not any(own[i][name].any() for name in NAMES)
        # So c is the mean of all c_i, of those who were away too.
        for name in NAMES:
            np.testing.assert_allclose(c[name], sum(one[name] for one in own) / CLIENTS, atol=1e-12)


@WEIGHTINGS
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_feddyn(server, examples, alpha):
    """Algorithm 1: theta_i's linear term, h over all N clients, and theta = sum p_i theta_i - h / alpha."""
    federation = federation_of(build("feddyn", alpha=alpha), server, examples)
    theta = {name: tensor.double().numpy() for name, tensor in initial_tensors(TABLE, 0).items()}
    h, linear = zeros(), [zeros() for _ in range(CLIENTS)]
    for number, present in enumerate(WHO, 1):
        federation.round(present)
        total = sum(examples[i] for i in present)
        mean, moves = zeros(), zeros()
        for i in present:
            close(added(federation.clients[i]), {name: -linear[i][name] for name in NAMES})
            assert federation.clients[i].trainer.seen[-1].proximal == alpha
            for name, noise in step_of(i + 1, number).items():
                mean[name] += examples[i] / total * (theta[name] + noise)
                moves[name] += noise
                linear[i][name] = linear[i][name] - alpha * noise
        h = {name: h[name] - alpha / CLIENTS * moves[name] for name in NAMES}
        theta = {name: mean[name] - h[name] / alpha for name in NAMES}
        close(federation.server.model(), theta)
        close({name: federation.server.memory[f"h/{name}"] for name in NAMES}, h)
        for i, client in enumerate(federation.clients):
            if client.memory.kept:
                close(client.memory.kept, linear[i])
            else:
                assert not any(linear[i][name].any() for name in NAMES)
        # h is the mean of all lambda_i, as lambda_i and h move by the same.
        for name in NAMES:
            np.testing.assert_allclose(h[name], sum(one[name] for one in linear) / CLIENTS, atol=1e-12)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_who_is_away_or_diverges_keeps_what_it_has(name):
    federation = Federation(build(name), keys=(1, 2, 3), spoil={"c2": (3,)})
    federation.round()
    kept = [digest(client.memory.kept) for client in federation.clients]
    federation.round(present=[0, 2])
    found = [digest(client.memory.kept) for client in federation.clients]
    assert found[1] == kept[1]
    assert found[0] != kept[0]
    assert found[2] != kept[2]
    federation.round()  # The third's training gives NaN: its update does not count.
    after = [digest(client.memory.kept) for client in federation.clients]
    assert after[2] == found[2]
    assert after[0] != found[0]
    assert after[1] != found[1]
    assert all(client.version == 3 for client in federation.clients)


def test_scaffolds_hook_reads_first_and_then_corrects():
    """c_i+ is of g, the client's own gradient, not of g - c_i + c."""
    method, config = build("scaffold"), config_of(build("scaffold"))
    random = np.random.default_rng(3)
    state = GlobalState(
        {
            name: torch.from_numpy(random.standard_normal(tensor.shape)).float()
            for name, tensor in config.start().tensors.items()
        }
    )
    own = {f"{name}.control": torch.from_numpy(random.standard_normal(TABLE.shapes[name])).float() for name in NAMES}
    context = ClientContext(2, 0, "c", memory=own)
    plan = method.local_plan(state, context)
    assert set(plan.start) == set(plan.trained) == set(NAMES)
    seen = zeros()
    for step in range(5):
        gradients = {name: torch.from_numpy(random.standard_normal(TABLE.shapes[name])).float() for name in NAMES}
        before = {name: gradient.double().numpy() for name, gradient in gradients.items()}
        identities = {name: gradient.data_ptr() for name, gradient in gradients.items()}
        plan.gradient_hook(gradients)
        assert {name: gradient.data_ptr() for name, gradient in gradients.items()} == identities, step
        control = {name: state.tensors[f"{name}.control"].double() - own[f"{name}.control"].double() for name in NAMES}
        close(gradients, {name: before[name] + control[name].numpy() for name in NAMES})
        seen = {name: seen[name] + before[name] / 5 for name in NAMES}
    after = moved(plan.start, plan.trained, random)
    delta, kept = method.client_update(plan, after, context)
    assert list(delta) == [*NAMES, *(f"{name}.control" for name in NAMES)]
    close({name: kept[f"{name}.control"] for name in NAMES}, seen)
    close(
        {name: delta[f"{name}.control"].dense() for name in NAMES},
        {name: seen[name] - own[f"{name}.control"].double().numpy() for name in NAMES},
    )
    with pytest.raises(TypeError, match="its own local_plan"):
        method.client_update(build("fedavg").local_plan(state, context), after, context)


def test_feddyns_hook_subtracts_lambda():
    method, state = build("feddyn", alpha=0.3), config_of(build("feddyn")).start()
    random = np.random.default_rng(4)
    own = {name: torch.from_numpy(random.standard_normal(shape)).float() for name, shape in TABLE.shapes.items()}
    plan = method.local_plan(state, ClientContext(2, 0, "c", memory=own))
    gradients = {name: torch.from_numpy(random.standard_normal(TABLE.shapes[name])).float() for name in NAMES}
    expected = {name: gradients[name].double().numpy() - own[name].double().numpy() for name in NAMES}
    plan.gradient_hook(gradients)
    close(gradients, expected)
    assert plan.proximal == 0.3
    # Before its first round a client has none, and the gradient stays.
    first = method.local_plan(state, ClientContext(1, 0, "c"))
    before = {name: gradient.clone() for name, gradient in gradients.items()}
    first.gradient_hook(gradients)
    assert all(torch.equal(gradients[name], before[name]) for name in NAMES)


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8", "int4", "ternary"])
@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_lossy_uplink_leaves_the_means_of_the_papers(name, values):
    """c is the mean of all c_i, and h of all lambda_i, whatever updates are rounded to: clients keep what arrived."""
    config = config_of(build(name), up=wire.WireOptions(values=values), down=wire.WireOptions())
    state, memory = config.start(), {}
    kept = [{} for _ in range(CLIENTS)]
    for number, present in enumerate(WHO, 1):
        contributions = []
        for i in present:
            context, codec = transition.client_context(config, number, f"c{i}", None, kept[i])
            plan = config.method.local_plan(state, context)
            after = ToyTrainer(i + 1).train(plan, number, None).tensors
            delta, kept[i] = transition.update(config, plan, after, context)
            payload = codec.payload(delta, wire.Kind.UPLINK, number, state.version)
            read = transition.read_update(config, state, payload)
            contributions.append(Contribution(f"c{i}", read, 1 / len(present)))
        closed = transition.close(config, state, contributions, memory, CLIENTS)
        state, memory = closed.state, closed.memory
        for tensor, shape in TABLE.shapes.items():
            if name == "scaffold":
                key, found = f"{tensor}.control", state.tensors[f"{tensor}.control"]
            else:
                key, found = tensor, memory[f"h/{tensor}"]
            mean = sum(one.get(key, torch.zeros(shape)).double() for one in kept) / CLIENTS
            np.testing.assert_allclose(found.double(), mean, rtol=1e-5, atol=2e-6)


def test_a_scaffold_update_is_twice_an_adapter_and_a_feddyn_one_as_large():
    sizes = {
        name: sum(Federation(build(name)).round().uplinks[0].values()) for name in ("fedavg", "scaffold", "feddyn")
    }
    assert sizes["scaffold"] == 2 * TABLE.elements
    assert sizes["feddyn"] == sizes["fedavg"] == TABLE.elements


def test_scaffold_of_one_client_is_fedavg():
    """With one client c = c_i always, so there is nothing to correct."""
    one, plain = Federation(build("scaffold"), keys=(5,)), Federation(build("fedavg"), keys=(5,))
    for _ in range(3):
        one.round()
        plain.round()
        hook = {name: gradient.abs().max() for name, gradient in added(one.clients[0]).items()}
        assert max(hook.values()) < 1e-6
        assert digest(one.server.model()) == digest(plain.server.model())


def test_the_server_needs_no_update_of_a_control_variate():
    """A client that moves nothing and sees no gradient: all zeros, also what a wire drops as zero."""
    method = build("scaffold")
    config = config_of(method)
    context, codec = transition.client_context(config, 1, "c", None, {})
    plan = method.local_plan(config.start(), context)
    delta, kept = transition.update(config, plan, plan.start, context)
    payload = codec.payload(delta, wire.Kind.UPLINK, 1, 0)
    read = transition.read_update(config, config.start(), payload)
    assert all(isinstance(sparse, SparseTensor) and not sparse.dense().any() for sparse in read.values())
    closed = transition.close(config, config.start(), [Contribution("c", read, 1.0)], {}, 1)
    assert closed.state.digest == config.start().digest
    assert not any(tensor.any() for tensor in kept.values())
