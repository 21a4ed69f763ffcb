"""What of a codec's HTML would not show on a page."""

from __future__ import annotations

import pytest

from unidiff_core.testing.fragment import unfit


@pytest.mark.parametrize(
    "html",
    [
        "plain &lt;text&gt;",
        '<img src="data:image/png;base64,AA==" style="width: 96px"><br><span>seven</span>',
        '<audio controls src="data:audio/wav;base64,AA=="></audio>',
        '<svg viewBox="0 0 1 1"><path d="M0 0"/><g><circle r="1"></circle></g></svg>',
        '<a href="https://example.org">a link loads nothing</a><img src="data:,"/>',
    ],
)
def test_what_shows(html):
    assert unfit(html) is None


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<img src="seven.png">', 'src="seven.png" is not in the page'),
        ('<img src="https://example.org/seven.png"/>', "is not in the page"),
        ("<video poster='x.png'></video>", 'poster="x.png" is not in the page'),
        ("<div><script>1</script></div>", "<script> is forbidden"),
        ('<meta http-equiv="refresh" content="0">', "<meta> is forbidden"),
        ('<b onclick="x()">7</b>', "onclick is a script"),
        ("<div><b>7</div>", "</div> closes what is not open"),
        ("7</div>", "</div> closes what is not open"),
        ("<div>7", "<div> is not closed"),
    ],
)
def test_what_does_not(html, fault):
    assert fault in unfit(html)
