"""What flows through the loop: a generated world, or real ratings."""

from dataclasses import dataclass
from pathlib import Path

from millrace.cli.loop.freshness import ProbeEvents
from millrace.runtime.errors import UserError


@dataclass(frozen=True)
class Scenario:
    """A task, its events and what a client must send beside user and item.

    `users` and `items` bound the ids that the client asks for; `producer` are the flags of `millrace events`.
    `rows` is how many rows there are at most; None: no end.
    """

    title: str
    task: str
    model: str
    head: str
    users: int
    items: int
    probe: ProbeEvents
    producer: tuple[str, ...]
    data: Path | None = None
    rows: int | None = None


_FASTEST_REPLAY = 2400.0  # events per second, two per rating: what a machine with 2 cores takes


def generated(rate: float, seed: int, bad_records: int) -> Scenario:
    """The synthetic world, `rate` events per second until the producer is stopped."""
    users, items = 2000, 1000
    context: dict[str, str | int] = {"device": "phone", "hour": 12}
    return Scenario(
        title="Millrace demo: a synthetic world",
        task="millrace.examples.feed_ranking:FeedRanking",
        model="feed",
        head="click",
        users=users,
        items=items,
        probe=ProbeEvents("click", None, context, context),
        producer=(
            "generate", "--users", str(users), "--items", str(items), "--rate", str(rate),
            "--seed", str(seed), "--bad-records", str(bad_records),
        ),
    )  # fmt: skip


def movielens(folder: Path, rate: float | None, seconds: float) -> Scenario:
    """Replays `folder`/ratings.csv in time order, `rate` events per second, two per rating.

    Without a rate, the ratings last half as long again as `seconds`, so that a slow machine has events to the end.
    """
    if not (folder / "ratings.csv").is_file():
        raise UserError("--data", folder, "there is no ratings.csv in it", "name a MovieLens folder")
    with open(folder / "ratings.csv", "rb") as file:
        ratings = sum(1 for _ in file) - 1
    if rate is None:
        rate = max(1.0, min(_FASTEST_REPLAY, round(2 * ratings / (1.5 * seconds))))
    return Scenario(
        title="Millrace demo: MovieLens, replayed",
        task="millrace.examples.movies:MovieRanking",
        model="movies",
        head="like",
        users=600,
        items=2000,
        probe=ProbeEvents("rate", 5.0, {}, {"genres": "", "year": ""}),
        producer=("replay", "--format", "movielens", str(folder), "--rate", str(rate)),
        data=folder,
        rows=ratings,
    )
