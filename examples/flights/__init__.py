"""Departures from New York in 2013 as a flow of Arrow record batches."""
