"""The file format under TensorFlow's checkpoints: protocol-buffer fields, CRC-32C, and sorted string tables.

A table maps byte strings to byte strings, sorted by key (LevelDB's format). Blocks hold prefix-compressed entries; an
index block gives the place of every data block; the last 48 bytes of the file give the place of the index block.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import numpy as np

from .checkpoint_reading import ConversionError

FOOTER_BYTES = 48
TRAILER_BYTES = 5  # after each block: type of compression and masked checksum
MAGIC = 0xDB4775248B80FB57
BLOCK_BYTES = 262_144
ENTRIES_PER_RESTART = 16

_CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_MOST_LANES = 4096
_LEAST_LANE_WORDS = 16


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Read a base-128 number.

    Args:
        data: bytes that hold it.
        position: where it starts.

    Returns:
        The number, below 2**64, and the position after it.

    Raises:
        ConversionError: it runs past the end or has more than 64 bits.
    """
    value = 0
    for shift in range(0, 64, 7):
        if not 0 <= position < len(data):
            raise ConversionError("a number runs past the end of its block")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise ConversionError("a number has more than 64 bits")


def varint(value: int) -> bytes:
    """Write a base-128 number, at least 0."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read the fields of a protocol-buffer message.

    Args:
        data: the encoded message.

    Yields:
        Number and value of each field, in the order of the message: numbers as int, everything with a length (strings,
        messages) as bytes.

    Raises:
        ConversionError: the bytes are no such message.
    """
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = read_varint(data, position)
            yield number, value
            continue
        if kind == 2:
            length, position = read_varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ConversionError(f"field {number} of a message has the unknown wire type {kind}")
        if length > len(data) - position:
            raise ConversionError(f"field {number} of a message runs past its end")
        field = data[position : position + length]
        position += length
        yield number, field if kind == 2 else int.from_bytes(field, "little")


def message_field(number: int, value: int | bytes) -> bytes:
    """Write one field of a message: a number as a varint, bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message_fixed32(number: int, value: int) -> bytes:
    """Write one field of a message as four bytes."""
    return varint(number << 3 | 5) + value.to_bytes(4, "little")


def masked_crc32c(*parts: bytes | np.ndarray) -> int:
    """CRC-32C of the concatenated parts, masked as TensorFlow stores it.

    Args:
        parts: bytes, or arrays of uint8; large arrays go through many lanes at once.

    Returns:
        The checksum, 32 bits.
    """
    state = 0xFFFFFFFF
    for part in parts:
        state = _extend_crc(state, np.frombuffer(part, np.uint8))
    crc = state ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read all entries of a table.

    Args:
        data: the whole file.

    Yields:
        Key and value, in the order of the file.

    Raises:
        ConversionError: no table, truncated, compressed, or a checksum does not match.
    """
    magic = int.from_bytes(data[-8:], "little") if len(data) >= FOOTER_BYTES else None
    if magic != MAGIC:
        raise ConversionError("it does not end as the index of a TensorFlow checkpoint does")
    footer = data[-FOOTER_BYTES:]
    _, position = _read_handle(footer, 0)  # of the meta-index, which is empty
    (offset, size), _ = _read_handle(footer, position)
    for _, handle in _read_block(data, offset, size):
        (offset, size), _ = _read_handle(handle, 0)
        yield from _read_block(data, offset, size)


def write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """Write a table as TensorFlow's table builder does, without compression.

    Args:
        entries: values by key.

    Returns:
        The whole file.
    """
    file = bytearray()
    index: list[tuple[bytes, bytes]] = []
    blocks = list(_split_into_blocks(sorted(entries.items())))
    for number, block in enumerate(blocks):
        last = block[-1][0]
        following = blocks[number + 1][0][0] if number + 1 < len(blocks) else None
        separator = _short_successor(last) if following is None else _short_separator(last, following)
        index.append((separator, _append_block(file, _encode_block(block, ENTRIES_PER_RESTART))))
    meta_handle = _append_block(file, _encode_block([], 1))
    index_handle = _append_block(file, _encode_block(index, 1))
    footer = (meta_handle + index_handle).ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")
    return bytes(file) + footer


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    end = offset + size
    if end + TRAILER_BYTES > len(data) - FOOTER_BYTES:
        raise ConversionError(f"it is truncated: a block ends at byte {end:,}, the file at {len(data):,}")
    block, compression = data[offset:end], data[end]
    if compression != 0:
        raise ConversionError(f"a block is compressed (type {compression}); checkpoints have uncompressed blocks")
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + TRAILER_BYTES], "little"):
        raise ConversionError("a block does not match its checksum")
    limit = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))
    if size < 4 or limit < 0:
        raise ConversionError("a block is shorter than its table of restarts")
    key, position = b"", 0
    while position < limit:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or position + unshared + length > limit:
            raise ConversionError("an entry of a block runs past its end")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _split_into_blocks(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    block: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in entries:
        block.append((key, value))
        size += len(key) + len(value)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _encode_block(entries: list[tuple[bytes, bytes]], entries_per_restart: int) -> bytes:
    block, restarts, previous = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % entries_per_restart:
            shared = _shared_bytes(previous, key)
        elif number:
            restarts.append(len(block))
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return bytes(block) + b"".join(place.to_bytes(4, "little") for place in (*restarts, len(restarts)))


def _shared_bytes(left: bytes, right: bytes) -> int:
    """Length of the common start of two keys."""
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


def _append_block(file: bytearray, block: bytes) -> bytes:
    """Append a block with its trailer and return its handle."""
    handle = varint(len(file)) + varint(len(block))
    file += block + b"\0" + masked_crc32c(block + b"\0").to_bytes(4, "little")
    return handle


def _short_separator(low: bytes, high: bytes) -> bytes:
    """A short key in [low, high)."""
    common = _shared_bytes(low, high)
    if common < min(len(low), len(high)) and low[common] < 0xFF and low[common] + 1 < high[common]:
        return low[:common] + bytes([low[common] + 1])
    return low


def _short_successor(key: bytes) -> bytes:
    """A short key not below `key`."""
    for position, byte in enumerate(key):
        if byte != 0xFF:
            return key[:position] + bytes([byte + 1])
    return key


def _extend_crc(state: int, data: np.ndarray) -> int:
    """Advance the register of the checksum over bytes, a power of two of equal lanes at a time."""
    words = len(data) // 4
    position = 0
    while words >= _LEAST_LANE_WORDS * 2:
        lanes = min(_MOST_LANES, 1 << (words // _LEAST_LANE_WORDS).bit_length() - 1)
        lane_words = 1 << (words // lanes).bit_length() - 1
        size = 4 * lanes * lane_words
        registers = _lane_registers(data[position : position + size].view("<u4").reshape(lanes, lane_words))
        level = (4 * lane_words).bit_length() - 1
        while len(registers) > 1:
            registers = _shift(registers[0::2], level) ^ registers[1::2]
            level += 1
        state = int(_shift(np.array([state], np.uint32), level)[0] ^ registers[0])
        position += size
        words -= lanes * lane_words
    table = _byte_table()
    for byte in data[position:].tolist():
        state = int(table[(state ^ byte) & 0xFF]) ^ state >> 8
    return state


def _lane_registers(words: np.ndarray) -> np.ndarray:
    """Registers after each row of words [lanes, words], each started at 0."""
    low, high = _half_word_tables()
    registers = np.zeros(len(words), np.uint32)
    for column in np.ascontiguousarray(words.T):
        registers ^= column
        registers = low[registers & 0xFFFF] ^ high[registers >> 16]
    return registers


def _shift(registers: np.ndarray, level: int) -> np.ndarray:
    """Registers after 2**level further zero bytes."""
    shifted = np.zeros_like(registers)
    for bit, column in enumerate(_zero_bytes_operator(level)):
        shifted ^= np.where(registers >> np.uint32(bit) & np.uint32(1), np.uint32(column), np.uint32(0))
    return shifted


@cache
def _zero_bytes_operator(level: int) -> tuple[int, ...]:
    """What 2**level zero bytes make of each single bit of the register."""
    if level == 0:
        table = _byte_table()
        return tuple(int(table[1 << bit & 0xFF]) ^ (1 << bit) >> 8 for bit in range(32))
    half = np.array(_zero_bytes_operator(level - 1), np.uint32)
    return tuple(int(column) for column in _shift(half, level - 1))


@cache
def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_CRC_POLYNOMIAL), table >> 1)
    return table


@cache
def _half_word_tables() -> tuple[np.ndarray, np.ndarray]:
    """What a word with only its low, only its high half set makes of a register of 0."""
    byte = _byte_table()
    tables = [byte]
    for _ in range(3):
        tables.append(byte[tables[-1] & 0xFF] ^ tables[-1] >> 8)
    first, second = np.arange(65536) & 0xFF, np.arange(65536) >> 8
    return tables[3][first] ^ tables[2][second], tables[1][first] ^ tables[0][second]
