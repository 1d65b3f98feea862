"""What the columns of all tables are made of."""

import datetime as dt

import dataframely as dy
import polars as pl

EARLIEST = dt.datetime(1990, 1, 1, tzinfo=dt.timezone.utc)
"""No log of ours is older; an older time is a wrong unit (seconds read as microseconds) or a dummy value."""

MAX_TEXT_CHARACTERS = 32_768
"""A longer text in an item table is a broken export (a page of HTML, a shifted column), not a description."""

ACTIVITY_WINDOWS_DAYS = (1, 7, 30, 180)
"""Trailing windows of the activity tables. 180 days is also the look-back of the segments (LEARN: six months)."""


def key() -> dy.String:
    """Part of the key: a string, never empty."""
    return dy.String(primary_key=True, min_length=1)


def identifier(nullable: bool = False) -> dy.String:
    """An id that is no key."""
    return dy.String(nullable=nullable, min_length=1)


def time(primary_key: bool = False, nullable: bool = False) -> dy.Datetime:
    """UTC, microseconds."""
    return dy.Datetime(
        primary_key=primary_key, nullable=nullable and not primary_key, time_unit="us", time_zone="UTC", min=EARLIEST
    )


def text() -> dy.String:
    """What a catalogue says; may be missing."""
    return dy.String(nullable=True, max_length=MAX_TEXT_CHARACTERS)


def count() -> dy.Int64:
    """How often."""
    return dy.Int64(nullable=False, min=0)


def probability(nullable: bool = False) -> dy.Float64:
    """0 to 1."""
    return dy.Float64(nullable=nullable, min=0.0, max=1.0)


def vector() -> dy.List:
    """float32, any width."""
    return dy.List(dy.Float32(nullable=False), nullable=False, min_length=1)


def finite_unit_norm(column: str) -> pl.Expr:
    """True where a vector is finite and of length 1 (polars orders NaN above every number, so NaN fails too)."""
    squared = pl.col(column).list.eval(pl.element().cast(pl.Float64) ** 2).list.sum()
    return (squared - 1.0).abs() < 1e-3
