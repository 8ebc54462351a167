"""`millrace predict`: asks a model server for one prediction."""

import argparse
import json

from millrace.cli import common


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "predict",
        "Asks a model server for one prediction. Several values of an input make a batch; a single value "
        "stands in each of its rows.",
        "millrace predict --server 127.0.0.1:8500 --model feed --input user_id=17 --input item_id=3,9,2 "
        "--input device=phone --input hour=13",
        _run,
    )
    parser.add_argument("--server", type=common.addresses, required=True, metavar="HOST:PORT")
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="values of one input of the signature; give the flag once per input",
    )
    parser.add_argument("--version", type=int, metavar="N", help="version of the model (default: the newest)")
    parser.add_argument("--signature", default="serving_default", metavar="NAME", help="of the model (%(default)s)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="for the answer (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    with common.tensorflow_import():
        from millrace.serving.client.shell_predict import PredictOptions, predict_once

    answer = predict_once(
        PredictOptions(
            server=arguments.server,
            model=arguments.model,
            inputs=tuple(arguments.input),
            version=arguments.version,
            signature=arguments.signature,
            timeout=arguments.timeout,
        )
    )
    if arguments.json:
        print(json.dumps(answer.to_json()))
    else:
        print(answer.to_table())
    return 0
