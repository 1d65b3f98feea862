"""What people type into search fields does not get out; what tells of goods does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedders.relevance_prompts import QueryItem
from jobs.relevance.disclosed_text import Disclosure, disclosed, redacted

EVERYTHING = Disclosure()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("chair anna.smith+shop@example.co.uk red", "chair [e-mail] red"),
        ("anna&#64;example.com", "[e-mail]"),
        ("anna＠example.com", "[e-mail]"),
        ("call (555) 123-4567 for chairs", "call [phone] for chairs"),
        ("(555)123-4567", "[phone]"),
        ("555-123-4567", "[phone]"),
        ("555.123.4567", "[phone]"),
        ("1-800-555-0199 sofa", "[phone] sofa"),
        ("+44 20 7946 0000", "[phone]"),
        ("+4915112345678", "[phone]"),
        ("06 12 34 56 78", "[phone]"),
        ("030/1234567", "[phone]"),
        ("(020) 7946 0000", "[phone]"),
        ("138 1234 5678", "[phone]"),
        ("13812345678", "[number]"),
        ("４１１１ １１１１ １１１１ １１１１", "[card]"),
        ("4111-1111-1111-1111 12/27", "[card] 12/27"),
        ("3782 822463 10005", "[card]"),
        ("4111111111111111", "[number]"),
        ("order 123456789012345678901234", "order [number]"),
        ("https://user:secret@shop.example/x?y=1 lamp", "[url] lamp"),
        ("see www.example.com/me and mailto:me@example.com", "see [url] and [url]"),
        ("example.com/anna/wishlist", "[url]"),
    ],
)
def test_what_tells_of_a_person_is_replaced_by_its_name(text: str, shown: str):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "2-1/2 in. x 3 in. brass hinge",
        "DCD771C2 20-Volt MAX 1/2 in. drill/driver",
        "100-240 V, 50/60 Hz adapter",
        "1920 x 1080 monitor",
        "LED 2700K/3000K/3500K 800-1100 lumens",
        "screws #8 1-5/8 in. (100-pack)",
        "0.333333333 mm",
        "size 5 6 7 8 9 10 11 12",
        "Simpson Strong-Tie 12-Gauge Angle",
        "½ in. 60° Höganäs & Co",
        "example.com",
        "(24.94 sq.ft/case)",
        "2x4@8ft",
        "12/24 V, 3.5 A and/or more",
        "part 96-1234-567",
        "",
    ],
)
def test_what_tells_of_goods_stays_as_it_is(text: str):
    assert redacted(text) == text


PERSONAL = st.sampled_from(["a@b.com", "(555) 123-4567", "+1 555 123 4567", "http://x.y/z", "4111 1111 1111 1111", "@"])


@given(st.lists(st.one_of(st.text(max_size=12), PERSONAL, st.text("0123456789 -.()&#;@+", max_size=20)), max_size=6))
def test_to_disclose_what_is_disclosed_changes_nothing(texts: list[str]):
    once = disclosed(QueryItem(" ".join(texts), "".join(texts), None, "", "".join(texts)), EVERYTHING)
    assert disclosed(once, EVERYTHING) == once
    assert "a@b.com" not in str(once)
    assert once.brand is None


def test_only_allowed_fields_are_shown_on_one_line():
    pair = QueryItem("red\n chair", "Acme  chair", "chairs", "Acme", "secret: 7")
    shown = disclosed(pair, Disclosure(fields=("category", "query")))
    assert shown == QueryItem("red chair", "", "chairs", None, None)
    assert disclosed(pair, EVERYTHING).title == "Acme chair"
    told = pair._replace(attributes="call 555-123-4567")
    assert disclosed(told, Disclosure(redact=False)).attributes == "call 555-123-4567"


def test_a_disclosure_by_which_nothing_can_be_judged_is_refused():
    for fields in ((), ("query",), ("title",), ("title", "brand")):
        with pytest.raises(ValidationError, match="nothing to judge"):
            Disclosure(fields=fields)
    with pytest.raises(ValidationError):
        Disclosure(fields=("query", "title", "price"))
    assert Disclosure(fields=("title", "query")).fields == ("query", "title")
