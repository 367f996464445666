"""Dates as people write them, drawn without end, with their ISO 8601 reading.

    Friday, November 20th, 2026  ->  2026-11-20
    2026년 11월 20일 금요일        ->  2026-11-20
    en_US: 11/20/26              ->  2026-11-20

The names and the patterns are those of the Unicode CLDR, read by babel at the first draw, and each
locale's own habits beside them (ordinals, other orders and separators). A form is a list of pieces, one
per field or literal, each a table of ready strings; an example picks from the tables, so that the
characters of the year, the month and the day are known exactly.

Readings that differ between locales carry their locale in front (`en_GB: 03/04/2021`). So do years of two
digits, which mean 1950 to 2049, unless an apostrophe or a unit names the year. A date belongs to one
split for ever, by its hash, so that no date of one split is ever seen in another.

The strings depend on babel's version of the CLDR: the same arguments give the same examples under the
same babel and NumPy.
"""

import datetime
import hashlib
import re
import unicodedata
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

import numpy as np

from ..errors import InputError
from .drawing import SPLITS, check_draw

LOCALES = (
    "en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "pt_BR", "nl_NL", "sv_SE", "da_DK", "nb_NO",
    "fi_FI", "pl_PL", "cs_CZ", "hu_HU", "tr_TR", "ro_RO", "ru_RU", "uk_UA", "el_GR", "ko_KR", "ja_JP",
    "zh_CN", "vi_VN", "id_ID",
)  # fmt: skip
PART_OF_TARGET = {"year": (0, 4), "month": (5, 7), "day": (8, 10)}

FIRST_YEAR, LAST_YEAR = 1900, 2099
FIRST_SHORT_YEAR, LAST_SHORT_YEAR = 1950, 2049  # what two digits may mean

# Patterns beside CLDR's, in CLDR's letters (y year, M month, d day, E weekday, '...' text), but D is an
# ordinal day. A pattern written twice is drawn twice as often.
_DAY_FIRST = (
    "d MMMM y", "d MMM y", "dd MMMM y", "EEEE d MMMM y", "EEEE, d MMMM y", "E d MMM y",
    "E, d MMM y", "d-MMM-y", "d-MMM-yy",
)  # fmt: skip
_ENGLISH = (
    "d MMMM, y", "D MMMM y", "D MMM y", "MMMM D, y", "MMM D, y", "EEEE, MMMM D, y",
    "EEEE D MMMM y", "MMMM d y", "EEEE, D MMMM y", "'the' D 'of' MMMM y", "'the' D 'of' MMMM, y",
    "EEEE 'the' D 'of' MMMM y", "D 'of' MMMM y", "y MMMM d", "y MMM dd", "y-MMM-dd", "MMM dd, y",
    "MMMM d, ''yy", "d MMM ''yy",
)  # fmt: skip
_AMERICAN = ("MMMM d, y", "MMM d, y", "EEEE, MMMM d, y", "E, MMM d, y", "EEE MMM d, y", "MMM-dd-y")
_PATTERNS = {
    "en_US": 8 * _AMERICAN[:3] + _AMERICAN + _ENGLISH + ("d MMMM y", "d MMM y", "d-MMM-y", "d-MMM-yy"),
    "en_GB": 2 * _DAY_FIRST + _AMERICAN + _ENGLISH,
    "de_DE": (
        "d. MMMM y", "d. MMM y", "'den' d. MMMM y", "EEEE, 'den' d. MMMM y", "E, d. MMMM y",
        "d MMMM y", "dd. MMMM y", "EEEE, d. MMM y",
    ),
    "fr_FR": (
        *_DAY_FIRST, "D MMMM y", "'le' D MMMM y", "EEEE D MMMM y", "'le' EEEE D MMMM y",
        "'Le' d MMMM y",
    ),
    "es_ES": (
        *_DAY_FIRST, "d 'de' MMMM 'del' y", "EEEE d 'de' MMMM 'de' y", "'el' d 'de' MMMM 'de' y",
        "d/MMM/y",
    ),
    "it_IT": (*_DAY_FIRST, "D MMMM y", "EEEE D MMMM y", "'il' d MMMM y"),
    "pt_BR": (
        *_DAY_FIRST, "D 'de' MMMM 'de' y", "d/MMM/y", "EEEE, D 'de' MMMM 'de' y",
        "d 'de' MMM 'de' y",
    ),
    "nl_NL": (*_DAY_FIRST, "'op' d MMMM y"),
    "sv_SE": (*_DAY_FIRST, "'den' d MMMM y", "EEEE 'den' d MMMM y"),
    "da_DK": ("d. MMMM y", "d. MMM y", "'den' d. MMMM y", "EEEE d. MMMM y", "d MMMM y", "E d. MMM y"),
    "nb_NO": ("d. MMMM y", "d. MMM y", "EEEE d. MMMM y", "EEEE, d. MMMM y", "d MMMM y", "'den' d. MMMM y"),
    "fi_FI": ("d. MMMM y", "d MMMM y", "E d. MMMM y", "EEEE d. MMMM y", "cccc, d. MMMM y"),
    "pl_PL": (*_DAY_FIRST, "d MMMM y 'r'.", "EEEE, d MMMM y 'r'.", "'dnia' d MMMM y 'r'."),
    "cs_CZ": (
        "d. MMMM y", "EEEE d. MMMM y", "EEEE, d. MMMM y", "d MMMM y", "'dne' d. MMMM y",
        "E d. MMM y",
    ),
    "hu_HU": ("y. MMMM d.", "y. MMM d.", "y. MMMM d., EEEE", "y. MMMM d. EEEE", "y MMMM d", "y. MMMM dd."),
    "tr_TR": (
        "d MMMM y", "d MMM y", "d MMMM y EEEE", "d MMMM y, EEEE", "dd MMMM y", "d MMM y, E",
        "d-MMM-y",
    ),
    "ro_RO": (*_DAY_FIRST, "'pe' d MMMM y", "EEEE, dd MMMM y"),
    "ru_RU": (*_DAY_FIRST, "d MMMM y 'года'", "EEEE, d MMMM y 'года'", "d MMMM y'г'."),
    "uk_UA": (*_DAY_FIRST, "d MMMM y 'року'", "EEEE, d MMMM y 'року'", "d MMMM y'р'."),
    "el_GR": (*_DAY_FIRST, "D MMMM y", "EEEE, D MMMM y"),
    "ko_KR": (
        "y년 M월 d일", "y년 M월 d일 EEEE", "y년 MM월 dd일", "y년 M월 d일 (E)", "y년 M월 d일, EEEE",
        "yy년 M월 d일", "yy년 M월 d일 (E)", "y년 MM월 dd일 EEEE", "y.MM.dd",
        "y.M.d", "y. MM. dd",
    ),
    "ja_JP": (
        "y年M月d日", "y年M月d日（E）", "y年MM月dd日", "y年M月d日 EEEE", "y年M月d日 (E)",
        "y年MM月dd日(E)",
    ),
    "zh_CN": (
        "y年M月d日", "y年MM月dd日", "y年M月d号", "y年M月d日 EEEE", "y年M月d日 E",
        "y年M月d日（EEEE）", "yy年M月d日",
    ),
    "vi_VN": (
        "d MMMM, y", "EEEE, 'ngày' d 'tháng' M 'năm' y", "'ngày' d 'tháng' M 'năm' y",
        "d 'tháng' M 'năm' y", "'Ngày' dd 'tháng' MM 'năm' y", "EEEE, d MMMM y", "d MMM y",
    ),
    "id_ID": (*_DAY_FIRST, "'tanggal' d MMMM y", "EEEE, dd MMMM y"),
}  # fmt: skip

# The numeric habits of each locale: the order of the fields and the separators between them.
_NUMERIC = {
    "en_US": ("mdy", "/", "/", "/", "-"), "en_GB": ("dmy", "/", "/", "-", "."), "de_DE": ("dmy", ".", ". "),
    "fr_FR": ("dmy", "/", "/", "-", "."), "es_ES": ("dmy", "/", "-"), "it_IT": ("dmy", "/", "/", "-", "."),
    "pt_BR": ("dmy", "/", "/", "-"), "nl_NL": ("dmy", "-", "-", "/"), "sv_SE": ("ymd", "-"),
    "da_DK": ("dmy", ".", "-", "/"), "nb_NO": ("dmy", "."), "fi_FI": ("dmy", "."), "pl_PL": ("dmy", ".", "-"),
    "cs_CZ": ("dmy", ". ", "."), "hu_HU": ("ymd", ". ", "."), "tr_TR": ("dmy", ".", "/"),
    "ro_RO": ("dmy", ".", "/"), "ru_RU": ("dmy", "."), "uk_UA": ("dmy", "."), "el_GR": ("dmy", "/", "-"),
    "ko_KR": ("ymd", ". ", ".", "-", "/"), "ja_JP": ("ymd", "/", "/", "."),
    "zh_CN": ("ymd", "/", "-", "."), "vi_VN": ("dmy", "/", "-"), "id_ID": ("dmy", "/", "-"),
}  # fmt: skip
_ISO = ("y-MM-dd", "y-MM-dd", "y-MM-dd", "y/MM/dd")

_ORDINALS = {"fr": "er", "it": "º", "pt": "º", "el": "η"}  # on the first of the month alone
_STYLES = (("cldr", 1.0), ("bare", 0.3), ("dotted", 0.3), ("other", 0.2))  # of abbreviations; two are English
_OTHER_ABBREVIATIONS = {"Sep": "Sept", "Sept": "Sep", "Tue": "Tues", "Thu": "Thurs"}
_TURKISH_LOWER, _TURKISH_UPPER = str.maketrans("Iİ", "ıi"), str.maketrans("iı", "İI")
_UNITS = "년월일年月日号"
_CASELESS = ("ko", "ja", "zh")
_KINDS = ("literal", "year", "month", "day", "weekday")
_LITERAL, _YEAR, _MONTH, _DAY, _WEEKDAY = range(5)

_GROUP_WEIGHTS = {"text": 0.58, "numeric": 0.20, "short": 0.14, "iso": 0.08}
_CASES = ("as is", "lower", "upper", "title", "plain")
_CASE_ODDS = np.cumsum([0.46, 0.18, 0.17, 0.16])  # the rest: plain, without accents
_SPACINGS = ("as is", "tight", "wide", "no comma", "blank 0", "blank 1", "blank 2")
_SPACING_ODDS = np.cumsum([0.74, 0.08, 0.03, 0.06, 0.03, 0.03])
_EDGES = [(" ", ""), ("", " "), ("  ", ""), (" ", " "), ("", "  ")] + 75 * [("", "")]


@dataclass(frozen=True, slots=True)
class DateExample:
    """A date as somebody wrote it, its ISO 8601 reading, and where its parts stand.

    Attributes:
        source: the text, with its locale in front (`"en_GB: 03/04/2021"`) where it needs one.
        target: `"YYYY-MM-DD"`; `PART_OF_TARGET` says which characters are the year, month and day.
        locale: the locale it was drawn in.
        spans: `"year"`, `"month"`, `"day"` -> `(start, stop)`, half-open, in code points of `source`. A
            span is the digits or the name with the unit or ordinal suffix attached to it ("11월", "20th",
            "1er"); the dot of an abbreviation is part of the name ("Nov."), the dot after a number is not.
    """

    source: str
    target: str
    locale: str
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to write a date: pieces `(kind, table)`, read at the kind's value (0 for a literal)."""

    pieces: tuple[tuple[int, tuple[str, ...]], ...]
    group: str  # a key of _GROUP_WEIGHTS
    weight: float
    prefix_rate: float
    ambiguous: bool  # needs the locale as long as the day could be a month
    variants: dict = field(default_factory=dict, compare=False)


def draw(count, *, seed, epoch=0, split="train", locales=LOCALES) -> list[DateExample]:
    """Draws examples: a deterministic function of its arguments.

    Half the dates come from 1900 to 2099, half from 1950 to 2049, where two digits may stand for the year.

    Args:
        count: how many.
        seed: a non-negative integer.
        epoch: a non-negative integer; each gives other examples of the same split.
        split: "train", "val" or "test", which share no calendar date (90 %, 5 % and 5 % of all).
        locales: names from `LOCALES`, in equal shares; a locale named twice has two shares.

    Returns:
        A list of `count` `DateExample`s in random order.

    Raises:
        InputError: on an unknown split or locale, a negative number, or without babel.

    Example:

    >>> example = draw(1, seed=7, locales=["ko_KR"])[0]
    >>> start, stop = example.spans["day"]
    >>> int(example.target[8:]) == int(example.source[start:stop].rstrip("일"))
    True
    """
    locales = _checked(count, seed, epoch, split, locales)
    entropy = [seed, epoch, SPLITS.index(split), zlib.crc32(" ".join(locales).encode())]
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    books = [_book(name) for name in locales]
    owners = rng.permutation(np.arange(count) % len(locales)).tolist()
    calendar, window = _calendar(split)
    anywhere = rng.integers(0, len(calendar), count)
    inside = rng.integers(window.start, window.stop, count)
    days = np.where(rng.random(count) < 0.5, anywhere, inside).tolist()
    form_draws, prefix_draws = rng.random((2, count)).tolist()
    cases = np.searchsorted(_CASE_ODDS, rng.random(count), side="right").tolist()
    spacings = np.searchsorted(_SPACING_ODDS, rng.random(count), side="right").tolist()
    edges = rng.integers(0, len(_EDGES), count).tolist()
    examples = []
    for owner, day, u, p, case, spacing, edge in zip(
        owners, days, form_draws, prefix_draws, cases, spacings, edges, strict=True
    ):
        name = locales[owner]
        values, target, short_allowed = calendar[day]
        forms, odds = books[owner][short_allowed]
        form = forms[bisect_right(odds, u)]
        prefixed = p < form.prefix_rate or (form.ambiguous and values[_DAY] <= 12)
        pieces = _variant(form, name, case, spacing)
        before, after = _EDGES[edge]
        source, spans = _write(pieces, values, f"{before}{name}: " if prefixed else before, after)
        examples.append(DateExample(source, target, name, spans))
    return examples


def pairs(count, *, seed, epoch=0, split="train", locales=LOCALES) -> tuple[list[str], list[str]]:
    """The texts alone of `draw`, which has the arguments and errors: `(sources, targets)`.

    Example:

    >>> sources, targets = pairs(3, seed=1, split="val")
    >>> len(sources), [len(target) for target in targets]
    (3, [10, 10, 10])
    """
    examples = draw(count, seed=seed, epoch=epoch, split=split, locales=locales)
    return [example.source for example in examples], [example.target for example in examples]


def split_of(date: datetime.date) -> str:
    """The one split, "train", "val" or "test", that a date belongs to.

    Example:

    >>> split_of(datetime.date(2026, 11, 20)) in SPLITS
    True
    """
    return _split_of(date.isoformat())


def _split_of(iso):
    bucket = int.from_bytes(hashlib.blake2b(iso.encode(), digest_size=8).digest(), "big") % 20
    return {0: "val", 1: "test"}.get(bucket, "train")


def _checked(count, seed, epoch, split, locales):
    check_draw("dates", count, seed, epoch, split)
    locales = (locales,) if isinstance(locales, str) else tuple(locales)
    unknown = [name for name in locales if name not in LOCALES]
    if unknown or not locales:
        wrong = f"unknown locale {unknown[0]!r}" if unknown else "no locale"
        raise InputError(f"locales of the dates task received {wrong}; known locales: {', '.join(LOCALES)}.")
    return locales


@cache
def _calendar(split):
    """The split's dates in order, (values by kind, ISO text, may be short), and the range of the short."""
    day, end = datetime.date(FIRST_YEAR, 1, 1), datetime.date(LAST_YEAR, 12, 31)
    entries = []
    while day <= end:
        iso = day.isoformat()
        if _split_of(iso) == split:
            short = FIRST_SHORT_YEAR <= day.year <= LAST_SHORT_YEAR
            entries.append(((0, day.year - FIRST_YEAR, day.month, day.day, day.weekday()), iso, short))
        day += datetime.timedelta(days=1)
    allowed = [index for index, entry in enumerate(entries) if entry[2]]
    return entries, range(allowed[0], allowed[-1] + 1)


def _write(pieces, values, before, after):
    """The text of the pieces between two strings, and the spans of year, month and day in it."""
    parts = [before]
    spans = {}
    position = len(before)
    for kind, table in pieces:
        part = table[values[kind]]
        parts.append(part)
        stop = position + len(part)
        if _LITERAL < kind < _WEEKDAY:
            spans[_KINDS[kind]] = (position, stop)
        position = stop
    parts.append(after)
    return "".join(parts), spans


# The forms of a locale


@cache
def _book(name):
    """The locale's forms and their cumulative odds, without (False) and with (True) years of two digits."""
    tables, unanimous = _tables(name), _unanimous_separators()
    forms = []
    for pattern in _patterns(name):
        for style, weight in _STYLES if name.startswith("en") else _STYLES[:2]:
            pieces = _pieces(pattern, tables, style)
            if pieces is not None:
                forms.append(_classified(pieces, weight, unanimous))
    long = [form for form in forms if form.group != "short"]
    return {False: (long, _odds(long)), True: (forms, _odds(forms))}


def _odds(forms):
    """Cumulative odds [len(forms) - 1]: the groups by their weights, the forms of a group by their own."""
    totals = {}
    for form in forms:
        totals[form.group] = totals.get(form.group, 0.0) + form.weight
    weights = [_GROUP_WEIGHTS[form.group] * form.weight / totals[form.group] for form in forms]
    return [value / sum(weights) for value in accumulate(weights)][:-1]


@cache
def _patterns(name):
    """All patterns of a locale: CLDR's, ours, the numeric ones and ISO 8601."""
    locale = _babel_locale(name)
    skeletons = [p for key, p in locale.datetime_skeletons.items() if set("yd") <= set(key) <= set("yMEd")]
    cldr = [p.pattern for p in [*locale.date_formats.values(), *skeletons]]
    cldr = [pattern for pattern in cldr if "ddd" not in pattern]  # ordinal days: Babel 2.19 writes 002 for them
    blanks = [p.replace("\u202f", " ") for p in cldr if "\u202f" in p]  # no keyboard has the narrow blank
    order, *separators = _NUMERIC[name]
    numeric = []
    for separator in separators:
        for year, month, day in (("y", "M", "d"), ("y", "MM", "dd"), ("yy", "M", "d"), ("yy", "MM", "dd")):
            fields = {"y": year, "m": month, "d": day}
            tail = "." if order == "ymd" and "." in separator and name in ("ko_KR", "hu_HU") else ""
            numeric.append(separator.join(fields[letter] for letter in order) + tail)
    return (*cldr, *blanks, *_PATTERNS[name], *numeric, *_ISO)


@cache
def _babel_locale(name):
    try:
        from babel import Locale
    except ImportError:
        raise InputError('The dates task needs babel: pip install "keras-attention-zoo[train]".') from None
    return Locale.parse(name)


@cache
def _tables(name):
    """What each field of a pattern writes: (letter, width) -> (kind, strings indexed by the kind's value)."""
    locale = _babel_locale(name)
    years = range(FIRST_YEAR, LAST_YEAR + 1)
    tables = {
        ("y", 1): (_YEAR, tuple(str(year) for year in years)),
        ("y", 2): (_YEAR, tuple(f"{year % 100:02d}" for year in years)),
        ("M", 1): (_MONTH, tuple(str(month) for month in range(13))),
        ("M", 2): (_MONTH, tuple(f"{month:02d}" for month in range(13))),
        ("d", 1): (_DAY, tuple(str(day) for day in range(32))),
        ("d", 2): (_DAY, tuple(f"{day:02d}" for day in range(32))),
        ("D", 1): (_DAY, tuple(_ordinal(day, locale.language) for day in range(32))),
    }
    for width, key in ((3, "abbreviated"), (4, "wide")):
        months = locale.months["format"][key]
        tables["M", width] = (_MONTH, ("", *(months[month] for month in range(1, 13))))
        for letter, context in (("E", "format"), ("c", "stand-alone")):
            names = locale.days[context][key]
            tables[letter, width] = (_WEEKDAY, tuple(names[day] for day in range(7)))
    return tables


def _ordinal(day, language):
    if language == "en":
        return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    return f"{day}{_ORDINALS.get(language, '')}" if day == 1 else str(day)


def _pieces(pattern, tables, style):
    """The pieces of a pattern, or None where the style of abbreviating changes nothing in it."""
    from babel.dates import tokenize_pattern

    pieces, changed = [], style == "cldr"
    joined = re.search(r"[-/]MMM\b", pattern) is not None  # 20-Nov-2026: no dot before the hyphen
    for token, value in tokenize_pattern(pattern):
        if token == "chars":
            if value[0] in _UNITS and pieces:  # the unit belongs to the number before it
                kind, table = pieces[-1]
                pieces[-1] = (kind, tuple(text + value[0] for text in table))
                value = value[1:]
            if value and pieces and pieces[-1][0] == _LITERAL:
                value = pieces.pop()[1][0] + value
            if value:
                pieces.append((_LITERAL, (value,)))
            continue
        letter, width = value
        kind, table = tables[letter, 3 if letter in "Ec" and width < 3 else width]
        if kind in (_MONTH, _WEEKDAY) and width < 4 and not table[1].isdigit():
            wide = tables["M" if kind == _MONTH else "E", 4][1]
            styled = _abbreviated(table, "bare" if joined else style, wide)
            changed, table = changed or (styled != table and not joined), styled
        pieces.append((kind, table))
    return tuple(pieces) if changed else None


def _abbreviated(table, style, wide):
    """The abbreviated names: "bare" without dots, "dotted" with them, "other" as in "Sept" and "Thurs"."""
    if style == "bare":
        return tuple(text.rstrip(".") for text in table)
    if style == "dotted":
        return tuple(text if text in wide else f"{text.rstrip('.')}." for text in table)
    if style == "other":
        return tuple(_OTHER_ABBREVIATIONS.get(text, text) for text in table)
    return table


def _classified(pieces, weight, unanimous):
    """The form of the pieces: its group, and when it must carry its locale."""
    short = any(kind == _YEAR and len(table[0].rstrip(_UNITS)) == 2 for kind, table in pieces)
    reading = _reading(pieces)
    if short:
        # An apostrophe or the Korean unit says which of the numbers is the year.
        named = any(table[0].endswith(("'", "년")) for kind, table in pieces if kind in (_LITERAL, _YEAR))
        return _Form(pieces, "short", weight, 0.15 if named else 2.0, False)
    if reading is None:
        return _Form(pieces, "text", weight, 0.15, False)
    order, separator = reading
    iso = order == "ymd" and separator in "-/"
    ambiguous = order != "ymd" and separator not in unanimous
    prefix_rate = 0.15 if order == "ymd" else 0.5
    return _Form(pieces, "iso" if iso else "numeric", weight, prefix_rate, ambiguous)


def _reading(pieces):
    """The (order, separator) of an all-numeric date, or None where a name or a unit tells the month."""
    order = [kind for kind, _ in pieces if _LITERAL < kind < _WEEKDAY]
    if not next(table for kind, table in pieces if kind == _MONTH)[1].isdigit():
        return None
    kinds = [kind for kind, _ in pieces]
    first = min(kinds.index(_MONTH), kinds.index(_DAY))
    separator = pieces[first + 1][1][0].strip()
    if any(character.isalpha() for character in separator):
        return None
    return "".join(_KINDS[kind][0] for kind in order), separator


@cache
def _unanimous_separators():
    """The separators that stand between day and month in one order alone, over all of `LOCALES`."""
    orders = {}
    for name in LOCALES:
        for pattern in _patterns(name):
            reading = _reading(_pieces(pattern, _tables(name), "cldr"))
            if reading is not None and reading[0] != "ymd" and "yy" not in pattern:
                orders.setdefault(reading[1], set()).add(reading[0])
    return frozenset(separator for separator, found in orders.items() if len(found) == 1)


# Noise: the case of the letters and the blanks, part by part, so that the spans stay exact


def _variant(form, name, case, spacing):
    """The form's pieces in a case (an index of _CASES) and a spacing (of _SPACINGS), made once."""
    pieces = form.variants.get((case, spacing))
    if pieces is None:
        language = name[:2]
        pieces = [(kind, _recased(table, _CASES[case], language, kind)) for kind, table in form.pieces]
        pieces = form.variants[case, spacing] = _respaced(pieces, _SPACINGS[spacing])
    return pieces


def _recased(table, case, language, kind):
    if case == "as is" or language in _CASELESS:
        return table
    if case == "title" and kind in (_LITERAL, _DAY):  # Of, Den and 20Th look wrong
        return table
    return tuple(_recased_text(text, case, language) for text in table)


def _recased_text(text, case, language):
    if case == "title":
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    if case == "lower":
        return (text.translate(_TURKISH_LOWER) if language == "tr" else text).lower()
    if case == "upper":
        text = text.translate(_TURKISH_UPPER) if language == "tr" else text
        return (_without_marks(text, "\u0301") if language == "el" else text).upper()
    return text.replace("\u02bc", "'") if language in ("ru", "uk") else _without_marks(text)


def _without_marks(text, marks=""):
    """The text without accents, or without those in `marks` alone, composed again."""
    letters = unicodedata.normalize("NFD", text)
    kept = (x for x in letters if not (x in marks if marks else unicodedata.combining(x)))
    return unicodedata.normalize("NFC", "".join(kept))


def _respaced(pieces, spacing):
    """The pieces with other blanks in their literals; no number or name ever touches another."""
    texts = [table[0] if kind == _LITERAL else None for kind, table in pieces]
    if spacing == "tight":
        for index, text in enumerate(texts):
            if text is not None:
                after_unit = index and texts[index - 1] is None and pieces[index - 1][1][1][-1] in _UNITS
                text = re.sub(r"([,.]) +", r"\1", text).replace(" (", "(")
                texts[index] = text.lstrip(" ") if after_unit else text
    elif spacing == "wide":
        texts = [text and text.replace(" ", "  ") for text in texts]
    elif spacing == "no comma":
        texts = [text and text.replace(", ", " ") for text in texts]
    elif spacing != "as is":
        blanks = [index for index, text in enumerate(texts) if text and " " in text]
        if blanks:
            index = blanks[int(spacing[-1]) % len(blanks)]
            texts[index] = texts[index].replace(" ", "  ", 1)
    respaced = zip(pieces, texts, strict=True)
    return tuple(piece if text is None else (_LITERAL, (text,)) for piece, text in respaced)
