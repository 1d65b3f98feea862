import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from feature_repo.table_schemas import Impressions, Items
from jobs.raw_sources import Shard
from jobs.raw_sources.movielens import Config, label_rule, recognised_layout, shards

RATINGS = [(1, 31, 2.5, 1260759144), (1, 29, 4.0, 1260759179), (2, 29, 5.0, 835355493), (2, 6, 4.5, 835355600)]
MOVIES = [
    (6, "Heat (1995)", "Action|Crime|Thriller"),
    (29, "City of Lost Children, The (Cité des enfants perdus, La) (1995)", "Adventure|Drama"),
    (31, "Hyena Road", "(no genres listed)"),
]
GENRES = ["unknown", "Action", "Adventure", "Crime", "Drama", "Thriller"]


def write_ml_latest(folder: Path, suffix: str) -> None:
    ratings = pl.DataFrame(RATINGS, schema=["userId", "movieId", "rating", "timestamp"], orient="row")
    movies = pl.DataFrame(MOVIES, schema=["movieId", "title", "genres"], orient="row")
    for name, frame in (("ratings", ratings), ("movies", movies)):
        path = folder / f"{name}.{suffix}"
        frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)


def write_ml_1m(folder: Path) -> None:
    ratings = "".join(f"{user}::{movie}::{stars:g}::{time}\n" for user, movie, stars, time in RATINGS)
    (folder / "ratings.dat").write_text(ratings)
    movies = "".join(f"{movie}::{title}::{genres}\n" for movie, title, genres in MOVIES)
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))


def write_ml_100k(folder: Path) -> None:
    ratings = "".join(f"{user}\t{movie}\t{stars:g}\t{time}\n" for user, movie, stars, time in RATINGS)
    (folder / "u.data").write_text(ratings)
    (folder / "u.genre").write_text("".join(f"{genre}|{at}\n" for at, genre in enumerate(GENRES)) + "\n")
    lines = []
    for movie, title, genres in MOVIES:
        flags = "|".join("1" if genre in genres.split("|") else "0" for genre in GENRES)
        lines.append(f"{movie}|{title}|01-Jan-1995||http://us.imdb.com/{movie}|{flags}\n")
    (folder / "u.item").write_bytes("".join(lines).encode("latin-1"))


WRITERS = {
    "ml-latest csv": lambda folder: write_ml_latest(folder, "csv"),
    "ml-latest parquet": lambda folder: write_ml_latest(folder, "parquet"),
    "ml-1m": write_ml_1m,
    "ml-100k": write_ml_100k,
}


def read(folder: Path, config: Config = Config()) -> dict[type, pl.DataFrame]:  # noqa: B008 (immutable)
    pieces = list(shards(folder, config))
    assert all(isinstance(piece, Shard) for piece in pieces)
    return {
        schema: pl.concat([piece.frame for piece in pieces if isinstance(piece, Shard) and piece.schema is schema])
        for schema in (Items, Impressions)
    }


@pytest.fixture(params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    WRITERS[request.param](tmp_path)
    return tmp_path


def test_every_layout_gives_the_same_impressions(folder: Path):
    impressions = read(folder)[Impressions].sort("impression_id")
    columns = ["impression_id", "user_id", "item_id", "clicked", "converted", "is_sampled"]
    assert impressions.select(columns).rows() == [
        ("1:29", "1", "29", True, False, False),
        ("1:31", "1", "31", False, False, False),
        ("2:29", "2", "29", True, True, False),
        ("2:6", "2", "6", True, False, False),
    ]
    first = impressions.row(0, named=True)
    assert first["event_timestamp"] == dt.datetime(2009, 12, 14, 2, 52, 59, tzinfo=dt.timezone.utc)


def test_every_layout_gives_the_same_items(folder: Path):
    items = read(folder)[Items].sort("item_id")
    assert items.get_column("title").to_list() == [
        "City of Lost Children, The (Cité des enfants perdus, La)",
        "Hyena Road",
        "Heat",
    ]
    assert items.get_column("category").to_list() == ["Adventure", None, "Action"]
    assert items.get_column("keywords").to_list() == ["Adventure, Drama", None, "Action, Crime, Thriller"]
    assert items.get_column("attributes").to_list() == ["released 1995", None, "released 1995"]


def test_the_article_of_a_title_comes_first(tmp_path: Path):
    write_ml_latest(tmp_path, "csv")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Matrix, The (1999)",Action\n2,Fawlty (1975-1979),Comedy\n'
    )
    items = read(tmp_path)[Items]
    assert items.get_column("title").to_list() == ["The Matrix", "Fawlty"]
    assert items.get_column("attributes").to_list() == ["released 1999", "released 1975"]


def test_a_conversion_is_dated_as_the_rating(folder: Path):
    impressions = read(folder)[Impressions]
    converted = impressions.filter("converted")
    assert converted.get_column("conversion_timestamp").equals(
        converted.get_column("event_timestamp"), check_names=False
    )
    assert impressions.filter(~pl.col("converted")).get_column("conversion_timestamp").null_count() == 3


def test_the_label_thresholds_can_be_set_and_are_stated(folder: Path):
    config = Config(clicked_from_stars=4.5, converted_from_stars=4.5)
    impressions = read(folder, config)[Impressions]
    assert impressions.get_column("clicked").sum() == impressions.get_column("converted").sum() == 2
    assert "clicked = rated 4.5 stars or more" in label_rule(config)
    assert "proxies" in label_rule(config)


def test_conversions_cannot_start_below_clicks(folder: Path):
    with pytest.raises(ValueError, match="converted_from_stars = 3 is below clicked_from_stars = 4"):
        list(shards(folder, Config(converted_from_stars=3)))


def test_an_unrecognised_layout_names_what_is_expected_and_what_is_there(tmp_path: Path):
    (tmp_path / "ratings.csv").touch()
    (tmp_path / "README.txt").touch()
    with pytest.raises(
        ValueError, match=r"no layout of MovieLens.*ratings\.csv and movies\.csv.*found README\.txt, rat"
    ):
        recognised_layout(tmp_path)


def test_a_missing_column_names_the_file_and_the_columns_found(tmp_path: Path):
    write_ml_latest(tmp_path, "csv")
    (tmp_path / "ratings.csv").write_text("userId,movieId,stars,timestamp\n1,31,2.5,1260759144\n")
    with pytest.raises(
        ValueError, match=r"ratings\.csv: column rating missing \(found: userId, movieId, stars, timest"
    ):
        read(tmp_path)


def test_a_movie_line_with_a_field_too_few_is_shown(tmp_path: Path):
    write_ml_1m(tmp_path)
    (tmp_path / "movies.dat").write_text("1::Toy Story (1995)\n")
    with pytest.raises(ValueError, match=r"movies\.dat: expected id, title and genres.*got \['1', 'Toy Story"):
        read(tmp_path)


def test_ml_100k_without_its_genres_is_refused(tmp_path: Path):
    write_ml_100k(tmp_path)
    (tmp_path / "u.genre").unlink()
    with pytest.raises(ValueError, match=r"u\.genre: there is no such file"):
        read(tmp_path)


@pytest.mark.realdata
def test_latest_small_is_read_whole(real_data: Path):
    tables = read(real_data / "ml_latest_small")
    impressions, items = tables[Impressions], tables[Items]
    assert (len(impressions), len(items)) == (100_004, 9_125)
    assert impressions.get_column("clicked").sum() == 28_750 + 7_723 + 15_095
    assert impressions.get_column("converted").sum() == 15_095
    assert impressions.get_column("impression_id").is_unique().all()
    assert items.get_column("title").null_count() == 0
