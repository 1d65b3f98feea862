import numpy as np

from embedders.query_split import bucket_of, side_of, sides_of


def test_case_and_blanks_do_not_move_a_query():
    assert side_of("  Garden   Chair") == side_of("garden chair")
    assert bucket_of("garden chair") != bucket_of("garden chairs")


def test_the_sides_are_those_of_the_stored_runs():
    # written down once: another hash would put queries that a stored student was trained on into the test
    assert [bucket_of(query) for query in ("blue teapot", "garden chair", "usb cable", "")] == [1, 55, 54, 76]


def test_seventy_ten_twenty():
    sides = sides_of([f"query {number}" for number in range(20_000)])
    shares = {side: np.mean(sides == side) for side in ("train", "validation", "test")}
    assert abs(shares["train"] - 0.7) < 0.01
    assert abs(shares["validation"] - 0.1) < 0.01
    assert abs(shares["test"] - 0.2) < 0.01


def test_a_query_is_on_one_side_wherever_it_stands():
    queries = [f"query {number % 50}" for number in range(200)]
    assert sides_of(queries).tolist() == [side_of(query) for query in queries]
    assert sides_of([]).shape == (0,)
