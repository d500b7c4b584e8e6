"""BERT's uncased WordPiece tokenizer in plain Python, from a `vocab.txt` (line n is the piece n).

    text -> clean -> space out CJK -> NFD without accents -> lower case
         -> split at white space, every punctuation mark a word of its own
         -> each word greedily into the longest known pieces, or [UNK]

Text never turns into control tokens: "[SEP]" in a prompt is the three words "[", "sep", "]".
Character classes are those of Python's `unicodedata`.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from ciar.errors import CheckpointError, InvalidInput

PAD, UNK, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL_PIECES = (PAD, UNK, CLS, SEP)
CONTINUATION = "##"
MAX_WORD_CHARS = 100
"""A longer word is [UNK] as a whole."""

_CJK_BLOCKS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),  # as BERT's reference has it; the Unicode block starts at 2B820
    (0x2F800, 0x2FA1F),
)
_CJK_STARTS = tuple(start for start, _ in _CJK_BLOCKS)


class WordPiece:
    """A tokenizer over `pieces`; a piece's id is its place in the sequence."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = tuple(pieces)
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        if len(self.ids) != len(self.pieces):
            raise CheckpointError("the vocabulary lists a piece twice: export it again")
        missing = [piece for piece in SPECIAL_PIECES if piece not in self.ids]
        if missing:
            raise CheckpointError(
                f"the vocabulary has no {', '.join(missing)}: it is not a BERT vocab.txt"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            self.ids[piece] for piece in SPECIAL_PIECES
        )
        # No piece is longer, so no longer prefix has to be tried.
        self._max_piece_chars = max(len(piece) for piece in self.pieces)

    @classmethod
    def from_file(cls, path: str | Path) -> "WordPiece":
        """Read a `vocab.txt` (UTF-8, one piece a line)."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read the vocabulary {path}: {error}") from error
        # Not splitlines(): pieces such as U+2028 would count as line ends.
        return cls(text.removesuffix("\n").split("\n"))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, *, max_tokens: int = 32) -> list[int]:
        """Ids of `[CLS] pieces [SEP]`, `max_tokens` at most: the last pieces are left out."""
        if max_tokens < 2:
            raise InvalidInput(
                "max_tokens", max_tokens, "give at least 2: [CLS] and [SEP] are always there"
            )
        ids = [self.cls_id]
        for word in words(text):
            ids += self.word_ids(word)
            if len(ids) >= max_tokens:
                break
        return [*ids[: max_tokens - 1], self.sep_id]

    def word_ids(self, word: str) -> list[int]:
        """Ids of one of `words`: longest piece first, or `[unk_id]` when a part is unknown."""
        if len(word) > MAX_WORD_CHARS:
            return [self.unk_id]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = CONTINUATION if start else ""
            stop = min(len(word), start + self._max_piece_chars)
            while stop > start and prefix + word[start:stop] not in self.ids:
                stop -= 1
            if stop == start:
                return [self.unk_id]
            ids.append(self.ids[prefix + word[start:stop]])
            start = stop
        return ids

    def unknown_words(self, text: str) -> list[str]:
        """The distinct words of `text` that become [UNK], normalised, in order of appearance."""
        return list(
            dict.fromkeys(word for word in words(text) if self.unk_id in self.word_ids(word))
        )


def words(text: str) -> Iterator[str]:
    """Normalised words of `text`; a punctuation mark or CJK character is a word of its own."""
    spaced = "".join(f" {char} " if _is_cjk(char) else char for char in _clean(text))
    for chunk in spaced.split(" "):
        word: list[str] = []
        for char in _fold(chunk):
            # Folding never makes white space, but the fold of a character may be punctuation.
            if not _is_punctuation(char):
                word.append(char)
                continue
            if word:
                yield "".join(word)
                word = []
            yield char
        if word:
            yield "".join(word)


def _clean(text: str) -> str:
    """Control characters out, every kind of white space a plain space."""
    return "".join(" " if char.isspace() else char for char in text if not _is_control(char))


def _fold(text: str) -> str:
    """Lower case without accents. Case goes character by character: no final sigma."""
    marks_apart = unicodedata.normalize("NFD", text)
    return "".join(char.lower() for char in marks_apart if unicodedata.category(char) != "Mn")


def _is_control(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs")


def _is_punctuation(char: str) -> bool:
    if char.isascii():  # BERT counts $ + < = > ^ ` | ~ too
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char).startswith("P")


def _is_cjk(char: str) -> bool:
    block = bisect_right(_CJK_STARTS, ord(char)) - 1
    return block >= 0 and ord(char) <= _CJK_BLOCKS[block][1]
