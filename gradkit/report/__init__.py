"""From a record to figures and one HTML page."""
