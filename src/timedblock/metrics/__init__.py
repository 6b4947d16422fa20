"""What the blocks counted, for monitoring systems (L5): Prometheus and OpenTelemetry.

Both read at scrape or export time; a call pays nothing for them.
"""
