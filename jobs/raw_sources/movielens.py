"""MovieLens ratings (GroupLens), in the three layouts in which they are published, recognised by their files.

    ml-100k         u.data, u.item, u.genre                   1997-1998, whole stars
    ml-1m, ml-10m   ratings.dat, movies.dat                   fields separated by ::
    ml-latest, -20m, -25m, -32m   ratings.csv, movies.csv     half stars; the same as parquet is read too

Every rating is an impression that a person has seen; nothing is sampled. What a file holds beyond ratings, titles,
release years and genres is left alone: the free-text tags above all, since people wrote them after watching, often
years later, and an item's text counts as known from the day the item first appears. Nobody knows since when an item
could be rated; `jobs.ingest` dates it to the day of its first rating.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
from pydantic import BaseModel

from feature_repo.table_schemas import Impressions, Items
from jobs.raw_sources import LeftOut, Shard
from jobs.raw_sources.tabular_files import folder_of, id_text, listing, read_text, scan_file

ROWS_PER_SHARD = 500_000


class Config(BaseModel, extra="forbid", frozen=True):
    """From how many stars on a rating counts."""

    clicked_from_stars: float = 4.0
    """`clicked` = at least so many stars."""
    converted_from_stars: float = 5.0
    """`converted` = at least so many stars; not below `clicked_from_stars`."""


class Layout(NamedTuple):
    """How MovieLens may lie in a folder: its name and the two files that every copy of it has."""

    name: str
    ratings: str
    movies: str


LAYOUTS = (
    Layout("ml-latest", "ratings.csv", "movies.csv"),
    Layout("ml-latest", "ratings.parquet", "movies.parquet"),
    Layout("ml-1m", "ratings.dat", "movies.dat"),
    Layout("ml-100k", "u.data", "u.item"),
)


def label_rule(config: Config) -> str:
    """What `clicked` and `converted` stand for."""
    return (
        f"clicked = rated {config.clicked_from_stars:g} stars or more, converted = rated "
        f"{config.converted_from_stars:g} stars or more (proxies: nobody clicked or bought); every impression is a "
        "rating that a person gave, so what they chose not to rate is not in the log"
    )


def raw_files(path: Path | None, config: Config) -> list[Path]:
    """The ratings, the movies and, of ml-100k, the names of its genres."""
    folder = folder_of("movielens", path)
    layout = recognised_layout(folder)
    return [folder / layout.ratings, folder / layout.movies, *folder.glob("u.genre")]


def shards(path: Path | None, config: Config) -> Iterator[Shard | LeftOut]:
    """Items first, then the ratings.

    Raises:
        ValueError: the folder has none of the layouts, or a file lacks a column.
    """
    if config.converted_from_stars < config.clicked_from_stars:
        raise ValueError(
            f"[sources.movielens] converted_from_stars = {config.converted_from_stars:g} is below "
            f"clicked_from_stars = {config.clicked_from_stars:g}; a conversion needs a click: set it at least as high"
        )
    folder = folder_of("movielens", path)
    layout = recognised_layout(folder)
    with tempfile.TemporaryDirectory() as workspace:
        yield Shard(Items, _items(_movies(folder, layout, Path(workspace))))
        ratings = _ratings(folder, layout, Path(workspace))
        for batch in ratings.collect_batches(chunk_size=ROWS_PER_SHARD):
            yield Shard(Impressions, _impressions(batch, config))


def recognised_layout(folder: Path) -> Layout:
    """The layout whose files are in the folder.

    Raises:
        ValueError: none is.
    """
    for layout in LAYOUTS:
        if (folder / layout.ratings).is_file() and (folder / layout.movies).is_file():
            return layout
    known = "; ".join(f"{layout.ratings} and {layout.movies} ({layout.name})" for layout in LAYOUTS)
    raise ValueError(
        f"movielens: no layout of MovieLens recognised in {folder}: expected {known}; found {listing(folder)}. "
        "Set ingest.path to the folder with these files (an archive unpacks into a folder of its own)"
    )


def _ratings(folder: Path, layout: Layout, workspace: Path) -> pl.LazyFrame:
    """Columns user_id, item_id, stars, seconds."""
    file = folder / layout.ratings
    names = ["user_id", "item_id", "stars", "seconds"]
    if layout.name == "ml-1m":
        # Fields stand between double colons: with ":" as separator every second column is empty.
        spaced = [name for pair in zip(names, ["", "", "", ""], strict=True) for name in pair][:-1]
        spaced = [name or f"gap_{at}" for at, name in enumerate(spaced)]
        return pl.scan_csv(file, has_header=False, separator=":", new_columns=spaced, quote_char=None).select(names)
    if layout.name == "ml-100k":
        return pl.scan_csv(file, has_header=False, separator="\t", new_columns=names, quote_char=None)
    frame = scan_file(file, workspace=workspace)
    return _columns(frame, file, {"userId": "user_id", "movieId": "item_id", "rating": "stars", "timestamp": "seconds"})


def _movies(folder: Path, layout: Layout, workspace: Path) -> pl.DataFrame:
    """Columns item_id, title (with the year in brackets), genres (separated by |)."""
    file = folder / layout.movies
    if layout.name == "ml-latest":
        frame = scan_file(file, workspace=workspace)
        return _columns(frame, file, {"movieId": "item_id", "title": "title", "genres": "genres"}).collect()
    separator = "::" if layout.name == "ml-1m" else "|"
    rows = [line.split(separator) for line in read_text(file).splitlines() if line.strip()]
    if layout.name == "ml-100k":
        genres = _genres_of_ml_100k(folder / "u.genre")
        rows = [
            [row[0], row[1], "|".join(genre for genre, flag in zip(genres, row[5:], strict=True) if flag == "1")]
            for row in rows
        ]
    wrong = [row for row in rows if len(row) != 3]
    if wrong:
        raise ValueError(f"{file}: expected id, title and genres separated by {separator}, got {wrong[0]}")
    return pl.DataFrame(rows, schema=["item_id", "title", "genres"], orient="row")


def _genres_of_ml_100k(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; it names the genre flags of u.item. Unpack the archive again")
    return [line.split("|")[0] for line in read_text(file).splitlines() if line.strip()]


def _columns(frame: pl.LazyFrame, file: Path, names: dict[str, str]) -> pl.LazyFrame:
    found = frame.collect_schema().names()
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{file}: column {', '.join(missing)} missing (found: {', '.join(found)}). "
            "MovieLens names them so; for another layout use the source `columns`"
        )
    return frame.select(pl.col(old).alias(new) for old, new in names.items())


def _items(movies: pl.DataFrame) -> pl.DataFrame:
    """The year goes from the title to the attributes; "Matrix, The" becomes "The Matrix"."""
    year = r"\s*\((\d{4})[^)]*\)\s*$"
    genres = (
        pl.when(pl.col("genres").is_in(["(no genres listed)", ""])).then(pl.lit(None, pl.String)).otherwise("genres")
    )
    return movies.select(
        id_text(pl.col("item_id"), movies.schema["item_id"]).alias("item_id"),
        pl.col("title")
        .str.replace(year, "")
        .str.strip_chars()
        .str.replace(r"^(.*), (The|A|An)$", "$2 $1")
        .alias("title"),
        genres.str.split("|").list.first().alias("category"),
        genres.str.replace_all("|", ", ", literal=True).alias("keywords"),
        pl.format("released {}", pl.col("title").str.extract(year)).alias("attributes"),
    )


def _impressions(ratings: pl.DataFrame, config: Config) -> pl.DataFrame:
    user = id_text(pl.col("user_id"), ratings.schema["user_id"])
    item = id_text(pl.col("item_id"), ratings.schema["item_id"])
    time = (pl.col("seconds").cast(pl.Int64) * 1_000_000).cast(pl.Datetime("us", "UTC"))
    converted = pl.col("stars") >= config.converted_from_stars
    return ratings.select(
        impression_id=pl.format("{}:{}", user, item),
        user_id=user,
        item_id=item,
        event_timestamp=time,
        clicked=pl.col("stars") >= config.clicked_from_stars,
        converted=converted,
        conversion_timestamp=pl.when(converted).then(time),
        is_sampled=pl.lit(False),
    )
