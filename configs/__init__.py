"""Configuration files (data): ``default.yaml`` shows every option of ``dragoman.stream.config`` with its default."""
