# SPDX-License-Identifier: Apache-2.0
"""Send flows to a Kafka topic, as FlowBatch messages of docs/reference/flows.proto."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from nettop.collector.columns import Flows
from nettop.collector.protobuf import encoded_batch
from nettop.errors import Unsupported, UsageError

BATCH_FLOWS = 1000
"""Flows per message: about 100 kB, a tenth of a broker's default maximum."""
END_S = 10.0
"""Seconds to wait for deliveries on exit."""
SENT, FAILED = "kafka_sent", "kafka_failed"
"""Ledger counts of flows acknowledged by a broker, and not delivered."""


class Topic(NamedTuple):
    """Brokers, in librdkafka's syntax, and a topic."""

    brokers: str
    name: str


def topic_of(text: str) -> Topic:
    """Parse --kafka: HOST:PORT[,HOST:PORT…]/TOPIC. Raise UsageError."""
    brokers, _, name = text.rpartition("/")
    if not brokers or not name:
        raise UsageError(
            f"--kafka {text!r} has no topic", "write it like --kafka broker1:9092,broker2:9092/flows"
        )
    return Topic(brokers, name)


class KafkaOutput:
    """Output of flows to Kafka, with delivery counts. Use it from one thread; librdkafka has its own.

    It never waits for the brokers: it drops and counts flows that do not fit in the queue.
    """

    def __init__(self, topic: Topic, configuration: Mapping[str, str | int] | None = None) -> None:
        """Raise Unsupported without confluent-kafka, UsageError for invalid brokers."""
        self.counted = Counter[str]()
        self._topic = topic.name
        self._producer = _producer({"bootstrap.servers": topic.brokers, **_SETTINGS, **(configuration or {})})

    def send(self, flows: Flows) -> None:
        """Send flows, and process the results of earlier deliveries."""
        count = len(flows["received"])
        for begin in range(0, count, BATCH_FLOWS):
            end = min(begin + BATCH_FLOWS, count)
            self._produce(encoded_batch(flows, begin, end), end - begin)
        self._producer.poll(0)

    def close(self) -> None:
        """Wait for pending deliveries; undelivered messages are lost."""
        self._producer.flush(END_S)
        self._producer.purge()
        self._producer.poll(0)

    def _produce(self, message: bytes, flows: int) -> None:
        def on_delivery(error: object, _message: object) -> None:
            self.counted[FAILED if error else SENT] += flows

        try:
            self._producer.produce(self._topic, message, on_delivery=on_delivery)
        except BufferError:
            self.counted[FAILED] += flows


_SETTINGS: dict[str, str | int] = {
    "compression.type": "zstd",
    "linger.ms": 50,
    "queue.buffering.max.kbytes": 65_536,
    "client.id": "nettop",
}


def _producer(configuration: Mapping[str, str | int]) -> Any:
    try:
        from confluent_kafka import KafkaException, Producer
    except ImportError as error:
        raise Unsupported(
            f"flows cannot be sent to Kafka: {error}", "install confluent-kafka: pip install 'nettop[flows]'"
        ) from error
    try:
        return Producer(dict(configuration), logger=_silent())
    except (KafkaException, ValueError) as error:
        raise UsageError(f"invalid --kafka: {error}", "write it like --kafka broker:9092/flows") from error


def _silent() -> Any:
    """Return a logger that discards librdkafka's messages, which would go to standard error. KafkaOutput counts
    failures.
    """
    import logging

    logger = logging.getLogger("nettop.kafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
