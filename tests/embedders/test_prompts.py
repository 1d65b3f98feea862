import polars as pl
import pytest

from embedders.prompts import PROMPTS, QUERY_TEXT
from feature_repo.table_schemas import Items

SLOTS = ("title", "category", "brand", "price_cents", "keywords", "attributes", "description")


def text_of(prompt: str, **slots: str | int) -> str | None:
    item = pl.DataFrame(
        {name: [slots.get(name)] for name in SLOTS},
        schema={name: pl.Int64 if name == "price_cents" else pl.String for name in SLOTS},
    )
    return item.select(PROMPTS[prompt].text).item()


def test_all_six_slots_are_worded_in_learns_order():
    assert text_of(
        "learn",
        title="Two-man tent",
        category="Camping",
        brand="Fjell",
        price_cents=12905,
        keywords="hiking, dome",
        attributes="free returns",
        description="never read by this prompt",
    ) == (
        'Product record. Title is "Two-man tent". It is in "Camping", made by "Fjell". It costs "129.05". '
        'Its keywords are "hiking, dome". It offers "free returns".'
    )


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ({"title": "Tent"}, 'Product record. Title is "Tent".'),
        ({"category": "Camping"}, 'Product record. It is in "Camping".'),
        ({"brand": "Fjell"}, 'Product record. It is made by "Fjell".'),
        ({"keywords": "dome", "price_cents": 0}, 'Product record. It costs "0.00". Its keywords are "dome".'),
        ({"attributes": "returns"}, 'Product record. It offers "returns".'),
    ],
)
def test_a_missing_slot_is_left_out_with_its_sentence(slots: dict[str, str | int], expected: str):
    assert text_of("learn", **slots) == expected


@pytest.mark.parametrize("prompt", ["learn", "learn_described", "amazon", "relevance"])
@pytest.mark.parametrize("slots", [{}, {"price_cents": 999}, {"title": "", "brand": " \t\n"}, {"title": "&nbsp;"}])
def test_an_item_without_text_has_no_prompt(prompt: str, slots: dict[str, str | int]):
    assert text_of(prompt, **slots) is None


def test_a_description_is_text_only_to_the_prompt_that_reads_it():
    assert text_of("learn", description="A dark cave.") is None
    assert (
        text_of("learn_described", description="A dark cave.") == 'Product record. It is described as "A dark cave.".'
    )


def test_the_amazon_form_joins_title_brand_and_category():
    assert (
        text_of("amazon", title="Saw", category="Tools > Hand tools | Saws", brand="Bahco", keywords="not read")
        == "Title: Saw. Brand: Bahco. Category: Tools Hand tools Saws"
    )
    assert text_of("amazon", title="Saw") == "Title: Saw"


def test_a_student_reads_bare_slots_and_the_brand_once():
    slots = {"category": "Tools > Saws", "attributes": "size: 20 cm", "price_cents": 100, "keywords": "not read"}
    assert text_of("relevance", title="Hand saw", brand="Bahco", **slots) == "Hand saw. Tools Saws. Bahco. size: 20 cm"
    assert text_of("relevance", title="BAHCO hand saw", brand="Bahco", **slots) == (
        "BAHCO hand saw. Tools Saws. size: 20 cm"
    )
    assert text_of("relevance", title="Saw (old.)", brand="S.w") == "Saw (old.). S.w"
    assert text_of("relevance", brand="Bahco") == "Bahco"


def test_a_query_is_cleaned_and_blanks_are_none():
    queries = pl.DataFrame({"query_text": [" red\t&amp; blue ", " ", "saw"]})
    assert queries.select(QUERY_TEXT).to_series().to_list() == ["red & blue", None, "saw"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Salt &amp; pepper", "Salt & pepper"),
        ("27&quot; screen &#39;S&#x27;", "27\" screen 'S'"),
        ("one<br />two</p>three", "one two three"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("less < more, a<b, i <3 you", "less < more, a<b, i <3 you"),
        ("  a \t\r\n b\x00c\u00a0d\u200b ", "a b c d"),
        ("plain & simple", "plain & simple"),
        ("Zelt für zwei 🏕️ 帐篷", "Zelt für zwei 🏕️ 帐篷"),
    ],
)
def test_entities_tags_and_blanks_are_cleaned(raw: str, clean: str):
    assert text_of("amazon", title=raw) == f"Title: {clean}"


def test_each_row_is_worded_by_itself_in_a_lazy_frame():
    frame = pl.LazyFrame({"title": ["a &amp; b", None, "c"], "brand": [None, None, "d"], "category": ["e", None, None]})
    assert frame.select(PROMPTS["amazon"].text).collect().to_series().to_list() == [
        "Title: a & b. Category: e",
        None,
        "Title: c. Brand: d",
    ]


def test_versions_differ_and_prompts_read_only_columns_of_items():
    assert len({prompt.version for prompt in PROMPTS.values()}) == len(PROMPTS)
    for prompt in PROMPTS.values():
        assert set(prompt.text.meta.root_names()) <= set(Items.column_names())
