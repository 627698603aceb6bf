import io
import re

import numpy as np
import pytest
from PIL import Image

from taskarith_fast.analysis.figures import all_figures, samples_figure
from taskarith_fast.analysis.figures_theme import COLOURS, THEMES, in_both
from taskarith_fast.analysis.report import (
    best_merged,
    findings,
    group_times,
    markdown_table,
    render_report,
    table,
)
from taskarith_fast.analysis.results import Results
from taskarith_fast.errors import DataError
from tests.analysis.conftest import TASKS, invented_results


@pytest.fixture(scope="module")
def figures():
    return all_figures(invented_results())


def test_every_figure_is_a_png_of_sensible_size(figures):
    of_recipe = {"accuracy-full", "lambda-full", "cosine-full", "cart-grid-full", "rank-full"}
    assert set(figures) == of_recipe | {"linearity", "sensitivity"}
    for images in figures.values():
        for data, theme in zip(images, THEMES.values(), strict=True):
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            assert 800 < picture.width < 2000 and 300 < picture.height < 2000
            assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0))) == theme.page


def test_text_of_figures_can_be_read_on_their_page():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for theme in THEMES.values():
        assert contrast(theme.ink, theme.page) > 7 and contrast(theme.muted, theme.page) > 4.5
        assert all(contrast(colour, theme.page) > 2.4 for colour in COLOURS), theme
        steps = [contrast(colour, theme.page) for colour in theme.sequence]
        assert steps == sorted(steps) and steps[0] > 1.5


def test_figures_are_the_same_bytes_every_time(figures):
    assert all_figures(invented_results()) == figures


def test_page_says_how_linear_fine_tuning_was(results, figures):
    page = render_report(results, figures)
    assert "How linear fine-tuning is" in page and f"-10.0 ± 2.0 ({TASKS[0]})" in page
    none = results.model_copy(update={"linearity": [], "sensitivity": []})
    assert "How linear fine-tuning is" not in render_report(none, {})


def test_samples_show_one_strip_a_task():
    strip = np.zeros((3, 16, 16, 3), np.uint8)
    light, dark = in_both(lambda: samples_figure(["a", "b"], [strip, strip]))
    assert light.startswith(b"\x89PNG") and dark.startswith(b"\x89PNG") and light != dark


def test_page_loads_nothing_from_elsewhere(results, figures):
    page = render_report(results, figures)
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == len(figures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.count('srcset="data:image/png;base64,') == len(figures)
    assert "http" not in re.sub(r'(src|srcset)="[^"]*"', "", page)
    assert page.count("<script>") == page.count("<script") == 1 and "@import" not in page and "url(" not in page


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_page_has_every_number_of_the_table(seeds):
    results = invented_results(seeds)
    page = render_report(results, {})
    for row in results.rows:
        assert row.label in page
        for measured in (*row.accuracy.values(), row.mean, row.normalized_mean):
            assert f"{100 * measured.value:.1f} <small>±{100 * measured.stderr:.1f}" in page
    assert ("Std over seeds" in page) == (len(seeds) > 1)


def test_page_escapes_what_tasks_say(results):
    task = results.tasks[0].model_copy(update={"source": "<b>bold</b> & co"})
    page = render_report(results.model_copy(update={"tasks": [task, *results.tasks[1:]]}), {})
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page


def test_only_merged_models_can_be_best(results):
    rows = results.rows
    assert rows[1].method == "individual"
    top = rows[1].model_copy(update={"mean": rows[1].mean.model_copy(update={"value": 2.0})})
    assert best_merged([top, *rows]).merged


def test_every_line_of_the_table_marks_its_best_merged_model(results):
    for _, cells in table(results, "full", normalized=False):
        merged = [cell for cell, row in zip(cells, results.rows, strict=True) if row.merged]
        top = max(float(cell.value) for cell in merged)
        assert [cell.best for cell in merged] == [float(cell.value) == top for cell in merged]
        assert not any(cell.best for cell, row in zip(cells, results.rows, strict=True) if not row.merged)


def test_markdown_table_has_a_line_for_every_task_and_two_means(results):
    lines = markdown_table(results, "full").strip().splitlines()
    assert len(lines) == 2 + len(TASKS) + 2
    assert {line.count("|") for line in lines} == {len(results.rows) + 2}


def test_findings_doubt_a_gain_within_two_errors(results):
    gain = results.rows[2].over_probe.model_copy(update={"value": 0.01, "stderr": 0.006})
    rows = [*results.rows[:2], results.rows[2].model_copy(update={"over_probe": gain}), *results.rows[3:]]
    sentences = findings(results.model_copy(update={"rows": rows}), "full")
    assert any(s.startswith("Average") and "within two standard errors" in s for s in sentences)


def test_findings_say_where_a_choice_is_at_the_edge_of_its_grid(results):
    curve = results.curves.scale[0].model_copy(update={"chosen": [1.0]})
    curves = results.curves.model_copy(update={"scale": [curve]})
    sentences = findings(results.model_copy(update={"curves": curves}), "full")
    assert "Task arithmetic: the chosen scale 1 is the largest that was tried." in sentences


def test_times_are_summed_by_group(results):
    line = group_times(results.timing)[0]
    assert (line.stages, line.reused, line.peak_rss_mb) == (2, 1, 910)
    assert line.seconds == pytest.approx(36.9)


def test_document_survives_the_way_through_a_file(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"schema_version": 1, "surprise": 2}', "[]"])
def test_another_document_is_refused(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=r"results.json must be a results document"):
        Results.load(tmp_path / "results.json")
