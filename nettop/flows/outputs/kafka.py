# SPDX-License-Identifier: Apache-2.0
"""Flows to a topic of Kafka: messages are FlowBatch of docs/flows.proto."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from nettop.errors import Unsupported, UsageError
from nettop.flows.columns import Flows
from nettop.flows.protobuf import encoded_batch

BATCH_FLOWS = 1000
"""Flows of a message: some 100 kB, a tenth of what brokers take."""
END_S = 10.0
"""For messages to be delivered at the end."""
SENT, FAILED = "kafka_sent", "kafka_failed"
"""The ledger's counts: flows that a broker has acknowledged, and flows that none has taken."""


class Topic(NamedTuple):
    """Brokers, as librdkafka takes them, and a topic."""

    brokers: str
    name: str


def topic_of(text: str) -> Topic:
    """What --kafka says: HOST:PORT[,HOST:PORT…]/TOPIC. Raises UsageError."""
    brokers, _, name = text.rpartition("/")
    if not brokers or not name:
        raise UsageError(
            f"--kafka {text!r} has no topic", "write it like --kafka broker1:9092,broker2:9092/flows"
        )
    return Topic(brokers, name)


class KafkaOutput:
    """Sends flows, and counts what became of them. It is used by one thread; librdkafka has others.

    Nothing waits for the brokers: what its queue does not take is lost, and counted.
    """

    def __init__(self, topic: Topic, configuration: Mapping[str, str | int] | None = None) -> None:
        """Raises Unsupported without confluent-kafka, UsageError for brokers that cannot be."""
        self.counted = Counter[str]()
        self._topic = topic.name
        self._producer = _producer({"bootstrap.servers": topic.brokers, **_SETTINGS, **(configuration or {})})

    def send(self, flows: Flows) -> None:
        """Send flows, and take note of what was delivered of those before."""
        count = len(flows["received"])
        for begin in range(0, count, BATCH_FLOWS):
            end = min(begin + BATCH_FLOWS, count)
            self._produce(encoded_batch(flows, begin, end), end - begin)
        self._producer.poll(0)

    def close(self) -> None:
        """Wait for what is on its way; what is not delivered then is lost."""
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
            f"flows cannot be sent to Kafka: {error}",
            "install confluent-kafka, by pip install 'nettop[flows]'",
        ) from error
    try:
        return Producer(dict(configuration), logger=_silent())
    except (KafkaException, ValueError) as error:
        raise UsageError(
            f"--kafka cannot be used: {error}", "write it like --kafka broker:9092/flows"
        ) from error


def _silent() -> Any:
    """A logger of librdkafka's complaints, which would be standard error: what fails is counted."""
    import logging

    logger = logging.getLogger("nettop.kafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
