"""No name in a model card becomes Markdown: read by an independent parser of Markdown."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pitlm.models.loading import Card
from pitlm.report.pages import Origin, json_text, model_card, plain
from pitlm.report.shape import Report

READER = MarkdownIt("commonmark").enable("table")
TAGS = ["<img src=x onerror=alert(1)>", "[a](http://b)", "![a](b)", "<http://b>"]
PIECES = [*TAGS, "`", "|", "\\", "<", "](", "\n", "\r\n# x", "~~~", "a"]
NAMES = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)


def parts(text):
    return [token for block in READER.parse(text) for token in [block, *(block.children or ())]]


@given(NAMES)
def test_no_name_makes_a_tag_a_link_an_image_or_a_further_cell(name):
    for text in (f"a {plain(name)} b", f"a `{plain(name)}` b", f"| h |\n| --- |\n| a {plain(name)} |\n"):
        kinds = [token.type for token in parts(text)]
        assert not {"html_inline", "html_block", "link_open", "image", "heading_open", "fence"} & set(kinds), text
        assert kinds.count("td_open") <= 1
        assert kinds.count("paragraph_open") <= 1
    assert not set(map(ord, plain(name))) & {*range(9), *range(11, 32), *range(127, 160)}  # nor moves a cursor


@given(NAMES)
def test_a_json_string_in_code_is_the_same_string_and_stays_code(name):
    assert json.loads(json_text(name)) == name
    assert not {"html_inline", "link_open", "image"} & {token.type for token in parts(f"`{{{json_text(name)}}}`")}


@pytest.mark.parametrize("ask", ["Better?", "~~~\n\n~~~~~\n<script>", "`<img src=x>"])
def test_no_value_of_a_recipe_ends_the_block_of_settings(ask):
    recipe = {"name": ask, "seed": 0, "template": {"ask": ask}, "peft": None, "model": {"dtype": "float32"}}
    report = Report("a run", headline=[ask], notes=[ask], trends=[ask])
    origin = Origin(recipe, ask, ask, ask, None, None, "1", ask, {"sft": 3}, report, "", None)
    shown = {"name": "mine", "on_hub": False, "temperature": None, "dtype": "float32", "promises": []}
    found = parts(ModelCard(model_card(Card("gap", ask, 9), origin, adapter=None, **shown)).text)
    (block,) = [token for token in found if token.type == "fence" and token.info == "yaml"]
    assert yaml.safe_load(block.content) == recipe
    written = "".join(token.content for token in found if token.type in ("html_block", "html_inline"))
    assert not re.search("script|img", written)
