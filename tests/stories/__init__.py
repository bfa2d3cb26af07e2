"""Stories with known truth, for an auditor to read: what happened, and what must be found in it."""

from tests.stories import calls, context, credentials, records

STORIES = [
    story
    for about in (*calls.ABOUT, *credentials.ABOUT, *context.ABOUT, *records.ABOUT)
    for story in about.stories
]
