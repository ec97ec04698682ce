"""Reads a Parquet table in a new process with a limit on its memory.

The sizes in the footer and in the page headers of a file may be false, and some encodings repeat values: 200 bytes can
be decoded to many gigabytes. Only the operating system limits the memory of the decoder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysim.core.errors import ConfigError
from raysim.core.formatting import format_bytes
from raysim.data.memory_limit import check_table_memory, check_table_size, limited_memory, memory_limit, override_advice

OUT_OF_MEMORY, CONFIG_ERROR, OTHER_ERROR = 1, 2, 3  # exit codes of the process


def read_parquet(content: bytes, stored: int) -> pa.Table:
    """The columns of a Parquet file without lists and structures.

    Raises ConfigError if reading takes more memory than a file of `stored` bytes may take, and ValueError for a file
    that cannot be read or has too many bytes.
    """
    # The module is run by its path, because -m would import packages from the working directory first.
    command, path = [sys.executable, "-P", __file__, str(stored)], os.pathsep.join(filter(None, sys.path))
    # The default memory pool reserves memory in advance.
    environment = os.environ | {"PYTHONPATH": path, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, input=content, capture_output=True, env=environment)
    if done.returncode == 0:
        return pa.ipc.open_stream(done.stdout).read_all()
    if done.returncode not in (CONFIG_ERROR, OTHER_ERROR):  # OUT_OF_MEMORY, or a signal after a failed allocation
        limit = memory_limit(stored)
        raise ConfigError(
            f"takes more than {format_bytes(limit / 2)} of memory to decode; {override_advice(2 * limit)}"
        )
    reason = done.stderr.decode(errors="replace")
    raise ConfigError(reason) if done.returncode == CONFIG_ERROR else ValueError(reason)


def _batches(file: pq.ParquetFile, stored: int) -> Iterator[pa.RecordBatch]:
    """Yields the columns without lists and structures. Raises ConfigError or ValueError as `read_parquet`.

    A dictionary stores a text once for all cells that repeat it, so texts are read as dictionaries and the bytes of the
    cells are counted before they are copied.
    """
    flat = [field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)]
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    check_table_size(sum(group.total_byte_size for group in groups))
    rows = sum(group.num_rows for group in groups)
    cells = rows * len(flat)
    size = cells  # at least one byte per cell
    check_table_size(size)
    check_table_memory(size, cells, rows, stored)
    for batch in file.iter_batches(columns=flat, use_threads=False):
        size += sum(map(_cell_bytes, batch.columns))
        check_table_size(size)
        check_table_memory(size, cells, rows, stored)
        columns = [each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in batch.columns]
        yield pa.record_batch(columns, names=batch.schema.names)


def _cell_bytes(column: pa.Array) -> int:
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = pc.fill_null(pc.binary_length(column.dictionary), 0)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)


def _main(stored: int) -> None:
    """Read a file from the standard input, and write its columns to the standard output as an Arrow stream."""
    content, sink = sys.stdin.buffer.read(), pa.BufferOutputStream()
    with limited_memory(memory_limit(stored) / 2):  # the other half is for the calling process
        schema = pq.read_schema(pa.BufferReader(content))
        texts = [each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_large_string(each.type)]
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, pre_buffer=False)
        flat = pa.schema([each for each in schema if not pa.types.is_nested(each.type)], schema.metadata)
        with pa.ipc.new_stream(sink, flat) as stream:
            for batch in _batches(file, stored):
                stream.write_batch(batch.cast(flat))
    sys.stdout.buffer.write(sink.getvalue())


if __name__ == "__main__":
    try:
        _main(int(sys.argv[1]))
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    except ConfigError as error:
        print(error, end="", file=sys.stderr)
        sys.exit(CONFIG_ERROR)
    except (pa.ArrowException, ValueError, OSError, NotImplementedError, LookupError) as error:
        print(" ".join(str(error).split()) or type(error).__name__, end="", file=sys.stderr)
        sys.exit(OTHER_ERROR)
