"""The output of one attempt on its way to telemetry: in order, bounded, and every line either sent or counted."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from evpipe.wire.limits import LINE_CHARS_MAX, LOG_BATCH_BYTES
from evpipe.wire.telemetry import LogBatch, decode_log, encode_log
from evpipe.worker.telemetry import (
    ATTEMPT_BYTES_MAX,
    BATCHES_PER_GATHERING,
    LAST_BYTES_MAX,
    LAST_LINES,
    AttemptLog,
    LogBook,
)
from tests.core.budget import examples

#: A line is cut to this many characters; its number is told by its beginning.
CUT = LINE_CHARS_MAX


class Book:
    """Takes the place of the worker's book: keeps what is sent, as it would be read."""

    def __init__(self) -> None:
        self.batches: list[LogBatch] = []

    def gather(self, log: AttemptLog) -> None:
        pass

    def send(self, subject: str, batch: LogBatch) -> None:
        data = encode_log(batch)
        assert len(data) <= LOG_BATCH_BYTES + 64, "larger than a batch may be"
        assert batch.lines or batch.left_out, "nothing is said"
        self.batches.append(decode_log(data))

    @property
    def texts(self) -> list[str]:
        return [line.text for batch in self.batches for line in batch.lines]

    def check_all_accounted_for(self, written: list[str]) -> None:
        """Between what is sent there is missing exactly what each batch says."""
        at = 0
        for batch in self.batches:
            at += batch.left_out
            for line in batch.lines:
                number = int(line.text.partition(":")[0])
                assert number == at, f"line {at} was expected"
                assert line.text == shown(written[at])
                at += 1
        assert at == len(written)


def shown(text: str) -> str:
    cut = text if len(text) <= CUT else text[: CUT - 1] + "…"
    return cut.encode(errors="backslashreplace").decode()


def log_of(book: Book) -> AttemptLog:
    return AttemptLog(cast("LogBook", book), "subject")


#: How long a line is, of which characters, and how many such lines are told at once; 0: a flush.
Burst = tuple[int, str, int]
BURSTS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 80, 1_000, CUT - 12, CUT, CUT + 1, 30_000]),
        st.sampled_from(["x", "é", "日", "👩", "\udcff"]),
        st.sampled_from([0, 0, 1, 2, 7, 50, 300, 3_000]),
    ),
    max_size=8,
)


@examples(100)
@given(bursts=BURSTS)
def test_every_line_is_sent_or_counted(bursts: list[Burst]) -> None:
    """Whatever is told, and in whatever pieces: order is kept, no batch is too large, the last lines are there."""
    book = Book()
    log = log_of(book)
    written: list[str] = []
    for length, character, count in bursts:
        if not count:
            log.flush()
            continue
        # Thousands of long lines say no more than some hundreds.
        texts = [f"{len(written) + i}:{character * length}" for i in range(min(count, 2_000_000 // (length + 1)))]
        log.tell("stdout", texts)
        written += texts
    log.end()
    book.check_all_accounted_for(written)
    wanted, size = 0, 0
    for text in reversed(written[-LAST_LINES:]):
        size += len(shown(text).encode()) + 64
        if size > LAST_BYTES_MAX:
            break
        wanted += 1
    assert book.texts[len(book.texts) - wanted :] == [shown(text) for text in written[len(written) - wanted :]]


def test_long_lines_at_the_end() -> None:
    """As many lines as are kept, each as long as it may be, end in batches that may travel."""
    book = Book()
    log = log_of(book)
    written = [f"{i}:{'x' * CUT}" for i in range(1_000)]
    log.tell("stderr", written)
    log.end()
    book.check_all_accounted_for(written)
    assert len(book.batches) > 10


def test_a_flood_is_bounded() -> None:
    """Of an attempt that never stops writing no more is sent than is allowed, and its last lines."""
    book = Book()
    log = log_of(book)
    written: list[str] = []
    for _ in range(400):
        texts = [f"{len(written) + i}:{'x' * 1_000}" for i in range(100)]
        log.tell("stdout", texts)
        written += texts
        log.flush()
    log.end()
    book.check_all_accounted_for(written)
    assert sum(map(len, book.texts)) < ATTEMPT_BYTES_MAX + LAST_BYTES_MAX + LOG_BATCH_BYTES
    assert book.texts[-LAST_LINES:] == written[-LAST_LINES:]


def test_quick_lines_between_two_gatherings() -> None:
    """In one gathering only so many batches are sent; what was left out meanwhile is counted in the next."""
    book = Book()
    log = log_of(book)
    written = [f"{i}:" for i in range(200_000)]
    log.tell("stdout", written)
    assert len(book.batches) == BATCHES_PER_GATHERING
    log.flush()
    assert book.texts[-LAST_LINES:] == written[-LAST_LINES:]
    assert book.batches[-1].left_out > 100_000
    log.tell("stdout", ["200000:after"])
    log.end()
    book.check_all_accounted_for([*written, "200000:after"])


def test_nothing_written() -> None:
    """Says nothing."""
    book = Book()
    log = log_of(book)
    log.flush()
    log.end()
    log.tell("stdout", [])
    log.end()
    assert not book.batches


def test_what_was_dropped_before() -> None:
    """Lines that were dropped on their way here are counted where they are missing: behind those that came."""
    book = Book()
    log = log_of(book)
    log.tell("stdout", ["0:a"])
    log.miss(2)
    log.tell("stdout", ["3:b"])
    log.end()
    book.check_all_accounted_for(["0:a", "", "", "3:b"])
