"""Which workers are alive: what each engine already knows of its workers, looked at once per interval."""
