"""Kafka, ZooKeeper, Prism and Flink as processes of this machine: fetched, started, stopped."""
