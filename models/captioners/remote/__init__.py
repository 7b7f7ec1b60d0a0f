"""What captioners behind a server share: pictures as text, many requests at once, one server."""
