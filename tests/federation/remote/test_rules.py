"""A site's rules against servers that ask for more: one message, nothing trained, nothing sent, nothing lost."""

import contextlib
import json
import math

import pytest
from asking import OTHER_RUN, RUN, Asking, Runtime
from hypothesis import given
from hypothesis import strategies as st
from toy import TABLE

from fedsrd.core.lora import LoraModule, table_of
from fedsrd.errors import FederationError, PayloadError, RulesError
from fedsrd.federation.remote import gate, header, rules
from fedsrd.federation.remote.counts import FILE, Counts
from fedsrd.federation.remote.replica import Replica


@pytest.fixture
def state(tmp_path):
    return tmp_path / "site"


def held(asking):
    return Replica(asking.state, asking.run, "c0").state()


def refused(asking, rule, envelope=None, **changes):
    """A task is answered with a failure that names the rule; nothing is trained, sent, or lost."""
    before, trained = held(asking), len(asking.runtime.trained)
    said, payload = asking.train(envelope, **changes)
    assert f"the site's rules do not allow this ({rule})" in (said.failure or "")
    assert not said.lost
    assert payload == b""
    assert len(asking.runtime.trained) == trained
    after = held(asking)
    assert (after.version, after.version < 0 or after.digest) == (before.version, before.version < 0 or before.digest)
    assert said.held == after.version
    line = asking.lines()[-1]
    assert line.told["failure"] == said.failure
    assert line.asked
    return said.failure


def test_what_is_allowed_runs(state):
    text = """
    [rules]
    methods = ["fedavg"]
    models = ["org/model@main"]
    targets = ["q", "v"]
    rank = 4
    parameters = 100000
    runs = ["aaaaaaaaaaaaaaaa"]
    rounds = 3
    rounds_per_run = 3
    steps = 6
    epochs = 3
    update_bytes = 100000
    """
    asking = Asking(state, text)
    asking.hello()
    for _ in range(3):
        asking.round()
    assert len(asking.runtime.trained) == 3
    refused(asking, "rules.rounds")


@pytest.mark.parametrize(
    ("rule", "text", "changes"),
    [
        ("methods", 'methods = ["fedavg"]', {"job.method": {"name": "fedsrd"}}),
        ("methods", 'methods = ["fedavg"]', {"job.method": {"name": ["fedavg"]}}),
        ("methods", 'methods = ["fedavg"]', {"job.method": {}}),
        ("models", 'models = ["org/model"]', {"job.recipe.model.id": "org/model2"}),
        ("models", 'models = ["org/model"]', {"job.recipe.model.id": "../org/model"}),
        ("models", 'models = ["org/model@v1"]', {}),
        ("models", 'models = ["org/model@v1"]', {"job.recipe.model": {"id": "org/model"}}),
        ("models", 'models = ["org/model"]', {"job.recipe.model": {}}),
        ("models", 'models = ["org/model"]', {"job.recipe.model": ["org/model"]}),
        ("models", 'models = ["org/model"]', {"job.recipe": None}),
        ("targets", 'targets = ["q"]', {}),
        ("rank", "rank = 3", {}),
        ("parameters", "parameters = 10", {}),
        ("runs", f'runs = ["{OTHER_RUN}"]', {}),
        ("steps", "steps = 1", {}),
        ("epochs", "epochs = 0.5", {}),
        ("update_bytes", "update_bytes = 10", {}),
        ("secure_aggregation", "secure_aggregation = true", {}),
    ],
)
def test_a_task_that_breaks_a_rule_is_refused_by_its_name(rule, text, changes, state):
    asking = Asking(state, f"[rules]\n{text}\n")
    if rule == "update_bytes":
        # The one rule that the training's result may break.
        said, payload = asking.train()
        assert "(rules.update_bytes)" in said.failure
        assert payload == b""
        assert held(asking).version == -1
        return
    failure = refused(asking, f"rules.{rule}", **changes)
    if rule in ("rank", "parameters", "epochs"):
        assert text.split(" = ")[1] not in failure.split("):")[1].split()


def test_nothing_is_loaded_for_a_model_that_is_not_accepted(state):
    asking = Asking(state, '[rules]\nmodels = ["org/model"]')
    refused(asking, "rules.models", **{"job.recipe.model.id": "evil/model"})
    assert asking.runtime.loaded == []
    for kind in ("evaluate", "finalize"):
        asking.allow('[rules]\nmodels = ["org/other"]')
        with pytest.raises(RulesError, match=r"rules\.models"):
            asking.send(asking.order(kind))
    assert asking.runtime.loaded == []


def test_a_second_run_does_not_begin_the_count_again(state):
    asking = Asking(state, "[rules]\nrounds = 2")
    asking.round()
    other = Asking(state, "[rules]\nrounds = 2", run=OTHER_RUN)
    other.round()
    refused(other, "rules.rounds")
    refused(asking, "rules.rounds")


def test_rounds_by_run_are_of_the_run(state):
    text = "[rules]\nrounds_per_run = 1"
    one, two = Asking(state, text), Asking(state, text, run=OTHER_RUN)
    one.round()
    two.round()
    refused(one, "rules.rounds_per_run")
    refused(two, "rules.rounds_per_run")


def test_a_replayed_task_counts_again(state):
    asking = Asking(state, "[rules]\nrounds = 2")
    task = asking.task()
    first, second = asking.train(task), asking.train(task)
    assert first[1] == second[1]
    refused(asking, "rules.rounds", task)


def test_rules_that_change_in_between_hold_at_once(state):
    asking = Asking(state, "[rules]\nrounds = 5")
    asking.round()
    asking.allow("[rules]\nrounds = 1")
    refused(asking, "rules.rounds")
    asking.allow('[rules]\nmethods = ["fedsrd"]')
    refused(asking, "rules.methods")
    asking.allow("[rules]\nrounds = 2")
    asking.round()
    assert len({line.rules for line in asking.lines()}) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[rules]\nrank = 'four'", "rules.rank = 'four': expected a whole number"),
        ("[rules]\nrank = true", "rules.rank = True"),
        ("[rules]\nrank = 0", "expected 1 or more"),
        ("[rules]\nepochs = nan", "finite|expected more than 0"),
        ("[rules]\nrnak = 4", "unknown key 'rules.rnak': did you mean 'rank'"),
        ("[rules.tell]\nlos = false", "unknown key 'rules.tell.los': did you mean 'loss'"),
        ("[rules.tell]\nloss = 0", "rules.tell.loss = 0"),
        ("[rule]\nrank = 4", "unknown key 'rule'"),
        ("[rules]\nmethods = []", "at least 1"),
        ("[rules]\nruns = ['x']", "rules.runs.0"),
        ("[privacy]\nepsilon = 'no'", "privacy.epsilon = 'no'"),
        ("[rules", "not valid TOML"),
        ("", "no .rules. and no .privacy. table"),
        ("[data]\nsource = 'x'", "no .rules. and no .privacy. table"),
    ],
)
def test_rules_that_cannot_be_read_stop_everything(text, reason, state, caplog):
    asking = Asking(state, text)
    with pytest.raises(RulesError, match=reason):
        rules.parse(text.encode(), "site.toml")
    for message in (asking.task(), asking.order("finalize"), asking.order("evaluate")):
        with pytest.raises(RulesError, match="^the site's rules cannot be applied; its own log says why$"):
            asking.send(message)
    with pytest.raises(RulesError, match="its own log says why"):
        asking.hello()
    assert asking.runtime.loaded == asking.runtime.trained == []
    assert "the rules" in caplog.text


def test_rules_that_are_gone_or_open_to_all_stop_everything(state):
    asking = Asking(state, "[rules]")
    file = state.parent / "site.toml"
    file.chmod(0o666)
    with pytest.raises(RulesError, match="cannot be applied"):
        asking.hello()
    file.unlink()
    with pytest.raises(RulesError, match="cannot be applied"):
        asking.train()
    with pytest.raises(RulesError, match="No such file"):
        rules.load(file)


@given(st.binary(max_size=60))
def test_any_bytes_are_rules_or_one_message(content):
    with contextlib.suppress(RulesError):
        found = rules.parse(content, "site.toml")
        assert found.model_fields_set & {"rules", "privacy"}


def test_a_count_that_is_damaged_or_gone_does_not_start_again(state):
    asking = Asking(state, "[rules]\nrounds = 9")
    asking.round()
    file = state / "counts" / FILE
    whole = file.read_bytes()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    for content in (whole.replace(b'"rounds": 1', b'"rounds": 0'), whole[:-20], b"", b"[" * 9000, None):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(RulesError, match="cannot be applied; its own log says why"):
            asking.train()
    assert len(asking.runtime.trained) == 1
    file.write_bytes(whole)
    asking.round()


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.integers(1, 9)), max_size=8),
    st.integers(1, 6) | st.none(),
    st.integers(1, 4) | st.none(),
    st.integers(1, 40) | st.none(),
    st.floats(0.1, 20) | st.none(),
)
def test_whatever_is_asked_no_limit_is_passed(asked, rounds, per_run, steps, epochs):
    import tempfile
    from pathlib import Path

    limits = {"rounds": rounds, "rounds_per_run": per_run, "steps": steps, "epochs": epochs}
    mine = rules.Rules(**{name: value for name, value in limits.items() if value is not None})
    done = []
    with tempfile.TemporaryDirectory() as folder:
        counts = Counts(Path(folder) / "counts", lambda: bool(done))
        for run, taken, batch in asked:
            now = [*done, (run, taken, batch)]
            allowed = (
                len(now) <= (rounds or math.inf)
                and sum(one[0] == run for one in now) <= (per_run or math.inf)
                and sum(one[1] for one in now) <= (steps or math.inf)
                and sum(one[1] * one[2] for one in now) <= (epochs or math.inf) * 10
            )
            try:
                counts.charge(mine, run, taken, batch, 10)
            except rules.BrokenRuleError:
                assert not allowed
            else:
                assert allowed
                done = now
        assert counts.read().rounds == len(done)


def test_a_crash_in_training_has_counted_the_round(state):
    class Dying(Runtime):
        def trainer(self, job, site, *_):
            trainer = super().trainer(job, site)

            def train(*_):
                raise KeyboardInterrupt

            trainer.train = train
            return trainer

    asking = Asking(state, "[rules]\nrounds = 1", Dying())
    with pytest.raises(KeyboardInterrupt):
        asking.send(asking.task())
    asking.runtime = Runtime()
    refused(asking, "rules.rounds")


def test_what_is_not_told_does_not_leave(state):
    asking = Asking(state, "[rules.tell]\nexamples = false\nloss = false\nseconds = false")
    said = asking.round()
    assert (said.examples, said.loss, said.seconds.told()) == (None, None, {})
    line = asking.lines()[-1]
    assert not {"examples", "loss", "seconds"} & set(line.told)
    asking.allow("[rules]")
    said = asking.round()
    assert (said.examples, said.loss) == (8, 1.0)
    assert {"examples", "loss", "seconds"} <= set(asking.lines()[-1].told)


def test_evaluation_and_reasons_are_told_or_not(state):
    asking = Asking(state, "[rules.tell]\nexamples = false")
    asking.round()
    assert asking.send(asking.order("evaluate")).metrics == {"num-examples": 1, "eval_loss": 0.25}
    asking.allow("[rules.tell]\nmetrics = false\nreasons = false")
    with pytest.raises(RulesError, match=r"rules\.tell\.metrics"):
        asking.send(asking.order("evaluate"))
    said, _ = asking.train(digest="0" * 64)
    assert said.failure == gate.UNTOLD
    assert said.lost
    with pytest.raises(PayloadError, match=f"^{gate.UNTOLD}$"):
        asking.send(header.Envelope("{}"))


def test_a_bug_at_the_site_does_not_quote_its_data(state):
    class Quoting(Runtime):
        def trainer(self, *_):
            raise ValueError("cannot tokenize 'Mrs Smith has a fever'")

    asking = Asking(state, runtime=Quoting())
    with pytest.raises(FederationError, match="^ValueError at the site; its own log says more$"):
        asking.send(asking.task())
    assert "Smith" not in json.dumps([line.model_dump() for line in asking.lines()])


def test_ones_own_code_cannot_be_counted_or_kept_private(state):
    for text, rule in (
        ("[rules]\nsteps = 9", r"rules.steps"),
        ("[rules]\nepochs = 9", r"rules.epochs"),
        ('[rules]\nmodels = ["org/model"]', r"rules.models"),
        ("[privacy]\nepsilon = 1.0\ndelta = 1e-5", "privacy.epsilon"),
    ):
        asking = Asking(state, text, Runtime(knows_model=False))
        refused(asking, rule)


def test_layers_and_sizes_are_those_of_the_table_not_of_what_is_said():
    large = table_of((LoraModule("l0.q", 24, 16, 8), LoraModule("l0.lm_head", 6, 16, 4)))
    mine = rules.Rules(rank=4, targets=["q", "v"])
    mine.check_table(TABLE)
    with pytest.raises(rules.BrokenRuleError, match="rank 8"):
        mine.check_table(large)
    with pytest.raises(rules.BrokenRuleError, match="lm_head"):
        rules.Rules(targets=["q"]).check_table(large)


def test_without_rules_the_log_says_so(state, caplog):
    caplog.set_level("INFO")
    asking = Asking(state)
    asking.hello()
    assert "No rules are set at this site" in caplog.text
    assert asking.lines()[-1].rules == ""
    assert asking.lines()[-1].run == RUN
