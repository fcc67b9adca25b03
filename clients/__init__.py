"""People: the command line, the microphone, and what is shown."""
