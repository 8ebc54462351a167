"""Builds the graph of a feed, whatever it reads; `launch` needs no other module of this folder for it."""

import uuid

import apache_beam as beam

from millrace.pipelines.feed.event_feed import add_event_feed
from millrace.pipelines.feed.options import FeedOptions
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.feed.record_feed import add_record_feed
from millrace.pipelines.feed.sinks import sinks_of

__all__ = ["build_feed"]


def build_feed(pipeline: beam.Pipeline, options: FeedOptions, plan: ReadPlan) -> None:
    """Adds a whole feed to `pipeline`: events that are joined, or records that somebody has joined already.

    Args:
      plan: where to read (`millrace.pipelines.feed.read_plan.plan_reads`).
    """
    add_feed = add_record_feed if options.reads_records else add_event_feed
    add_feed(pipeline, options, plan, sinks_of(options, plan), uuid.uuid4().hex)
