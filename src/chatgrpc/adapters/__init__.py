"""One package per engine; each passes the contract suite of the ports it serves."""
