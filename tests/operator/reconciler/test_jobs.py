"""Jobs that nobody waits for are deleted. If that fails, the operator goes on."""

from __future__ import annotations

import asyncio
import logging

import pytest
from typing_extensions import override

from sd_operator.base.errors import ApiError, ConflictError, ForbiddenError, NotFoundError
from sd_operator.clients.kube import Resource
from sd_operator.reconciler import jobs
from tests.support.kube.scriptedapi import Script


class Refusing(Script):
    """An API server that rejects every deletion with this error."""

    def __init__(self, error: ApiError) -> None:
        super().__init__({})
        self._error = error

    @override
    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(NotFoundError("not found"), "", id="gone"),
        pytest.param(ConflictError("another uid"), "", id="another Job has its name"),
        pytest.param(
            ForbiddenError("no Role"),
            "cannot delete Job art/x now; it stays until its TTL: no Role",
            id="forbidden",
        ),
    ],
)
def test_a_job_that_cannot_be_discarded_is_only_logged(
    error: ApiError, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed deletion is logged, with the cause, and not raised. A missing Job is not logged."""
    asyncio.run(jobs.discard(Refusing(error), "art", "x", "uid"))
    warnings = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert "".join(warnings) == message
