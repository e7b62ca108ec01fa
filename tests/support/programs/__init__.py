"""Programs that tests start, most of them as one rank of a job."""
