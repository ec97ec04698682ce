"""Files of JSON lines, complete and incomplete."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.core.errors import RunError
from raysim.core.results import FailureAction, FailureEvent
from raysim.storage.event_log import EventLog, append_failures, summarize_failures
from raysim.storage.json_lines import read_jsonl


def test_incomplete_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(read_jsonl(path)) == []
    path.write_text('{"a": 1}\n{"a": \n[2, 3]\n{"a": 4}')  # the run resumed after line 2; line 4 is unfinished
    assert list(read_jsonl(path)) == [{"a": 1}, [2, 3]]


def test_the_log_continues_after_a_crash(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in (1, 2, 3):
        log.append({"round": number}, [[number, "a", "inside", "test", "dice", 0.5]])
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('[{"round": 4')
    log = EventLog(tmp_path)
    log.rewind(2)
    log.append({"round": 3}, [])
    assert [row["round"] for row, _ in log] == [1, 2, 3]
    log.close()


def test_failures_add_up(tmp_path: Path) -> None:
    left_out = FailureEvent(1, "call 1", ("a", "b"), "", "lost", FailureAction.LEFT_OUT, 1.25)
    retried = FailureEvent(2, "call 1", ("a",), "client-01", "killed", FailureAction.RETRIED, 0.5)
    append_failures(tmp_path, [left_out, retried])
    assert summarize_failures(tmp_path) == {"incidents": 2, "left_out": 2, "seconds_lost": 1.75}
    assert [line["action"] for line in read_jsonl(tmp_path / "failures.jsonl")] == ["left out", "retried"]


@pytest.mark.parametrize("line", ["7", "[]", '[{"round": "x"}, []]', '["x", "y"]', "[" * 100_000])
def test_a_line_that_is_no_round_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f"{line}\n")
    log = EventLog(tmp_path)
    if line.endswith("[["):  # too deep for JSON: as a line that was cut off
        assert list(log) == []
    else:
        with pytest.raises(RunError, match="which is not a round; remove it"):
            log.rewind(0)
    log.close()
