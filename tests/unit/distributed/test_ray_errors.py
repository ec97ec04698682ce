"""Errors of Ray in one line."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from raysim.distributed.ray_errors import storage_full_error, summarize

LOST = """The actor died because its worker process has died.
\tclass_name: ClientActor
\tactor_id: 7c3f
\tpid: 81
\tnamespace: raysim-x
\tip: 10.0.0.7
Its worker process has died. Some common causes include: (1) the process is killed by SIGKILL."""


def test_ids_and_general_advice_are_left_out() -> None:
    expected = "ValueError: The actor died because its worker process has died. Its worker process has died"
    assert summarize(ValueError(LOST)) == expected


def test_the_last_line_of_a_remote_exception_is_shown() -> None:
    cause = LookupError("no such organ")
    error = RayTaskError("execute", "Traceback:\n  in fit\nLookupError: no such organ\n", cause)
    assert summarize(error) == "LookupError: no such organ"


def test_a_full_store_names_the_cures() -> None:
    text = str(storage_full_error(OSError("no space left on device.")))
    assert "ray start --object-store-memory" in text
    assert text.endswith("Ray reports: OSError: no space left on device")
