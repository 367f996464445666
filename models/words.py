"""Word and WordPiece tokenizers. They write a text back up to a documented normalisation, not exactly.

The four special ids are those of tokenizers.py. Where a text is cut is said by a regular expression, by the same op in
the graph and in `learn`:

- A blank is what `str.isspace` calls one.
- A letter or digit is any of Unicode's letters, marks and numbers, so that Hangul (composed or not), accents and
  combining marks are never cut. Soft hyphens and the joiners that Persian and Indic words hold belong to the word, too.
- A sign is any other character that can be seen. Emoji that are joined to one picture, or tinted, are one sign.

Nothing is normalised: a composed and a decomposed é are two different words. Languages that are written without blanks
(Chinese, Japanese, Thai) have no words here: use characters or SentencePiece.

Shapes: B batch, S tokens of a text, V vocabulary.
"""

import io
import itertools
import re
import unicodedata
from collections import Counter

from .tokenizers import (
    _SPECIAL_PIECES,
    UNK,
    _as_texts,
    _checked_lines,
    _sentencepiece,
    _short,
    _tensorflow_text,
    _Tokenizer,
)

# Classes of characters and what is made of them, for RE2.
_BLANK = r"\t-\r\x{1c}-\x{20}\x{85}\p{Z}"
_LETTER = r"\pL\pM\pN"
_INNER = r"\x{ad}\x{200c}\x{200d}\x{2060}"  # soft hyphen, the zero-width joiners, word joiner
_TINT = r"\x{1f3fb}-\x{1f3ff}"  # of an emoji's skin
_APOSTROPHE_OR_HYPHEN = r"['\x{2019}\x{b7}\-\x{2010}\x{2011}]"
_SIGN = rf"[^{_BLANK}{_LETTER}\p{{Cc}}\p{{Cf}}]"
_SIGNS = rf"{_SIGN}(?:[\pM{_TINT}]|\x{{200d}}{_SIGN})*"
_NUMBER_OR_LETTER = rf"(?:\p{{Nd}}+(?:[.,:]\p{{Nd}}+)*|[{_LETTER}])"
_WORD = rf"{_NUMBER_OR_LETTER}(?:{_APOSTROPHE_OR_HYPHEN}?{_NUMBER_OR_LETTER}|[{_INNER}])*"
_SPLITS = {"words": _WORD, "punctuation": f"{_WORD}|{_SIGNS}", "blanks": rf"[^{_BLANK}]+"}
_BERT = rf"[{_LETTER}][{_LETTER}{_INNER}]*|{_SIGNS}"
_HAN = r"(\p{Han}\pM*)"

_CLOSING, _OPENING = tuple(".,;:!?…)]}"), tuple("([{¿¡")
_LINES_AT_ONCE = 1000
_LONGEST = 1000  # bytes of a word that WordPiece reads; a longer one is UNK


class _JoinedByBlanks(_Tokenizer):
    """A tokenizer whose surfaces begin with a blank where a word begins."""

    _unknown = b" " + _Tokenizer._unknown

    def detokenize(self, ids):
        import tensorflow as tf

        return tf.strings.regex_replace(super().detokenize(ids), r"\A ", "")

    detokenize.__doc__ = _Tokenizer.detokenize.__doc__


class WordTokenizer(_JoinedByBlanks):
    """One id for every word of a list; all other words are UNK.

    With split="words" and "punctuation", a word is a run of letters and digits. An apostrophe or a hyphen between two
    of them, and a point, comma or colon between two digits, belong to it: "don't", "l'été", "well-known", "3.50" and
    "10:30" are one word each; "U.S." is U and S.

    `detokenize` joins the tokens with one blank each. With split="punctuation" there is none before any of
    . , ; : ! ? … ) ] } and none after any of ( [ { ¿ ¡, so that "Yes (3,50), don't !" comes back as
    "Yes (3,50), don't!"; quotes and dashes keep a blank on both sides. What it writes is read as the same ids again.

    Args:
        words: list of str, in the order of their ids; no word twice, none with a blank in it.
        split: what is a token.
            - "words": words; punctuation and other signs are dropped.
            - "punctuation": words, and every sign by itself.
            - "blanks": what stands between blanks, for text that is tokenized already.
        lower: whether texts are lowercased first.

    Raises:
        TypeError: `words` is one str.
        ValueError: `words` is empty or holds what is no word, or a wrong `split`.

    Example:

    >>> tokenizer = WordTokenizer(["순이는", "창문을", "닫았다", "."], split="punctuation")
    >>> ids = tokenizer.tokenize(["순이는 창문을 닫았다.", "순이는 문을 닫았다."])
    >>> ids.to_list()
    [[4, 5, 6, 7], [4, 1, 6, 7]]
    >>> tokenizer.detokenize(ids[:1]).numpy()[0].decode()
    '순이는 창문을 닫았다.'
    """

    def __init__(self, words, split="words", lower=False):
        import tensorflow as tf

        self.words = _checked_pieces(words, "words")
        self.split = _checked_split(split)
        self.lower = bool(lower)
        self._set_pieces([word.encode() for word in self.words])
        with tf.init_scope():
            ids = tf.range(len(_SPECIAL_PIECES), self.vocabulary_size)
            entries = tf.lookup.KeyValueTensorInitializer(tf.constant(self.words), ids)
            self.trackable.table = self._table = tf.lookup.StaticHashTable(entries, UNK)

    @classmethod
    def learn(cls, lines, vocabulary_size=None, min_count=1, split="words", lower=False):
        """Makes a tokenizer of the words in an iterable of str, the most frequent first.

        Args:
            lines: iterable of str.
            vocabulary_size: V at most, which counts the four special ids. None: no limit.
            min_count: how often a word must occur.
            split, lower: as in the constructor.

        Raises:
            TypeError: `lines` is one str, or an item is not a str.
            ValueError: no word, or none as often as `min_count`; a wrong `split`, `min_count` or `vocabulary_size`.
        """
        _check_count("min_count", min_count, 1)
        if vocabulary_size is not None:
            _check_count("vocabulary_size", vocabulary_size, len(_SPECIAL_PIECES) + 1)
        counts = _count(lines, lambda texts: _split(texts, _SPLITS[_checked_split(split)], lower))
        kept = [word for word, count in _by_frequency(counts) if count >= min_count]
        if not kept:
            raise ValueError(
                f"WordTokenizer.learn expects text to learn from. Received: {len(counts)} words, none of them "
                f"{min_count} times or more (split={split!r})."
            )
        limit = None if vocabulary_size is None else vocabulary_size - len(_SPECIAL_PIECES)
        return cls(kept[:limit], split, lower)

    def _surface(self, piece):
        text = piece.decode()
        if self.split == "punctuation" and text in _CLOSING:
            return piece
        if self.split == "punctuation" and text in _OPENING:
            return b" " + piece + b"\n"
        return b" " + piece

    def tokenize(self, texts):
        """Cuts texts into words.

        Args:
            texts: strings [B], a tensor, list or NumPy array. Invalid UTF-8 is first replaced by U+FFFD.

        Returns:
            int32 `tf.RaggedTensor` [B, (S)], without START and END.
        """
        words = _split(_as_texts(texts), _SPLITS[self.split], self.lower)
        return words.with_flat_values(self._table.lookup(words.flat_values))

    def detokenize(self, ids):
        import tensorflow as tf

        texts = super().detokenize(ids)
        if self.split != "punctuation":
            return texts
        # A line end follows an opening sign. The blank behind it goes, except before a mark, which would join the sign.
        texts = tf.strings.regex_replace(texts, rf"\n ([\pM{_TINT}])", r" \1")
        return tf.strings.regex_replace(texts, r"\n ?", "")

    detokenize.__doc__ = _Tokenizer.detokenize.__doc__

    def get_config(self):
        return {"words": list(self.words), "split": self.split, "lower": self.lower}


class WordPieceTokenizer(_JoinedByBlanks):
    """BERT's WordPiece: every word is cut into the longest pieces of a list, from the left.

    1. A word is a run of letters and digits; every other sign, and every Chinese character, is one by itself.
    2. The first piece of a word is the longest one of the list that it begins with; so is every further piece, which
       stands in the list with "##" before it.
    3. A word that cannot be cut to its end, or has more than 1000 bytes, is one UNK.

    Unlike BERT's "uncased" models, `lower` keeps accents and leaves Hangul whole.

    `detokenize` joins the pieces of a word, and words with one blank each. It cannot know where there was none:
    "Mann's Hut, der 3,50" comes back as "Mann ' s Hut , der 3 , 50", which is read as the same ids again.

    Args:
        pieces: list of str, in the order of their ids; no piece twice, none with a blank or control character in it.
        lower: whether texts are lowercased first.

    Raises:
        ImportError: tensorflow-text is not installed.
        TypeError: `pieces` is one str.
        ValueError: `pieces` is empty or holds what is no piece.

    Example:

    >>> tokenizer = WordPieceTokenizer(["un", "##aff", "##able", "!"])
    >>> ids = tokenizer.tokenize(["unaffable!", "unable an"])
    >>> ids.to_list()
    [[4, 5, 6, 7], [4, 6, 1]]
    >>> tokenizer.detokenize(ids[:1]).numpy().tolist()
    [b'unaffable !']

    Reference: Wu et al., 2016, https://arxiv.org/abs/1609.08144; Song et al., 2021, https://arxiv.org/abs/2012.15524
    (the algorithm).
    """

    def __init__(self, pieces, lower=False):
        import tensorflow as tf

        text = _tensorflow_text("WordPieceTokenizer")
        self._vocabulary = _checked_word_pieces(pieces)
        self.lower = bool(lower)
        self._set_pieces([piece.encode() for piece in self._vocabulary])
        with tf.init_scope():
            self._cutter = text.FastWordpieceTokenizer(
                ["<pad>", "<unk>", "<s>", "</s>", *self._vocabulary],
                max_bytes_per_word=_LONGEST,
                token_out_type=tf.int32,
                unknown_token="<unk>",
                no_pretokenization=True,
            )

    @classmethod
    def learn(cls, lines, vocabulary_size, lower=False):
        """Learns pieces; the same lines give the same pieces.

        All characters come first: letters and digits of longer words in both forms ("a" and "##a"), so that no word
        made of learned ones is unknown. Then come the merges of byte-pair encoding over the counted words, which
        SentencePiece learns.

        Args:
            lines: iterable of str.
            vocabulary_size: V at most, which counts the four special ids; fewer where the text has no more to merge.
            lower: as in the constructor.

        Raises:
            ImportError: sentencepiece or tensorflow-text is not installed.
            TypeError: `lines` is one str, or an item is not a str.
            ValueError: no text, or a `vocabulary_size` that is too small for its characters.
        """
        _check_count("vocabulary_size", vocabulary_size, len(_SPECIAL_PIECES) + 1)
        _tensorflow_text("WordPieceTokenizer")
        counts = _count(lines, lambda texts: _split_bert(texts, lower))
        counts = {word: count for word, count in counts.items() if len(word.encode()) <= _LONGEST}
        if not counts:
            raise ValueError("WordPieceTokenizer.learn expects text to learn from. Received: no word at all.")
        alphabet = _alphabet(counts)
        least = len(_SPECIAL_PIECES) + len(alphabet)
        if vocabulary_size < least:
            raise ValueError(
                f"vocabulary_size must be at least {least} for this text (4 special pieces, its characters at the "
                f"start and inside of words). Received: {vocabulary_size}; raise it."
            )
        merges = _learn_merges(counts, vocabulary_size - len(_SPECIAL_PIECES))
        pieces = list(dict.fromkeys([*alphabet, *merges]))
        return cls(pieces[: vocabulary_size - len(_SPECIAL_PIECES)], lower)

    def _surface(self, piece):
        return piece[2:] if piece.startswith(b"##") else b" " + piece

    def tokenize(self, texts):
        """Cuts texts into pieces.

        Args:
            texts: strings [B], a tensor, list or NumPy array. Invalid UTF-8 is first replaced by U+FFFD.

        Returns:
            int32 `tf.RaggedTensor` [B, (S)], without START and END.
        """
        return self._cutter.tokenize(_split_bert(_as_texts(texts), self.lower)).merge_dims(1, 2)

    def get_config(self):
        return {"pieces": list(self._vocabulary), "lower": self.lower}


def _split(texts, pattern, lower):
    """What the pattern finds in texts of valid UTF-8, ragged [B, (S)]; what lies between is dropped."""
    import tensorflow as tf

    texts = tf.strings.lower(texts, "utf-8") if lower else texts
    return tf.strings.split(tf.strings.regex_replace(texts, f"(?s)({pattern})|.", r"\1 "))


def _split_bert(texts, lower):
    import tensorflow as tf

    return _split(tf.strings.regex_replace(texts, _HAN, r" \1 "), _BERT, lower)


def _count(lines, split):
    """How often each token occurs in an iterable of str, cut as the graph cuts it."""
    counts = Counter()
    lines = _checked_lines(lines)
    while some := list(itertools.islice(lines, _LINES_AT_ONCE)):
        counts.update(split(_as_texts(some)).flat_values.numpy().tolist())
    return {word.decode(): count for word, count in counts.items()}


def _by_frequency(counts):
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _alphabet(words):
    """The pieces of one character that cut all words, sorted."""
    both = {character for word in words if len(word) > 1 for character in word if character.isalnum()}
    first = both.union(word[0] for word in words)
    inside = both.union(*(word[1:] for word in words))
    return sorted(first) + [f"##{character}" for character in sorted(inside)]


def _learn_merges(counts, number):
    """At most `number` pieces that byte-pair encoding of the counted words makes, in its order."""
    sentencepiece = _sentencepiece("Learning subword pieces")
    block = "\u2581"  # the sign with which SentencePiece marks the start of a word
    words = [(word, count) for word, count in _by_frequency(counts) if block not in word]
    if not words:
        return []
    characters = set().union(block, *(word for word, _ in words))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in words),
        input_format="tsv",
        model_writer=model,
        vocab_size=3 + len(characters) + number,  # with <unk>, <s>, </s>
        hard_vocab_limit=False,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",
        split_by_unicode_script=False,
        split_by_number=False,
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    learned = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    merges = [piece for piece in learned if len(piece) > 1]
    return [piece[1:] if piece.startswith(block) else f"##{piece}" for piece in merges]


def _checked_split(split):
    if split not in _SPLITS:
        names = ", ".join(f'"{name}"' for name in _SPLITS)
        raise ValueError(f"split must be one of {names}. Received: split={split!r}")
    return split


def _checked_pieces(pieces, name):
    if isinstance(pieces, (str, bytes)):
        raise TypeError(f"{name} must be a list of str. Received: {_short(pieces)}")
    pieces = list(pieces)
    if not pieces:
        raise ValueError(f"{name} must not be empty. Received: {name}=[]")
    for piece in pieces:
        if not isinstance(piece, str) or piece.split() != [piece] or re.search("[\ud800-\udfff]", piece):
            raise ValueError(f"{name} must be str of valid Unicode, without blanks. Received: {_short(piece)}")
    _check_unique(pieces, name)
    return pieces


def _check_unique(pieces, name):
    piece, count = Counter(pieces).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{name} must not repeat. Received: {piece!r} {count} times.")


def _checked_word_pieces(pieces):
    pieces = _checked_pieces(pieces, "pieces")
    for piece in pieces:
        controls = any(unicodedata.category(character) == "Cc" for character in piece)
        if controls or piece in ("##", "<pad>", "<unk>", "<s>", "</s>"):
            raise ValueError(
                f'pieces must not be "##" or a special piece, nor hold control characters. Received: {_short(piece)}'
            )
    return pieces


def _check_count(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int, at least {least}. Received: {_short(value)}")
