"""`fedsrd evaluate` on a tiny model and small local files: every benchmark, going on, the cache, errors."""

import json

import pytest
import questions
from typer.testing import CliRunner

from fedsrd import recipe as recipes
from fedsrd.cli import app
from fedsrd.errors import EvaluationError, FedSRDError, ModelError
from fedsrd.evaluation import evaluate, harness, local_files, subjects, suites
from fedsrd.evaluation.answers import Answers, in_chunks
from fedsrd.evaluation.model_loader import ModelLoader
from fedsrd.federation import local, setup
from fedsrd.runs.folder import RunFolder


class Quiet:
    def __init__(self):
        self.parts = []

    def say(self, text):
        pass

    warn = say

    def activity(self, subject, part, done, total):
        self.parts.append((subject, part))

    def round_done(self, record):
        pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Base models' results must not come from another test."""
    home = tmp_path / "cache"
    real = __import__("fedsrd.packages", fromlist=["cache_dir"]).cache_dir()
    home.mkdir()
    for name in ("wheels", "data", "models"):
        if (real / name).is_dir():
            (home / name).symlink_to(real / name)
    monkeypatch.setenv("FEDSRD_CACHE", str(home))


@pytest.fixture(scope="session")
def local_questions(tmp_path_factory):
    return questions.write(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def run_folder(tiny_recipe, tmp_path):
    folder = RunFolder(tmp_path / "my-run")
    prepared = setup.prepare(recipes.parse({**tiny_recipe, "rounds": 1}), folder, resume=False, observer=_Run())
    local.run(prepared, _Run())
    return folder.path


class _Run(Quiet):
    def activity(self, *_):
        pass


def test_all_ten_benchmarks_of_the_paper_run_on_local_files(local_questions, tiny_model, tmp_path):
    files = local_files.parse(local_questions)
    request = evaluate.Request("paper", files=files, run_code=True, limit=2)
    (subject,) = subjects.resolve([str(tiny_model)])
    watch = Quiet()
    found = evaluate.run(request, [subject], tmp_path / "out", ModelLoader("cpu", "float32"), watch)
    scores = found[subject.name]
    assert [score.name for score in scores] == list(suites.BENCHMARKS)
    assert all(0 <= score.value <= 100 for score in scores)
    assert {score.name: score.examples for score in scores}["lawbench"] == 40
    assert {score.name: score.examples for score in scores}["math"] == 4
    whole = json.loads((tmp_path / "out" / subject.name / "eval.json").read_text())
    # lm-eval's own format: its table maker reads it.
    from lm_eval.utils import make_table

    assert "gsm8k" in make_table(whole)
    assert whole["n-shot"]["medqa_4options"] == 1
    assert whole["n-shot"]["fedsrd_mbpp"] == 3
    assert whole["n-shot"]["gsm8k"] == 0
    table = (tmp_path / "out" / "scores.md").read_text()
    assert "| mean in-domain |" in table
    assert "| mean out-of-domain |" in table

    # The same again, with another folder: everything is in the cache, and nothing is asked.
    again = Quiet()
    assert evaluate.run(request, [subject], tmp_path / "again", ModelLoader("cpu", "float32"), again) == found
    assert watch.parts
    assert not again.parts


def test_worked_examples_come_from_the_train_file(local_questions, tiny_model):
    files = local_files.parse([option for option in local_questions if option.startswith("medqa")])
    (task,) = harness.load_tasks([suites.BENCHMARKS["medqa"]], files, run_code=False).values()
    task.set_fewshot_seed(seed=1)
    task.build_all_requests(limit=1, rank=0, world_size=1)
    prompt = task.instances[0].args[0]
    assert prompt.startswith("Question: worked\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\nQuestion: q0")


def test_what_was_stopped_goes_on_with_the_same_bits(local_questions, tiny_model, tmp_path, monkeypatch):
    files = local_files.parse([option for option in local_questions if option.startswith(("medmcqa", "gsm8k"))])
    request = evaluate.Request(tasks=("medmcqa", "gsm8k"), files=files, batch_size=1)
    (subject,) = subjects.resolve([str(tiny_model)])
    monkeypatch.setattr(harness, "CHUNK", 2)
    whole = evaluate.run(request, [subject], tmp_path / "whole", ModelLoader("cpu", "float32"), Quiet())

    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path / "other-cache"))
    asked = []

    class Stops(Quiet):
        def activity(self, name, part, done, total):
            asked.append((part, done))
            if part == "medmcqa" and done >= 4 and len(asked) < 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate.run(request, [subject], tmp_path / "out", ModelLoader("cpu", "float32"), Stops())
    stored = (tmp_path / "out" / subject.name / "answers" / "medmcqa.jsonl").read_text()
    assert len(stored.splitlines()) == 2
    # A crash in the middle of a line loses that line only.
    (tmp_path / "out" / subject.name / "answers" / "medmcqa.jsonl").write_text(stored + '{"key": "torn')
    assert evaluate.run(request, [subject], tmp_path / "out", ModelLoader("cpu", "float32"), Stops()) == whole
    bits = [(tmp_path / name / subject.name / "eval.json").read_bytes() for name in ("whole", "out")]
    assert bits[0] == bits[1]


def test_answers_are_asked_for_once(tmp_path):
    asked = []

    def ask(chunk):
        asked.extend(chunk)
        return [text.upper() for text in chunk]

    requests = ["one", "three", "two", "one"]
    for _ in range(2):
        answers = Answers(tmp_path / "answers.jsonl")
        assert in_chunks(requests, list, ask, answers, 2, lambda *_: None) == ["ONE", "THREE", "TWO", "ONE"]
    assert sorted(asked) == sorted(requests)


@pytest.mark.embedded
def test_a_run_is_compared_with_its_base_on_the_embedded_suite(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fedsrd.evaluation.embedded.NEW_TOKENS", 4)
    arguments = ["evaluate", str(run_folder), "--limit", "2", "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found) == ["base model", "my-run"]
    assert set(found["my-run"]["averages"]) == {
        f"{w} {u}" for w in ("in-domain", "out-of-domain") for u in ("nats", "%")
    }
    base, mine = (found[name]["scores"]["code-nll"] for name in found)
    assert base["value"] != mine["value"]
    assert base["examples"] == 2
    assert base["stderr"] > 0
    # Its own prompt style and base; nothing is asked again in the same folder.
    config = json.loads((tmp_path / "out" / "my-run" / "eval.json").read_text())["config"]
    assert config["model_args"]["peft"].endswith("my-run/adapter")
    assert CliRunner().invoke(app, arguments).stdout == done.stdout
    other = CliRunner().invoke(app, [*arguments[:2], "--limit", "3", "--out", str(tmp_path / "out")])
    assert isinstance(other.exception, EvaluationError)
    assert "differs in limit" in str(other.exception)


def test_adapters_are_found_and_named(run_folder, tmp_path):
    (run,) = subjects.resolve([str(run_folder)])
    (adapter,) = subjects.resolve([str(run_folder / "adapter")])
    assert run.adapter == adapter.adapter
    assert (run.name, run.prompt, run.dtype) == ("my-run", "chat", "float32")
    assert adapter.prompt is None
    twice = subjects.resolve([str(run_folder), str(run_folder)])
    assert [subject.name for subject in twice] == ["my-run", "my-run-2"]
    assert [s.name for s in subjects.with_bases(twice)] == ["base model", "my-run", "my-run-2"]


def test_an_adapter_of_another_base_is_refused(run_folder, tmp_path):
    import tiny
    from transformers import LlamaConfig, LlamaForCausalLM

    other = tmp_path / "other"
    tiny.make(other)
    config = LlamaConfig.from_pretrained(other, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(other)
    (subject,) = subjects.resolve([str(run_folder)])
    for change in ({}, {"hidden_size": 16, "num_attention_heads": 2}):
        LlamaForCausalLM(LlamaConfig.from_pretrained(other, **change)).save_pretrained(other)
        wrong = subjects.Subject(subject.name, str(other), adapter=subject.adapter)
        with pytest.raises(EvaluationError, match="does not fit .*other.*expected an adapter that was trained on"):
            ModelLoader("cpu", "float32").load(wrong)


def test_a_pickled_adapter_is_never_read(run_folder):
    file = run_folder / "adapter" / "adapter_model.safetensors"
    file.rename(file.with_name("adapter_model.bin"))
    (subject,) = subjects.resolve([str(run_folder)])
    with pytest.raises(EvaluationError, match="cannot be read as safetensors"):
        ModelLoader("cpu", "float32").load(subject)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["./nothing"], EvaluationError, "./nothing: no such folder; expected a run, an adapter, or a model"),
        (["{tmp}"], EvaluationError, "nothing to evaluate; expected a run's folder"),
        (["{model}", "--tasks", "gsmk"], EvaluationError, "--tasks 'gsmk': no such benchmark; did you mean 'gsm8k'"),
        (["{model}", "--tasks", ","], EvaluationError, "--tasks: names no benchmark"),
        (["{model}", "--tasks", "mbpp"], EvaluationError, "allow it with --run-code"),
        (["{model}", "--data", "gsm8k"], EvaluationError, "expected NAME=PATH"),
        (["{model}", "--data", "gsm8k=no.jsonl"], EvaluationError, "no.jsonl: no such file or folder"),
        (["{model}", "--data", "math={file}"], EvaluationError, "has 7 parts; expected a folder"),
        (["{model}", "--data", "math={tmp}"], EvaluationError, "has no part of MATH; expected files such as algebra"),
        (["{model}", "--data", "gsm8k={file}"], EvaluationError, "needs the columns question, answer; missing: answer"),
        (["{model}", "--data", "gsm8k={empty}"], EvaluationError, "empty.jsonl: "),
        (["{model}", "--data", "gsm8k={text}"], EvaluationError, "expected a file that ends in .json, .jsonl"),
        (["{model}", "--tasks", "gsm8k"], EvaluationError, "name local files: --data gsm8k=PATH"),
        (["nobody/has-this"], ModelError, "nobody/has-this.*cannot be loaded"),
    ],
)
def test_mistakes_end_in_one_message_and_write_nothing(arguments, kind, message, tiny_model, tmp_path):
    for name, text in (("file.jsonl", '{"question": "1"}\n'), ("empty.jsonl", ""), ("text.txt", "x")):
        (tmp_path / name).write_text(text)
    paths = {"tmp": tmp_path, "model": tiny_model, "file": tmp_path / "file.jsonl"}
    paths |= {"empty": tmp_path / "empty.jsonl", "text": tmp_path / "text.txt"}
    given = [argument.format(**paths) for argument in arguments]
    done = CliRunner().invoke(app, ["evaluate", *given, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, kind), done.output
    assert issubclass(kind, FedSRDError)
    import re

    assert re.search(message if ".*" in message else re.escape(message), str(done.exception), re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_the_message_says_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match=r"pip install 'fedsrd\[evaluate\]'"):
        harness.load_tasks([suites.BENCHMARKS["gsm8k"]], {}, run_code=False)
