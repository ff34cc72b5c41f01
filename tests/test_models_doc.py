"""docs/models.md says what the tests prove, no more and no less."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parent.parent / "tools" / "make_models_doc.py"


def test_the_table_is_made_of_the_rows_that_tests_run_over():
    """Write it anew with tools/make_models_doc.py."""
    spec = importlib.util.spec_from_file_location("make_models_doc", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.DOC.read_text()
    assert tool.rendered(text) == text
    assert len(tool.rows()) > 100
