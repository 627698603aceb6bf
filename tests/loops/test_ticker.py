import pytest

from taskarith_fast.loops.ticker import Ticker


def test_says_a_line_for_every_stage_where_there_is_no_terminal(capsys):
    ticker = Ticker(total=4, reused=2)
    with ticker:
        ticker.begin("first", 3)
        ticker.end()
        ticker.begin("second", 1)
        ticker.end()
    reused, first, second = capsys.readouterr().err.splitlines()
    assert reused == "2 finished stages are reused"
    assert first.startswith("first: ") and "75 %" in first
    assert second.startswith("second: ") and "100 %, about 0.0 min left" in second


def test_a_stage_counts_for_no_more_than_its_cost(capsys):
    ticker = Ticker(total=10, reused=0)
    with ticker:
        ticker.begin("first", 4)
        ticker.advance(3)
        ticker.advance(30)
        ticker.end()
    assert "40 %" in capsys.readouterr().err


def test_an_error_passes_through():
    with pytest.raises(RuntimeError, match="inside"), Ticker(total=1, reused=0):
        raise RuntimeError("inside")


def test_nothing_to_do_is_no_error(capsys):
    with Ticker(total=0, reused=5):
        pass
    assert capsys.readouterr().err == "5 finished stages are reused\n"
