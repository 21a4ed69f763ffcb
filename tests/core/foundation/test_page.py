"""Pages: escaped, self-contained, without scripts."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from unidiff_core.evaluation.gallery import Card
from unidiff_core.foundation.page import PAGES, film_of, render, write_html


def test_values_are_escaped_and_a_codecs_html_is_not():
    card = Card({"text": Markup("<i>given</i>")}, {"image": Markup("<b>solved</b>")}, ["<digit>"])
    html = render("shown.html.j2", galleries={"image | <text>": [card]})
    assert "<i>given</i>" in html and "<b>solved</b>" in html
    assert "<code>image | &lt;text&gt;</code>" in html and "&lt;digit&gt;" in html


def test_a_value_that_is_lacking_is_an_error():
    with pytest.raises(UndefinedError, match="title"):
        render("samples.html.j2", steps=[])


def test_every_page_forbids_what_comes_from_elsewhere(tmp_path):
    write_html(tmp_path / "new/samples.html", "samples.html.j2", title="t", steps=[])
    page = (tmp_path / "new/samples.html").read_text()
    assert "Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:;" in page
    templates = {path.name: path.read_text() for path in PAGES.iterdir()}
    assert len(templates) > 5
    for name, text in templates.items():
        assert not any(word in text for word in ("<script", "http:", "https:", "//", "onclick")), name
        assert "|safe" not in text.replace(" ", ""), name
    whole = [name for name, text in templates.items() if "{% block body %}" in text]
    names = ("base", "evaluation", "training", "comparison", "samples", "film")
    assert {f"{name}.html.j2" for name in names} == set(whole)
    assert all('{% extends "base.html.j2" %}' in templates[name] for name in whole if name != "base.html.j2")


def test_what_a_film_shows_goes_into_another_page_whole(tmp_path):
    cell = Markup("<section>a codec's own</section>")
    write_html(tmp_path / "film.html", "film.html.j2", title="t", titles=["b | a"], rows=[[[cell]], [[cell]]])
    found = film_of(tmp_path / "film.html")
    assert found.count(str(cell)) == 2 and found.startswith("<section") and found.endswith("</div></section>")
    (tmp_path / "other.html").write_bytes(b"\xff<section>")
    assert film_of(tmp_path / "other.html") == ""
