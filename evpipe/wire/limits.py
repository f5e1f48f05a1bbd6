"""Every limit of what goes over the bus, by name."""

from __future__ import annotations

from typing import Final

#: The version that this code writes; it reads any version whose known fields it understands.
VERSION: Final = 1

#: A nats-server takes 1 MiB by default, and closes the connection of a client that sends more (headers included).
PAYLOAD_BYTES_MAX: Final = 900 * 1024
#: A value in an event, encoded.
VALUE_BYTES_MAX: Final = 512 * 1024
#: What travels in events and launches; a larger value, or part of one, is stored as an artifact.
INLINE_BYTES_MAX: Final = 64 * 1024
#: What of a value that is too large for an event stays in it all the same: parts up to this size.
PART_BYTES_MAX: Final = 4 * 1024
#: What stands for a part that is stored has about this many.
PART_BYTES_MIN: Final = 190
#: Parts of a value that are looked at one by one; a longer list is stored whole.
PARTS_MAX: Final = 1_000
#: A value of the protocol that is stored: its bytes, and the lists, maps and entries in it.
LARGE_VALUE_BYTES_MAX: Final = 1024**3
LARGE_ITEMS_MAX: Final = 20_000_000
#: What a serializer says of an artifact beside its bytes.
ARTIFACT_META_BYTES_MAX: Final = 16 * 1024
#: The argument tree of one launch, encoded.
ARGUMENTS_BYTES_MAX: Final = 512 * 1024
#: The parameters of a run, encoded.
PARAMETERS_BYTES_MAX: Final = 256 * 1024
#: The source files of a run's steps: packed, unpacked, and how many.
BUNDLE_BYTES_MAX: Final = 10 * 1024 * 1024
BUNDLE_UNPACKED_BYTES_MAX: Final = 64 * 1024 * 1024
BUNDLE_FILES_MAX: Final = 5_000
#: Where the code of a run's steps is, encoded: it is in every launch.
SOURCE_BYTES_MAX: Final = 16 * 1024
#: A graph specification in the object store, encoded.
GRAPH_BYTES_MAX: Final = 512 * 1024 * 1024

#: Of attempts, counts, sizes and places in lists: a value may be an integer of any size, what says something of one may
#: not. One of 4,300 digits cannot even be written in a message.
WHOLE_MAX: Final = 2**63 - 1

#: Levels of lists and maps in one value.
DEPTH_MAX: Final = 64
#: Lists, maps and entries in one payload: a megabyte of empty lists would become 60 times that in memory.
ITEMS_MAX: Final = 400_000

#: Classes that one value may name: one that is not here takes 0.2 ms.
CLASSES_MAX: Final = 2_000

#: Characters of a traceback, and of an error message, that travel.
TRACEBACK_CHARS_MAX: Final = 16_384
MESSAGE_CHARS_MAX: Final = 4_096
#: And of the name of who answered an approval.
NAME_CHARS_MAX: Final = 256
#: The payload of a signal, as JSON.
SIGNAL_BYTES_MAX: Final = 64 * 1024

#: Characters of one line of a step's output; a longer one is cut.
LINE_CHARS_MAX: Final = 8_192
#: Whoever captures output tells a batch of lines when it has about this many bytes.
LOG_BATCH_BYTES: Final = 64 * 1024

#: Points of metrics that are kept of one attempt.
METRIC_POINTS_MAX: Final = 1_000_000
#: Characters of the name of a metric or of a named artifact, and of what a step says of its progress.
NOTE_NAME_CHARS_MAX: Final = 200
PROGRESS_CHARS_MAX: Final = 1_000
#: Of a metric's points, or a named artifact, what travels in the event that ends its attempt; more is stored.
NOTE_BYTES_MAX: Final = 4 * 1024
#: The same of the points of a piece, which is read by who asks for them, and by nobody else.
PIECE_BYTES_MAX: Final = 64 * 1024
#: What an attempt's named artifacts may have there together.
NOTES_BYTES_MAX: Final = 256 * 1024
#: Of the fields of a line that a step logs: how many, and characters of each.
LINE_FIELDS_MAX: Final = 50
FIELD_CHARS_MAX: Final = 1_000

#: A subject over 4 KB closes a client for good; ours are built of checked names and stay far below.
SUBJECT_CHARS_MAX: Final = 512
