"""Names within the folder that a bounded feed writes its rows to."""

DEAD_LETTERS_FOLDER = "dead-letters"
"""Folder of the refused records, beside the files of rows."""

ROUTED_ACTIONS_FOLDER = "routed-actions"
"""Folder of the actions that did not join, beside the files of rows."""

SUCCESS = "_SUCCESS"
"""Marker file, written last: a folder without it may lack rows."""
