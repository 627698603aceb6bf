"""Line charts as SVG: well-formed, inside their frame, labelled."""

import xml.etree.ElementTree as ET

import pytest

from taskarith_fast.analysis.line_chart import Line, line_chart

WORDS = {"x_label": "scale", "y_label": "accuracy, %", "title": "a < b"}


def points(svg):
    for line in ET.fromstring(svg).iter("polyline"):
        yield [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


@pytest.mark.parametrize("y", [[50.0, 60.0, 55.0], [0.0, 0.0, 0.0], [99.9, 99.95, 99.91], [-3e6, 2e6, 1.0]])
def test_points_lie_inside_and_keep_their_order(y):
    (drawn,) = points(line_chart([Line("a & b", [0.0, 0.5, 1.0], y)], **WORDS))
    assert [x for x, _ in drawn] == [56.0, 342.0, 628.0]
    assert all(10 <= place <= 276 for _, place in drawn)
    order = sorted(range(3), key=lambda i: y[i])
    assert [drawn[i][1] for i in order] == sorted((place for _, place in drawn), reverse=True)


def test_one_point_is_drawn():
    assert len(list(points(line_chart([Line("a", [1.0], [2.0])], **WORDS)))) == 1


def test_the_ninth_line_is_dashed():
    svg = line_chart([Line(str(i), [0, 1], [i, i]) for i in range(9)], **WORDS)
    kinds = [line.get("class") for line in ET.fromstring(svg).iter("polyline")]
    assert kinds == [f"s{i}" for i in range(8)] + ["s0 dashed"]


def test_ticks_are_round_and_inside():
    svg = line_chart([Line("a", [0.0, 3.0], [61.3, 88.8])], **WORDS)
    numbers = [t.text for t in ET.fromstring(svg).iter("text")]
    assert [n for n in numbers if n in ("65", "70", "75", "80", "85")] == ["65", "70", "75", "80", "85"]
