"""Events for feeds without users: a synthetic world, replayed ratings, their producer and its ledger."""
