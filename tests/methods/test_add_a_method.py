"""docs/add-a-method.md, executed as it is written."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import test_conformance
import tomli_w
import torch
from toy import TABLE, Federation, apart, build, config_of, moved
from typer.testing import CliRunner

from fedsrd import methods, plugins, wire
from fedsrd.cli import app
from fedsrd.errors import RecipeError
from fedsrd.federation import transition
from fedsrd.methods import Contribution, registry

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text(encoding="utf-8")


@pytest.fixture
def file(tmp_path):
    code = re.search(r'```python title="random_k.py"\n(.*?)```', PAGE, re.S).group(1)
    assert len(code.splitlines()) < 150
    path = tmp_path / "random_k.py"
    path.write_text(code, encoding="utf-8")
    yield path
    registry._REGISTRY.pop("random-k", None)
    sys.modules.pop("fedsrd_plugin_random_k", None)


def test_the_method_of_the_page_does_what_every_method_does(file):
    plugins.load(str(file))
    plugins.load(str(file))
    assert "random-k" in methods.names()
    whole, broken = Federation(build("random-k")).rounds(3), Federation(build("random-k")).rounds(3)
    assert apart(whole.weights(), broken.weights()) == 0
    closed = whole.round()
    sent = sum(closed.uplinks[0].values()) / sum(
        2 * 4 * (rows + columns) / 2 for rows, columns in ((24, 16), (6, 16), (16, 24))
    )
    assert 0.03 < sent < 0.25
    # What was not sent is remembered: nothing that was learnt is lost.
    assert whole.clients[0].memory.kept


def test_the_method_of_the_page_is_its_formulas(file):
    """e = e + change - sent, v = mu v + mean, and the model moves by v at the round's elements; of int4 too."""
    plugins.load(str(file))
    for values in ("float32", "int4"):
        config = config_of(build("random-k"), up=wire.WireOptions(values=values), down=wire.WireOptions())
        state, memory, kept = config.start(), {}, [{}, {}]
        expected = {name: tensor.double() for name, tensor in state.tensors.items()}
        velocity = {name: torch.zeros(shape).double() for name, shape in TABLE.shapes.items()}
        learnt, arrived = ([dict.fromkeys(TABLE.shapes, 0.0) for _ in kept] for _ in range(2))
        for number in (1, 2, 3):
            contributions = []
            for place in range(2):
                context, codec = transition.client_context(config, number, f"c{place}", None, kept[place])
                plan = config.method.local_plan(state, context)
                after = moved(plan.start, plan.trained, np.random.default_rng([place, number]))
                delta, kept[place] = transition.update(config, plan, after, context)
                payload = codec.payload(delta, wire.Kind.UPLINK, number, state.version)
                read = transition.read_update(config, state, payload)
                contributions.append(Contribution(f"c{place}", read, 0.5))
                for name, tensor in after.items():
                    learnt[place][name] += (tensor - plan.start[name]).double()
                    arrived[place][name] += read[name].dense().double() if name in read else 0.0
                    torch.testing.assert_close(
                        kept[place][name].double(), learnt[place][name] - arrived[place][name], rtol=0, atol=1e-6
                    )
            closed = transition.close(config, state, contributions, memory, 2)
            for name, sparse in closed.sent.items():
                mean = sum(one.delta[name].dense().double() / 2 for one in contributions if name in one.delta)
                velocity[name] = 0.5 * velocity[name] + mean
                at = sparse.dense() != 0
                assert 0 < int(at.sum()) < sparse.elements
                expected[name] = expected[name] + velocity[name] * at
                torch.testing.assert_close(closed.state.tensors[name].double(), expected[name], rtol=0, atol=1e-6)
            state, memory = closed.state, closed.memory


@pytest.mark.parametrize(
    ("test", "more"),
    [
        (test_conformance.test_replicas_stay_equal_and_finite, {"values": "int4"}),
        (test_conformance.test_updates_and_broadcasts_survive_the_wire, {}),
        (test_conformance.test_a_run_follows_from_its_seed_alone, {}),
        (test_conformance.test_equal_clients_count_as_one, {"seed": 0}),
        (test_conformance.test_clients_that_learnt_nothing_change_nothing, {"number": 1}),
        (test_conformance.test_a_client_that_diverges_is_left_out_and_the_others_go_on, {}),
        (test_conformance.test_what_is_sent_is_counted_and_less_than_nothing_is_not_sent, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_conformance_tests_hold_it(file, test, more):
    plugins.load(str(file))
    test("random-k", **more)


def test_its_run_that_was_stopped_goes_on(file, tmp_path):
    plugins.load(str(file))
    (tmp_path / "run").mkdir()
    test_conformance.test_a_run_that_was_stopped_goes_on_as_if_it_had_not("random-k", tmp_path / "run")


def test_the_command_of_the_page_runs(file, tiny_recipe, tmp_path, monkeypatch):
    command = re.search(r"```bash[^\n]*\nfedsrd (compare --import .*?)\n```", PAGE, re.S).group(1).split()
    monkeypatch.chdir(tmp_path)
    tiny_recipe["rounds"] = 1
    Path("tiny.toml").write_text(tomli_w.dumps(tiny_recipe), encoding="utf-8")
    found = CliRunner().invoke(app, [command[0], "tiny.toml", *command[1:], "--out", "out"])
    assert found.exit_code == 0, found.output
    assert "random-k" in Path("out/table.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1 +", "SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        plugins.load(str(path))
    with pytest.raises(RecipeError, match="--import no.such.module"):
        plugins.load("no.such.module")
