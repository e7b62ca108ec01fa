"""One attempt: watched while it runs, judged when it has ended."""
