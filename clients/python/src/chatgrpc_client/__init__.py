"""Python client library of chatgrpc."""
