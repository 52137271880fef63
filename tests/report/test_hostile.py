"""Run folders of people who mean ill: markup in every name, text and figure stays text."""

import base64
import hashlib
import itertools
import json
import math
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tomli_w
from test_page import finished, run  # noqa: F401

from fedsrd.errors import RunFolderError
from fedsrd.report.page.write import report

STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded-main.json"
MARKUP = (
    "</script></pre></td><!--<script>\"'><img src=x onerror=alert(1)><a href='https://example.com'>%{x}</a>&lt;b&gt;"
    "{{ 7 * 7 }}{% raw %}"
)
ATTACKS = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<!--<script>",
    "\"><svg onload='window.pwned = 1'>",
    "javascript:window.pwned=1",
    "<a href='javascript:window.pwned=1'>x</a>",
    "]]></text></svg><script>window.pwned = 1</script>",
    "${window.pwned = 1}%{customdata}<sub>\u2028",
)
NUMBERS = {int: (2**63 - 1, 0, 1, -1, 2**53 + 1), float: (1.7e308, 5e-324, 0.0, -1.7e308, 1e99, 3.0)}
FOLDER = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}"
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
FIGURE = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)


def spoiled(tree, names):
    """The tree with markup before every text, and before every key that is one of the names."""
    if isinstance(tree, str):
        return MARKUP + tree
    if isinstance(tree, list):
        return [spoiled(value, names) for value in tree]
    if isinstance(tree, dict):
        return {MARKUP + key if key in names else key: spoiled(value, names) for key, value in tree.items()}
    return tree


def extreme(tree, rest, fixed=()):
    """The tree with an attack in the place of every text, and an extreme in the place of every number; keys named in
    `fixed` keep what they have.
    """
    if isinstance(tree, dict):
        return {key: value if key in fixed else extreme(value, rest, fixed) for key, value in tree.items()}
    if isinstance(tree, list):
        return [extreme(value, rest, fixed) for value in tree]
    return next(rest[type(tree)]) if type(tree) in rest else tree


def endless():
    return {str: itertools.cycle(ATTACKS), **{kind: itertools.cycle(found) for kind, found in NUMBERS.items()}}


@pytest.fixture
def extreme_run(hostile_run):
    rest = endless()
    records = [json.loads(line) for line in (hostile_run / "rounds.jsonl").read_text().splitlines()]
    # Rounds that do not count up are refused.
    records = [extreme(record, rest, ("format", "round")) for record in records]
    for place, record in enumerate(records):
        record["eval"] = dict.fromkeys(record["eval"], (math.nan, math.inf, 1e308, -1e308)[place % 4])
    (hostile_run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = extreme(json.loads((hostile_run / "summary.json").read_text()), rest, ("format",))
    (hostile_run / "summary.json").write_text(json.dumps(summary))
    return hostile_run


@pytest.fixture
def extreme_comparison(hostile_comparison):
    file = hostile_comparison / "results.json"
    # A unit is one of two, and rows without runs are not shown.
    results = extreme(json.loads(file.read_text()), endless(), ("unit", "runs", "format"))
    for place, row in enumerate(results["rows"]):
        row["label"] = ATTACKS[place % len(ATTACKS)] + str(place)
    file.write_text(json.dumps(results))
    return hostile_comparison


@pytest.fixture
def hostile_run(finished, tmp_path):  # noqa: F811
    folder = tmp_path / FOLDER
    shutil.copytree(finished, folder)
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    names = {"left", "right", "held", *records[1]["density_up_by_layer"]}
    records = spoiled(records, names)
    for record in records[1:]:
        record["rejected"] = {MARKUP: MARKUP}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = spoiled(json.loads((folder / "summary.json").read_text()), names)
    (folder / "summary.json").write_text(json.dumps(summary))
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    recipe["model"]["id"] = MARKUP
    recipe["environment"] = {MARKUP + name: MARKUP for name in recipe["environment"]}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    return folder


def compared(folder, change=lambda results: results):
    folder.mkdir()
    results = json.loads(STORED.read_text())
    results["rows"][0]["failed"] = [{"seed": 0, "reason": "out of luck"}]
    (folder / "results.json").write_text(json.dumps(change(results)))
    (folder / "comparison.toml").write_text(tomli_w.dumps({"name": MARKUP if folder.name == FOLDER else "x"}))
    return folder


@pytest.fixture
def hostile_comparison(tmp_path):
    def change(results):
        row = results["rows"][0]
        names = {*row["by_set"], *row["seconds"], *row["curves"][0]["density"], *results["environment"]}
        return spoiled(results, names)

    (tmp_path / "compared").mkdir()
    return compared(tmp_path / "compared" / FOLDER, change)


def elements(page):
    """Every element and the names of its attributes, as a browser would make them."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, *(name for name, _ in attributes)))

        def handle_endtag(self, tag):
            found.append(f"/{tag}")

        def handle_comment(self, text):
            found.append("comment")

    Reader().feed(page)
    return found


def test_a_hostile_run_has_the_elements_of_an_honest_one(finished, hostile_run, tmp_path):  # noqa: F811
    honest = report([finished], tmp_path / "honest.html").read_text()
    page = report([hostile_run], tmp_path / "hostile.html").read_text()
    assert elements(page) == elements(honest)
    assert page.count("onerror=alert(1)") > 30
    # What looks like a template is not one.
    assert "{{ 7 * 7 }}{% raw %}" in page


def test_a_hostile_comparison_has_the_elements_of_an_honest_one(hostile_comparison, tmp_path):
    honest = report([compared(tmp_path / "honest")], tmp_path / "honest.html").read_text()
    page = report([hostile_comparison], tmp_path / "hostile.html").read_text()
    assert elements(page) == elements(honest)
    assert page.count("onerror=alert(1)") > 30


def test_several_hostile_folders_in_one_page(hostile_run, hostile_comparison, finished, tmp_path):  # noqa: F811
    honest = [finished, finished, compared(tmp_path / "honest")]
    one = report(honest, tmp_path / "honest.html").read_text()
    other = report([hostile_run, hostile_run, hostile_comparison], tmp_path / "hostile.html").read_text()
    assert elements(other) == elements(one)


@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("rounds.jsonl", ("attempts",)),
        ("summary.json", ("clients",)),
        ("summary.json", ("rounds",)),
        ("results.json", ("seeds", 0)),
        ("results.json", ("rows", 0, "failed", 0, "seed")),
    ],
)
def test_markup_in_the_place_of_a_number_is_refused(file, where, hostile_run, hostile_comparison, tmp_path):
    path = (hostile_comparison if file == "results.json" else hostile_run) / file
    lines = path.read_text().splitlines() if file == "rounds.jsonl" else [path.read_text()]
    node = tree = json.loads(lines[-1])
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = MARKUP
    path.write_text("\n".join([*lines[:-1], json.dumps(tree)]))
    with pytest.raises(RunFolderError, match=f"{'.'.join(map(str, where))} = .*expected a whole number"):
        report([path.parent], tmp_path / "hostile.html")
    assert not (tmp_path / "hostile.html").exists()


@pytest.mark.parametrize("plain", [True, False])
def test_a_figures_description_has_no_less_than_sign(hostile_run, hostile_comparison, tmp_path, monkeypatch, plain):
    if not plain:
        # Names as they are, so that the template alone is in the way.
        monkeypatch.setattr("fedsrd.report.figures.interactive.plain", str)
    page = report([hostile_run, hostile_comparison], tmp_path / "hostile.html").read_text()
    figures = FIGURE.findall(page)
    assert len(figures) >= 8
    # "<!--<script>" would swallow the page's own end tag; as \u003c it is text.
    assert not any("<" in figure for figure in figures)
    expected = "\\u0026lt;!--\\u0026lt;script\\u0026gt;" if plain else "\\u003c!--\\u003cscript\\u003e"
    assert any(expected in figure for figure in figures)
    assert all(json.loads(figure)["data"] for figure in figures)


def test_the_policy_names_the_pages_scripts_and_no_others(hostile_run, tmp_path):
    page = report([hostile_run], tmp_path / "hostile.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    scripts = SCRIPT.findall(page)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"] == [f"'sha256-{digest}'" for digest in digests]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    # Browsers turn these into line feeds before they hash.
    assert not any("\r" in text for text in scripts)


def test_extreme_numbers_are_gaps_in_figures(extreme_run, extreme_comparison, tmp_path):
    page = report([extreme_run, extreme_comparison], tmp_path / "extreme.html").read_text()
    figures = [json.loads(figure, parse_constant=pytest.fail) for figure in FIGURE.findall(page)]
    assert len(figures) >= 8

    def numbers(tree):
        if isinstance(tree, dict | list):
            for value in tree.values() if isinstance(tree, dict) else tree:
                yield from numbers(value)
        elif isinstance(tree, int | float):
            yield tree

    assert max(abs(number) for figure in figures for number in numbers(figure)) <= 1e100
    assert "onerror=&#39;window.pwned" in page or "onerror=\u0027window.pwned" in page


def test_files_that_contradict_each_other_are_refused(finished, hostile_comparison, tmp_path):  # noqa: F811
    lines = [json.loads(line) for line in (finished / "rounds.jsonl").read_text().splitlines()]
    for change in (
        lambda lines: lines[2].update(eval={"another": 1.0}),
        lambda lines: lines[2].update(seconds={}),
        lambda lines: lines[-1].update(samples={"held": []}),
        lambda lines: lines[1].update(bytes_up={"left": 10**400}),
    ):
        spoilt = json.loads(json.dumps(lines))
        change(spoilt)
        (finished / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spoilt))
        with pytest.raises(RunFolderError, match="do not fit each other"):
            report([finished], tmp_path / "x.html")
    results = json.loads((hostile_comparison / "results.json").read_text())
    for change in (
        lambda row: row.update(curves=[]),
        lambda row: row.update(own=None),
        lambda row: row["curves"][0].update(own=[1.0]),
    ):
        spoilt = json.loads(json.dumps(results))
        change(spoilt["rows"][0])
        (hostile_comparison / "results.json").write_text(json.dumps(spoilt))
        with pytest.raises(RunFolderError, match="do not fit each other"):
            report([hostile_comparison], tmp_path / "x.html")
    (hostile_comparison / "results.json").write_text(json.dumps(results))
    (hostile_comparison / "comparison.toml").write_text("[[")
    with pytest.raises(RunFolderError, match="comparison.toml: cannot be read as TOML"):
        report([hostile_comparison], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
