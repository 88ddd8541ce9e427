"""The links between nodes, generated from protos/chatgrpc/internal/v1 by `make generate`; only this file is written by hand."""
