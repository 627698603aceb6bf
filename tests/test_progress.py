from taskarith_fast.progress import Progress


def test_a_silent_progress_writes_nothing(capsys):
    progress = Progress(enabled=False)
    with progress.stage("outer", 2) as stage:
        stage.advance(note="half")
        assert list(progress.track(range(3), "inner")) == [0, 1, 2]
    progress.message("hello")
    assert capsys.readouterr() == ("", "")


def test_bars_go_to_the_standard_error_stream_and_nest(capsys):
    progress = Progress(enabled=True)
    with progress.stage("outer", 2) as stage:
        assert list(progress.track(iter("ab"), "inner", total=2)) == ["a", "b"]
        stage.advance(2, note="loss 1.0")
    with progress.stage("again"):
        progress.message("a line")
    captured = capsys.readouterr()
    assert captured.out == "" and "a line" in captured.err


def test_an_error_inside_a_stage_comes_through_and_closes_it():
    progress = Progress(enabled=True)
    try:
        with progress.stage("work", 1):
            raise KeyError("x")
    except KeyError:
        pass
    with progress.stage("more work", 1) as stage:
        stage.advance()
