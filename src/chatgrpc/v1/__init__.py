"""The public API, generated from protos/chatgrpc/v1 by `make generate`; this file is the only one written by hand."""
