"""Worker liveness, state and history, polled from the sources once per interval."""
