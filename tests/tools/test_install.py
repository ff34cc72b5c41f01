"""Tests of tools/install.py, which runs pip and shows its progress."""

import io
import sys

import pytest

from tools.install import Progress, follow

COLLECTED = "Collecting numpy>=1.26 (from sd-operator==0.1.0)\n"


@pytest.mark.parametrize(
    ("line", "doing"),
    [
        (COLLECTED, "looking for numpy"),
        (
            "  Downloading numpy-2.3.1-cp311-cp311-manylinux_2_28_x86_64.whl (16.6 MB)\n",
            "downloading numpy (16.6 MB)",
        ),
        (
            "  Downloading huggingface_hub-2.4.0-py3-none-any.whl (560 kB)\n",
            "downloading huggingface_hub (560 kB)",
        ),
        ("  Downloading numpy-2.3.1.whl.metadata (62 kB)\n", "starting"),
        ("  Building editable for sd-operator (pyproject.toml): started\n", "building sd-operator"),
        ("Installing collected packages: a, b, c\n", "unpacking 3 packages, which takes longest"),
        ("     ━━━━━━━━ 16.6/16.6 MB 80.1 MB/s 0:00:00\n", "starting"),
    ],
)
def test_a_line_of_pip_becomes_words(line, doing):
    """The shown line names the package that pip works on; other output changes nothing."""
    progress = Progress()
    progress.read(line)
    assert progress.doing == doing


def test_a_log_gets_one_line_at_the_start_and_one_at_the_end():
    """Each package counts once, and pip's own lines are not repeated."""
    out = io.StringIO()
    code = follow([sys.executable, "-c", f"print({COLLECTED * 2!r})"], out)
    first, last = out.getvalue().splitlines()
    assert code == 0
    assert first == "Installing packages, which takes about a minute"
    assert last.startswith("Installed 1 package in ")


def test_all_that_pip_printed_follows_if_it_fails():
    """The exit code is that of pip."""
    out = io.StringIO()
    script = "import sys; print('Collecting numpy'); sys.exit('ERROR: no space left')"
    assert follow([sys.executable, "-c", script], out) == 1
    assert out.getvalue().splitlines()[1:] == [
        "Collecting numpy",
        "ERROR: no space left",
        "pip failed; its output is above",
    ]


def test_a_terminal_shows_the_present_step():
    """The line is written over the previous one, and is gone at the end."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    follow([sys.executable, "-c", "print('Collecting numpy')"], out)
    steps = out.getvalue().split("\r\x1b[K")
    assert steps[1].startswith("Installing: 1 package found, looking for numpy (")
    assert steps[-1].startswith("Installed 1 package in ")
