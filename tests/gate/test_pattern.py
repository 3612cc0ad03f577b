import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuse_gated.gate.pattern import Glob, compile_pattern, text_of, validate_pattern


def matches(pattern: str, path: bytes) -> bool:
    compiled = compile_pattern(pattern)
    positions = compiled.start
    for name in path.split(b"/")[1:] if path != b"/" else ():
        positions = compiled.step(positions, name, text_of(name))
    return compiled.accepts(positions)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/", ["/"], ["/a"]),
        ("/**", ["/", "/a", "/a/b/c", "/.a"], []),
        ("/**/**", ["/", "/a", "/a/b"], []),
        ("/a", ["/a"], ["/", "/b", "/a/b", "/A", "/aa"]),
        ("/*", ["/a", "/.a"], ["/", "/a/b"]),
        ("/*/*", ["/a/b"], ["/a", "/a/b/c"]),
        ("/src/**", ["/src", "/src/a", "/src/a/b"], ["/", "/sr", "/srcs", "/a/src"]),
        ("/**/x", ["/x", "/a/x", "/a/b/x", "/x/x"], ["/", "/a", "/x/a"]),
        ("/a/**/b/**/c", ["/a/b/c", "/a/x/b/y/z/c", "/a/b/b/c/c"], ["/a/c", "/a/b", "/b/c"]),
        ("/**/a/*/b", ["/a/x/b", "/a/a/a/b", "/x/a/x/b"], ["/a/b", "/a/x/x/b"]),
        ("/*.c", ["/a.c", "/.c", "/a.b.c"], ["/a.C", "/a.cc", "/c"]),
        ("/.env*", ["/.env", "/.env.local"], ["/env", "/a.env"]),
        ("/a*b", ["/ab", "/a.b"], ["/a", "/b", "/xab", "/abx"]),
        ("/a*b*c", ["/abc", "/aXbYc", "/abbcc", "/abcbc"], ["/acb", "/ab", "/abcx"]),
        ("/*a*a*", ["/aa", "/xaxax"], ["/a", "/xax"]),
        ("/a?", ["/ab", "/a?", "/a."], ["/a", "/abc"]),
        ("/[abc]", ["/a", "/c"], ["/d", "/ab", "/"]),
        ("/[a-c]x", ["/bx"], ["/dx", "/-x"]),
        ("/[!a-c]", ["/d", "/!"], ["/a"]),
        ("/[]]", ["/]"], ["/["]),
        ("/[!]]", ["/["], ["/]"]),
        ("/[[]", ["/["], ["/]"]),
        ("/[a-]", ["/a", "/-"], ["/b"]),
        ("/[-a]", ["/a", "/-"], ["/b"]),
        ("/[x^]", ["/x", "/^"], ["/a"]),
        ("/[*?]", ["/*", "/?"], ["/a"]),
        ("/[\\]", ["/\\"], ["/a"]),
        ("/[!\\]", ["/a"], ["/\\"]),
        ("/a]", ["/a]"], ["/a"]),
        ("/x.y+(z)|$", ["/x.y+(z)|$"], ["/xay+(z)|$"]),
        ("/?.y", ["/x.y"], ["/xay"]),
        ("/é?", ["/éé", "/éa"], ["/é", "/ea"]),
        ("/[é-í]", ["/ì"], ["/e", "/Ã"]),
    ],
)
def test_pattern_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    assert validate_pattern(pattern) is None
    assert [path for path in yes if not matches(pattern, path.encode())] == []
    assert [path for path in no if matches(pattern, path.encode())] == []


def test_wildcards_take_bytes_that_are_no_text_and_line_ends() -> None:
    assert matches("/a?", b"/a\xff")
    assert not matches("/a?", b"/a\xff\xfe")
    assert matches("/*x", b"/\n\xffx")
    assert matches("/*x*y", b"/\nx\n\xffy")
    assert matches("/[!a]", b"/\n")


def test_a_pattern_of_bytes_that_are_no_text_matches_those_bytes() -> None:
    pattern = b"/\xff*".decode("utf-8", "surrogateescape")
    assert matches(pattern, b"/\xffa")
    assert not matches(pattern, "/ÿa".encode())


def test_escapes_that_together_are_text_match_that_text() -> None:
    # A name with these bytes is read as one character, so the pattern must be too.
    assert matches("/\udcc3\udca9?", "/éa".encode())
    assert matches("/\udcc3\udca9", "/é".encode())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "begins with a slash"),
        ("src", "begins with a slash"),
        ("*", "begins with a slash"),
        ("/a/", "empty component"),
        ("//", "empty component"),
        ("/a//b", "empty component"),
        ("/.", "'.' component"),
        ("/a/../b", "'..' component"),
        ("/a**", "component of its own"),
        ("/**a", "component of its own"),
        ("/***", "component of its own"),
        ("/a\0", "NUL"),
        ("/\ud800", "surrogates"),
        ("/[", "without its ']'"),
        ("/[]", "without its ']'"),
        ("/[!]", "without its ']'"),
        ("/[abc", "without its ']'"),
        ("/[a/b]", "without its ']'"),
        ("/[^a]", "write [!"),
        ("/[[:alpha:]]", "[:alpha:]"),
        ("/[z-a]", "z-a"),
        ("/a\\*", "backslash"),
        ("/[a\\]", "backslash"),
    ],
)
def test_faulty_pattern(pattern: str, message: str) -> None:
    assert message in (validate_pattern(pattern) or "")
    with pytest.raises(ValueError, match=re.escape(message)):
        compile_pattern(pattern)


def test_what_is_left_to_match_is_the_same_number_where_it_is_the_same() -> None:
    compiled = compile_pattern("/**/a/b/**")
    there = compiled.start
    for name in (b"a", b"b"):
        there = compiled.step(there, name, text_of(name))
    # Everything is matched from here on, however much of the pattern a deeper path matches again.
    assert {compiled.step(there, name, text_of(name)) for name in (b"a", b"x")} == {there}


def test_a_glob_shows_itself() -> None:
    assert repr(Glob("a*")) == "Glob('a*')"


def test_many_stars_cost_no_exponential_time() -> None:
    # With a backtracking matcher this is longer than anybody can wait.
    assert not matches("/" + "*a" * 60 + "b", b"/" + b"a" * 255)
    assert matches("/" + "*a" * 60, b"/" + b"a" * 255)
    assert not matches("/**/a" * 30 + "/b", b"/a" * 2000)


# A second opinion: matching by trying everything.


def by_trying(pattern: list[str], names: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(by_trying(pattern[1:], names[skipped:]) for skipped in range(len(names) + 1))
    return bool(names) and component_by_trying(pattern[0], names[0]) and by_trying(pattern[1:], names[1:])


def component_by_trying(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(component_by_trying(pattern[1:], name[skipped:]) for skipped in range(len(name) + 1))
    if pattern[0] == "[":
        negated = pattern[1] == "!"
        members, _, rest = pattern[1 + negated :].partition("]")
        return bool(name) and (name[0] in members) != negated and component_by_trying(rest, name[1:])
    return bool(name) and pattern[0] in ("?", name[0]) and component_by_trying(pattern[1:], name[1:])


pieces = st.sampled_from(["a", "b", ".", "é", "\udcff", "?", "*", "[ab]", "[!aé]"])
parts = st.one_of(
    st.just("**"),
    st.lists(pieces, min_size=1, max_size=5)
    .map(lambda chosen: re.sub(r"\*+", "*", "".join(chosen)))
    .filter(lambda part: part not in (".", "..")),
)
names = st.text(alphabet="ab.é\udcff", min_size=1, max_size=4)


@given(st.lists(parts, max_size=4), st.lists(names, max_size=5))
@example(["**", "a*", "**", "b"], ["a", "b", "a", "b"])
def test_as_by_trying_everything(pattern: list[str], path: list[str]) -> None:
    encoded = ("/" + "/".join(path)).encode("utf-8", "surrogateescape")
    assert matches("/" + "/".join(pattern), encoded) == by_trying(pattern, path)


@given(st.lists(parts, max_size=4), st.lists(names, max_size=3), st.lists(names, max_size=3))
def test_what_positions_promise(pattern: list[str], path: list[str], beneath: list[str]) -> None:
    """What `Pattern` says of a set of positions holds for whatever lies beneath."""
    compiled = compile_pattern("/" + "/".join(pattern))
    here = compiled.start
    for name in path:
        here = compiled.step(here, name.encode("utf-8", "surrogateescape"), name)
    there = here
    for name in beneath:
        there = compiled.step(there, name.encode("utf-8", "surrogateescape"), name)
    if compiled.is_universal(here):
        assert compiled.accepts(there)
        assert compiled.is_universal(there)
    if beneath and compiled.accepts(there):
        assert compiled.is_live(here)
        assert compiled.rest(here)
