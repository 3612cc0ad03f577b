import datetime
from typing import Any

import msgspec
import pytest

from fuse_gated.config import values
from fuse_gated.config.document import Document, Reader


def read(text: str, reader: Reader) -> Any:
    """The value of a one-line document, or its fault without the place."""
    document = Document(text.encode(), "f")
    assert document.root is not None
    value = document.read(document.root, reader)
    assert len(document.faults) <= 1
    return document.faults[0].split(": ", 1)[1] if document.faults else value


@pytest.mark.parametrize(
    ("reader", "text", "expected"),
    [
        (values.text, "a b", "a b"),
        (values.text, "'1000'", "1000"),
        (values.text, "1000", "expected text, found the number '1000' (put it in quotes if it is meant)"),
        (values.text, "2027-01-31", "expected text, found the date '2027-01-31' (put it in quotes if it is meant)"),
        (values.text, "[a]", "expected text, found a list"),
        (values.text, "~", "expected text, found nothing (leave the key out to have its default)"),
        (values.text, "''", "the text is empty"),
        (values.text, '"a\\e"', "'a\\x1b' holds control characters"),
        (values.boolean, "true", True),
        (values.boolean, "Yes", True),
        (values.boolean, "off", False),
        (values.boolean, "'true'", "expected true or false, found the text 'true'"),
        (values.boolean, "1", "expected true or false, found the number '1'"),
        (values.whole(1, 9), "1", 1),
        (values.whole(1, 9), "9", 9),
        (values.whole(1, 9), "0", "0 is not within 1 and 9"),
        (values.whole(1, 9), "10", "10 is not within 1 and 9"),
        (values.whole(1, 9), "-3", "'-3' is not a whole number (digits only, and no leading zero)"),
        (values.whole(1, 9), "010", "'010' is not a whole number (digits only, and no leading zero)"),
        (values.whole(1, 9), "1_0", "'1_0' is not a whole number (digits only, and no leading zero)"),
        (values.whole(1, 9), "1.5", "'1.5' is not a whole number (digits only, and no leading zero)"),
        (values.whole(1, 9), "'3'", "expected a whole number, found the text '3' (remove the quotes)"),
        (values.whole(1, 9), "many", "expected a whole number, found the text 'many'"),
        (values.whole(1, 9), "~", "expected a whole number, found nothing (leave the key out to have its default)"),
        (values.duration(1, 60), "10s", 10.0),
        (values.duration(1, 60), "10", 10.0),
        (values.duration(1, 60), "500ms", "0.5 is not within 1 and 60"),
        (values.duration(1, 60), "soon", "'soon' is not a duration (such as 500ms, 10s, 2m or 1h; a plain number is seconds)"),
        (values.duration(1, 60), "[1]", "expected a duration, found a list"),
        (values.size(1), "4GiB", 4 * 2**30),
        (values.size(1), "0", "0 is not within 1 and 4.61168601843e+18"),
        (values.one_of("wait", "fail"), "fail", "fail"),
        (values.one_of("wait", "fail"), "fial", "'fial' is not one of wait, fail (did you mean 'fail'?)"),
        (values.one_of("wait", "fail"), "no", "'no' is not one of wait, fail"),
        (values.one_of("wait", "fail"), "{}", "expected one of wait, fail, found a mapping"),
        (values.date, "2027-01-31", datetime.date(2027, 1, 31)),
        (values.date, "'2027-01-31'", datetime.date(2027, 1, 31)),
        (values.date, "2027-02-31", "'2027-02-31' is no day of the calendar"),
        (values.date, "20270131", "'20270131' is not a date (such as 2027-01-31)"),
        (values.date, "2027-01-31T00:00:00Z", "'2027-01-31T00:00:00Z' is not a date (such as 2027-01-31)"),
        (values.absolute_path, "/etc/x", "/etc/x"),
        (values.absolute_path, "etc/x", "'etc/x' is not an absolute path (begin it with /)"),
        (values.account, "acme-build", "acme-build"),
        (values.account, "'*'", "*"),
        (values.account, "'1000'", "'1000' cannot be a user's or group's name (names as in /etc/passwd and /etc/group)"),
        (values.account, "a:b", "'a:b' cannot be a user's or group's name (names as in /etc/passwd and /etc/group)"),
        (values.account, "..", "'..' cannot be a user's or group's name (names as in /etc/passwd and /etc/group)"),
        (values.account, "' a'", "' a' cannot be a user's or group's name (names as in /etc/passwd and /etc/group)"),
        (values.many("words", values.text), "[a, b]", ("a", "b")),
        (values.many("words", values.text), "[]", ()),
        (values.many("words", values.text, least=1), "[]", "the list of words is empty"),
        (
            values.many("words", values.text),
            "a",
            "expected a list of words, found the text 'a' (write it in brackets: [one, another])",
        ),
        (
            values.many("words", values.text),
            "~",
            "expected a list of words, found nothing (leave the key out to have its default)",
        ),
        (values.many("words", values.text), "[a, b, a]", "'a' is in the list of words already"),
        (values.many("words", values.text), "[a, 1]", "expected text, found the number '1' (put it in quotes if it is meant)"),
        (values.many("lists", values.many("words", values.text)), "[[a], [a]]", (("a",), ("a",))),
    ],
)
def test_values(reader: Reader, text: str, expected: object) -> None:
    assert read(text, reader) == expected


class Pair(msgspec.Struct, frozen=True):
    left: str
    right: int = 7


def test_a_structure_has_the_structs_defaults_for_what_is_left_out() -> None:
    pair = values.structure(Pair, "a pair", {"left": values.text, "right": values.whole(1, 9)}, required=("left",))
    assert read("{left: a, right: 2}", pair) == Pair("a", 2)
    assert read("{left: a}", pair) == Pair("a", 7)
    assert read("{right: 2}", pair) == "a pair lacks 'left'"
    assert read("{left: a, rigth: 2}", pair) == "unknown key 'rigth' in a pair (did you mean 'right'?)"


def test_the_faults_of_a_list_are_all_told() -> None:
    document = Document(b"[1, a, '', b, [c], ~]", "f")
    assert document.root is not None
    document.read(document.root, values.many("words", values.text))
    assert [fault.split(":")[2] for fault in document.faults] == ["2", "8", "15", "20"]
