"""Events to send: a synthetic world, replayed ratings, and the ledger of what was sent."""
