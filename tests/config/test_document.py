import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.config.document import MAX_BYTES, MAX_DEPTH, Document, Unfit, describe, kind_of, quoted, resembling


def value(_document: Document, node: yaml.Node) -> str:
    assert isinstance(node, yaml.ScalarNode)
    return str(node.value)


def refusing(_document: Document, node: yaml.Node) -> str:
    raise Unfit("not this", "another")


def root(text: str | bytes) -> tuple[Document, yaml.Node]:
    document = Document(text if isinstance(text, bytes) else text.encode(), "policy.yaml")
    assert document.root is not None
    return document, document.root


def faults_of(text: str | bytes) -> tuple[str, ...]:
    """The faults of a document whose values are all read as they stand."""
    document = Document(text if isinstance(text, bytes) else text.encode(), "policy.yaml")

    def read(document: Document, node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            for _, child in document.entries(node, "it"):
                document.read(child, read)
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                document.read(child, read)

    if document.root is not None:
        document.read(document.root, read)
    return document.faults


def test_an_empty_file_has_no_root_and_no_fault() -> None:
    for text in (b"", b"\n\n", b"# only a comment\n", b"\xef\xbb\xbf# with a byte order mark\n"):
        document = Document(text, "policy.yaml")
        assert document.root is None
        assert document.faults == ()


def test_known_fields_are_read() -> None:
    document, node = root("a: 1\nb: two\n")
    assert document.fields(node, "it", {"a": value, "b": value, "c": value}) == {"a": "1", "b": "two"}
    assert document.faults == ()


def test_unknown_keys_are_told_with_the_one_that_was_meant() -> None:
    document, node = root("allow: 1\nalow: 2\nqqqq: 3\n")
    assert document.fields(node, "a rule", {"allow": value, "deny": value}) == {"allow": "1"}
    assert document.faults == (
        "policy.yaml:2:1: unknown key 'alow' in a rule (did you mean 'allow'?)",
        "policy.yaml:3:1: unknown key 'qqqq' in a rule (known are allow, deny)",
    )


def test_a_value_at_fault_is_none_and_told_at_its_own_place() -> None:
    document, node = root("a: 1\nb:   two\n")
    assert document.fields(node, "it", {"a": value, "b": refusing}) == {"a": "1", "b": None}
    assert document.faults == ("policy.yaml:2:6: not this (another)",)


def test_a_missing_required_key_is_none_and_told_at_the_mapping() -> None:
    document, node = root("\n  a: 1\n")
    assert document.fields(node, "it", {"a": value, "b": value}, required=("a", "b")) == {"a": "1", "b": None}
    assert document.faults == ("policy.yaml:2:3: it lacks 'b'",)


def test_a_key_given_twice_is_told_with_the_first_place() -> None:
    assert faults_of("a: 1\nb: 2\n'a': 3\n") == (
        "policy.yaml:3:1: 'a' is given a second time in it (the first is at policy.yaml:1)",
    )


def test_places_of_keys_can_go_on_in_another_file() -> None:
    places: dict[str, str] = {}
    document, node = root("a: 1\n")
    document.entries(node, "it", places)
    other = Document(b"\nb: 1\na: 2\n", "policy.d/x.yaml")
    assert other.root is not None
    assert [key.value for key, _ in other.entries(other.root, "it", places)] == ["b", "a"]
    assert other.faults == ("policy.d/x.yaml:3:1: 'a' is given a second time in it (the first is at policy.yaml:1)",)


def test_a_key_that_is_no_scalar_is_told() -> None:
    assert faults_of("? [a, b]\n: 1\n? {c: d}\n: 1\n") == (
        "policy.yaml:1:3: a list cannot be a key in it",
        "policy.yaml:3:3: a mapping cannot be a key in it",
    )


def test_a_mapping_is_expected() -> None:
    for text, found in (("[a]", "a list"), ("a", "the text 'a'"), ("~", "nothing"), ("7", "the number '7'")):
        document, node = root(text)
        with pytest.raises(Unfit) as raised:
            document.entries(node, "it")
        assert raised.value.message == f"expected a mapping for it, found {found}"


def test_aliases_anchors_and_tags_are_refused_once_each_and_nothing_more_is_said_of_them() -> None:
    document, node = root("a: &x 1\nb: *x\n*x : 2\nc: !!python/object:os.system {}\nd: !local e\n")
    values = document.fields(node, "it", {"a": refusing, "b": refusing, "c": refusing, "d": refusing})
    assert values == {"a": None, "b": None, "c": None, "d": None}
    assert document.faults == (
        "policy.yaml:1:4: anchors are not taken (write the value out; put one that begins with & in quotes)",
        "policy.yaml:2:4: aliases are not taken (write the value out; put one that begins with * in quotes)",
        "policy.yaml:3:1: aliases are not taken (write the value out; put one that begins with * in quotes)",
        "policy.yaml:4:4: tags are not taken (put a value that begins with ! in quotes)",
        "policy.yaml:5:4: tags are not taken (put a value that begins with ! in quotes)",
    )


def test_an_alias_bomb_does_not_unfold() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(n)}: &{chr(n)} [{', '.join(['*' + chr(n - 1)] * 10)}]" for n in range(ord("b"), ord("k"))]
    faults = faults_of("\n".join(lines))
    assert len(faults) == 10 + 90  # as many as stand in the text: each anchor and each alias, once


def test_nesting_is_bounded() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert faults_of(deepest) == ()
    assert faults_of("[" + deepest + "]") == ("policy.yaml:1:21: not YAML: nested deeper than 20 levels",)
    assert faults_of("[" * 100_000) == ("policy.yaml:1:21: not YAML: nested deeper than 20 levels",)


def test_the_size_is_bounded() -> None:
    assert faults_of(b"#" * MAX_BYTES) == ()
    assert faults_of(b"#" * (MAX_BYTES + 1)) == (
        "policy.yaml:1:1: the file is larger than 1 MiB (no configuration needs that much)",
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"a: 1\nb: \xe4\n", "policy.yaml:2:4: the byte 0xe4 is not UTF-8 (save it as UTF-8)"),
        (b"\xff", "policy.yaml:1:1: the byte 0xff is not UTF-8 (save it as UTF-8)"),
        (b"a: 1\nbc: \x07\n", "policy.yaml:2:5: a control character (remove it)"),
        (
            b"users: [*]",
            "policy.yaml:1:10: not YAML: expected alphabetic or numeric character, but found ']' "
            "(put a value that begins with * in quotes)",
        ),
        (b"a:\n\t- b\n", "policy.yaml:2:1: not YAML: found character '\\t' that cannot start any token (indent with spaces)"),
        (b"a: @b", "policy.yaml:1:4: not YAML: found character '@' that cannot start any token (put the value in quotes)"),
        (
            b"a: b: c",
            "policy.yaml:1:5: not YAML: mapping values are not allowed here "
            "(look at the indentation, and put a value that holds ': ' in quotes)",
        ),
        (
            b"a: [b] c",
            "policy.yaml:1:8: not YAML: expected <block end>, but found '<scalar>' "
            "(look at the indentation, and put a value that begins with a bracket in quotes)",
        ),
        (
            b"listen: [::1]:7433",
            "policy.yaml:1:10: not YAML: expected the node content, but found ':' "
            "(look at the indentation, and put a value that begins with a bracket in quotes)",
        ),
        (b"a: 'b", "policy.yaml:1:6: not YAML: found unexpected end of stream (a quote or a bracket is not closed)"),
        (
            b"a: [b\nc: d",
            "policy.yaml:2:2: not YAML: expected ',' or ']', but got ':' (a bracket is not closed, or a comma is missing)",
        ),
        (
            b"a: 1\n---\nb: 1\n",
            "policy.yaml:2:1: not YAML: expected a single document in the stream, but found another document "
            "(one document a file: remove the line with ---)",
        ),
        (b"%YAML 3.0\n---\na: 1", "policy.yaml:1:1: not YAML: found incompatible YAML document (version 1.* is required)"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_place(text: bytes, fault: str) -> None:
    document = Document(text, "policy.yaml")
    assert document.root is None
    assert document.faults == (fault,)


def test_faults_are_told_in_the_order_of_the_file() -> None:
    document, node = root("a: 1\nb: 2\nc: 3\n")
    for key, _ in reversed(document.entries(node, "it")):
        document.fault(key, "found")
    assert document.faults == ("policy.yaml:1:1: found", "policy.yaml:2:1: found", "policy.yaml:3:1: found")
    assert document.place(document.entries(node, "it")[1][0]) == "policy.yaml:2"


@pytest.mark.parametrize(
    ("text", "shown", "kind"),
    [
        ("[a]", "a list", "seq"),
        ("{a: b}", "a mapping", "map"),
        ("~", "nothing", "null"),
        ("a: ", "a mapping", "map"),
        ("yes", "the truth value 'yes'", "bool"),
        ("1.5", "the number '1.5'", "float"),
        ("1", "the number '1'", "int"),
        ("2027-01-31", "the date '2027-01-31'", "timestamp"),
        ("'2'", "the text '2'", "str"),
    ],
)
def test_nodes_are_described(text: str, shown: str, kind: str) -> None:
    _, node = root(text)
    assert describe(node) == shown
    assert kind_of(node) == kind


def test_quoted_text_is_safe_to_print_and_short() -> None:
    assert quoted("a'b") == "'a'b'"
    assert quoted("\x1b[31m\n") == "'\\x1b[31m\\n'"
    assert quoted("a" * 61) == "'" + "a" * 60 + "…'"


def test_resembling() -> None:
    assert resembling("kernal", ["kernel", "libfuse"]) == "did you mean 'kernel'?"
    assert resembling("zzz", ["kernel", "libfuse"]) == ""
    assert resembling("k" * 61, ["k" * 60]) == ""


@given(st.binary() | st.text(alphabet="ab:-[]{}&*!?|>'\"#%@`, \n\t0~").map(str.encode))
def test_any_bytes_are_read_or_told(data: bytes) -> None:
    for fault in faults_of(data):
        assert fault.startswith("policy.yaml:")
