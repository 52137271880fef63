"""Small files in each benchmark's own column layout, with questions of our own."""

import json

LAWBENCH = {
    "1-1": "第一条内容",
    "1-2": "正确答案：A。",
    "2-1": "他们好",
    "2-2": "争议焦点类别：利息。",
    "2-3": "类别:准予离婚、损害赔偿。",
    "2-4": "婚姻家庭",
    "2-5": "回答:北京",
    "2-6": "受害人:张某;时间:昨天",
    "2-7": "摘要",
    "2-8": "[正确答案]B<eoa>",
    "2-9": "受伤;赔偿",
    "2-10": "打伤;赔",
    "3-1": "法条:刑法第264条、第25条",
    "3-2": "法条",
    "3-3": "罪名:盗窃",
    "3-4": "刑期:12个月",
    "3-5": "刑期:6个月",
    "3-6": "正确答案:C",
    "3-7": "上文涉及到的犯罪金额:7000.0元。",
    "3-8": "建议",
}
HUMANEVAL = {
    "prompt": 'def add(a, b):\n    """Adds."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}
MBPP = {"prompt": "Write f.", "code": "def f(): return 1", "test_list": ["assert f() == 1"], "test_imports": []}


def write(folder):
    """Writes them; gives `--data` options."""

    def lines(name, rows):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    lines("humaneval.jsonl", [{"task_id": str(i), **HUMANEVAL} for i in range(2)])
    lines("mbpp.jsonl", [{"task_id": i, **MBPP, "prompt": f"Write f, {i}."} for i in range(5)])
    endings = {f"ending{i}": letter for i, letter in enumerate("abcd")}
    lines("medqa/test.jsonl", [{"id": str(i), "sent1": f"q{i}", "sent2": "", **endings, "label": i} for i in range(3)])
    lines("medqa/train.jsonl", [{"id": "t", "sent1": "worked", "sent2": "", **endings, "label": 2}] * 2)
    options = {"opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    lines("medmcqa.jsonl", [{"question": f"q{i}", **options, "cop": i} for i in range(4)])
    head = "题,一,二,三,四"
    (folder / "fineval.csv").write_text(f"id,question,A,B,C,D,answer\n0,{head},A\n1,2+2,1,2,3,4,D\n", encoding="utf-8")
    (folder / "financeiq.csv").write_text(f",Question,A,B,C,D,Answer\n0,{head},A\n1,2+2,1,2,3,4,D\n", encoding="utf-8")
    lines("gsm8k.jsonl", [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}] * 3)
    lines("math/algebra.jsonl", [{"problem": "1+1", "solution": "so $\\boxed{2}$"}] * 2)
    lines("math/precalc.jsonl", [{"problem": "2+1", "solution": "so $\\boxed{3}$"}] * 3)
    lines("agieval/lsat_ar.jsonl", [{"query": "Q: which? A:", "choices": ["(A)1", "(B)2"], "gold": [0]}] * 2)
    lines("agieval/math.jsonl", [{"query": "Q: 1+1 A:", "answer": "2"}] * 2)
    for part, answer in LAWBENCH.items():
        row = {"instruction": "实体类型包括:受害人、时间。", "question": "句子：他好", "answer": answer}
        lines(f"lawbench/{part.replace('-', '_')}.jsonl", [row] * 2)
    return [f"{path.stem}={path}" for path in sorted(folder.iterdir())]
