"""`millrace events`: sends generated or recorded events to Kafka, or writes generated ratings as files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli import common

if TYPE_CHECKING:
    from millrace.pipelines.traffic.source import TrafficSource


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "events",
        "Sends impressions and actions to Kafka in real time, as JSON, and keeps a ledger of what was sent. `ratings`\n"
        "writes files instead, which `replay` and `millrace train --offline` read.",
        "millrace events generate --rate 1000 --duration 60 --ledger ledger.parquet",
        _run,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="generate|replay|ratings")
    _add_generate(kinds)
    _add_replay(kinds)
    _add_ratings(kinds)


def _add_generate(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        kinds,
        "generate",
        "Sends the events of a synthetic world whose true click probabilities are known: users and items with\n"
        "drifting interests, clicks and likes after random delays, some lost, some late, some sent twice.",
        "millrace events generate --users 2000 --items 1000 --rate 1000 --duration 60 --ledger ledger.parquet",
        _run_generate,
    )
    parser.add_argument("--users", type=int, default=2000, metavar="N", help="number of users (default: %(default)s)")
    parser.add_argument("--items", type=int, default=1000, metavar="N", help="number of items (default: %(default)s)")
    parser.add_argument(
        "--items-per-impression", type=int, default=3, metavar="K", help="items per impression (default: %(default)s)"
    )
    parser.add_argument(
        "--window-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="window of the feed, after which actions are late (default: %(default)s)",
    )
    _add_sending_flags(parser)
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="stop after this time (default: never)")


def _add_replay(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        kinds,
        "replay",
        "Sends recorded ratings in time order as if they happened now: each is an impression of one item and, shortly\n"
        "after, a `rate` action with its value. It ends after the last rating. Ratings of real people: MovieLens of\n"
        "GroupLens (https://grouplens.org/datasets/movielens), file ml-latest-small.zip, unpacked; generated ones:\n"
        "`millrace events ratings my-ratings`.",
        "millrace events replay my-ratings --rate 1000",
        _run_replay,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a MovieLens folder, or its ratings.csv")
    parser.add_argument("--format", choices=("movielens",), default="movielens", help="(default: %(default)s)")
    _add_sending_flags(parser)
    parser.add_argument(
        "--duration", type=float, metavar="SECONDS", help="stop after this time (default: after the last rating)"
    )


def _add_ratings(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        kinds,
        "ratings",
        "Writes ratings of a synthetic world as ratings.csv and movies.csv, in MovieLens' format, for\n"
        "`millrace train --offline --input`, `millrace events replay` and `millrace demo --data`. Needs no Kafka.",
        "millrace events ratings my-ratings",
        _run_ratings,
    )
    parser.add_argument("path", type=Path, metavar="DIR", help="the folder to write; made when needed")
    parser.add_argument("--ratings", type=int, default=20_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--users", type=int, default=400, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--movies", type=int, default=800, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=common.at_least_zero, default=0, help="of everything that is drawn (default: %(default)s)"
    )


def _add_sending_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate",
        type=float,
        default=1000.0,
        metavar="N",
        help="records per second, both topics together (default: %(default)g)",
    )
    parser.add_argument(
        "--seed", type=common.at_least_zero, default=0, help="of everything that is drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="PATH",
        help="Parquet file that lists each row that was sent, with a summary beside it as .json",
    )
    parser.add_argument(
        "--partitions", type=int, default=4, metavar="N", help="of topics that do not exist yet (default: %(default)s)"
    )
    parser.add_argument(
        "--bad-records", type=int, default=0, metavar="N", help="mix in N bad records of each kind (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    common.add_kafka_flags(parser)
    common.add_process_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    raise AssertionError("argparse requires generate, replay or ratings")


def _run_generate(arguments: argparse.Namespace) -> int:
    from millrace.pipelines.traffic.source import ActionModel, GeneratedSource
    from millrace.pipelines.traffic.world import EventWorld, WorldConfig

    world = EventWorld(
        WorldConfig(arguments.users, arguments.items, arguments.items_per_impression, seed=arguments.seed)
    )
    return _send(arguments, GeneratedSource(world, ActionModel(window_seconds=arguments.window_seconds)))


def _run_replay(arguments: argparse.Namespace) -> int:
    from millrace.pipelines.traffic.movielens import MovieLensSource

    return _send(arguments, MovieLensSource(arguments.path, arguments.seed))


def _run_ratings(arguments: argparse.Namespace) -> int:
    from millrace.pipelines.traffic.ratings import RatingsConfig, write_ratings

    write_ratings(arguments.path, RatingsConfig(arguments.ratings, arguments.users, arguments.movies, arguments.seed))
    print(f"{arguments.ratings:,} ratings in {arguments.path}")
    return 0


def _send(arguments: argparse.Namespace, source: "TrafficSource") -> int:
    from millrace.pipelines.traffic.producer import EventProducer, ProducerConfig, describe, to_json
    from millrace.runtime.telemetry import setup_logging

    stop = common.stop_on_signals()
    setup_logging("events", arguments.log_level)
    config = ProducerConfig(
        rate=arguments.rate,
        duration_seconds=arguments.duration,
        bad_records=arguments.bad_records,
        partitions=arguments.partitions,
        ledger=arguments.ledger,
        seed=arguments.seed,
    )
    endpoint = common.metrics_endpoint(arguments)
    try:
        connection = common.kafka_connection(arguments, stop=stop)
        producer = EventProducer(connection, common.topics(arguments), source, config)
        common.announce_ready(arguments, metrics=endpoint.address)
        summary = producer.run(stop)
    finally:
        endpoint.close()
    print(to_json(summary) if arguments.json else describe(summary))
    return 0
