"""The work queue of standalone's controllers."""

from __future__ import annotations

from sd_operator.standalone.workqueue import retry_seconds


def test_pauses_between_retries_double_up_to_a_limit() -> None:
    """The first pause is short. Even after hours of failures, a key is tried every five seconds."""
    assert [retry_seconds(failures) for failures in (1, 2, 3)] == [0.05, 0.1, 0.2]
    assert [retry_seconds(failures) for failures in (8, 100, 5000)] == [5, 5, 5]
