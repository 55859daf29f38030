"""The web server around the page: what it refuses, where it keeps files, how it is. It knows nothing of the page."""
