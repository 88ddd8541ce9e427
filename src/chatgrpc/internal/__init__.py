"""What nodes say to each other, generated from protos/chatgrpc/internal by `make generate`."""
