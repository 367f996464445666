"""Tokenizers: text -> ids -> text, in TensorFlow's graph, so that they can live inside a SavedModel.

Characters and SentencePiece stand here and give back exactly the text that went in; words and WordPiece stand in
words.py. All start their vocabulary with the same four ids:

| id | name  | piece    | written back as          |
|----|-------|----------|--------------------------|
| 0  | PAD   | ""       | nothing                  |
| 1  | UNK   | "<unk>"  | U+FFFD, the sign for "?" |
| 2  | START | "<s>"    | nothing                  |
| 3  | END   | "</s>"   | nothing                  |

Shapes: B batch, S tokens of a text, C characters of a batch, V vocabulary.
"""

import base64
import hashlib
import io
import itertools
import json
import os
import random
import re
from pathlib import Path

PAD, UNK, START, END = 0, 1, 2, 3

_SPECIAL_PIECES = [b"", b"<unk>", b"<s>", b"</s>"]
_BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")

# SentencePiece writes a blank as U+2581, so that a U+2581 of the text itself would come back as a blank. It
# is escaped before: U+2581 becomes _MARK _BLOCK, and a _MARK of the text becomes _MARK _SELF.
_BLOCK_SIGN = "\u2581"
_MARK, _BLOCK, _SELF = "\x10", "\x11", "\x12"
UNFINISHED = f"\ufffd{_MARK}"  # how a text ends that more ids may still change: half a character, half an escaped one


class _Tokenizer:
    """What the tokenizers share: ids -> pieces and ids -> text, by two tables of V strings.

    A subclass calls `_set_pieces` in its constructor and offers `tokenize`, `get_config` and `learn`.

    Attributes:
        vocabulary_size: V, the number of ids.
        trackable: a `tf.Module` with the resources of the tokenizer. Attach it to the module that is saved:
            `module.source_tokenizer = tokenizer.trackable`.
    """

    _unknown = "\ufffd".encode()  # what UNK is written back as

    def _set_pieces(self, pieces):
        """Makes the tables from all pieces after the four special ones; a byte's piece is like b"<0xE2>"."""
        import tensorflow as tf

        surfaces = [self._surface(piece) for piece in pieces]
        self.vocabulary_size = len(_SPECIAL_PIECES) + len(pieces)
        with tf.init_scope():
            self._pieces = tf.constant(_SPECIAL_PIECES + pieces)
            self._surfaces = tf.constant([b"", self._unknown, b"", b"", *surfaces])
            self.trackable = tf.Module()

    def _surface(self, piece):
        match = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(match[1], 16)]) if match else piece

    def pieces(self, ids):
        """The pieces of the ids, for people to read: one string for every id.

        Args:
            ids: integers in [0, V), a dense or ragged tensor of any shape.

        Returns:
            Strings of the same shape; PAD is "", a byte is like "<0xE2>".

        Raises:
            tf.errors.InvalidArgumentError: an id is outside of [0, V).
        """
        import tensorflow as tf

        return tf.gather(self._pieces, _integers(ids))

    def detokenize(self, ids):
        """Joins ids to texts; PAD, START and END are dropped, bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: integers in [0, V), ragged [B, (S)] or dense [B, S] padded with PAD.

        Returns:
            Strings [B], valid UTF-8.

        Raises:
            ValueError: ids are not of rank 2.
            tf.errors.InvalidArgumentError: an id is outside of [0, V).
        """
        import tensorflow as tf

        ids = _integers(ids)
        ids = ids.to_tensor(PAD) if isinstance(ids, tf.RaggedTensor) else ids
        if ids.shape.rank not in (2, None):
            raise ValueError(f"detokenize expects ids of shape [B, S]. Received: shape={tuple(ids.shape)}")
        return _valid_utf8(tf.strings.reduce_join(tf.gather(self._surfaces, ids), axis=1))

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class CharacterTokenizer(_Tokenizer):
    """One id for every character (Unicode code point), and with byte fallback nothing is ever unknown.

    1. Ids 0 to 3 are PAD, UNK, START and END.
    2. With `byte_fallback` the next 256 ids are the bytes 0x00 to 0xFF.
    3. Then come the characters, in the order given.

    A character outside of the vocabulary becomes the bytes of its UTF-8 form, so that
    `detokenize(tokenize(texts))` equals `texts` exactly. Without byte fallback it becomes UNK.

    Args:
        characters: str, or a list of strings of one character each; no character twice.
        byte_fallback: whether an unknown character becomes its bytes (else UNK).

    Raises:
        ValueError: a character stands twice, is not one character, or is half of a surrogate pair.

    Example:

    >>> tokenizer = CharacterTokenizer("abc", byte_fallback=False)
    >>> tokenizer.tokenize(["cab", "", "ax"]).to_list()
    [[6, 4, 5], [], [4, 1]]
    >>> tokenizer.detokenize([[6, 4, 5, 0, 0]]).numpy().tolist()
    [b'cab']
    """

    def __init__(self, characters, byte_fallback=True):
        import numpy as np
        import tensorflow as tf

        characters = _checked_characters(characters)
        self.characters = "".join(characters)
        self.byte_fallback = bool(byte_fallback)
        byte_pieces = [b"<0x%02X>" % byte for byte in range(256)] if byte_fallback else []
        self._set_pieces(byte_pieces + [character.encode() for character in characters])

        # Lookup by binary search in the sorted code points; -1 lets the tables of an empty vocabulary work.
        points = np.array([-1] + [ord(character) for character in characters], "int32")
        order = np.argsort(points)
        first = self.vocabulary_size - len(characters)
        with tf.init_scope():
            self._points = tf.constant(points[order])
            self._point_ids = tf.constant((first - 1 + order).astype("int32"))

    @classmethod
    def learn(cls, lines, byte_fallback=True):
        """Makes a tokenizer of all characters in an iterable of str, sorted by code point.

        Raises:
            TypeError: `lines` is one str, or an item is not a str.
            ValueError: there is no text in `lines`.
        """
        characters = set()
        for line in _checked_lines(lines):
            characters.update(line)
        if not characters:
            raise ValueError("CharacterTokenizer.learn expects text to learn from. Received: no character at all.")
        return cls(sorted(characters), byte_fallback)

    def extended(self, lines):
        """A tokenizer that also knows the other characters of `lines`, for fine-tuning on new text.

        All ids stay as they are; the new characters are appended, sorted by code point, so that an embedding grows at
        its end. Returns `self` where nothing is new.

        Args:
            lines: iterable of str.

        Raises:
            TypeError: `lines` is one str, or an item is not a str.

        Example:

        >>> tokenizer = CharacterTokenizer("ba", byte_fallback=False).extended(["abc", "d"])
        >>> tokenizer.characters
        'bacd'
        """
        new = set(itertools.chain.from_iterable(_checked_lines(lines))) - set(self.characters)
        return type(self)(self.characters + "".join(sorted(new)), self.byte_fallback) if new else self

    def tokenize(self, texts):
        """Cuts texts into characters.

        Args:
            texts: strings [B], a tensor, list or NumPy array. Invalid UTF-8 is first replaced by U+FFFD.

        Returns:
            int32 `tf.RaggedTensor` [B, (S)], without START and END.
        """
        import tensorflow as tf

        characters = tf.strings.unicode_split(_as_texts(texts), "UTF-8")  # [B, (characters)]
        flat = characters.flat_values  # [C]
        points = tf.strings.unicode_decode(flat, "UTF-8").flat_values  # [C], one code point each
        where = tf.searchsorted(self._points, points, side="right") - 1
        known = tf.gather(self._points, where) == points
        ids = tf.where(known, tf.gather(self._point_ids, where), UNK)
        if not self.byte_fallback:
            return characters.with_flat_values(ids)

        bytes_ = tf.cast(tf.io.decode_raw(flat, tf.uint8, fixed_length=4), tf.int32)  # [C, 4], zeros behind
        cells = tf.where(known[:, None], ids[:, None], bytes_ + len(_SPECIAL_PIECES))
        lengths = tf.where(known, 1, tf.strings.length(flat))  # [C], cells in use
        values = tf.boolean_mask(cells, tf.sequence_mask(lengths, 4))
        ends = tf.concat([[0], tf.cumsum(lengths)], axis=0)
        splits = tf.gather(tf.cast(ends, tf.int64), characters.row_splits)
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)

    def get_config(self):
        return {"characters": self.characters, "byte_fallback": self.byte_fallback}


class SentencePieceTokenizer(_Tokenizer):
    """Subword pieces of a SentencePiece model (BPE or unigram).

    A model that `learn` made gives back every text exactly: blanks are kept, nothing is normalized, and a
    character outside of the vocabulary becomes the bytes of its UTF-8 form. A word has the same pieces at the
    start of a text as inside, because a blank is put before every text, and taken away again; pieces show a
    blank as U+2581.

    Args:
        model: bytes, a serialized SentencePiece model whose ids 0 to 3 are PAD, UNK, START and END. One that
            `learn` did not make gives back texts as far as its own normalization allows, and must not add a
            blank of its own (`add_dummy_prefix=False` or `remove_extra_whitespaces=True`).

    Raises:
        ImportError: tensorflow-text is not installed.
        TypeError, ValueError: `model` is not bytes, is not a model, or has other ids for the special pieces.

    Example:

    >>> tokenizer = SentencePieceTokenizer.learn(["the cat", "the hat"], vocabulary_size=270)
    >>> ids = tokenizer.tokenize(["  the that "])
    >>> tokenizer.detokenize(ids).numpy().tolist()
    [b'  the that ']
    """

    def __init__(self, model):
        import tensorflow as tf

        if not isinstance(model, bytes):
            raise TypeError(f"SentencePieceTokenizer expects the bytes of a model. Received: {_short(model)}")
        text = _tensorflow_text("SentencePieceTokenizer")
        self.model = model
        # The name must differ from model to model: `tf.saved_model.load` gives all SentencePiece processors of one
        # name the same resource, so that a source and a target tokenizer would both get the last one's model.
        name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
        with tf.init_scope():
            try:
                processor = text.SentencepieceTokenizer(model, name=name)
                size = int(processor.vocab_size())
            except tf.errors.OpError:
                raise ValueError(
                    "SentencePieceTokenizer expects the bytes of a SentencePiece model. "
                    f"Received: {len(model)} bytes that are none, or only a part of one."
                ) from None
            special = [processor.string_to_id(name) for name in ("<unk>", "<s>", "</s>")]
            pieces = processor.id_to_string(tf.range(size)).numpy().tolist()
        if size < 5 or [int(i) for i in special] != [UNK, START, END] or pieces[PAD] != b"<pad>":
            raise ValueError(
                "SentencePieceTokenizer expects a model whose ids 0 to 3 are <pad>, <unk>, <s>, </s> "
                f"(learned with pad_id=0, unk_id=1, bos_id=2, eos_id=3). Received: {pieces[:4]}"
            )
        self._set_pieces(pieces[len(_SPECIAL_PIECES) :])
        self.trackable.processor = self._processor = processor

    @classmethod
    def learn(cls, lines, vocabulary_size, kind="bpe", character_coverage=0.9995, max_lines=None, seed=0):
        """Learns a vocabulary; the same lines give the same bytes.

        Args:
            lines: iterable of str; all of them are held in memory.
            vocabulary_size: V, which counts 4 special pieces, 256 bytes and every covered character.
            kind: "bpe" or "unigram".
            character_coverage: share of the text whose characters get a piece of their own, 0.98 to 1; the
                others, the rarest, are written as bytes.
            max_lines: learn from this many lines, drawn at random, where there are more. None: from all.
            seed: of that draw.

        Raises:
            ImportError: sentencepiece or tensorflow-text is not installed.
            TypeError: `lines` is one str, or an item is not a str.
            ValueError: no text, a wrong `kind` or `character_coverage`, or a `vocabulary_size` that the text
                cannot fill or that is too small for its characters.
        """
        if kind not in ("bpe", "unigram"):
            raise ValueError(f'kind must be "bpe" or "unigram". Received: kind={kind!r}')
        if isinstance(vocabulary_size, bool) or not isinstance(vocabulary_size, int) or vocabulary_size < 1:
            raise ValueError(f"vocabulary_size must be a positive int. Received: {vocabulary_size!r}")
        if not 0.98 <= character_coverage <= 1:
            raise ValueError(f"character_coverage must be from 0.98 to 1. Received: {character_coverage!r}")
        _tensorflow_text("SentencePieceTokenizer")
        lines = [" " + _escape(line) for line in _checked_lines(lines) if line.strip()]
        if not lines:
            raise ValueError("SentencePieceTokenizer.learn expects text to learn from. Received: no line with text.")
        if max_lines is not None and len(lines) > max_lines:
            lines = random.Random(seed).sample(lines, max_lines)
        return cls(_learn_sentencepiece(lines, vocabulary_size, kind, character_coverage))

    def _surface(self, piece):
        return super()._surface(piece).replace(_BLOCK_SIGN.encode(), b" ")

    def tokenize(self, texts):
        """Cuts texts into pieces.

        Args:
            texts: strings [B], a tensor, list or NumPy array. Invalid UTF-8 is first replaced by U+FFFD.

        Returns:
            int32 `tf.RaggedTensor` [B, (S)], without START and END.
        """
        import tensorflow as tf

        texts = _as_texts(texts)
        escaped = tf.strings.regex_replace(texts, _MARK, _MARK + _SELF)
        escaped = tf.strings.regex_replace(escaped, _BLOCK_SIGN, _MARK + _BLOCK)
        return self._processor.tokenize(tf.where(texts == "", "", " " + escaped))

    def detokenize(self, ids):
        import tensorflow as tf

        texts = tf.strings.regex_replace(super().detokenize(ids), r"\A ", "")
        texts = tf.strings.regex_replace(texts, _MARK + _BLOCK, _BLOCK_SIGN)
        return tf.strings.regex_replace(texts, _MARK + _SELF, _MARK)

    detokenize.__doc__ = _Tokenizer.detokenize.__doc__

    def get_config(self):
        return {"model": base64.b64encode(self.model).decode("ascii")}

    @classmethod
    def from_config(cls, config):
        return cls(base64.b64decode(config["model"], validate=True))


def bpe_dropout(model, ids, dropout, seed):
    """Cuts texts anew, at random, so that every epoch of a training sees other pieces of a word.

    Each merge of two pieces is left out with probability `dropout`; the text stays the same.

    Args:
        model: bytes, the model of a SentencePieceTokenizer of kind "bpe".
        ids: list of lists of ids.
        dropout: 0 gives the ids of `tokenize`, 1 single characters; 0.1 is usual, and makes texts a third longer.
        seed: the same seed gives the same cuts.

    Returns:
        A list of lists of ids.

    Raises:
        ImportError: sentencepiece is not installed. (TensorFlow is not needed.)
        ValueError: the model is of kind "unigram".

    References:
        Provilkov et al. 2020, "BPE-Dropout", https://arxiv.org/abs/1910.13267
    """
    sentencepiece = _sentencepiece("BPE dropout")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    # BPE ranks its pieces by integers, unigram by log-probabilities.
    if any(processor.get_score(piece) % 1 for piece in range(processor.get_piece_size())):
        raise ValueError("BPE dropout expects a SentencePiece model of kind bpe. Received: one of kind unigram.")
    sentencepiece.set_random_generator_seed(seed)
    texts = processor.decode(ids)
    return processor.encode(texts, enable_sampling=True, alpha=dropout, nbest_size=-1, num_threads=1)


def _classes():
    from .words import WordPieceTokenizer, WordTokenizer  # which import this module

    classes = (CharacterTokenizer, SentencePieceTokenizer, WordTokenizer, WordPieceTokenizer)
    return {cls.__name__: cls for cls in classes}


def save_tokenizer(tokenizer, path):
    """Writes a tokenizer to a JSON file, `{"class_name": ..., "config": ...}`.

    The file appears, or replaces an old one, only when it is whole.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tokenizer(CharacterTokenizer("abc"), f"{folder}/tokenizer.json")
    ...     load_tokenizer(f"{folder}/tokenizer.json").characters
    'abc'
    """
    path = Path(path)
    content = {"class_name": type(tokenizer).__name__, "config": tokenizer.get_config()}
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_tokenizer(path):
    """Reads a tokenizer that `save_tokenizer` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole tokenizer file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a tokenizer file that save_tokenizer wrote, but there is no file {path}")
    try:
        content = json.loads(path.read_bytes())
        name, config = str(content["class_name"]), content["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not a whole tokenizer file: expected JSON with "class_name" and "config" ({error!r}).'
        ) from None
    classes = _classes()
    if name not in classes:
        raise ValueError(f"{path}: expected a tokenizer class of {sorted(classes)}. Received: {name!r}")
    try:
        return classes[name].from_config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the config does not make a {name}: {error}") from None


def _as_texts(texts):
    """Texts as a tensor of valid UTF-8 strings, [B]."""
    import tensorflow as tf

    try:
        texts = tf.convert_to_tensor(texts, tf.string)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tokenize expects strings of shape [B]. Received: {_short(texts)} ({error})") from None
    if texts.shape.rank not in (1, None):
        raise ValueError(f"tokenize expects strings of shape [B]. Received: shape={tuple(texts.shape)}")
    return _valid_utf8(texts)


def _integers(ids):
    import tensorflow as tf

    ids = ids if isinstance(ids, tf.RaggedTensor) else tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise TypeError(f"ids must be integers. Received: dtype={ids.dtype.name}")
    return ids


def _valid_utf8(texts):
    import tensorflow as tf

    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")


def _escape(text):
    return text.replace(_MARK, _MARK + _SELF).replace(_BLOCK_SIGN, _MARK + _BLOCK)


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked_characters(characters):
    characters = list(characters)
    for character in characters:
        if not isinstance(character, str) or len(character) != 1 or "\ud800" <= character <= "\udfff":
            raise ValueError(f"characters must be single Unicode characters. Received: {_short(character)}")
    if len(set(characters)) < len(characters):
        twice = next(c for i, c in enumerate(characters) if c in characters[:i])
        raise ValueError(f"characters must not repeat. Received: {twice!r} twice.")
    return characters


def _checked_lines(lines):
    if isinstance(lines, (str, bytes)):
        raise TypeError(f"lines must be an iterable of str, such as a list. Received: {_short(lines)}")
    for number, line in enumerate(lines, 1):
        if not isinstance(line, str):
            raise TypeError(f"lines must hold str only. Received: {_short(line)} as item {number}.")
        if re.search("[\ud800-\udfff]", line):
            raise ValueError(f"lines must be valid Unicode. Received: half a surrogate pair in item {number}.")
        yield line


def _tensorflow_text(needed_by):
    try:
        import tensorflow_text
    except ImportError:
        raise ImportError(
            f"{needed_by} needs tensorflow-text (pip install tensorflow-text), which does not "
            "exist for Windows: use WSL there, or CharacterTokenizer."
        ) from None
    return tensorflow_text


def _sentencepiece(purpose):
    try:
        import sentencepiece
    except ImportError:
        raise ImportError(f'{purpose} needs sentencepiece: pip install "keras-attention-zoo[train]"') from None
    return sentencepiece


def _learn_sentencepiece(lines, vocabulary_size, kind, character_coverage):
    sentencepiece = _sentencepiece("Learning subword pieces")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocabulary_size,
            model_type=kind,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # decoding one would take away all blanks at the start: the blank is ours
            max_sentence_length=max(4192, 4 * max(map(len, lines)) + 1),  # longer ones are left out silently
            pad_id=PAD,
            unk_id=UNK,
            bos_id=START,
            eos_id=END,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_learning_error(str(error), vocabulary_size, kind)) from None
    return model.getvalue()


def _learning_error(message, vocabulary_size, kind):
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocabulary_size must be at least {found[1]} for this text (4 special pieces, 256 bytes, its "
            f"characters). Received: {vocabulary_size}; raise it, or lower character_coverage."
        )
    if found := re.search(r"too high .*<= (\d+)", message):
        return (
            f"vocabulary_size must be at most {found[1]} for this text (kind={kind!r}). "
            f"Received: {vocabulary_size}; lower it, or learn from more text."
        )
    return f"SentencePiece could not learn {vocabulary_size} pieces (kind={kind!r}) from this text: {message}"
