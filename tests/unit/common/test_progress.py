import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from beit.common.progress import Progress, bar_line

FIELDS = {"loss": 6.9412, "mim_acc": 0.000652, "lr": 1.5e-4, "images_per_second": 53.21, "data_wait": 0.0213}


def line(columns, *, done=3, total=8, rate=0.05, fields=FIELDS):
    return bar_line(done, total, "training", "steps", rate=rate, fields=fields, columns=columns)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_bar_never_fills_its_line_and_cuts_no_field(columns):
    shown = line(columns)
    assert len(shown) < columns
    whole = "3/8.*s each.*left.*loss 6.94.*acc 0.1%.*lr 1.5e-4.*img/s 53.2.*wait 2.1%".split(".*")
    assert all(piece in line(200) for piece in whole)
    for piece in shown.split("  ")[2:]:
        assert piece.strip() in line(200), piece


def test_the_loss_and_the_time_left_are_what_a_narrow_terminal_keeps():
    assert "1:40 left  loss 6.94" in line(60)
    assert "3/8 steps" in line(40)


def test_without_a_total_there_is_a_count():
    assert (
        line(80, total=None, rate=2.0) == "training 3 steps  2/s  loss 6.94  acc 0.1%  lr 1.5e-4  img/s 53.2  wait 2.1%"
    )


SPEAKS = """
import logging, sys, warnings
from beit.cli_streams import set_up_streams
from beit.common.progress import Progress
set_up_streams()
logger = logging.getLogger("beit.x")
with Progress(10, unit="steps", description="training") as progress:
    for step in range(10):
        progress.update(1, loss=1.0)
        if step == 3:
            logger.info("a line of the log")
            logger.warning("a name with \\x1b[2J in it")
        if step == 5:
            warnings.warn("something\\nof Python", stacklevel=1)
            print("to standard output")
            print("in two", end=" "); print("pieces")
        if step == 7:
            with Progress(2, unit="images", description="inner") as inner:
                inner.update(1)
                logger.info("within another bar")
        if step == 8:
            print("half a", file=sys.stderr, end=" "); print("line", file=sys.stderr)
logger.info("at the end")
"""


def screen(data: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows after all this."""
    lines, row, column = [""], 0, 0
    while data:
        if data.startswith("\x1b[A"):
            row, data = row - 1, data[3:]
        elif data.startswith("\x1b[K"):
            lines[row], data = lines[row][:column], data[3:]
        else:
            assert data[0] != "\x1b", data[:20]
            if data[0] == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif data[0] == "\r":
                column = 0
            else:
                assert column < columns, "a line wrapped"
                lines[row] = lines[row].ljust(column)[:column] + data[0] + lines[row][column + 1 :]
                column += 1
            data = data[1:]
    return [line.rstrip() for line in lines if line.strip()]


def on_terminal(code: str, columns: int, rows: int = 24) -> list[str]:
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns if rows else 0, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    while True:
        try:
            data += os.read(ours, 65536)
        except OSError:  # all of it is read
            break
    os.close(ours)
    assert process.wait() == 0, data
    return screen(data.decode(), columns)


@pytest.mark.parametrize("columns", [80, 60])
def test_lines_go_above_the_bar_whoever_writes_them(columns):
    shown = on_terminal(SPEAKS, columns)
    assert [shown[0], *shown[1:6], shown[6], shown[-1]] == [
        "a line of the log",
        "a name with \\x1b[2J in it",
        "UserWarning: something of Python",
        "to standard output",
        "in two pieces",
        "within another bar",
        "half a line",
        "at the end",
    ]
    assert len(shown) == 9 and shown[7].startswith("training 100%") and "10/10 steps" in shown[7]


def test_a_terminal_that_says_it_has_no_columns_shows_a_bar_all_the_same():
    assert any("10/10 steps" in line for line in on_terminal(SPEAKS, 70, rows=0))


def test_a_file_gets_lines_only():
    run = subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, text=True, check=True)
    assert "\r" not in run.stderr and "training: 10/10 steps" in run.stderr


def test_the_first_line_names_the_command_before_pytorch_is_loaded():
    code = "import sys; from beit import cli_streams as s; s.set_up_streams(); s.announce_start('pretrain')\n"
    code += "print([name for name in sys.modules if name == 'torch']); import torch, torch.nn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("[]\n", "beit pretrain: loading PyTorch\n")


def test_how_long_it_will_take_is_said_once_when_it_has_been_measured(monkeypatch, caplog):
    caplog.set_level("INFO", "beit")
    now = [0.0]
    monkeypatch.setattr("beit.common.progress.time.monotonic", lambda: now[0])
    progress = Progress(1000, unit="images", description="predicting")
    for _ in range(100):
        now[0] += 10.0 if not progress._done else 0.5  # the first one starts things up
        progress.update(1)
    assert [record.message for record in caplog.records if "about" in record.message] == [
        "predicting: about 8 min for 1000 images"
    ]


@pytest.mark.parametrize("total", [None, 10])
def test_what_takes_no_time_or_is_unknown_is_not_foretold(monkeypatch, caplog, total):
    caplog.set_level("INFO", "beit")
    now = [0.0]
    monkeypatch.setattr("beit.common.progress.time.monotonic", lambda: now[0])
    progress = Progress(total, unit="images", description="predicting")
    for _ in range(10):
        now[0] += 1.0
        progress.update(1)
    assert "about" not in caplog.text
