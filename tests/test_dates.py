"""The dates task: what is drawn is readable, unambiguous, true, and split for ever."""

import datetime
import re
import subprocess
import sys
import time
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
from babel import Locale

from keras_attention.training.errors import InputError
from keras_attention.training.tasks import TASKS, dates, get_task

COUNT = 50_021
PREFIX = re.compile(r"\s*(\w\w_\w\w): ")


@pytest.fixture(scope="module")
def examples():
    return dates.draw(COUNT, seed=13)


@pytest.fixture(scope="module")
def american():
    return dates.draw(20_011, seed=17, locales=["en_US"])


def shape_of(text):
    """Digits by their number; a word by its case, and by whether it is an abbreviation of three letters."""
    text = re.sub(r"\d", "9", text)

    def word(found):
        name = found[0]
        case = "upper" if name.isupper() else "lower" if name.islower() else "title"
        return f"<{case}{3 if len(name) == 3 else ''}>"

    return re.sub(r"(?<![\w])[^\W\d_]+", word, text)


def body(example):
    """The source without its locale in front and without outer blanks."""
    return PREFIX.sub("", example.source, count=1).strip()


def prefix(example):
    found = PREFIX.match(example.source)
    return found and found[1]


def folded(text):
    """Text without accents, dots, case and apostrophes' kind: what all the noise leaves alone."""
    text = text.replace("ı", "i").replace("\u02bc", "'").replace(".", "")
    letters = unicodedata.normalize("NFD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def month_names(locale):
    """{folded name: month} in all widths a date may have."""
    months = Locale.parse(locale).months["format"]
    widths = ("abbreviated", "wide")
    names = {folded(name): month for width in widths for month, name in months[width].items()}
    return names | ({"sep": 9, "sept": 9} if locale.startswith("en") else {})


def test_draws_are_a_function_of_their_arguments():
    first = dates.draw(211, seed=5, epoch=2)
    assert first == dates.draw(211, seed=5, epoch=2)
    others = [
        dates.draw(211, seed=6, epoch=2),
        dates.draw(211, seed=5, epoch=3),
        dates.draw(211, seed=5, epoch=2, split="val"),
        dates.draw(211, seed=5, epoch=2, locales=dates.LOCALES[:7]),
    ]
    assert all(other != first for other in others)
    sources, targets = dates.pairs(211, seed=5, epoch=2)
    assert sources == [example.source for example in first]
    assert targets == [example.target for example in first]


def test_another_process_draws_the_same_and_imports_babel_only_then():
    code = (
        "import sys; from keras_attention.training.tasks import dates; "
        "print('babel' in sys.modules, ascii(dates.pairs(23, seed=5)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"False {ascii(dates.pairs(23, seed=5))}"


def test_splits_share_no_date(examples):
    drawn = {split: set(dates.pairs(20_011, seed=13, split=split)[1]) for split in ("val", "test")}
    drawn["train"] = {example.target for example in examples}
    for split, targets in drawn.items():
        assert {dates.split_of(datetime.date.fromisoformat(target)) for target in targets} == {split}
    assert not drawn["train"] & drawn["val"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["val"] & drawn["test"]


def test_shares_of_the_splits():
    start = datetime.date(1900, 1, 1)
    splits = [dates.split_of(start + datetime.timedelta(days=day)) for day in range(73_049)]
    for split, share in (("train", 0.9), ("val", 0.05), ("test", 0.05)):
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.004)


def test_targets_are_the_years_1900_to_2099(examples):
    years = {int(example.target[slice(*dates.PART_OF_TARGET["year"])]) for example in examples}
    assert years == set(range(1900, 2100))
    for example in examples:
        assert datetime.date.fromisoformat(example.target).isoformat() == example.target


def test_spans_hold_the_digits_or_the_name_of_their_part(examples):
    names = {locale: month_names(locale) for locale in dates.LOCALES}
    for example in examples:
        text = {part: example.source[slice(*span)] for part, span in example.spans.items()}
        assert sorted(text) == ["day", "month", "year"]
        date = datetime.date.fromisoformat(example.target)
        assert re.fullmatch(r"(\d{4}|\d{2})[年년]?", text["year"]), example
        digits = re.sub(r"\D", "", text["year"])
        assert int(digits) == (date.year if len(digits) == 4 else date.year % 100), example
        suffix = re.fullmatch(r"(\d{1,2})(st|nd|rd|th|er|º|η|日|号|일)?", text["day"].lower())
        assert suffix and int(suffix[1]) == date.day, example
        number = re.fullmatch(r"(\d{1,2})[月월]?", text["month"])
        month = int(number[1]) if number else names[example.locale][folded(text["month"])]
        assert month == date.month, example


def test_spans_do_not_overlap_or_cover_the_prefix(examples):
    for example in examples:
        found = PREFIX.match(example.source)
        position = found.end() if found else 0
        for start, stop in sorted(example.spans.values()):
            assert position <= start < stop <= len(example.source), example
            assert example.source[start:stop].strip() == example.source[start:stop]
            position = stop


def test_locales_have_equal_shares(examples):
    assert len(dates.LOCALES) == len(set(dates.LOCALES)) >= 20
    assert "ko_KR" in dates.LOCALES
    counts = {locale: sum(example.locale == locale for example in examples) for locale in dates.LOCALES}
    assert sum(counts.values()) == COUNT
    assert max(counts.values()) - min(counts.values()) <= 1
    named_twice = dates.draw(300, seed=1, locales=("en_US", "en_US", "ko_KR"))
    assert sum(example.locale == "en_US" for example in named_twice) == 200
    assert [example.locale for example in named_twice[:9]] != 3 * ["en_US", "en_US", "ko_KR"]


def test_every_locale_has_many_forms(examples):
    shapes = defaultdict(set)
    for example in examples:
        parts = re.sub(r"\d", "9", body(example).casefold())
        shapes[example.locale].add(re.sub(r"[^\W\d]+", "a", " ".join(parts.split())))
    few = {locale: sorted(found) for locale, found in shapes.items() if len(found) < 24}
    assert few == {}
    assert len(set.union(*shapes.values())) > 150


def test_no_text_has_two_readings(examples):
    """Case folded and with blanks collapsed, over all splits and locales."""
    held_out = dates.draw(20_011, seed=3, split="val") + dates.draw(20_011, seed=3, split="test")
    readings = defaultdict(set)
    for example in examples + held_out:
        readings[" ".join(folded(example.source).split())].add(example.target)
    assert {text: found for text, found in readings.items() if len(found) > 1} == {}


def test_names_of_months_mean_one_month_over_all_locales():
    """So that no text with a month's name is ever ambiguous, drawn or not."""
    meanings = defaultdict(set)
    for locale in dates.LOCALES:
        for name, month in month_names(locale).items():
            meanings[name].add(month)
    assert {name: months for name, months in meanings.items() if len(months) > 1} == {}


def test_numbers_that_locales_read_differently_carry_their_locale(examples):
    seen = set()
    for example in examples:
        numbers = re.fullmatch(r"[^\d]*?(\d{1,2})(\W+)(\d{1,2})\W+\d{4}\b.*", body(example))
        if numbers and not re.search(r"[年월月]", body(example)):
            separator = numbers[2].strip()
            if separator != "." and max(int(numbers[1]), int(numbers[3])) <= 12:
                assert prefix(example) == example.locale, example
            seen.add((separator, bool(prefix(example))))
    assert seen == {("/", True), ("/", False), ("-", True), ("-", False), (".", True), (".", False)}


def test_dotted_numbers_are_read_day_first_everywhere(examples):
    for example in examples:
        if re.fullmatch(r"\d{1,2}\.\s*\d{1,2}\.\s*\d{4}\b.*", body(example)):
            order = sorted(example.spans, key=example.spans.get)
            assert order == ["day", "month", "year"], example


def test_prefix_names_the_locale_and_stands_on_other_forms_too(examples):
    assert all(prefix(example) in (None, example.locale) for example in examples)
    spelled = [example for example in examples if re.search(r"[^\W\d]{3}", body(example))]
    share = np.mean([prefix(example) is not None for example in spelled])
    assert 0.1 < share < 0.3


def test_years_of_two_digits(examples):
    """1950 to 2049, with the locale in front unless an apostrophe or the Korean unit names the year."""
    found, bare = 0, set()
    for example in examples:
        start, stop = example.spans["year"]
        year = example.source[start:stop]
        if len(re.sub(r"\D", "", year)) == 2:
            found += 1
            assert 1950 <= int(example.target[:4]) <= 2049, example
            if prefix(example) is None:
                assert year.endswith("년") or example.source[start - 1] == "'", example
                bare.add(year.endswith("년"))
    assert found > COUNT / 20
    assert bare == {True, False}


def test_weekdays_are_true(examples):
    found = defaultdict(set)
    for example in examples:
        weekday = datetime.date.fromisoformat(example.target).weekday()
        names = Locale.parse(example.locale).days["format"]["wide"]
        text = re.sub(r"[^\w'-]+", " ", f" {folded(example.source)} ")
        named = {day for day, name in names.items() if f" {folded(name)} " in text}
        assert named in (set(), {weekday}), example
        found[example.locale] |= named
    spelled_out = {locale for locale, days in found.items() if days == set(range(7))}
    assert spelled_out >= set(dates.LOCALES) - {"ja_JP", "zh_CN", "ko_KR"}


@pytest.mark.parametrize(
    ("locale", "names"),
    [("ja_JP", "月火水木金土日"), ("ko_KR", "월화수목금토일"), ("zh_CN", "一二三四五六日")],
)
def test_weekdays_without_blanks_are_true(locale, names):
    mark = {"ja_JP": r"(?:日[ ]*[(（]?)(.)曜日", "ko_KR": r"(.)요일", "zh_CN": r"(?:周|星期)(.)"}[locale]
    found = set()
    for example in dates.draw(4_001, seed=2, locales=[locale]):
        for name in re.findall(mark, example.source):
            assert names.index(name) == datetime.date.fromisoformat(example.target).weekday(), example
            found.add(name)
    assert found == set(names)


@pytest.mark.parametrize(
    "shape",
    [
        "July 20, 1983", "SEP 14, 1990", "Sep 14, 1990", "jul 21, 2014", "april 7, 2014", "MARCH 7, 1990",
        "Sunday, March 8, 2015", "THURSDAY, JUNE 11, 1970", "friday, june 5, 1998", "July 4th, 1976",
        "en_US: 11/24/93", "en_US: 7/5/16", "en_US: 07/05/2016", "en_US: 7/5/2016", "2016-07-05",
    ],
)  # fmt: skip
def test_american_shapes_are_common(shape, american):
    found = sum(shape_of(example.source) == shape_of(shape) for example in american)
    assert found >= 10


def test_plain_american_shapes_prevail(american):
    pattern = re.compile(r"(\w{6,9}, )?\w{3,9} \d{1,2}, \d{4}")
    spelled = [example for example in american if re.search(r"[^\W\d]{3}", body(example))]
    assert np.mean([pattern.fullmatch(example.source) is not None for example in spelled]) > 0.25


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{4}년 \d{1,2}월 \d{1,2}일",
        r"\d{4}년\d{1,2}월\d{1,2}일",
        r"\d{4}년 \d{1,2}월 \d{1,2}일 [월화수목금토일]요일",
        r"\d{4}년 \d{1,2}월 \d{1,2}일 \([월화수목금토일]\)",
        r"\d{2}년 \d{1,2}월 \d{1,2}일",
        r"\d{4}\. \d{1,2}\. \d{1,2}\.",
        r"\d{4}\.\d{2}\.\d{2}",
        r"\d{4}-\d{2}-\d{2}",
        r"ko_KR: \d{2}\. \d{1,2}\. \d{1,2}\.",
    ],
)
def test_korean_forms_occur(pattern, examples):
    korean = [example.source for example in examples if example.locale == "ko_KR"]
    assert sum(re.fullmatch(pattern, source) is not None for source in korean) >= 5


@pytest.mark.parametrize(
    ("locale", "pattern"),
    [
        ("en_GB", r"the \d+(st|nd|rd|th) of [A-Z]\w+ \d{4}"),
        ("en_US", r"[A-Z]\w+ \d+(st|nd|rd|th), \d{4}"),
        ("fr_FR", r"1er \w+ \d{4}"),
        ("it_IT", r"1º \w+ \d{4}"),
        ("pt_BR", r"1º de \w+ de \d{4}"),
        ("el_GR", r"1η \w+ \d{4}"),
        ("de_DE", r"\d+\. [A-Z]\w+ \d{4}"),
        ("tr_TR", r"\d+ (KASIM|NİSAN) \d{4}"),
        ("el_GR", r"\d+ ΙΟΥΝΙΟΥ \d{4}"),
        ("ja_JP", r"\d{4}年\d+月\d+日.曜日"),
        ("zh_CN", r"\d{4}年\d+月\d+日星期."),
    ],
)
def test_habits_of_other_languages_occur(locale, pattern):
    sources, _ = dates.pairs(8_009, seed=19, locales=[locale])
    assert any(re.fullmatch(pattern, source) for source in sources)


def test_ordinals_are_english(american):
    endings = {}
    for example in american:
        found = re.fullmatch(r"(\d+)([a-z]+)", example.source[slice(*example.spans["day"])].lower())
        if found:
            endings[int(found[1])] = found[2]
    expected = {day: "th" for day in range(1, 32)}
    expected |= {1: "st", 21: "st", 31: "st", 2: "nd", 22: "nd", 3: "rd", 23: "rd"}
    assert endings == expected


def test_noise_of_blanks_and_case_occurs_and_plain_text_prevails(examples):
    sources = [example.source for example in examples]
    spelled = [source for source in sources if re.search(r"[^\W\d]{4}", PREFIX.sub("", source))]
    assert 0.02 < np.mean([source != source.strip() for source in sources]) < 0.1
    assert 0.03 < np.mean(["  " in source.strip() for source in sources]) < 0.2
    assert any(re.search(r",\w", source) for source in sources)
    assert 0.1 < np.mean([PREFIX.sub("", source).isupper() for source in spelled]) < 0.3
    assert not any("\n" in source or "\t" in source for source in sources)


def test_digits_are_western(examples):
    letters = set("".join(example.source for example in examples))
    assert {letter for letter in letters if letter.isdigit()} == set("0123456789")


def test_texts_are_composed_unicode(examples):
    assert all(unicodedata.is_normalized("NFC", example.source) for example in examples)


def test_an_empty_draw_is_empty():
    assert dates.draw(0, seed=1) == []
    assert dates.pairs(0, seed=1) == ([], [])


def test_one_locale_may_be_a_string():
    assert dates.draw(7, seed=1, locales="fr_FR") == dates.draw(7, seed=1, locales=["fr_FR"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"locales": ["en_US", "xx_YY"]}, r"unknown locale 'xx_YY'; known locales: en_US, .*ko_KR"),
        ({"locales": []}, r"no locale; known locales: en_US"),
        ({"split": "dev"}, r"one of train, val, test; received: 'dev'"),
        ({"epoch": -1}, r"epoch .*at least 0; received: -1"),
        ({"seed": 1.5}, r"seed .*integer.* received: 1.5"),
        ({"count": None}, r"count .*integer.* received: None"),
        ({"count": True}, r"count .*integer.* received: True"),
    ],
)
def test_wrong_arguments_are_one_sentence(options, message):
    with pytest.raises(InputError, match=message) as caught:
        dates.draw(**({"count": 3, "seed": 1} | options))
    assert "\n" not in str(caught.value)


def test_without_babel_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    dates._babel_locale.cache_clear()
    with pytest.raises(InputError, match=r'pip install "keras-attention-zoo\[train\]"'):
        dates._babel_locale("en_US")


def test_tasks_are_found_by_name():
    assert get_task("dates") is TASKS["dates"] is dates
    assert len(get_task("dates").pairs(3, seed=1, epoch=0, split="val")[0]) == 3
    for wrong in ("date", None, ["dates"]):
        with pytest.raises(InputError, match=r"one of dates, reverse, scenes, series; received"):
            get_task(wrong)


def test_drawing_is_fast(examples):
    del examples  # the tables are made
    start = time.perf_counter()
    dates.draw(10_007, seed=23)
    assert 10_007 / (time.perf_counter() - start) > 5_000
