"""Rating files as events."""

import json
from pathlib import Path

import pytest

from millrace.pipelines.traffic.movielens import MovieLensSource
from millrace.runtime.errors import UserError

_HEADER = "userId,movieId,rating,timestamp\n"


def test_ratings_come_in_time_order_with_their_movie(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(_HEADER + "1,10,4.5,200\n2,11,2,100\n3,12,3,300\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"Heat, The (1995)",Crime|Drama\n11,Untitled,Comedy\n'
    )
    source = MovieLensSource(tmp_path)
    draw = source.draw(1000, 0)
    assert draw.user_ids.tolist() == [2, 1, 3]
    assert draw.item_ids.tolist() == [[11], [10], [12]]
    assert draw.actions.values.tolist() == [2.0, 4.5, 3.0]
    assert [json.loads(context) for context in draw.contexts] == [
        {"rated_at": 100, "genres": "Comedy"},
        {"rated_at": 200, "genres": "Crime|Drama", "year": "1995"},
        {"rated_at": 300},
    ]
    assert source.draw(1000, 0) is None


def test_half_of_the_asked_events_are_impressions(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(_HEADER + "".join(f"1,{i},3,{i}\n" for i in range(10)))
    source = MovieLensSource(tmp_path / "ratings.csv")
    assert [len(source.draw(count, 0).user_ids) for count in (1, 2, 8, 100)] == [1, 1, 4, 4]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ("", "cannot be read"),
        ("userId,movieId,timestamp\n1,2,3\n", "no column rating"),
        (_HEADER, "no ratings"),
        (_HEADER + "1,2,good,3\n", "cannot be read"),
        (_HEADER + "1,,3,4\n", "empty values"),
    ],
)
def test_a_wrong_file_is_a_user_error(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "ratings.csv").write_text(content)
    with pytest.raises(UserError, match=problem):
        MovieLensSource(tmp_path)
