"""Kafka and ZooKeeper for development."""


def running_address(name: str) -> str | None:
    """Address of the running development server `name`, None when there is none."""
    return None
