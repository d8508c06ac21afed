# SPDX-License-Identifier: Apache-2.0
"""A gRPC service and its client, for Debian's Python and its grpc.

`serve PORT SECONDS` answers each call after this delay. `call PORT CALLS AT_ONCE PAUSE` makes CALLS calls on one
connection, each after a pause of its thread, and prints the seconds of each as a JSON list.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

METHOD = "/test.Test/Echo"


def serve(port: int, seconds: float) -> None:
    """Answer calls until the process is killed."""

    def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
        time.sleep(seconds)
        return request

    _, service, method = METHOD.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def call(port: int, calls: int, at_once: int, pause_s: float) -> None:
    """Make calls, `at_once` at a time."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary(METHOD)

        def timed(_: int) -> float:
            time.sleep(pause_s)
            began = time.perf_counter()
            echo(b"q" * 50)
            return time.perf_counter() - began

        with ThreadPoolExecutor(at_once) as pool:
            print(json.dumps(list(pool.map(timed, range(calls)))))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]), float(sys.argv[3]))
else:
    call(*map(int, sys.argv[2:5]), float(sys.argv[5]))
