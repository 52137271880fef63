"""Run folders of people who mean ill: markup in every name, text and figure stays text."""

import base64
import hashlib
import json
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
    (folder / "comparison.toml").write_text(f"name = '{MARKUP if folder.name == FOLDER else 'x'}'")
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
    with pytest.raises(RunFolderError, match=f"{'.'.join(map(str, where))} = .*valid integer"):
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
