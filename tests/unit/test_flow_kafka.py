# SPDX-License-Identifier: Apache-2.0
"""Flows to Kafka: to librdkafka's mock broker, and to a missing one."""

from __future__ import annotations

import pytest

from nettop.collector import kafka
from nettop.collector.kafka import FAILED, SENT, KafkaOutput, Topic, topic_of
from nettop.collector.protobuf import decode_batch
from nettop.errors import UsageError

from .test_flow_protobuf import example_flows, rows_of

confluent_kafka = pytest.importorskip("confluent_kafka")

DEADLINE_S = 60.0
NOWHERE = "127.0.0.1:1"


def test_flows_become_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is a batch of bounded size, in order; acknowledged flows are counted."""
    monkeypatch.setattr(kafka, "BATCH_FLOWS", 2)
    # A cluster belongs to the client that created it: the consumer here, which lends it to the producer.
    consumer = confluent_kafka.Consumer(
        {
            "test.mock.num.brokers": 1,
            "bootstrap.servers": "ignored",
            "group.id": "nettop",
            "auto.offset.reset": "earliest",
        }
    )
    brokers = next(iter(consumer.list_topics(timeout=DEADLINE_S).brokers.values()))
    output = KafkaOutput(Topic(f"{brokers.host}:{brokers.port}", "flows"))
    flows = example_flows(5)
    output.send(flows)
    output.close()
    assert output.counted == {SENT: 5}
    consumer.subscribe(["flows"])
    sizes, rows = [], []
    while len(rows) < 5:
        message = consumer.poll(DEADLINE_S)
        assert message is not None
        assert message.error() is None, message.error()
        some, count = decode_batch(message.value(), 0)
        sizes.append(count)
        rows += rows_of(some)
    consumer.close()
    assert sorted(sizes) == [1, 2, 2]
    assert sorted(rows) == sorted(rows_of(flows))


def test_no_broker() -> None:
    """What cannot be delivered in time, or does not fit in the queue, is counted; nothing blocks."""
    output = KafkaOutput(Topic(NOWHERE, "flows"), {"message.timeout.ms": 100})
    output.send(example_flows(4))
    output.close()
    assert output.counted == {FAILED: 4}


def test_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is counted at once."""
    monkeypatch.setattr(kafka, "BATCH_FLOWS", 1)
    monkeypatch.setattr(kafka, "END_S", 0.0)
    output = KafkaOutput(Topic(NOWHERE, "flows"), {"queue.buffering.max.messages": 3})
    output.send(example_flows(5))
    assert output.counted == {FAILED: 2}
    output.close()
    assert output.counted == {FAILED: 5}


@pytest.mark.parametrize("text", ["", "broker:9092", "/flows", "broker:9092/"])
def test_values_without_a_broker_or_a_topic(text: str) -> None:
    """The error shows the correct form."""
    with pytest.raises(UsageError, match="has no topic"):
        topic_of(text)


def test_values_with_several_brokers() -> None:
    """The last part is the topic."""
    assert topic_of("a:9092,b:9092/flows") == ("a:9092,b:9092", "flows")
