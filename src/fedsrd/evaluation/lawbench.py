"""LawBench's scores (Fei et al., arXiv 2309.16289) for lm-eval: the functions that tasks/lawbench/*.yaml name.

Each follows the description of the metric in the paper and the behaviour of the benchmark's own program
(github.com/open-compass/LawBench). Two differ, and docs/evaluate.md says so: labels are those that occur in the file's
answers, and proofreading counts edits by character where the benchmark uses the ChERRANT tool.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]
Score = dict[str, float]

_LONGEST_TERM = 216
"""Months; an answer without a number is as far from the truth as can be: log 216."""
_ABSENT = ("无", "未提及")
"""What a model says where an entity is not there."""
_PREFIX = re.compile(r"^(?:正确答案|争议焦点类别|类别|罪名|回答|事件类型|触发词|刑期|法条)\s*[:：]\s*")


def gold(answer: str) -> str:
    """The reference without its heading and full stop.

    >>> gold("类别:准予离婚、损害赔偿。"), gold("[正确答案]B<eoa>")
    ('准予离婚、损害赔偿', 'B')
    """
    text = answer.strip().removeprefix("[正确答案]").removesuffix("<eoa>")
    return _PREFIX.sub("", text).strip().removesuffix("。")


def with_labels(dataset: Any) -> Any:
    """Gives every document the labels of all answers of its file, in the column "labels"."""
    labels = sorted({label for answer in dataset["answer"] for label in _labels(answer)})
    return dataset.map(lambda _: {"labels": labels})


def choice(doc: Doc, results: Sequence[str]) -> Score:
    """Right if the answer's letter is the only one of A to E in the prediction."""
    return _only(results[0], "ABCDE", gold(doc["answer"])[:1])


def label(doc: Doc, results: Sequence[str]) -> Score:
    """Right if the answer's label is the only label in the prediction."""
    return _only(results[0], doc["labels"], gold(doc["answer"]))


def labels(doc: Doc, results: Sequence[str]) -> Score:
    """F1 of the labels in the prediction."""
    found = {name for name in doc["labels"] if name in results[0]}
    return {"score": _f1_of_sets(found, set(_labels(doc["answer"])))}


def reading(doc: Doc, results: Sequence[str]) -> Score:
    """Reading comprehension: F1 of characters (letters and digits only)."""
    return {"score": overlap(gold(doc["answer"]), results[0])}


def entities(doc: Doc, results: Sequence[str]) -> Score:
    """Named entities: soft F1 over the types, each matched by its characters."""
    wanted = dict(part.split(":", 1) for part in doc["answer"].split(";") if ":" in part)
    found = {kind: text for kind in _types(doc["instruction"]) if (text := _entity(results[0], kind))}
    if not wanted:
        return {"score": float(not found)}
    shared = [overlap(wanted[kind], text) for kind, text in found.items() if kind in wanted]
    return {"score": _soft_f1(shared, len(found), len(wanted))}


def triggers(doc: Doc, results: Sequence[str]) -> Score:
    """Trigger words: soft F1, word by word in order."""
    wanted, found = gold(doc["answer"]).split(";"), results[0].strip().split(";")
    shared = [overlap(one, other) for one, other in zip(wanted, found, strict=False)]
    return {"score": _soft_f1(shared, len(found), len(wanted))}


def articles(doc: Doc, results: Sequence[str]) -> Score:
    """F1 of the articles of the criminal law: the first number of every item of the prediction's enumeration."""
    wanted = {int(number) for number in re.findall(r"\d+", doc["answer"])}
    found = set()
    for item in results[0].split("、"):
        plain = re.sub(r"第(.*?)条", r" \1 ", re.sub(r"第[^条]*?款", "", item.replace("万元", "元")))
        numbers = re.findall(r"\d+", _arabic(plain))
        found |= {int(number) for number in numbers[:1]}
    return {"score": _f1_of_sets(found, wanted)}


def prison_term(doc: Doc, results: Sequence[str]) -> Score:
    """Normalised log distance of months: 1 - |log(a + 1) - log(b + 1)| / log 216. Death and life terms do not count."""
    answer = re.findall(r"\d+", doc["answer"])
    if "死刑" in doc["answer"] or "无期" in doc["answer"] or not answer:
        return {}
    text = _arabic(results[0])
    months, years = re.findall(r"(\d+)个?月", text), re.findall(r"(\d+)年", text)
    found = int(months[0]) if months else 12 * int(years[0]) if years else None
    worst = math.log(_LONGEST_TERM)
    distance = worst if found is None else abs(math.log(int(answer[0]) + 1) - math.log(found + 1))
    return {"score": (worst - distance) / worst}


def amount(doc: Doc, results: Sequence[str]) -> Score:
    """Right if the amount stands among the prediction's numbers."""
    wanted = re.findall(r"\d+\.?\d*", doc["answer"])
    found = [float(number) for number in re.findall(r"\d+\.?\d*", results[0])]
    return {"score": float(bool(wanted) and float(wanted[0]) in found)}


def rouge_l(doc: Doc, results: Sequence[str]) -> Score:
    """ROUGE-L, F, over words as jieba cuts them (rouge-chinese); an empty prediction scores as 无内容."""
    import jieba
    from rouge_chinese import Rouge

    jieba.setLogLevel("ERROR")
    predicted, wanted = (" ".join(jieba.cut(text)).strip() for text in (results[0], doc["answer"]))
    return {"score": Rouge().get_scores([predicted or "无内容"], [wanted or "无内容"])[0]["rouge-l"]["f"]}


def proofreading(doc: Doc, results: Sequence[str]) -> Score:
    """F0.5 of character edits; a prediction ends 5 characters after the reference's length, as in the benchmark."""
    source = re.sub(r"\s", "", re.split(r"句子[:：]", doc["question"])[-1])
    wanted = re.sub(r"\s", "", doc["answer"])
    predicted = re.sub(r"\s", "", results[0])[: len(wanted) + 5]
    right, found = _edits(source, wanted), _edits(source, predicted)
    if not right and not found:
        return {"score": 1.0}
    hits = len(right & found)
    precision, recall = (hits / len(part) if part else 0.0 for part in (found, right))
    weighed = 0.25 * precision + recall
    return {"score": 1.25 * precision * recall / weighed if weighed else 0.0}


def overlap(one: str, other: str) -> float:
    """F1 of the characters of two texts, letters and digits only, case folded.

    >>> overlap("ab, cd", "AB")
    0.6666666666666666
    """
    first, second = (Counter(c for c in text.lower() if c.isdigit() or c.isalpha()) for text in (one, other))
    if not first or not second:
        return float(first == second)
    shared = sum((first & second).values())
    return 2 * shared / (sum(first.values()) + sum(second.values()))


def _labels(answer: str) -> list[str]:
    return [part for part in re.split("[;；、]", gold(answer)) if part] if "罪名" not in answer else _charges(answer)


def _charges(answer: str) -> list[str]:
    # A charge's own name has commas of enumeration in it.
    return [part for part in gold(answer).split(";") if part]


def _only(prediction: str, options: Iterable[str], right: str) -> Score:
    return {"score": float([option for option in options if option in prediction] == [right])}


def _f1_of_sets(found: set[Any], wanted: set[Any]) -> float:
    both = len(found) + len(wanted)
    return 2 * len(found & wanted) / both if both else 0.0


def _soft_f1(shared: Sequence[float], found: int, wanted: int) -> float:
    both = found + wanted
    return 2 * sum(shared) / both if both else 0.0


def _types(instruction: str) -> list[str]:
    """The entity types that the instruction lists after "包括"."""
    listed = re.search(r"包括[:：](.*?)。", instruction)
    return listed[1].split("、") if listed else []


def _entity(prediction: str, kind: str) -> str | None:
    """What the prediction says of one type: up to the next white space; the last mention counts."""
    found = None
    for match in re.finditer(f"{re.escape(kind)}[:：]\\s*(\\S+)", prediction):
        if match[1] not in _ABSENT:
            found = match[1]
    return found


def _edits(source: str, target: str) -> set[tuple[int, int, str]]:
    matcher = difflib.SequenceMatcher(a=source, b=target, autojunk=False)
    return {(i, j, target[k:m]) for tag, i, j, k, m in matcher.get_opcodes() if tag != "equal"}


def _arabic(text: str) -> str:
    """Chinese numerals as digits; a text with one that cn2an cannot read stays as it is."""
    import cn2an

    try:
        return str(cn2an.transform(text, "cn2an"))
    except ValueError:
        return text
